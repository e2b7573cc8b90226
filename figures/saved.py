"""What the figure folders beside this file start from: the runs that `figures/methods` keeps, on three generated tasks.

SmolLM2-135M-Instruct (dequantised, float32); LoFiT at 10 % of heads (27 of 270), 100 training examples, seeds 0 and 1, learning
rates as validation picked them.
"""

import functools
import json
from dataclasses import replace

import lofit_lens as ll
from figures.methods.study import adapter_path, scores_path
from figures.studies import scores_of
from lofit_lens.lens import LensModel
from lofit_lens.tasks import Task

SEEDS = (0, 1)
K = 27
#: Keys and values a layer, which the nine query heads share.
N_KV_HEADS = 3
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
def adapter(task: str, seed: int = 0) -> ll.HeadIntervention:
    return ll.HeadIntervention.load(adapter_path(task, "LoFiT", seed), model())


def scores(task: str, seed: int = 0) -> ll.HeadScores:
    """LoFiT's first step."""
    found = scores_of(json.loads(scores_path(task, seed).read_text()), TASKS[task])
    return replace(found, n_key_value_heads=N_KV_HEADS)
