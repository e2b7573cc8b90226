"""How learned offsets lie next to ITI's directions, principal components and the offsets of other seeds and tasks.

LoFiT's offsets (seed 0) of the runs that `figures/saved.py` names; activations of the last token of right and wrong answers of
the same 100 training examples. The plane is that of the head where the offset is longest, in standard deviations along it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from figures.saved import TASKS, adapter, model
from lofit_lens import plots
from lofit_lens.analysis import collect_head_activations, offset_geometry, offset_plane
from lofit_lens.plots.template import Columns
from lofit_lens.results import Result


def compute() -> Iterator[tuple[str, Result]]:
    for name, task in TASKS.items():
        ours = adapter(name)
        activations = collect_head_activations(model(), task, heads=ours.heads)
        others = {"LoFiT, seed 1": adapter(name, 1)} | {f"LoFiT, {other}": adapter(other) for other in TASKS if other != name}
        geometry = offset_geometry(model(), ours, activations, others=others)
        yield name, geometry
        head = geometry.heads[int(geometry.effective_alphas.nan_to_num().argmax())]
        yield f"{name}-plane", offset_plane(ours, activations, head)


def draw(results: Mapping[str, Any], columns: Columns | None) -> dict[str, Any]:
    figures = {}
    for name in TASKS:
        # The first component stays: mass-mean may lie along it, and owe it what offsets have in common with it.
        directions = [one for one in results[name].directions if one not in ("PC2", "PC3")]
        figures[f"cosines-{name}"] = plots.cosine_distribution(
            results[name], directions=directions, title=f"Offsets of {name} next to other directions", columns=columns
        )
        figures[f"plane-{name}"] = plots.offset_plane(
            results[f"{name}-plane"], title=f"Answers and edits: {name}", columns=columns
        )
    return figures
