"""What an edit gains and what it costs at every strength, from pushing the other way to twice its own.

LoFiT's edits (seed 0) of the runs that `figures/saved.py` names, on 50 test examples; the cost on 10 ARC-Challenge questions
with their answers, text that none of the tasks has (`LOFIT_LENS_DATA`, or `lofit-lens download arc_challenge`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from figures.saved import TASKS, adapter, model
from lofit_lens import plots
from lofit_lens.analysis import dose_response
from lofit_lens.plots.template import Columns
from lofit_lens.results import Result
from lofit_lens.tasks import ARCChallenge, texts_of

DOSES = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)


def compute() -> Iterator[tuple[str, Result]]:
    texts = texts_of(ARCChallenge(), 10)
    for name, task in TASKS.items():
        yield name, dose_response(model(), task, adapter(name), DOSES, texts=texts)


def draw(results: Mapping[str, Any], columns: Columns | None) -> dict[str, Any]:
    return {name: plots.dose_curves(results[name], title=f"{name}: strength of the edit", columns=columns) for name in TASKS}
