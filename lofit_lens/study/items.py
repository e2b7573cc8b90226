"""What a study has to do: head scores that several cells start from, and cells. Each is told by what determines it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, get_args

from lofit_lens.checkpoints import short_sha256
from lofit_lens.methods import ITI, LoFiT
from lofit_lens.runs import key_of, name_of
from lofit_lens.selection.gradient import Measure
from lofit_lens.study.grid import Cell, Study
from lofit_lens.tasks import Task

#: Sources that score heads by their gradients, and how.
GRADIENT_MEASURES: dict[str, Measure] = {f"gradient-{measure}": measure for measure in get_args(Measure)}


@dataclass(frozen=True)
class Source:
    """What the head scores of a source come of, beside a model and a task.

    Args:
        by_method: the method's own first step.
        for_k: how many heads will be taken.
        of_examples: what the task is trained on.
        seeded: a seed.
        starts_from: what has to be there first, of the same method on the same task.
    """

    by_method: bool = False
    for_k: bool = False
    of_examples: bool = True
    seeded: bool = True
    starts_from: Literal["own scores", "own fit"] | None = None


#: All but "others", which stands for "own" on other tasks.
SOURCES: dict[str, Source] = {
    "own": Source(by_method=True),
    "own-per-layer": Source(by_method=True, starts_from="own scores"),
    "iti": Source(),
    "random": Source(of_examples=False),
    "random-per-layer": Source(of_examples=False),
    "random-like-own": Source(by_method=True, for_k=True, starts_from="own scores"),
    **dict.fromkeys(GRADIENT_MEASURES, Source(seeded=False)),
    "greedy-gradient": Source(for_k=True, seeded=False),
    "bias": Source(by_method=True),
    "layer-probes": Source(),
    "leave-one-out": Source(by_method=True, for_k=True, starts_from="own fit"),
}
#: Heads are left out of a fit at so many times those that will be taken.
POOL = 3


@dataclass(frozen=True)
class Selection:
    """Scores of all heads, which cells take their heads from.

    Args:
        model: its name.
        source: a `HeadSource`, but for "others".
        task: whose.
        method: whose first step it is; None where that makes no difference, as for all that follows.
        n_train: training examples, where the study varies them.
        k: how many heads will be taken.
        seed: of what is random.
    """

    model: str
    source: str
    task: str
    method: str | None = None
    n_train: int | None = None
    k: int | float | None = None
    seed: int | None = None

    @property
    def labels(self) -> dict[str, Any]:
        """What files call it by."""
        return {"model": self.model, "task": self.task, "method": self.method, "heads": self.source} | {
            "k": self.k if SOURCES[self.source].for_k else None,
            "n_train": self.n_train,
            "seed": self.seed,
        }

    @property
    def name(self) -> str:
        return f"{name_of(self.labels)}.scores"


Item = Selection | Cell


def selection_of(cell: Cell) -> Selection | None:
    """The head scores that a cell takes its heads from, if it takes any."""
    if cell.heads is None:
        return None
    name, task = (cell.heads, cell.task) if cell.heads in SOURCES else ("own", cell.heads)
    source = SOURCES[name]
    return Selection(
        model=cell.model,
        source=name,
        task=task,
        method=cell.method if source.by_method else None,
        n_train=cell.n_train if source.of_examples else None,
        k=cell.k if source.by_method or source.for_k else None,
        seed=cell.seed if source.seeded else None,
    )


def own_of(selection: Selection) -> Selection:
    """The method's own scores for the same task, which some sources look at."""
    return Selection(**{**vars(selection), "source": "own"})


def pool_size(k: int | float) -> int | float:
    """How many heads, or which share of them, the fit has that heads are left out of."""
    return POOL * k if isinstance(k, int) else min(1.0, round(POOL * k, 6))


def pool_of(selection: Selection) -> Cell:
    """The run whose heads are left out one at a time."""
    assert selection.k is not None
    place = (selection.model, selection.task, selection.method)
    return Cell(*place, heads="own", k=pool_size(selection.k), n_train=selection.n_train, seed=selection.seed)


class Catalogue:
    """What determines each item of a study, for the models whose fingerprints are known.

    Args:
        study: the grid.
        fingerprints: of its models, by name.
    """

    def __init__(self, study: Study, fingerprints: Mapping[str, str]) -> None:
        self.study = study
        self.fingerprints = fingerprints
        self._task = cache(self._task_settings)

    def key(self, item: Item) -> str:
        return key_of(self.settings(item))

    def settings(self, item: Item) -> dict[str, Any]:
        """All that determines the item's result, as plain JSON values.

        Raises:
            FileNotFoundError: a task's files are not at hand.
        """
        of_model = {"fingerprint": self.fingerprints[item.model], "dtype": self.study.dtype}
        if isinstance(item, Selection):
            return {"kind": "head scores", "model": of_model, **self._of_selection(item)}
        selection = selection_of(item)
        return {
            "kind": "run",
            "model": of_model,
            "task": self._task(item.task, item.n_train),
            "methods": None if item.method is None else [_method(method) for method in self.methods(item)],
            "heads": None if selection is None else {"k": item.k, **self._of_selection(selection)},
            "seed": item.seed,
            "split": self.study.split,
            "metric": self.study.metric or self.study.tasks[item.task].metric,
        }

    def methods(self, cell: Cell) -> tuple[Any, ...]:
        """What the validation split picks from, before heads are given."""
        assert cell.method is not None
        tried: tuple[Any, ...] = self.study.methods[cell.method].tried(self.study.method_at(cell))
        return tried if cell.k is None else tuple(replace(method, k=cell.k) for method in tried)

    def selector(self, selection: Selection) -> LoFiT | ITI:
        """The method whose first step scores heads there, without what that step does not read."""
        assert selection.method is not None
        place = Cell(selection.model, selection.task, selection.method, "own", selection.k, selection.n_train)
        method: Any = self.study.method_at(place)
        if selection.source == "bias":
            method = replace(method, select_by="offset")
        return method.selector()

    def seed_of_draw(self, selection: Selection) -> int:
        """Of what is random in a source: each task has draws of its own, so that tasks are independent trials."""
        return int(short_sha256([selection.source, self._task(selection.task, None), selection.seed])[:8], 16)

    def needs(self, item: Item) -> Item | None:
        """What has to be done first."""
        if isinstance(item, Cell):
            return selection_of(item)
        starts_from = SOURCES[item.source].starts_from
        if starts_from == "own fit":
            return pool_of(item)
        return own_of(item) if starts_from == "own scores" else None

    def items(self, model: str) -> list[Item]:
        """All of a model's, each once and behind what it needs."""
        found: dict[str, Item] = {}

        def add(item: Item) -> None:
            if (needed := self.needs(item)) is not None:
                add(needed)
            found.setdefault(self.key(item), item)

        for cell in self.study.cells():
            if cell.model == model:
                add(cell)
        return list(found.values())

    def _of_selection(self, selection: Selection) -> dict[str, Any]:
        source = SOURCES[selection.source]
        settings = {
            "source": selection.source,
            "task": self._task(selection.task, selection.n_train),
            "method": _method(self.selector(selection)) if source.by_method else None,
            "for_k": selection.k if source.for_k else None,
            "seed": selection.seed,
        }
        if source.starts_from == "own fit":
            settings["left_out_of"] = [_method(method) for method in self.methods(pool_of(selection))]
        return settings

    def _task_settings(self, name: str, n_train: int | None) -> dict[str, Any]:
        task = self.study.task_at(name, n_train)
        # All splits: a few-shot prompt and a choice by validation read others than the one that is judged.
        return {**_judged_by(task), "data": task.digest()}


def _judged_by(task: Task) -> dict[str, Any]:
    """What a task is apart from its examples; settings, as those of `Records`, need not say what trains on it and judges."""
    how = {"loss": task.loss, "metric": task.metric, "stop": list(task.stop), "max_new_tokens": task.max_new_tokens}
    return {"task": task.name, "settings": task.settings(), **how}


def _method(method: Any) -> dict[str, Any]:
    return {"name": type(method).__name__, "settings": method.settings()}
