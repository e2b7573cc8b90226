"""Ways to learn an edit; each is a frozen set of its own hyperparameters with `fit(model, task, seed=...) -> Fit`."""

from lofit_lens.methods.base import Fit, Method
from lofit_lens.methods.iti import ITI
from lofit_lens.methods.lofit import LoFiT

METHODS: dict[str, type[LoFiT] | type[ITI]] = {"lofit": LoFiT, "iti": ITI}

__all__ = ["ITI", "METHODS", "Fit", "LoFiT", "Method"]
