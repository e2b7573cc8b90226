"""What edits do along a text: each token's log-probability and KL, and where two heads behind the first edit look.

LoFiT's edits (seed 0) of the runs that `figures/saved.py` names, on the first test example of each task with its right answer.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from figures.saved import TASKS, adapter, model
from lofit_lens import plots
from lofit_lens.analysis import attention_patterns, token_effects
from lofit_lens.plots.template import Columns
from lofit_lens.results import Result


def compute() -> Iterator[tuple[str, Result]]:
    for name, task in TASKS.items():
        edit, example = adapter(name), task.test[0]
        yield f"{name}-tokens", token_effects(model(), example.prompt + example.answer, edit)
        # Patterns of the first edited layer are as they were.
        last = sorted(edit.heads)[-2:]
        yield f"{name}-attention", attention_patterns(model(), example.prompt + example.answer, last, edit)


def draw(results: Mapping[str, Any], columns: Columns | None) -> dict[str, Any]:
    # Pages for a screen. Of one task: each page holds more than a megabyte of code.
    name = "kinship"
    return {
        "tokens": plots.token_view(
            results[f"{name}-tokens"], title=f"{name}: token by token, blue and red each on a scale of its own"
        ),
        "attention": plots.attention_view(results[f"{name}-attention"], title=f"{name}: where heads look"),
    }
