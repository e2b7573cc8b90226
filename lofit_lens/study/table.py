"""What has come out of a study so far, and what has not."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lofit_lens.heads import HeadScores
from lofit_lens.runs import Run, read_run, summary_row
from lofit_lens.store import RunStore
from lofit_lens.study.grid import Cell, Study
from lofit_lens.study.items import Catalogue, Item, Selection
from lofit_lens.study.work import state_of

#: Parts of the work that nothing could spare: head scores once for each task and seed, a fit and an evaluation for each cell.
UNAVOIDABLE = ("scores", "fit", "choose", "evaluate")


def finished(study: Study, store: RunStore) -> Iterator[tuple[Cell, Path]]:
    """The study's cells that are done, each with the folder of its run."""
    catalogue = Catalogue(study, store.fingerprints(study.dtype))
    for cell in study.cells():
        if cell.model in catalogue.fingerprints and (folder := store.find(catalogue.settings(cell))) is not None:
            yield cell, folder


def study_table(study: Study, store: RunStore) -> pd.DataFrame:
    """One row for each cell that is done: as `RunStore.table` has them, by the names that this study has for things."""
    rows = [summary_row(folder, cell.labels) for cell, folder in finished(study, store)]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=list(Cell.__dataclass_fields__))


def runs(study: Study, store: RunStore) -> dict[Cell, Run]:
    """Each cell that is done, with its edit, losses, and every example's outcome."""
    return {cell: read_run(folder) for cell, folder in finished(study, store)}


def head_scores(study: Study, store: RunStore) -> dict[Selection, HeadScores]:
    """All head scores that cells take their heads from, as far as they are done."""
    catalogue = Catalogue(study, store.fingerprints(study.dtype))
    models = [model for model in study.models if model in catalogue.fingerprints]
    selections = [item for model in models for item in catalogue.items(model) if isinstance(item, Selection)]
    found = {selection: store.get_scores(catalogue.settings(selection)) for selection in selections}
    return {selection: scores for selection, scores in found.items() if scores is not None}


def study_status(study: Study, store: RunStore) -> pd.DataFrame:
    """One row for each piece of work, cells and what they start from: `item`, `kind`, `state`, `error`.

    States: done; running (somebody is at it); failed, and blocked (by a failure); to do.
    """
    rows: list[dict[str, Any]] = []
    for model in study.models:
        if model not in store.fingerprints(study.dtype):  # never loaded: nothing is done
            cells = (cell for cell in study.cells() if cell.model == model)
            rows += [{"model": model, "item": cell.name, "kind": "cell", "state": "to do", "error": ""} for cell in cells]
            continue
        catalogue = Catalogue(study, store.fingerprints(study.dtype))
        rows += [_status(item, catalogue, store) for item in catalogue.items(model)]
    return pd.DataFrame(rows)


def _status(item: Item, catalogue: Catalogue, store: RunStore) -> dict[str, Any]:
    state, key = state_of(item, catalogue, store), catalogue.key(item)
    failure = store.failure(key) or {}
    if state == "to do" and store.is_leased(key):
        state = "running"
    return {
        "model": item.model,
        "item": item.name,
        "kind": "cell" if isinstance(item, Cell) else "head scores",
        "state": "to do" if state == "waiting" else state,
        "error": f"{failure['error']}: {failure['message']}" if failure and state == "failed" else "",
    }


def time_table(study: Study, store: RunStore) -> pd.DataFrame:
    """Where the time of what is done went: one row per part, its seconds, how often, and its share of what nothing could spare.

    A model is loaded once by every process that works at the study; "other" is tokenising, storing and looking what is there.
    """
    keys = set(_keys(study, store))
    entries = [entry for entry in store.journal() if entry["key"] in keys]
    totals: dict[str, list[float]] = {}
    for entry in entries:
        spent: Mapping[str, float] = entry["seconds"]
        for part, seconds in {**spent, "other": entry["total"] - sum(spent.values())}.items():
            totals.setdefault(part, []).append(seconds)
    needed = sum(sum(totals.get(part, ())) for part in UNAVOIDABLE) or math.nan
    order = [part for part in (*UNAVOIDABLE, "load", "other") if part in totals]
    rows = [(part, len(totals[part]), sum(totals[part]), sum(totals[part]) / needed) for part in order]
    rows.append(("together", len(entries), sum(row[2] for row in rows), sum(row[3] for row in rows)))
    return pd.DataFrame(rows, columns=["part", "times", "seconds", "of unavoidable"])


def _keys(study: Study, store: RunStore) -> Iterator[str]:
    catalogue = Catalogue(study, store.fingerprints(study.dtype))
    for model in study.models:
        if model in catalogue.fingerprints:
            yield from map(catalogue.key, catalogue.items(model))
