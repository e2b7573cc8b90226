"""`lofit-lens study`: plan, run, watch and tabulate a grid of runs."""

import math
import shlex
import signal
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lofit_lens.files import check_writable, write_text_atomically
from lofit_lens.markdown import markdown_table
from lofit_lens.store import RunStore
from lofit_lens.study import Study, leftovers, plan, retry_study, run_study, study_status, study_table, time_table
from lofit_lens.study.settings import said
from lofit_lens.tracking import SERVICES, checked_service

app = typer.Typer(help="Run a grid of tasks, heads, methods and seeds that survives anything.", no_args_is_help=True)
console = Console()

FileArgument = Annotated[Path, typer.Argument(help="The study: a TOML file.")]
StoreOption = Annotated[Path | None, typer.Option(help="Folder for the runs (default: runs/NAME of the study).")]
EXECUTORS = ("local", "ray")
TABLE_FORMATS = (".csv", ".parquet", ".md")
#: What these options are where nobody has said them, and why they are refused.
_ONLY_WITH_RAY = {"address": None, "cpus": 1, "gpus": 0, "memory_gb": None}, "for --executor ray; add that, or leave it out"
_ONLY_WITHOUT_RAY = {"device": None, "n_devices": 1}, "not for --executor ray, which has --gpus; leave it out"
#: Kinds of work, as many are called.
_KINDS = {"cell": "cells", "head scores": "head scores"}


def _study(file: Path, store: Path | None) -> tuple[Study, RunStore]:
    study = Study.from_file(file)
    return study, RunStore(store or Path("runs") / study.name)


@app.command()
def run(
    file: FileArgument,
    store: StoreOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what there is to do, and what it will cost.")] = False,
    executor: Annotated[str, typer.Option(help=f"One of {', '.join(EXECUTORS)}.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster: auto on one of its nodes, or HOST:6379 (default: start one).")
    ] = None,
    cpus: Annotated[int, typer.Option(min=1, help="Of a Ray worker, and its threads.")] = 1,
    gpus: Annotated[float, typer.Option(help="Of a Ray worker; a share below 1 lets several have one.")] = 0,
    memory_gb: Annotated[float | None, typer.Option(help="That Ray sets aside for a worker.")] = None,
    device: Annotated[str | None, typer.Option(help="Of the models, without Ray (default: a GPU when there is one).")] = None,
    n_devices: Annotated[int, typer.Option(help="Split a model's layers over so many GPUs, without Ray.")] = 1,
    track: Annotated[str | None, typer.Option(help=f"Also send runs to {' or '.join(SERVICES)}.")] = None,
    accept_license: Annotated[list[str] | None, typer.Option(help="Licence you accept, e.g. gemma.")] = None,
) -> None:
    """Do what the store lacks of a study. Stop it whenever you like: the same command goes on where it was."""
    study, runs = _study(file, store)
    if executor not in EXECUTORS:
        raise ValueError(f"--executor {executor!r}; wanted one of {', '.join(EXECUTORS)}")
    resources = {"cpus": cpus, "gpus": gpus, "memory_gb": memory_gb}
    _refuse_options_of_another(executor, address=address, **resources, device=device, n_devices=n_devices)
    service = checked_service(track)
    if dry_run:
        _print_plan(study, runs)
        return
    check_writable(runs.root / "models.json")
    licences = accept_license or ()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's wish is no crash, which would be counted
    try:
        if executor == "ray":
            try:
                from lofit_lens.cluster import run_on_ray
            except ModuleNotFoundError as error:
                raise ImportError(f"{error}; Ray comes with an extra: pip install 'lofit-lens[cluster]'") from error

            run_on_ray(study, runs, address=address, track=service, accept_license=licences, **resources)
        else:
            run_study(study, runs, device=device, n_devices=n_devices, track=service, accept_license=licences)
    except KeyboardInterrupt:
        console.print("\nstopped; what is finished is kept, start the same command again to go on")
        raise typer.Exit(130) from None
    _print_status(study, runs, file, store)
    if "failed" in study_status(study, runs)["state"].tolist():
        raise typer.Exit(1)


def _refuse_options_of_another(executor: str, **options: Any) -> None:
    """An option that would do nothing is a mistake, such as an address without --executor ray."""
    theirs, why = _ONLY_WITHOUT_RAY if executor == "ray" else _ONLY_WITH_RAY
    for name, unsaid in theirs.items():
        if options[name] != unsaid:
            raise ValueError(f"--{name.replace('_', '-')} {options[name]} is {why}")


@app.command()
def status(file: FileArgument, store: StoreOption = None) -> None:
    """Say what is done, running, failed and to do, and where the time went."""
    study, runs = _study(file, store)
    _print_status(study, runs, file, store)


@app.command()
def table(
    file: FileArgument,
    store: StoreOption = None,
    out: Annotated[Path | None, typer.Option(help=f"Write it there: {', '.join(TABLE_FORMATS)}.")] = None,
) -> None:
    """Print or write one row for each cell that is done: labels, metric, interval, n, seconds."""
    study, runs = _study(file, store)
    found = study_table(study, runs)
    if out is None:
        console.print(found.to_string(index=False), markup=False, highlight=False, soft_wrap=True)
        return
    if out.suffix not in TABLE_FORMATS:
        raise ValueError(f"--out {out}; wanted a name that ends with {', '.join(TABLE_FORMATS)}")
    check_writable(out)
    if out.suffix == ".parquet":
        found.to_parquet(out, index=False)
    else:
        write_text_atomically(out, found.to_csv(index=False) if out.suffix == ".csv" else markdown_table(found))
    console.print(f"{len(found)} cells in {out}", highlight=False, soft_wrap=True)


@app.command()
def retry(file: FileArgument, store: StoreOption = None) -> None:
    """Forget what has failed, so that the next run tries it again."""
    study, runs = _study(file, store)
    forgotten = retry_study(study, runs)
    for name in forgotten:
        console.print(name, markup=False, highlight=False, soft_wrap=True)
    if not forgotten:
        console.print("nothing has failed")
        return
    console.print(f"{len(forgotten)} will be tried again by: {_command('run', file, store)}", highlight=False, soft_wrap=True)


@app.command()
def gc(
    file: FileArgument,
    store: StoreOption = None,
    of_others: Annotated[bool, typer.Option("--of-others", help="Also runs that this study does not have.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without, it is only listed.")] = False,
) -> None:
    """List what the store holds that nobody needs any more, or remove it."""
    study, runs = _study(file, store)
    found = leftovers(study, runs, of_others=of_others)
    for leftover in found:
        console.print(f"{leftover.path}  ({leftover.why})", markup=False, highlight=False, soft_wrap=True)
        if delete:
            leftover.remove()
    size = sum(leftover.size for leftover in found) / 1e6
    console.print(f"{len(found)} {'removed' if delete else 'could go (--delete)'}, {size:.1f} MB", highlight=False)


def _print_plan(study: Study, runs: RunStore) -> None:
    planned = plan(study, runs)
    for note in planned.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    shown = Table(title=study.name, box=SIMPLE_HEAD)
    by_task = planned.by_task()
    for column in by_task:
        shown.add_column(str(column).replace("_", " "), overflow="fold")
    for *names, seconds in by_task.itertuples(index=False, name=None):
        shown.add_row(*map(str, names), "?" if math.isnan(seconds) else f"{seconds:.0f}")
    console.print(shown)
    for row in planned.items.to_dict("records"):
        serves = f", used by {row['used_by']}" if row["used_by"] else ""
        console.print(f"{row['state']}: {row['item']}{serves}", markup=False, highlight=False, soft_wrap=True)
    shared = planned.items[planned.items["used_by"] > 1]
    console.print(f"{len(shared)} head scores are made once for {shared['used_by'].sum()} cells", highlight=False)
    console.print(
        f"what is left: about {duration(planned.seconds)} one after the other, {planned.disk / 1e6:.0f} MB in {runs.root} "
        "(without activations and residuals, which can go once all is done)",
        highlight=False,
        soft_wrap=True,
    )


def _command(name: str, file: Path, store: Path | None) -> str:
    """As the user has to type it, with the store that was named."""
    return shlex.join(["lofit-lens", "study", name, str(file), *([] if store is None else ["--store", str(store)])])


def _print_status(study: Study, runs: RunStore, file: Path, store: Path | None) -> None:
    states = study_status(study, runs)
    counts: dict[str, list[str]] = {"cell": [], "head scores": []}
    for (kind, state), n in Counter(zip(states["kind"], states["state"], strict=True)).items():
        counts[kind].append(f"{n} {state}")
    said = [f"{_KINDS[kind]}: {', '.join(found)}" for kind, found in counts.items() if found]
    console.print(f"{study.name}: {'; '.join(said)}", markup=False, highlight=False, soft_wrap=True)
    failed = [row for row in states.to_dict("records") if row["state"] == "failed"]
    for row in failed:
        console.print(f"failed: {row['item']}: {row['error']}", markup=False, highlight=False, soft_wrap=True)
    if failed:
        console.print(f"to try them again: {_command('retry', file, store)}", highlight=False, soft_wrap=True)
    times = time_table(study, runs)
    if len(times) > 1:
        shown = Table("part", "times", "seconds", "of unavoidable", title="Time", box=SIMPLE_HEAD)
        for part, times_done, seconds, share in times.itertuples(index=False, name=None):
            shown.add_row(part, str(times_done), f"{seconds:.0f}", f"{share:.2f}")
        console.print(shown)


def message_of(error: Exception) -> str:
    """What a user is told of it."""
    return said(error) if isinstance(error, ValidationError) else str(error)


def duration(seconds: float) -> str:
    """For people: `40 s`, `12 min`, `3.5 h`; `an unknown time` for NaN."""
    if math.isnan(seconds):
        return "an unknown time (a model's name does not say how large it is)"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
