"""What a task is: named splits of examples, the loss that trains on them and the metric that judges. No torch here."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

Split = Literal["train", "val", "test"]
Loss = Literal["cross_entropy", "dpo"]
Metric = Literal["exact_match", "mc1"]

LOSSES: tuple[Loss, ...] = ("cross_entropy", "dpo")
METRICS: tuple[Metric, ...] = ("exact_match", "mc1")
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Example:
    """One question. The text a model sees is `prompt + answer`, joined as they stand: white space belongs to one of them.

    Args:
        prompt: everything before the answer.
        answer: the gold answer; the preferred one of a preference task.
        aliases: other answers that are just as right.
        rejected: wrong answers; the first is the one that DPO trains against, all are choices in multiple choice.
        info: whatever a reader may want to group by (relation, entities, source line).
    """

    prompt: str
    answer: str
    aliases: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    info: Mapping[str, str] = field(default_factory=dict)

    @property
    def right_answers(self) -> tuple[str, ...]:
        return (self.answer, *self.aliases)

    @property
    def choices(self) -> tuple[str, ...]:
        """All right answers, then the wrong ones."""
        return (*self.right_answers, *self.rejected)


class _Splits(Mapping[Split, tuple[Example, ...]]):
    def __init__(self, build: Callable[[Split], Iterable[Example]]) -> None:
        self._build = build
        self._built: dict[Split, tuple[Example, ...]] = {}

    def __getitem__(self, split: Split) -> tuple[Example, ...]:
        if split not in self._built:
            self._built[split] = tuple(self._build(split))
        return self._built[split]

    def __iter__(self) -> Iterator[Split]:
        return iter(SPLITS)

    def __len__(self) -> int:
        return len(SPLITS)


class Task(ABC):
    """Base of every task. A task family is a frozen dataclass of its own settings that says how to `build` its splits.

    The same settings always give the same examples, in the same order.
    """

    name: ClassVar[str]
    loss: ClassVar[Loss]
    metric: ClassVar[Metric]
    #: Tokens a generated answer may take (the paper's 16).
    max_new_tokens: ClassVar[int] = 16
    #: What the splits hold with the published files and the class's own settings, for a list that is read before any download.
    published_sizes: ClassVar[dict[Split, int]] = {}
    #: What guessing scores on that test split.
    published_chance: ClassVar[float | None] = None

    def settings(self) -> dict[str, Any]:
        """Which examples these are, as plain JSON values, to be stored with what is made of them: all fields but the folder
        that the files are in. A field at None means what its class says (TruthfulQA's preset: the published one).
        """
        names = [own.name for own in fields(self) if own.name != "data_dir"] if is_dataclass(self) else []
        return json.loads(json.dumps({name: getattr(self, name) for name in names}))

    def provenance(self) -> dict[str, Any]:
        """What edits and scores made of this task say of it."""
        return {"task": self.name, "task_settings": self.settings()}

    def digest(self) -> str:
        """A short hash of every example of every split: of the data themselves, whatever the settings say."""
        examples = [
            [split, [[e.prompt, e.answer, list(e.aliases), list(e.rejected)] for e in self.splits[split]]] for split in SPLITS
        ]
        return hashlib.sha256(json.dumps(examples).encode()).hexdigest()[:16]

    @abstractmethod
    def build(self, split: Split) -> Iterable[Example]:
        """Make one split."""

    @property
    def stop(self) -> tuple[str, ...]:
        """A generated answer ends at the first of these strings (or at the end-of-sequence token)."""
        return ("\n",)

    @property
    @abstractmethod
    def chance(self) -> float:
        """What guessing scores on the test split, in [0, 1]."""

    @cached_property
    def splits(self) -> Mapping[Split, tuple[Example, ...]]:
        """The three splits; each is made when it is first asked for, so that one can be used where another's data lack."""
        return _Splits(self.build)

    @property
    def train(self) -> tuple[Example, ...]:
        return self.splits["train"]

    @property
    def val(self) -> tuple[Example, ...]:
        return self.splits["val"]

    @property
    def test(self) -> tuple[Example, ...]:
        return self.splits["test"]

    def is_correct(self, generated: str, example: Example) -> bool:
        """Exact match: the generated text, stripped and lower-cased, is one of the right answers."""
        return generated.strip().lower() in {answer.strip().lower() for answer in example.right_answers}


def names_of(examples: Sequence[Example]) -> list[str]:
    """What an error calls each example: its number, and the file and record that it came from if that is known."""
    places = [example.info.get("source") for example in examples]
    return [f"example {i}" + (f" ({place})" if place else "") for i, place in enumerate(places)]


def chance_of_choices(examples: tuple[Example, ...]) -> float:
    """What a uniform guess among each example's answer and its wrong ones scores, on average."""
    return sum(1 / (1 + len(example.rejected)) for example in examples) / len(examples)


def non_empty(examples: tuple[Example, ...], task: Task, split: Split) -> tuple[Example, ...]:
    """The examples, or a ValueError that names the empty split.

    Raises:
        ValueError: there are none.
    """
    if not examples:
        raise ValueError(f"the {split} split of task {task.name!r} is empty; ask for at least one example (n_{split} >= 1)")
    return examples
