"""What a study's tasks learn on each other's heads, out of its runs alone; `study.head_transfer_of` knows the study as well."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lofit_lens.analysis import HeadTransfer, head_transfer
from lofit_lens.analysis.head_transfers import BASE, row_of
from lofit_lens.outcomes import Evaluation
from lofit_lens.report.sources import ShownRun

#: What runs of one matrix have in common, by the names of their labels.
SHARED = ("model", "method", "k", "n_train")

#: By row and task, then by seed.
Cells = dict[tuple[str, str], dict[int, Evaluation]]


@dataclass(frozen=True)
class Transfer:
    """One model, method, k and size of the training split.

    Args:
        name: of these, what there is.
        found: the matrix; None where runs do not fit together.
        note: what is not in it, and why.
    """

    name: str
    found: HeadTransfer | None
    note: str


def transfers(runs: Sequence[ShownRun]) -> list[Transfer]:
    """Of each model, method, k and size that has runs on own heads and on others.

    Rows are tasks, then other sources, then "base". A cell is compared over the seeds that the task's own heads have; one that
    lacks some of them is left out.
    """
    groups: dict[tuple[Any, ...], list[ShownRun]] = defaultdict(list)
    for run in runs:
        if run.evaluation is not None and run.labels.get("seed") is not None and run.labels.get("heads") is not None:
            groups[tuple(run.labels.get(name) for name in SHARED)].append(run)
    with_others = {shared: members for shared, members in groups.items() if {"own"} < {run.labels["heads"] for run in members}}
    bases = [run for run in runs if run.evaluation is not None and run.labels.get("method") == BASE]
    return [_transfer(dict(zip(SHARED, shared, strict=True)), members, bases) for shared, members in with_others.items()]


def _transfer(shared: Mapping[str, Any], members: Sequence[ShownRun], bases: Sequence[ShownRun]) -> Transfer:
    tasks = list(dict.fromkeys(run.labels["task"] for run in members))
    of_model = [run for run in bases if run.labels.get("model") == shared["model"]]
    name = ", ".join(
        [shared["method"], *(f"{label} = {shared[label]}" for label in ("k", "n_train") if shared[label]), shared["model"]]
    )
    try:
        cells, left_out = _compared(_cells(members, tasks))
        _add_bases(cells, of_model)
        rows = list(dict.fromkeys(row for row, _ in cells))
        sources = [task for task in tasks if task in rows] + [row for row in rows if row not in (*tasks, BASE)]
        found = head_transfer(cells, sources + [BASE] * (BASE in rows), [t for t in tasks if t in {task for _, task in cells}])
    except ValueError as error:
        return Transfer(name, None, f"No matrix: {error}")
    return Transfer(name, found, f"Left out, as not every seed is done: {', '.join(left_out)}." if left_out else "")


def _cells(members: Sequence[ShownRun], tasks: Sequence[str]) -> Cells:
    """What there is.

    Raises:
        ValueError: two runs of one cell and seed, as of two studies.
    """
    cells: Cells = {}
    for run in members:
        source, task = run.labels["heads"], run.labels["task"]
        other = source if source in tasks else row_of(source)
        by_seed = cells.setdefault((task if source == "own" else other, task), {})
        if run.labels["seed"] in by_seed:
            raise ValueError(
                f"two runs of {task} on heads {source!r} with seed {run.labels['seed']}; report one study at a time"
            )
        assert run.evaluation is not None
        by_seed[run.labels["seed"]] = run.evaluation
    return cells


def _compared(cells: Cells) -> tuple[Cells, list[str]]:
    """Cells with the seeds that the task's own heads have, and the names of those that lack some."""
    kept: Cells = {}
    for (row, task), by_seed in cells.items():
        wanted = cells.get((task, task), by_seed)
        if wanted.keys() <= by_seed.keys():
            kept[row, task] = {seed: by_seed[seed] for seed in wanted}
    return kept, [f"{task} on {row}" for row, task in cells if (row, task) not in kept]


def _add_bases(cells: Cells, bases: Sequence[ShownRun]) -> None:
    """The model without an edit, judged by the same examples; once, however many others are trained on."""
    for run in bases:
        task, judged = run.labels["task"], run.evaluation
        own = cells.get((task, task))
        if own is not None and judged is not None:
            first = next(iter(own.values()))
            if _but_training(judged.task_settings) == _but_training(first.task_settings):
                cells[BASE, task] = dict.fromkeys(own, replace(judged, task_settings=first.task_settings))


def _but_training(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "n_train"}
