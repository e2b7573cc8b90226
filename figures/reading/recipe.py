"""What offsets say in vocabulary space: the likeliest tokens of each head's offset, and what it adds to right answers directly.

LoFiT's offsets (seed 0) of the runs that `figures/saved.py` names, through each head's W_O, the final norm and the unembedding;
direct attribution on 50 test examples. Tokens are those of the eight heads with the largest scaling.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from figures.saved import TASKS, adapter, model, scores
from lofit_lens import plots
from lofit_lens.analysis import attribute_offsets, read_offsets
from lofit_lens.plots.template import Columns
from lofit_lens.results import Result

SHOWN = 8


def compute() -> Iterator[tuple[str, Result]]:
    for name, task in TASKS.items():
        yield name, read_offsets(model(), adapter(name).restrict(scores(name).top(SHOWN)))
        yield f"{name}-attribution", attribute_offsets(model(), task, adapter(name))


def draw(results: Mapping[str, Any], columns: Columns | None) -> dict[str, Any]:
    figures = {}
    for name in TASKS:
        figures[name] = plots.offset_tokens(
            results[name], k=4 if columns == 1 else 8, title=f"Likeliest tokens of {name}'s offsets", columns=columns
        )
        figures[f"{name}-attribution"] = plots.offset_attribution(
            results[f"{name}-attribution"], title=f"What {name}'s offsets add", columns=columns
        )
    return figures
