"""IOI: indirect object identification, the task of Wang et al. (2022, arXiv 2211.00593), with sentences of our own.

Two people are named, one of them again, and the sentence asks for the other:

    Then Henry and Peter sat down in the kitchen, and Peter wanted to show a cup to Henry (not Peter)
    Once Robert and Steven had left the office, Robert wanted to show a cup to Steven (not Robert)

The two orders of the first clause (ABBA and BABA in that paper) take turns. Judged by likelihood: `mc1` is the accuracy (the
indirect object is likelier than the subject), `margin` the difference of the two log-probabilities, which is the logit
difference where both names are single tokens, as all 64 are for SmolLM2's tokenizer.
"""

import itertools
import random
from functools import cached_property
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lofit_lens.tasks.base import SPLITS, Example, Loss, Metric, Split, Task
from lofit_lens.tasks.world import first_so_many

_NAMES = """
Adam Alan Alice Amy Andrew Anna Anthony Brian Carl Carol Charles Chris Daniel David Diana Edward
Emily Emma Eric Frank George Grace Henry Jack James Jane Jason Jean John Joseph Julia Karen Kate
Kevin Laura Lisa Louis Lucy Mark Martin Mary Matthew Michael Nancy Nick Paul Peter Philip Rachel
Richard Robert Roger Rose Ruth Sam Sarah Simon Steven Susan Thomas Tony Victor Walter William
"""

_OPENINGS = (
    "After {a} and {b} arrived at the {place},",
    "When {a} and {b} met in the {place},",
    "While {a} and {b} were working at the {place},",
    "Then {a} and {b} sat down in the {place}, and",
    "Once {a} and {b} had left the {place},",
    "Because {a} and {b} were bored at the {place},",
)
_DEEDS = (
    "{s} handed a {thing} to",
    "{s} decided to give a {thing} to",
    "{s} passed a {thing} over to",
    "{s} wanted to show a {thing} to",
    "{s} offered a {thing} to",
)
_PLACES = (
    "station",
    "school",
    "garden",
    "office",
    "library",
    "restaurant",
    "museum",
    "hospital",
    "market",
    "beach",
    "kitchen",
    "theatre",
)
_THINGS = (
    "ticket",
    "book",
    "key",
    "letter",
    "cup",
    "map",
    "photo",
    "present",
    "ball",
    "phone",
    "sandwich",
    "newspaper",
)

#: Unordered pairs of names of which train, validation and test get so many in seven.
_DEAL: tuple[Split, ...] = ("train", "test", "train", "val", "test", "train", "test")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class IOI(Task):
    """Generated sentences whose last word is the indirect object.

    No two splits share a pair of names, in whichever roles. A smaller split is the beginning of a larger one with the same
    seed; every name is the answer about equally often.

    Args:
        n_train: training sentences.
        n_val: validation sentences.
        n_test: test sentences.
        seed: another seed gives other pairs to the splits, and other sentences.

    Raises:
        ValueError: a setting is out of range.
    """

    name: ClassVar[str] = "ioi"
    loss: ClassVar[Loss] = "cross_entropy"
    metric: ClassVar[Metric] = "mc1"

    n_train: Annotated[int, Field(ge=1, strict=True)] = 300
    n_val: Annotated[int, Field(ge=1, strict=True)] = 100
    n_test: Annotated[int, Field(ge=1, strict=True)] = 300
    seed: Annotated[int, Field(ge=0, strict=True)] = 0

    def __post_init__(self) -> None:
        # Cheap enough to do at once; a size that cannot be had is then refused where it is asked for.
        _ = self._all_splits

    def build(self, split: Split) -> list[Example]:
        return self._all_splits[split]

    @property
    def chance(self) -> float:
        """One of two names."""
        return 1 / 2

    @cached_property
    def _all_splits(self) -> dict[Split, list[Example]]:
        rng = random.Random(f"{self.name} {self.seed}")
        pairs = list(itertools.combinations(_NAMES.split(), 2))
        rng.shuffle(pairs)
        sizes: dict[Split, int] = {"train": self.n_train, "val": self.n_val, "test": self.n_test}
        built: dict[Split, list[Example]] = {}
        for split in SPLITS:
            split_rng = random.Random(f"{self.name} {self.seed} {split}")
            own = [pair for i, pair in enumerate(pairs) if _DEAL[i % len(_DEAL)] == split]
            roles = [roles for pair in own for roles in (pair, pair[::-1])]
            split_rng.shuffle(roles)
            chosen = first_so_many(roles, sizes[split], split)
            built[split] = [_example(*pair, is_abba=i % 2 == 0, rng=split_rng) for i, pair in enumerate(chosen)]
        return built


def _example(indirect: str, subject: str, *, is_abba: bool, rng: random.Random) -> Example:
    first, second = (indirect, subject) if is_abba else (subject, indirect)
    opening = rng.choice(_OPENINGS).format(a=first, b=second, place=rng.choice(_PLACES))
    deed = rng.choice(_DEEDS).format(s=subject, thing=rng.choice(_THINGS))
    return Example(
        prompt=f"{opening} {deed}",
        answer=f" {indirect}",
        rejected=(f" {subject}",),
        info={"order": "ABBA" if is_abba else "BABA", "indirect_object": indirect, "subject": subject},
    )
