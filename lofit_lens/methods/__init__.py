"""Ways to learn an edit; each is a frozen set of its own hyperparameters with `fit(model, task, seed=...) -> Fit`."""

from typing import Any

from lofit_lens.methods.base import Fit, Method
from lofit_lens.methods.bitfit import BitFit
from lofit_lens.methods.few_shot import FewShot
from lofit_lens.methods.iti import ITI
from lofit_lens.methods.jola import JoLA
from lofit_lens.methods.lofit import LoFiT
from lofit_lens.methods.lora import LoRA
from lofit_lens.methods.loreft import LoReFT
from lofit_lens.methods.red import RED
from lofit_lens.methods.repe import RepE

#: Every method by the name that a command line or a study file has for it.
METHODS: dict[str, type[Any]] = {
    "lofit": LoFiT,
    "iti": ITI,
    "repe": RepE,
    "red": RED,
    "lora": LoRA,
    "loreft": LoReFT,
    "bitfit": BitFit,
    "jola": JoLA,
    "few_shot": FewShot,
}

__all__ = [
    "ITI",
    "METHODS",
    "RED",
    "BitFit",
    "FewShot",
    "Fit",
    "JoLA",
    "LoFiT",
    "LoRA",
    "LoReFT",
    "Method",
    "RepE",
]
