"""Ways to learn an edit; each is a frozen set of its own hyperparameters with `fit(model, task, seed=...) -> Fit`."""

from lofit_lens.methods.base import Fit, Method
from lofit_lens.methods.iti import ITI
from lofit_lens.methods.lofit import LoFiT
from lofit_lens.methods.red import RED

METHODS: dict[str, type[LoFiT] | type[ITI] | type[RED]] = {"lofit": LoFiT, "iti": ITI, "red": RED}

__all__ = ["ITI", "METHODS", "RED", "Fit", "LoFiT", "Method"]
