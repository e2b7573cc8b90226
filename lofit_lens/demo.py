"""The demonstration: LoFiT on three generated tasks, and what each task does on the other tasks' heads.

Small on purpose, so that it ends within minutes on two CPU cores; the settings below are the whole recipe. One seed and
fifty test examples say how the library is used, not how well LoFiT does.
"""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lofit_lens import plots
from lofit_lens.analysis import TransferTable
from lofit_lens.files import check_writable
from lofit_lens.heads import Head, HeadScores
from lofit_lens.interventions import HeadIntervention
from lofit_lens.methods import LoFiT
from lofit_lens.plots.template import Columns
from lofit_lens.rendering import save_figures
from lofit_lens.results import save_result
from lofit_lens.runs import Run
from lofit_lens.store import RunStore
from lofit_lens.study import Study, head_scores, run_study, runs, study_table
from lofit_lens.study.settings import Settings
from lofit_lens.tasks import Counterfactual, Kinship, Task, Truth

SEED = 0
K = 0.1
TASKS: tuple[Task, ...] = (
    Kinship(n_train=40, n_val=1, n_test=50),
    Counterfactual(n_train=40, n_val=1, n_test=50),
    Truth(n_train=32, n_val=1, n_test=50),
)
LOFIT = LoFiT(k=K, scale_lr=2e-2, l1=1e-3, offset_lr=5e-2, scale_epochs=2, offset_epochs=2)


def study_of(model_name: str, tasks: Iterable[Task]) -> Study:
    """Every task on its own heads, on the others' and on random ones."""
    return Study(
        name="demo",
        models=(model_name,),
        tasks={task.name: task for task in tasks},
        methods={"lofit": Settings(LOFIT)},
        heads=("own", "others", "random"),
        k=(K,),
        seeds=(SEED,),
    )


def run(out: Path, *, model_name: str, tasks: tuple[Task, ...], console: Console) -> TransferTable:
    """Run what `out` does not hold yet, print the tables, and write adapters, figures and numbers below `out`.

    Raises:
        OSError: `out` cannot be written; checked before anything is run.
    """
    check_writable(out / "transfer.html")
    started = time.monotonic()
    study, store = study_of(model_name, tasks), RunStore(out)
    n_done = len(study_table(study, store))
    console.print(f"{model_name}: {len(list(study.cells()))} cells, {n_done} of them done before; results go to {out}")
    run_study(study, store)
    names = tuple(study.tasks)
    done = {(cell.heads or "base", cell.task): run for cell, run in runs(study, store).items()}
    if len(done) < len(list(study.cells())):
        raise RuntimeError(f"not everything could be done; {out / 'failures'} says why, remove it to try again")
    own = {name: done["own", name] for name in names}
    evaluations = {(task if heads == "own" else heads, task): run.evaluation for (heads, task), run in done.items()}
    table = TransferTable(evaluations, ("base", *names, "random"), names)
    scores = {one.task: found for one, found in head_scores(study, store).items() if one.source == "own"}
    _report(table, own, console)
    _write(out, table, own, scores)
    console.print(f"{time.monotonic() - started:.0f} s; look at {out / 'heads.html'} and {out / 'transfer.html'}")
    return table


def _heads(run: Run) -> tuple[Head, ...]:
    assert run.fit is not None
    assert isinstance(run.fit.intervention, HeadIntervention)
    return run.fit.intervention.heads


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


def _write(out: Path, table: TransferTable, own: dict[str, Run], scores: Mapping[str, HeadScores]) -> None:
    for name, run in own.items():
        assert run.fit is not None
        run.fit.intervention.save(out / "adapters" / name, overwrite=True)
    for name, result in scores.items():
        save_result(result, out / "data" / f"{name}.json")
    save_result(table, out / "data" / "transfer.json")
    save_figures({out / name: figure for name, figure in figures(scores, table).items()}, images=())


def figures(scores: Mapping[str, HeadScores], table: TransferTable, columns: Columns | None = None) -> dict[str, Any]:
    """What the demo shows, by the names of its files, on a screen or in columns of a paper."""
    selected = {name: result.top(K) for name, result in scores.items()}
    return {
        "heads": plots.head_heatmaps(scores, selected, title="Where each task's scaling moved most", columns=columns),
        "transfer": plots.transfer_matrix(table, title="Each task learned at another's heads", columns=columns),
    }
