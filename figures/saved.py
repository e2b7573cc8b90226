"""What the figure folders beside this file start from: the runs that `figures/methods` keeps, on three generated tasks.

SmolLM2-135M-Instruct (dequantised, float32); LoFiT at 10 % of heads (27 of 270), 100 training examples, seeds 0 and 1, learning
rates as validation picked them.
"""

import functools
import json
from pathlib import Path

import torch

import lofit_lens as ll
from lofit_lens.lens import LensModel
from lofit_lens.tasks import Task

METHODS = Path(__file__).parent / "methods" / "results"
SEEDS = (0, 1)
K = 27
#: Query heads that read the same keys and values.
HEADS_PER_KV = 3
#: Small, so that all analyses of these runs take minutes.
SIZES = {"n_train": 100, "n_val": 20, "n_test": 50}
TASKS: dict[str, Task] = {
    "kinship": ll.tasks.Kinship(**SIZES),
    "counterfactual": ll.tasks.Counterfactual(**SIZES),
    "truth": ll.tasks.Truth(**SIZES),
}


@functools.cache
def model() -> LensModel:
    return ll.load_model("smollm2-135m-instruct")


@functools.cache
def adapter(task: str, seed: int = 0, method: str = "LoFiT") -> ll.HeadIntervention:
    return ll.HeadIntervention.load(METHODS / "adapters" / f"{task}-{method}-seed{seed}", model())


def scores(task: str, seed: int = 0) -> ll.HeadScores:
    """LoFiT's first step."""
    stored = json.loads((METHODS / "scores" / f"{task}-seed{seed}.json").read_text())
    return ll.HeadScores(torch.tensor(stored["scores"]), "norm of the learned scaling", stored["made_of"])


def best_heads(task: str, count: int) -> tuple[ll.Head, ...]:
    """Of the saved adapter, by its scores."""
    return scores(task).top(count)
