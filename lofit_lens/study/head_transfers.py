"""The transfer of heads between a study's tasks, out of what is done of it (LoFiT, arXiv 2406.01563, section 6, Figure 2)."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from lofit_lens.analysis import HeadTransfer, head_transfer
from lofit_lens.analysis.head_transfers import BASE, row_of
from lofit_lens.outcomes import Evaluation
from lofit_lens.runs import read_evaluation
from lofit_lens.store import RunStore
from lofit_lens.study.grid import HEAD_SOURCES, Study
from lofit_lens.study.table import finished

logger = logging.getLogger(__name__)

#: Sources that are no tasks, as rows are called, in their order.
_ROWS = {source: row_of(source) for source in HEAD_SOURCES if source not in ("own", "others")}

Choice = TypeVar("Choice")


def head_transfer_of(
    study: Study,
    store: RunStore,
    *,
    model: str | None = None,
    method: str | None = None,
    k: int | float | None = None,
    n_train: int | None = None,
    new_seeds: bool = True,
) -> HeadTransfer:
    """What each task of a study learns on every source of heads, next to its own: one model, one method, one k.

    Columns are tasks; a task's cell with heads "own" is on the diagonal. Rows are tasks, then "ITI", "random" and other
    sources, then "base", the model without an edit. A cell that is not done with every seed of the study is left out, with a
    warning.

    Args:
        study: the grid.
        store: where its results are.
        model: one of the study's; may be left out, as the three that follow, where the study has only one.
        method: one that takes heads.
        k: heads, a count or a share.
        n_train: training examples, where the study varies them.
        new_seeds: as `analysis.head_transfer` takes it.

    Raises:
        ValueError: the study has several of what is left out, or not what is asked for; a task is called as another row is; or
            no cell is done with every seed.
    """
    model = _chosen("model", model, study.models)
    method = _chosen("method", method, [name for name, settings in study.methods.items() if settings.takes_heads])
    k, n_train = _chosen("k", k, study.k), _chosen("n_train", n_train, study.n_train or (None,))
    others = (*_ROWS.values(), BASE)
    if clash := [task for task in study.tasks if task in others]:
        raise ValueError(f"a task is called {clash[0]!r}, as another row of the transfer is; call it something else")
    found = _done(study, store, model, method, k, n_train)
    # The base model alone, of tasks that are not learned at this k, is no column.
    learned = {target for row, target in found if row != BASE}
    found = {(row, target): by_seed for (row, target), by_seed in found.items() if target in learned}
    complete = {place: by_seed for place, by_seed in found.items() if len(by_seed) == len(study.seeds)}
    if partial := [f"{target} on {row}" for row, target in found if (row, target) not in complete]:
        logger.warning("%s: left out, as not every seed is done: %s", study.name, ", ".join(partial))
    if not complete:
        raise ValueError(
            f"no such cell of {study.name!r} is done with every seed of {list(study.seeds)}; run_study goes on with it"
        )
    rows, columns = {row for row, _ in complete}, {target for _, target in complete}
    return head_transfer(
        complete,
        [row for row in (*study.tasks, *others) if row in rows],
        [task for task in study.tasks if task in columns],
        new_seeds=new_seeds,
    )


def _done(
    study: Study, store: RunStore, model: str, method: str, k: int | float, n_train: int | None
) -> dict[tuple[str, str], dict[int, Evaluation]]:
    """What is there, by row and task, then by seed."""
    found: dict[tuple[str, str], dict[int, Evaluation]] = {}
    for cell, folder in finished(study, store):
        if cell.model != model:
            continue
        if cell.method is None:
            judged = read_evaluation(folder)
            # Once, whatever others are trained on, so that its training examples are not theirs.
            settings = study.task_at(cell.task, n_train).settings()
            found[BASE, cell.task] = dict.fromkeys(study.seeds, replace(judged, task_settings=settings))
        elif (cell.method, cell.k, cell.n_train) == (method, k, n_train):
            assert cell.heads is not None
            assert cell.seed is not None
            row = cell.task if cell.heads == "own" else _ROWS.get(cell.heads, cell.heads)
            found.setdefault((row, cell.task), {})[cell.seed] = read_evaluation(folder)
    return found


def _chosen(name: str, value: Choice | None, choices: Sequence[Choice]) -> Choice:
    """The value, or the only one that there is.

    Raises:
        ValueError: names the choices.
    """
    if value is None and len(choices) == 1:
        return choices[0]
    if value not in choices:
        known = ", ".join(map(repr, choices)) or "none"
        raise ValueError(f"got {name}={value!r}, and the study has {known}; say {name}= one of those")
    assert value is not None
    return value
