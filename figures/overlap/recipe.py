"""Which tasks choose the same heads: LoFiT's 27 of SmolLM2's 270, two seeds a task, against chance and chance within layers.

From the runs that `figures/saved.py` names. No model is needed.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from figures.saved import SEEDS, TASKS, K, scores
from lofit_lens import plots
from lofit_lens.analysis import head_overlap
from lofit_lens.plots.template import Columns
from lofit_lens.results import Result


def compute() -> Iterator[tuple[str, Result]]:
    yield "overlap", head_overlap({task: [scores(task, seed) for seed in SEEDS] for task in TASKS}, K)
    for task in TASKS:
        yield task, scores(task)


def draw(results: Mapping[str, Any], columns: Columns | None) -> dict[str, Any]:
    overlap, chosen = results["overlap"], {task: results[task].top(K) for task in TASKS}
    return {
        "overlap": plots.overlap_matrix(overlap, title=f"Heads in common, of {K}", columns=columns),
        "distance": plots.overlap_matrix(overlap, "emd", title="How far apart in layers", columns=columns),
        "ranks": plots.overlap_matrix(overlap, "rank_correlation", title="Do all heads rank alike", columns=columns),
        "shared": plots.shared_heads(chosen, title="Heads of just these tasks", columns=columns),
    }
