"""The command line: each command is a few lines around a call that a notebook could make."""

import itertools
import json
import logging
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

import lofit_lens as ll
from lofit_lens import adapters, cli_study, demo, files
from lofit_lens.embedded import EMBEDDED
from lofit_lens.interventions import Adapter
from lofit_lens.lens import LensModel
from lofit_lens.methods import METHODS
from lofit_lens.recipes import find_recipes
from lofit_lens.rendering import IMAGE_FORMATS, checked_images
from lofit_lens.tasks import TASKS, Task, open_web_text, sources, task_named, texts_of
from lofit_lens.tasks.base import METRICS, SPLITS

app = typer.Typer(help=ll.__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(cli_study.app, name="study")
console = Console()

ModelOption = Annotated[str, typer.Option("--model", help="An embedded model, tiny-FAMILY, a folder, or a hub name.")]
LicenceOption = Annotated[list[str] | None, typer.Option("--accept-license", help="Licence you accept, e.g. gemma.")]
TaskArgument = Annotated[str, typer.Argument(help=f"One of {', '.join(TASKS)}.")]
DataOption = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder with data sets (default: $LOFIT_LENS_DATA, then downloads).")
]


def _task(name: str, data_dir: Path | None, n_train: int | None = None) -> Task:
    settings = {"data_dir": data_dir, "n_train": n_train}
    return task_named(name, **{key: value for key, value in settings.items() if value is not None})


def _k(text: str) -> int | float:
    with suppress(ValueError):
        k = int(text) if text.isdecimal() else float(text)
        if 0 < k <= (1 if isinstance(k, float) else sys.maxsize):
            return k
    raise ValueError(f"--k {text!r}; wanted a count of heads (27) or a fraction of them (0.1)")


def _settings(words: list[str], method: type) -> dict[str, Any]:
    """`--alpha 15 --direction=probe` as settings of a method."""
    known = tuple(method.__dataclass_fields__)
    settings: dict[str, Any] = {}
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for option, text in itertools.zip_longest(words[::2], words[1::2]):
        name = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or name not in known or text is None:
            wanted = ", ".join(f"--{field.replace('_', '-')} VALUE" for field in known if field not in ("k", "heads"))
            raise ValueError(f"got {option!r}{' without a value' if text is None else ''}; wanted one of {wanted}")
        try:
            settings[name] = json.loads(text)
        except json.JSONDecodeError:
            settings[name] = text
    return settings


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def fit(
    context: typer.Context,
    task: TaskArgument,
    out: Annotated[Path | None, typer.Option(help="New folder for the adapter (default: adapters/TASK-METHOD).")] = None,
    model: ModelOption = "smollm2-135m-instruct",
    k: Annotated[str | None, typer.Option(help="Heads to keep: a count (27) or a fraction (0.1).")] = None,
    seed: int = 0,
    n_train: Annotated[int | None, typer.Option(help="Training examples (default: the task's).")] = None,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "lofit",
    heads_of: Annotated[Path | None, typer.Option(help="Do not choose heads: use those of this adapter.")] = None,
    data_dir: DataOption = None,
    accept_license: LicenceOption = None,
) -> None:
    """Learn an adapter for a task, and save it. Further options are the method's settings: see `lofit-lens methods`."""
    if task.startswith("--"):
        raise ValueError(f"got {task!r} before the task; wanted: lofit-lens fit TASK {task} VALUE")
    method = method.replace("-", "_")
    out = out or Path("adapters") / f"{Path(task).stem}-{method}"
    if out.exists():
        raise FileExistsError(f"{out} exists already; choose another folder for --out, or remove it")
    files.check_writable(out)
    chosen_task = _task(task, data_dir, n_train)
    if method not in METHODS:
        raise ValueError(f"--method {method!r}; wanted one of {', '.join(METHODS)}")
    family: Any = METHODS[method]
    which_heads: dict[str, Any] = {} if k is None else {"k": _k(k)}
    which_heads |= {} if heads_of is None else {"heads": ll.HeadIntervention.load(heads_of).heads}
    if which_heads and "heads" not in family.__dataclass_fields__:
        raise ValueError(f"{method} does not choose heads: it takes neither --k nor --heads-of")
    chosen_method = family(**which_heads, **_settings(context.args, family))
    lens_model = ll.load_model(model, accept_license=accept_license or ())
    ll.check_task(lens_model, chosen_task)  # a bad record anywhere is found before training
    result = chosen_method.fit(lens_model, chosen_task, seed=seed)
    folder = _save(result.intervention, lens_model, out)
    if result.scores is not None:
        ll.save_result(result.scores, folder / adapters.SCORES_FILE)
    if isinstance(result.intervention, ll.HeadIntervention):
        console.print(f"{len(result.intervention.heads)} heads: {' '.join(head.label for head in result.intervention.heads)}")
    console.print(f"{result.intervention.n_parameters:,} numbers in the edit")
    words = ["lofit-lens", "eval", task, "--adapter", str(folder), "--model", model]
    words += [] if data_dir is None else ["--data-dir", str(data_dir)]
    console.print(f"saved in {folder}; try: {shlex.join(words)}", markup=False, highlight=False, soft_wrap=True)


def _save(intervention: Adapter, model: LensModel, out: Path) -> Path:
    """Save to `out`, or where there is room if `out` has become unwritable meanwhile: what was learned is not lost."""
    try:
        return intervention.save(out, model)
    except OSError as error:
        refuge = files.refuge_for(out.name)
        intervention.save(refuge, model)
        raise OSError(f"{out} cannot be written ({error}); the adapter is in {refuge} instead") from error


@app.command(name="eval")
def evaluate(
    task: TaskArgument,
    adapter: Annotated[Path | None, typer.Option(help="Folder of an adapter (default: the base model).")] = None,
    model: ModelOption = "smollm2-135m-instruct",
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    metric: Annotated[str | None, typer.Option(help=f"One of {', '.join(METRICS)} (default: the task's).")] = None,
    side_effects: Annotated[bool, typer.Option(help="Also what the adapter costs on ordinary text.")] = False,
    text: Annotated[
        str | None, typer.Option(help="For that: a file with a column 'text', or a task (default: OpenWebText).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for every example's, and text's, outcome.")] = None,
    data_dir: DataOption = None,
    accept_license: LicenceOption = None,
) -> None:
    """Score the base model, or an adapter, on a task."""
    if split not in SPLITS:
        raise ValueError(f"--split {split!r}; wanted train, val or test")
    if metric is not None and metric not in METRICS:
        raise ValueError(f"--metric {metric!r}; wanted one of {', '.join(METRICS)}")
    if side_effects and adapter is None:
        raise ValueError("--side-effects are an adapter's: name one with --adapter")
    if text is not None and not side_effects:
        raise ValueError(f"--text {text!r} is for --side-effects; ask for them too, or leave it out")
    if out is not None:
        files.check_writable(out)
    chosen_task = _task(task, data_dir)
    texts = _texts(text, data_dir) if side_effects else []
    if adapter is not None:
        adapters.read_adapter(adapter)  # a damaged adapter is refused before a model is loaded
    lens_model = ll.load_model(model, accept_license=accept_license or ())
    intervention = None if adapter is None else ll.load_adapter(adapter, lens_model)
    evaluation = ll.evaluate(lens_model, chosen_task, intervention, split=split, metric=metric)
    console.print(str(evaluation))
    outcome = evaluation.to_json()
    if side_effects and intervention is not None:
        cost = ll.side_effects(lens_model, intervention, texts)
        console.print(str(cost))
        outcome["side_effects"] = cost.to_frame().to_dict("list")
    if out is not None:
        files.write_json_atomically(out, outcome)


def _texts(source: str | None, data_dir: Path | None) -> list[str]:
    if source is None:
        return open_web_text(data_dir=data_dir)
    return texts_of(task_named(source) if source in TASKS else source)


@app.command()
def models() -> None:
    """List the models that need no hub."""
    table = Table(Column("name", no_wrap=True), "download", "licence", "what it is", title="Embedded models")
    for name, embedded in EMBEDDED.items():
        flag = f"{embedded.licence} (--accept-license {embedded.licence_flag})" if embedded.licence_flag else embedded.licence
        table.add_row(name, f"{embedded.size_mb} MB", flag, embedded.description)
    console.print(table)
    console.print("And: tiny-FAMILY (random weights), any folder or hub name that TransformerBridge.boot_transformers takes.")


@app.command()
def methods() -> None:
    """List the methods: settings with their defaults, and the source."""
    table = Table(Column("name", no_wrap=True), "settings", "source", title="Methods", box=SIMPLE_HEAD)
    for name, method in METHODS.items():
        settings = ", ".join(f"{key}={value!r}" for key, value in method().settings().items())
        source = (sys.modules[method.__module__].__doc__ or "").splitlines()[0]
        table.add_row(name, settings, source)
    console.print(table)
    console.print("lofit-lens fit TASK --method NAME --some-setting VALUE", highlight=False)


@app.command()
def tasks() -> None:
    """List the tasks: sizes, loss, metric, chance, and where their files come from."""
    columns = [Column(title, no_wrap=True) for title in ("name", "train/val/test", "trained by", "judged by", "chance")]
    measures = Table(*columns, title="Tasks", box=SIMPLE_HEAD)
    summaries = Table(Column("name", no_wrap=True), "what it is", box=SIMPLE_HEAD)
    notes: dict[str, None] = {}  # in order, each once
    for name, family in TASKS.items():
        measures.add_row(name, *_measures(family(), notes))
        summaries.add_row(name, (family.__doc__ or "").strip().splitlines()[0])
    console.print(measures)
    console.print(summaries)
    for note in notes:
        console.print(f"bad: {note}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        "Sizes and chance are the published ones where files are not at hand (?: not known). "
        f"lofit-lens download TASK fetches those of {', '.join(sources.SOURCES)}."
    )


def _measures(task: Task, notes: dict[str, None]) -> tuple[str, str, str, str]:
    """Of the files at hand; what is known of the published ones where there are none. A file that cannot be used is noted."""
    known = task.published_sizes
    sizes = [_found_or(known.get(split), lambda split=split: len(task.splits[split]), notes) for split in SPLITS]
    chance = _found_or(task.published_chance, lambda: task.chance, notes)
    return "/".join(map(str, sizes)), task.loss, task.metric, chance if isinstance(chance, str) else f"{chance:.2f}"


def _found_or(known: float | None, find_out: Callable[[], float], notes: dict[str, None]) -> float | str:
    try:
        return find_out()
    except FileNotFoundError:
        return "?" if known is None else known
    except ZeroDivisionError:  # an empty file: its size says so
        return "?"
    except (ValueError, OSError) as error:
        notes[str(error)] = None
        return "bad"


@app.command()
def download(task: Annotated[str, typer.Argument(help=f"One of {', '.join(sources.SOURCES)}.")]) -> None:
    """Fetch the published files of a task, whose licences are theirs, into the cache."""
    folder = sources.download(task)
    for file in sources.SOURCES[task]:
        console.print(f"{folder / file.name}  ({file.licence})", highlight=False, soft_wrap=True)


@app.command()
def figures(
    names: Annotated[list[str] | None, typer.Argument(help="Folders of figures (default: all).")] = None,
    rerun: Annotated[bool, typer.Option("--rerun", help="Compute the numbers anew, which takes a model and minutes.")] = False,
    folder: Annotated[Path, typer.Option(help="Where they are; their recipes, Python files, are run.")] = Path("figures"),
    images: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(IMAGE_FORMATS)} (default: png).")] = None,
    columns: Annotated[int, typer.Option(min=1, max=2, help="Of a paper, that images are as wide as.")] = 1,
) -> None:
    """Draw figures again from the numbers beside them: pages for a screen, images for one or two columns of a paper."""
    kinds = checked_images(images or ["png"])
    for recipe in find_recipes(folder, names or ()):
        console.print(f"{recipe.folder.name}: {recipe.summary}", markup=False, highlight=False)
        if rerun:
            recipe.rerun()
        for path in recipe.render(images=kinds, columns=2 if columns == 2 else 1):
            console.print(f"  {path}", highlight=False, soft_wrap=True)


@app.command()
def report(
    sources: Annotated[list[Path], typer.Argument(help="Folders of runs, adapters or results, or files of results.")],
    out: Annotated[Path, typer.Option(help="The page; what is there is replaced.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Of the page.")] = "",
) -> None:
    """Write one page with the tables, figures and token views of a study, which works offline."""
    path = ll.write_report(sources, out, title=title)
    console.print(f"{path} ({path.stat().st_size / 1e6:.1f} MB); open it in a browser", highlight=False, soft_wrap=True)


@app.command(name="demo")
def run_demo(
    out: Annotated[Path, typer.Option(help="Folder for results; what is in it already is not run again.")] = Path("runs/demo"),
    model: ModelOption = "smollm2-135m-instruct",
) -> None:
    """LoFiT on three generated tasks, then each task on the others' heads and on random heads."""
    try:
        demo.run(out, model_name=model, tasks=demo.TASKS, console=console)
    except KeyboardInterrupt:
        console.print("\nstopped; finished runs are kept, start the same command again to go on")
        raise typer.Exit(130) from None


def main() -> None:
    """Entry point: an error that the user can act on is one message, not a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for chatty in ("httpx", "kaleido", "choreographer"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        app()
    except (ValueError, TypeError, OSError, RuntimeError, ArithmeticError, ImportError) as error:
        message = escape(cli_study.message_of(error))
        Console(stderr=True).print(f"[bold red]error:[/] {message}", highlight=False, soft_wrap=True)
        sys.exit(1)
