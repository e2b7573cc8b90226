"""Ways to learn an edit; each is a frozen set of its own hyperparameters with `fit(model, task, seed=...) -> Fit`."""

from lofit_lens.methods.base import Fit, Method
from lofit_lens.methods.lofit import LoFiT

__all__ = ["Fit", "LoFiT", "Method"]
