"""Two edits at once, on the way from one to the other, and every edit on every task.

LoFiT's edits (seed 0) of the runs that `figures/saved.py` names, on 50 test examples of each task.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from figures.saved import TASKS, adapter, model
from lofit_lens import plots
from lofit_lens.analysis import TransferTable, mixture
from lofit_lens.plots.template import Columns
from lofit_lens.results import Result

WEIGHTS = ((0.0, 0.0), (1.0, 0.0), (0.5, 0.5), (0.0, 1.0), (1.0, 1.0))
PAIRS = tuple(combinations(TASKS, 2))


def compute() -> Iterator[tuple[str, Result]]:
    alone = {}
    for a, b in PAIRS:
        found = mixture(model(), {name: TASKS[name] for name in (a, b)}, adapter(a), adapter(b), WEIGHTS)
        yield f"{a}-{b}", found
        for source, weights in (("base", (0.0, 0.0)), (a, (1.0, 0.0)), (b, (0.0, 1.0))):
            alone |= {(source, name): found.evaluations[weights, name] for name in (a, b)}
    # The ends of the mixtures are what `effects_on_tasks` would compute again.
    yield "effects", TransferTable(alone, ("base", *TASKS), tuple(TASKS), "adapter")


def draw(results: Mapping[str, Any], columns: Columns | None) -> dict[str, Any]:
    mixed = {
        f"{a}-{b}": plots.mixture_curves(results[f"{a}-{b}"], names=(a, b), title=f"From {a} to {b}, and both", columns=columns)
        for a, b in PAIRS
    }
    effects = plots.transfer_matrix(results["effects"], title="Each edit on each task", columns=columns)
    return {**mixed, "effects": effects}
