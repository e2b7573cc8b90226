"""How many heads LoFiT needs, and how many training examples: the metric on 200 test examples of three tasks, two seeds.

The runs are those of `study.py` beside this file and of `figures/methods`; no model is needed.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from figures.saved import SEEDS, TASKS
from figures.sweeps.study import evaluation, places
from lofit_lens import plots
from lofit_lens.analysis import Sweep
from lofit_lens.plots.template import Columns
from lofit_lens.results import Result

#: For each sweep, the label of its axis, and what its places are multiplied by there.
QUANTITIES = {"heads": ("heads (% of all)", 100), "examples": ("training examples", 1)}


def compute() -> Iterator[tuple[str, Result]]:
    for kind, (quantity, factor) in QUANTITIES.items():
        for name in TASKS:
            with contextlib.suppress(FileNotFoundError):  # not all of it has been run
                runs = {factor * x: tuple(evaluation(name, kind, x, seed) for seed in SEEDS) for x in places(name, kind)}
                yield f"{kind}-{name}", Sweep(quantity, runs)


def draw(results: Mapping[str, Any], columns: Columns | None) -> dict[str, Any]:
    """Tasks of one metric share a figure."""
    figures = {}
    for kind in QUANTITIES:
        of_metric: dict[str, dict[str, Any]] = {}
        for name in TASKS:
            if found := results.get(f"{kind}-{name}"):
                metric = next(iter(found.evaluations.values()))[0].metric
                of_metric.setdefault(metric, {})[name] = found
        for metric, sweeps in of_metric.items():
            figures[f"{kind}-{metric}"] = plots.sweep_curves(sweeps, title=f"LoFiT with more {kind}", columns=columns)
    return figures
