"""The demonstration: LoFiT on three generated tasks, and what each task does on the other tasks' heads.

Small on purpose, so that it ends within minutes on two CPU cores; the settings below are the whole recipe. One seed and
fifty test examples say how the library is used, not how well LoFiT does.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lofit_lens import plots
from lofit_lens.analysis import TransferTable
from lofit_lens.evaluation import evaluate
from lofit_lens.files import check_writable
from lofit_lens.heads import Head, HeadScores
from lofit_lens.interventions import HeadIntervention
from lofit_lens.lens import LensModel
from lofit_lens.methods import LoFiT
from lofit_lens.models import fingerprint, load_model
from lofit_lens.rendering import save_figures
from lofit_lens.results import save_result
from lofit_lens.selection import random_scores
from lofit_lens.store import Run, RunStore
from lofit_lens.tasks import Counterfactual, Kinship, Task, Truth

SEED = 0
K = 0.1
TASKS: tuple[Task, ...] = (
    Kinship(n_train=40, n_val=1, n_test=50),
    Counterfactual(n_train=40, n_val=1, n_test=50),
    Truth(n_train=32, n_val=1, n_test=50),
)
LOFIT = LoFiT(k=K, scale_lr=2e-2, l1=1e-3, offset_lr=5e-2, scale_epochs=2, offset_epochs=2)


@dataclass(frozen=True)
class Cell:
    """One thing to run: a task with the heads of a source; the base model alone where `source` is "base"."""

    task: Task
    source: str
    method: LoFiT | None

    def settings(self, model: LensModel) -> dict[str, Any]:
        return {
            "model": fingerprint(model),
            "task": {"name": self.task.name, **self.task.settings()},
            "method": None if self.method is None else self.method.settings(),
            "seed": SEED,
        }


def run(out: Path, *, model_name: str, tasks: tuple[Task, ...], console: Console) -> TransferTable:
    """Run what `out` does not hold yet, print the tables, and write adapters, figures and numbers below `out`.

    Raises:
        OSError: `out` cannot be written; checked before anything is run.
    """
    check_writable(out / "transfer.html")
    started = time.monotonic()
    model = load_model(model_name)
    store = RunStore(out / "runs")
    console.print(f"{model_name}: {model.cfg.n_layers} layers x {model.cfg.n_heads} heads; results go to {out}")

    own: dict[str, Run] = {}
    runs: dict[tuple[str, str], Run] = {}
    for task in tasks:
        runs["base", task.name] = _run_cell(Cell(task, "base", None), model, store, console)
        runs[task.name, task.name] = own[task.name] = _run_cell(Cell(task, task.name, LOFIT), model, store, console)
    for cell in _transfer_cells(model, tasks, own):
        runs[cell.source, cell.task.name] = _run_cell(cell, model, store, console)

    names = tuple(task.name for task in tasks)
    table = TransferTable({key: run.evaluation for key, run in runs.items()}, ("base", *names, "random"), names)
    _report(table, own, console)
    _write(out, table, own, model)
    console.print(f"{time.monotonic() - started:.0f} s; look at {out / 'heads.html'} and {out / 'transfer.html'}")
    return table


def _transfer_cells(model: LensModel, tasks: tuple[Task, ...], own: dict[str, Run]) -> Iterator[Cell]:
    for task in tasks:
        for source in tasks:
            if source is not task:
                yield Cell(task, source.name, replace(LOFIT, heads=_heads(own[source.name])))
        drawn = random_scores(model, seed=SEED).top(K)
        yield Cell(task, "random", replace(LOFIT, heads=drawn))


def _heads(run: Run) -> tuple[Head, ...]:
    assert run.fit is not None
    assert isinstance(run.fit.intervention, HeadIntervention)
    return run.fit.intervention.heads


def _run_cell(cell: Cell, model: LensModel, store: RunStore, console: Console) -> Run:
    settings = cell.settings(model)
    started = time.monotonic()
    run = store.get(settings, model)
    took = "done before"
    if run is None:
        fit = None if cell.method is None else cell.method.fit(model, cell.task, seed=SEED)
        evaluation = evaluate(model, cell.task, None if fit is None else fit.intervention)
        run = Run(settings, fit, evaluation)
        store.put(run, model)
        took = f"{time.monotonic() - started:.0f} s"
    low, high = run.evaluation.interval()
    scored = f"{run.evaluation.metric} {run.evaluation.value:.2f} [{low:.2f}, {high:.2f}]"
    console.print(f"{cell.task.name:<14} heads of {cell.source:<14} {scored}  {took}", highlight=False, soft_wrap=True)
    return run


def _report(table: TransferTable, own: dict[str, Run], console: Console) -> None:
    for name, run in own.items():
        heads = " ".join(head.label for head in sorted(_heads(run)))
        console.print(f"\n[bold]{name}[/]: {len(_heads(run))} heads selected: {heads}", highlight=False)
    shown = Table("heads of", *(f"{t} ({table.evaluations['base', t].metric})" for t in table.targets), title="\nTest scores")
    for source in table.sources:
        cells = []
        for target in table.targets:
            low, high = table.evaluations[source, target].interval()
            text = f"{table.evaluations[source, target].value:.2f} [{low:.2f}, {high:.2f}]"
            cells.append(f"[bold]{text}[/]" if source == target else text)
        shown.add_row(source, *cells)
    console.print(shown)


def _write(out: Path, table: TransferTable, own: dict[str, Run], model: LensModel) -> None:
    scores = {name: run.fit.scores for name, run in own.items() if run.fit is not None and run.fit.scores is not None}
    for name, run in own.items():
        assert run.fit is not None
        run.fit.intervention.save(out / "adapters" / name, model, overwrite=True)
    for name, result in scores.items():
        save_result(result, out / "data" / f"{name}.json")
    save_result(table, out / "data" / "transfer.json")
    save_figures({out / name: figure for name, figure in figures(scores, table).items()}, images=())


def figures(scores: Mapping[str, HeadScores], table: TransferTable) -> dict[str, Any]:
    """What the demo shows, by the names of its files."""
    selected = {name: result.top(K) for name, result in scores.items()}
    return {
        "heads": plots.head_heatmaps(scores, selected, title="Where each task's scaling moved most"),
        "transfer": plots.transfer_matrix(table, title="Each task learned at another's heads"),
    }
