"""Figures: each takes a result and gives a `plotly.graph_objects.Figure`; no model, no files, no state."""

from lofit_lens.plots.attribution import offset_attribution
from lofit_lens.plots.doses import dose_curves
from lofit_lens.plots.geometry import cosine_distribution, offset_plane
from lofit_lens.plots.head_transfers import head_transfer
from lofit_lens.plots.heads import cumulative_scores, head_heatmap, head_heatmaps, layer_histogram
from lofit_lens.plots.mixtures import mixture_curves
from lofit_lens.plots.overlap import overlap_matrix, shared_heads
from lofit_lens.plots.reading import offset_tokens
from lofit_lens.plots.sweeps import sweep_curves
from lofit_lens.plots.tokens import TokenView, attention_view, circuitsvis_code, token_view
from lofit_lens.plots.transfer import transfer_matrix

__all__ = [
    "TokenView",
    "attention_view",
    "circuitsvis_code",
    "cosine_distribution",
    "cumulative_scores",
    "dose_curves",
    "head_heatmap",
    "head_heatmaps",
    "head_transfer",
    "layer_histogram",
    "mixture_curves",
    "offset_attribution",
    "offset_plane",
    "offset_tokens",
    "overlap_matrix",
    "shared_heads",
    "sweep_curves",
    "token_view",
    "transfer_matrix",
]
