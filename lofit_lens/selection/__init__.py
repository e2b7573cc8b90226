"""Other ways to score heads than LoFiT's scaling (`LoFiT.select`) and ITI's probes (`ITI.select`); each gives `HeadScores`."""

from lofit_lens.selection.gradient import gradient_scores, greedy_gradient_scores
from lofit_lens.selection.layer_probes import layer_probe_scores
from lofit_lens.selection.orders import random_scores, spread_over_layers

__all__ = ["gradient_scores", "greedy_gradient_scores", "layer_probe_scores", "random_scores", "spread_over_layers"]
