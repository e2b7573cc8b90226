"""A study: which tasks are learned, on whose heads, by which methods, how often; in a TOML file or in Python.

    name = "who lends heads to whom"
    models = ["smollm2-135m-instruct"]
    heads = ["own", "others", "iti", "random"]
    k = [0.03, 0.1]
    seeds = [0, 1, 2]

    [tasks.kinship]                      # a task of that name; its settings
    n_train = 100

    [tasks.truthfulqa-0]                 # or any name, and which task it is
    task = "truthfulqa"
    fold = 0

    [methods.lofit]
    l1 = 1e-3
    choose = { offset_lr = [3e-2, 1e-1] }        # tried in every cell; the validation split picks

    [[methods.lofit.where]]                      # other settings in some cells
    task = "truthfulqa-0"
    k = 0.03
    set = { offset_lr = 1e-2 }

    [[skip]]                                     # cells that are not run
    heads = "truthfulqa-0"
    k = 0.1

Its cells: every task with no edit; and by every method, with every seed, from every source of heads and at every k where the
method takes heads. Cells of a task differ in nothing else: they are judged by the same examples.
"""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationError
from pydantic.dataclasses import dataclass as validated

from lofit_lens.methods import LoFiT, Method
from lofit_lens.runs import name_of
from lofit_lens.study.settings import (
    STRICT,
    Count,
    K,
    Place,
    Seed,
    Settings,
    Skip,
    made_methods,
    made_tasks,
    names_of_settings,
    said,
)
from lofit_lens.tasks import Task
from lofit_lens.tasks.base import Metric

HeadSource = Literal[
    "own",
    "own-per-layer",
    "others",
    "iti",
    "random",
    "random-per-layer",
    "random-like-own",
    "gradient-norm",
    "gradient-signed",
    "gradient-fisher",
    "greedy-gradient",
    "bias",
    "layer-probes",
    "leave-one-out",
]
HEAD_SOURCES: tuple[HeadSource, ...] = get_args(HeadSource)
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Cell:
    """One thing to run: a task by a method on heads; `method` is None where the model is judged as it is.

    Args:
        model: its name.
        task: its name in the study.
        method: its name in the study, or None.
        heads: where its heads come from: a `HeadSource`, or another task's name; None for a method that takes none.
        k: heads, a count or a share.
        n_train: training examples, where the study varies them.
        seed: None for the base model.
    """

    model: str
    task: str
    method: str | None = None
    heads: str | None = None
    k: int | float | None = None
    n_train: int | None = None
    seed: int | None = None

    @property
    def labels(self) -> dict[str, Any]:
        """What tables call it by."""
        return {**vars(self), "method": self.method or "base"}

    @property
    def name(self) -> str:
        return name_of(self.labels)


@validated(frozen=True, config=STRICT)
class Study:
    """A grid of cells; `run_study` does what a store lacks.

    Args:
        name: of the study, and of its folder.
        models: what `load_model` takes.
        tasks: by name.
        methods: by name; with their settings, or as they are.
        heads: where methods that take heads get them: "own" (their own first step; "own-per-layer": layers take turns),
            "others" (each other task's own), "iti", "random" and its kinds, gradients, one head at a time ("gradient-norm",
            "-signed" and "-fisher") or as a set ("greedy-gradient"), "bias" (offsets at all heads, learned with the method's
            own settings whatever `choose` tries), "layer-probes", "leave-one-out" (of a fit at three times as many own heads,
            those that the validation split misses most), or a task.
        k: heads to take, counts or shares; each is another column of cells.
        seeds: of the fits, and of what is random in the sources.
        n_train: training examples of every task, one value after the other; none is the tasks' own sizes.
        skip: cells that are not run.
        split: that is judged.
        metric: that it is judged by; None is each task's own.
        dtype: of the models.
    """

    name: Annotated[str, Field(pattern=r"^[^./\\][^/\\]*$")]
    models: Annotated[tuple[str, ...], Field(min_length=1)]
    tasks: Annotated[dict[str, Task], BeforeValidator(made_tasks)]
    methods: Annotated[dict[str, Settings], BeforeValidator(made_methods)] = Field(default_factory=dict)
    heads: tuple[str, ...] = ("own",)
    k: Annotated[tuple[K, ...], Field(min_length=1)] = (0.1,)
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    n_train: tuple[Count, ...] = ()
    skip: tuple[Skip, ...] = ()
    split: Literal["val", "test"] = "test"
    metric: Metric | None = None
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        self._check_sources("heads", self.heads)
        for name, settings in self.methods.items():
            sources = self._sources(settings)
            self._check_sources(f"methods.{name}.heads", sources)
            if "bias" in sources and not isinstance(settings.method, LoFiT):
                raise ValueError(
                    f'heads has "bias", which is a way of LoFiT; say heads = [...] without it in methods.{name}, which is a '
                    f"{type(settings.method).__name__}"
                )
        if clash := [name for name in self.tasks if name in HEAD_SOURCES]:
            raise ValueError(f"a task is called {clash[0]!r}, which is a source of heads; call it something else")
        if "base" in self.methods:
            raise ValueError("a method is called 'base', as the model without an edit is; call it something else")
        for field in ("models", "heads", "k", "seeds", "n_train"):
            values = getattr(self, field)
            if len(set(values)) < len(values):
                raise ValueError(f"{field} = {list(values)} has a value twice; wanted each once")
        for name, task in self.tasks.items():
            if self.n_train and "n_train" not in names_of_settings(type(task)):
                raise ValueError(f"n_train is varied, but the task {name!r} has no n_train")
        learned = {cell.method for cell in self._grid()}
        if idle := [name for name in self.methods if name not in learned]:
            raise ValueError(
                f"methods.{idle[0]} makes no cell, as heads = {list(self._sources(self.methods[idle[0]]))} with "
                f"{len(self.tasks)} task(s); name a source of heads that each task has, such as 'own'"
            )
        self._refuse_exceptions_that_never_apply()

    @classmethod
    def from_file(cls, path: str | Path) -> "Study":
        """Read a TOML file; a study without a name is called as the file is.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no TOML, or no UTF-8, or says something that cannot be: names the key, the value and the choices.
        """
        path = Path(path)
        try:
            return cls(**{"name": path.stem, **tomllib.loads(path.read_text(encoding="utf-8-sig"))})
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path} is not there; wanted a study, a TOML file") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8, as TOML has to be: {error}") from error
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path} is not TOML: {error}") from error
        except ValidationError as error:
            raise ValueError(f"{path}: {said(error, {'': cls, 'skip': Skip})}") from error

    def _sources(self, settings: Settings) -> tuple[str, ...]:
        if not settings.takes_heads:
            return ()
        return self.heads if settings.heads is None else settings.heads

    def _check_sources(self, key: str, sources: tuple[str, ...]) -> None:
        if unknown := [source for source in sources if source not in (*HEAD_SOURCES, *self.tasks)]:
            raise ValueError(f"{key} has {unknown[0]!r}; wanted some of {', '.join(HEAD_SOURCES)}, or a task of the study")

    def _refuse_exceptions_that_never_apply(self) -> None:
        # What is said of own heads also holds for the first step that others take theirs from.
        places = [{**vars(cell), "heads": heads} for cell in self._grid() for heads in (cell.heads, "own")]
        exceptions: list[tuple[str, Place, list[dict[str, Any]]]]
        exceptions = [("skip", skip, [vars(cell) for cell in self._grid()]) for skip in self.skip]
        for name, settings in self.methods.items():
            of_method = [place for place in places if place["method"] == name]
            exceptions += [(f"methods.{name}.where", where, of_method) for where in settings.where]
        choices = {
            "model": self.models,
            "task": tuple(self.tasks),
            "method": tuple(self.methods),
            # The cells of "others" are called by the lender.
            "heads": (*(source for source in HEAD_SOURCES if source != "others"), *self.tasks),
            "k": self.k,
            "n_train": self.n_train,
        }
        for name, exception, possible in exceptions:
            for key, known in choices.items():
                if getattr(exception, key, None) not in (None, *known):
                    raise ValueError(
                        f"{name} has {key} = {getattr(exception, key)!r}; wanted one of "
                        f"{', '.join(map(str, known)) or 'none, as the study does not vary it'}"
                    )
            if not any(exception.applies_to(**place) for place in possible):
                what = {key: value for key, value in vars(exception).items() if key != "set" and value is not None}
                raise ValueError(f"{name} has {what}, which is no cell; a task's heads for itself are called 'own'")
        if not any(self.cells()):
            raise ValueError(f"skip = {list(self.skip)} leaves no cell; wanted at least one")

    def check_data(self) -> None:
        """Make every example that a cell needs.

        Raises:
            FileNotFoundError: a task's files are not at hand.
            ValueError: an example that cannot be made.
        """
        for name, n_train in dict.fromkeys((cell.task, cell.n_train) for cell in self.cells()):
            self.task_at(name, n_train).digest()

    def task_at(self, name: str, n_train: int | None) -> Task:
        """A task of the study, with so many training examples where they are varied."""
        task = self.tasks[name]
        return task if n_train is None else replace(task, n_train=n_train)  # pyright: ignore[reportArgumentType]

    def method_at(self, cell: Cell) -> Method:
        """What a cell is learned by, before heads are given and anything is chosen."""
        assert cell.method is not None
        place = {"model": cell.model, "task": cell.task, "heads": cell.heads, "k": cell.k, "n_train": cell.n_train}
        return self.methods[cell.method].at(**place)

    def cells(self) -> Iterator[Cell]:
        """Everything to run; a model's cells are together, and so are a task's."""
        for cell in self._grid():
            if not any(skip.applies_to(**vars(cell)) for skip in self.skip):
                yield cell

    def _grid(self) -> Iterator[Cell]:
        for model in self.models:
            for task in self.tasks:
                yield Cell(model, task)
                for n_train in self.n_train or (None,):
                    for seed in self.seeds:
                        for name, settings in self.methods.items():
                            for heads, k in self._head_sets(task, settings):
                                yield Cell(model, task, name, heads, k, n_train, seed)

    def _head_sets(self, task: str, settings: Settings) -> Iterator[tuple[str | None, int | float | None]]:
        if not settings.takes_heads:
            yield None, None
        for lender in dict.fromkeys(self._lenders(task, settings)):
            for k in self.k:
                yield lender, k

    def _lenders(self, task: str, settings: Settings) -> Iterator[str]:
        for source in self._sources(settings):
            for lender in self.tasks if source == "others" else (source,):
                # A task's own heads are called "own", so that a cell has one name.
                if lender != task:
                    yield lender
                elif source != "others":
                    yield "own"
