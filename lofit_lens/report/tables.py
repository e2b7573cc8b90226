"""Tables as a page shows them: texts, and what they are sorted by."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lofit_lens import analysis
from lofit_lens.heads import Head, HeadScores
from lofit_lens.methods import METHODS
from lofit_lens.outcomes import Evaluation
from lofit_lens.report.sources import ShownRun
from lofit_lens.results import Result
from lofit_lens.side_effects import SideEffects

#: Rows of a table that a page shows; the file of the result has them all.
MOST_ROWS = 500
#: Settings that tell runs apart even where they are the method's defaults.
ALWAYS_SHOWN = ("k", "alpha")
_DEFAULTS = {method.__name__: method().settings() for method in METHODS.values()}


@dataclass(frozen=True)
class Cell:
    """A text; what it is sorted by, if that is a number; and, where it is a value in [0, 1], its interval."""

    text: str
    number: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells below the names of their columns; `n_rows` counts those that are left out, too."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    n_rows: int


def table_of(frame: pd.DataFrame, caption: str) -> Table:
    """Of a data frame, without its index."""
    names = tuple(str(name).replace("_", " ") for name in frame.columns)
    rows = frame.head(MOST_ROWS).itertuples(index=False, name=None)
    return Table(caption, names, tuple(tuple(map(cell_of, row)) for row in rows), len(frame))


def cell_of(value: Any) -> Cell:
    """Numbers to four digits."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Cell("")
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, int):
        return Cell(f"{value:,}" if value >= 10_000 else str(value), value)
    if isinstance(value, float):
        return Cell(f"{value:.4g}", value)
    if isinstance(value, str):
        return Cell(value)
    return Cell(", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value))


def _of_frame(caption: str) -> Callable[[Any], list[Table]]:
    return lambda result: [table_of(result.to_frame(), caption)]


def _sweep(found: analysis.Sweep) -> list[Table]:
    return [table_of(found.summary(), "Means over runs"), table_of(found.to_frame(), "Runs")]


def _evaluation(found: Evaluation) -> list[Table]:
    return [table_of(pd.DataFrame([found.to_row()]), "Summary"), table_of(found.to_frame(), "Examples")]


def _side_effects(found: SideEffects) -> list[Table]:
    means = found.summary().rename_axis("nats a token").reset_index()
    means["nats a token"] = means["nats a token"].str.replace("_", " ")
    return [table_of(means, "Means over texts, nats a token"), table_of(found.to_frame(), "Texts, nats a token")]


def _geometry(found: analysis.OffsetGeometry) -> list[Table]:
    return [table_of(found.to_frame(), "Cosines"), table_of(found.strengths(), "Strengths")]


#: The first of them stands open where there is no figure.
TABLES: Mapping[type, Callable[[Any], list[Table]]] = {
    HeadScores: _of_frame("Scores, best head first"),
    Evaluation: _evaluation,
    SideEffects: _side_effects,
    analysis.AttentionPatterns: lambda found: [],
    analysis.DoseResponse: _of_frame("Doses"),
    analysis.HeadOverlap: _of_frame("Pairs of tasks"),
    analysis.HeadTransfer: _of_frame("Heads from (source) and tasks learned (target), next to the task's own heads"),
    analysis.Mixture: _of_frame("Weights and tasks"),
    analysis.OffsetAttribution: _of_frame("Logits that each head adds directly"),
    analysis.OffsetGeometry: _geometry,
    analysis.OffsetPlane: _of_frame("Answers in the plane"),
    analysis.OffsetReading: _of_frame("Tokens"),
    analysis.Sweep: _sweep,
    analysis.TokenEffects: _of_frame("Tokens, nats"),
    analysis.TransferTable: _of_frame("Cells"),
}


def tables_of(result: Result) -> list[Table]:
    """The numbers of a result."""
    return TABLES[type(result)](result)


def overview(runs: Sequence[ShownRun]) -> Table:
    """One row for each run."""
    columns = ("Task", "Method", "Settings", "Seed", "Model", "Heads", "Numbers learned", "Metric", "Value", "n", "Folder")
    chosen = {frozenset(run.heads): run.task for run in runs if run.scores is not None}
    models = _names_of_models(runs)
    return Table("Runs", columns, tuple(_row(run, chosen, models) for run in runs), len(runs))


def _names_of_models(runs: Iterable[ShownRun]) -> dict[str, str]:
    """A run of the base model alone knows its fingerprint only; another run knows its name."""
    return {run.fingerprint: run.model for run in runs if run.fingerprint}


def _row(run: ShownRun, chosen: Mapping[frozenset[Head], str], models: Mapping[str, str]) -> tuple[Cell, ...]:
    found = run.evaluation
    settings = ", ".join(f"{name} = {_plain(value)}" for name, value in _telling(run).items())
    if run.settings.get("heads") is not None:
        whose = run.labels.get("heads") or chosen.get(frozenset(run.heads))
        settings = ", ".join(filter(None, ["heads given" if whose is None else f"heads: {whose}", settings]))
    value = Cell("")
    if found is not None:
        low, high = found.interval()
        bounds = (low, high) if 0 <= low <= high <= 1 else None
        value = Cell(f"{found.value:.2f} [{low:.2f}, {high:.2f}]", found.value, bounds)
    return (
        Cell(run.task),
        Cell(run.method),
        Cell(settings),
        cell_of(run.seed),
        Cell(models.get(run.model, run.model)),
        cell_of(len(run.heads) or None),
        cell_of(run.n_parameters or None),
        Cell("" if found is None else found.metric),
        value,
        cell_of(None if found is None else found.n),
        Cell(run.folder),
    )


def _telling(run: ShownRun) -> dict[str, Any]:
    """Settings that are not the method's defaults, and a few that always matter."""
    defaults = _DEFAULTS.get(run.method, {})
    is_given = run.settings.get("heads") is not None
    skipped = {"heads", *(("k", "select_by") if is_given else ())}
    return {
        name: value
        for name, value in run.settings.items()
        if name not in skipped and (name in ALWAYS_SHOWN or name not in defaults or defaults[name] != value)
    }


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def all_settings(runs: Sequence[ShownRun]) -> Table:
    """Everything that the runs know of how they were made."""
    rows = [
        (run.label, run.folder, json.dumps(dict(run.settings)), json.dumps(dict(run.task_settings)))
        for run in runs
        if run.settings or run.task_settings
    ]
    return table_of(pd.DataFrame(rows, columns=["run", "folder", "settings", "task settings"]), "All settings")
