"""Where three tasks' heads are: LoFiT's scaling norms (seed 0), the 27 largest outlined; their layers; their share.

From the runs that `figures/saved.py` names. No model is needed.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from figures.saved import TASKS, K, scores
from lofit_lens import plots
from lofit_lens.plots.template import Columns
from lofit_lens.results import Result


def compute() -> Iterator[tuple[str, Result]]:
    for task in TASKS:
        yield task, scores(task)


def draw(results: Mapping[str, Any], columns: Columns | None) -> dict[str, Any]:
    of_tasks = {task: results[task] for task in TASKS}
    selected = {task: found.top(K) for task, found in of_tasks.items()}
    n_layers = len(of_tasks["kinship"].values)
    return {
        "maps": plots.head_heatmaps(of_tasks, selected, title="Scaling of every head", columns=columns),
        "layers": plots.layer_histogram(selected, n_layers, title=f"Layers of the {K} heads", columns=columns),
        "cumulative": plots.cumulative_scores(of_tasks, title="How much of the scaling the best heads hold", columns=columns),
    }
