"""What a study has to do: head scores that several cells start from, and cells. Each is told by what determines it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, get_args

from lofit_lens.checkpoints import short_sha256
from lofit_lens.methods import ITI, LoFiT
from lofit_lens.runs import key_of, name_of
from lofit_lens.selection.gradient import Measure
from lofit_lens.study.grid import HEAD_SOURCES, Cell, Study
from lofit_lens.tasks import Task

#: Sources that score heads by their gradients, and how.
GRADIENT_MEASURES: dict[str, Measure] = {f"gradient-{measure}": measure for measure in get_args(Measure)}
#: Sources that draw, whatever a task is trained on; that ask nothing of a seed; that want to know how many heads will be taken.
BLIND = ("random", "random-per-layer")
SEEDLESS = (*GRADIENT_MEASURES, "greedy-gradient")
FOR_K = ("random-like-own", "greedy-gradient", "leave-one-out")
#: Sources that are the method's own first step, on the task or on another.
BY_METHOD = ("own", "own-per-layer", "bias", "random-like-own", "leave-one-out")
#: Sources that are made of the method's own scores.
OF_OWN = ("own-per-layer", "random-like-own")
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
            "k": self.k if self.source in FOR_K else None,
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
    lends_own = cell.heads not in HEAD_SOURCES
    source = "own" if lends_own else cell.heads
    by_method = source in BY_METHOD
    return Selection(
        model=cell.model,
        source=source,
        task=cell.heads if lends_own else cell.task,
        method=cell.method if by_method else None,
        n_train=None if source in BLIND else cell.n_train,
        k=cell.k if by_method or source in FOR_K else None,
        seed=None if source in SEEDLESS else cell.seed,
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
        if item.source == "leave-one-out":
            return pool_of(item)
        return own_of(item) if item.source in OF_OWN else None

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
        by_method = selection.method is not None
        settings = {
            "source": selection.source,
            "task": self._task(selection.task, selection.n_train),
            "method": _method(self.selector(selection)) if by_method else None,
            "for_k": selection.k if selection.source in FOR_K else None,
            "seed": selection.seed,
        }
        if selection.source == "leave-one-out":
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
