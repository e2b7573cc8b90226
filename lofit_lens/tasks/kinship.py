"""Kinship: two facts about three people, and the relation they add up to. Generated, so no files are needed.

CLUTRR's idea with sentences of our own, short enough to train on a CPU. "A is B's ..." and "B is C's ..." are put into one
of several wordings each, in either order; the answer says how A is related to C. Only pairs of relations with a single
answer are used, siblings being full siblings: a mother's husband is not (father or stepfather), nor is a son's mother
(wife or not). That leaves 11 pairs (20 answers; 40 with the genders of A and B).

Two examples:

    Joseph named a newborn son Philip. Joseph is Jeffrey's son. How is Philip related to Jeffrey? Philip is Jeffrey's
     grandson

    Jason is the son of Emma. Tina is Jason's wife. How is Tina related to Emma? Tina is Emma's
     daughter-in-law
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass as plain_dataclass
from functools import cached_property
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lofit_lens.tasks.base import Example, Loss, Metric, Split, Task

_MALE, _FEMALE = 0, 1

#: Words for each kind of relation, by the gender of the person who has it.
_WORDS = {
    "parent": ("father", "mother"),
    "child": ("son", "daughter"),
    "sibling": ("brother", "sister"),
    "spouse": ("husband", "wife"),
}

#: What A is to C, by A's gender, where A is B's (first kind) and B is C's (second kind).
_SUMS = {
    ("parent", "parent"): ("grandfather", "grandmother"),
    ("sibling", "parent"): ("uncle", "aunt"),
    ("child", "child"): ("grandson", "granddaughter"),
    ("sibling", "child"): ("son", "daughter"),
    ("spouse", "child"): ("son-in-law", "daughter-in-law"),
    ("parent", "sibling"): ("father", "mother"),
    ("child", "sibling"): ("nephew", "niece"),
    ("sibling", "sibling"): ("brother", "sister"),
    ("spouse", "sibling"): ("brother-in-law", "sister-in-law"),
    ("parent", "spouse"): ("father-in-law", "mother-in-law"),
    ("sibling", "spouse"): ("brother-in-law", "sister-in-law"),
}

#: Wordings of "{x} is {y}'s {word}". None says more than that, so that no two of them can contradict each other.
_ANY_KIND = ("{x} is {y}'s {word}.", "{x} is the {word} of {y}.", "{y}'s {word} is {x}.")
_WORDINGS = {
    "parent": (*_ANY_KIND, "{x} became a {word} when {y} was born."),
    "child": (*_ANY_KIND, "{y} named a newborn {word} {x}."),
    "sibling": (*_ANY_KIND, "{y} shares both parents with {their} {word} {x}."),
    "spouse": (*_ANY_KIND, "{y} shares a home with {their} {word} {x}."),
}

# Male, female. Every name has one usual gender, and none ends in "s" (its possessive would be written in two ways).
_NAMES: tuple[str, str] = (
    "Aaron Adam Alan Albert Andrew Anthony Arthur Ben Brian Carl Daniel David Donald Edward Eric Frank Fred Gary George "
    "Gregory Harold Henry Howard Ian Jack Jacob Jason Jeffrey John Joseph Joshua Justin Keith Kenneth Kevin Larry "
    "Leonard Martin Matthew Michael Nathan Oliver Oscar Patrick Paul Peter Philip Ralph Raymond Richard Robert Roger "
    "Ronald Samuel Simon Stephen Timothy Victor Walter William",
    "Alice Amanda Amy Angela Anna Barbara Betty Brenda Carol Caroline Catherine Clara Deborah Diana Donna Dorothy Elena "
    "Elizabeth Ella Emily Emma Eva Fiona Gloria Hannah Helen Irene Jane Janet Jennifer Jessica Joan Judith Julia Karen "
    "Kate Laura Linda Lisa Lucy Margaret Maria Martha Mary Megan Nancy Nina Olivia Pamela Rachel Rebecca Ruth Sandra "
    "Sarah Sophia Susan Teresa Tina Victoria Wendy",
)

#: Names of each gender that a split has to itself, as a slice of the shuffled list.
_NAMES_OF_SPLIT: dict[Split, slice] = {"train": slice(0, 30), "val": slice(30, 45), "test": slice(45, 60)}


@plain_dataclass(frozen=True)
class _Pair:
    """A is B's `first`, B is C's `second`; the genders of A and B, and those that C may have."""

    first: str
    second: str
    genders: tuple[int, int]
    c_genders: tuple[int, ...]

    @property
    def answer(self) -> str:
        return _SUMS[self.first, self.second][self.genders[0]]


def _pairs() -> Iterator[_Pair]:
    for first, second in _SUMS:
        for a in (_MALE, _FEMALE):
            for b in (_MALE, _FEMALE):
                # Husbands have wives here: the words for spouses then never say two things about one person's gender.
                if first != "spouse" or a != b:
                    yield _Pair(first, second, (a, b), (1 - b,) if second == "spouse" else (_MALE, _FEMALE))


_ANSWERS = tuple(dict.fromkeys(answer for by_gender in _SUMS.values() for answer in by_gender))
_PAIRS_OF = {answer: [pair for pair in _pairs() if pair.answer == answer] for answer in _ANSWERS}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Kinship(Task):
    """Generated two-hop kinship with 20 answers.

    Answers are as even in number as they can be, in every split and in its first so many examples, and names are nearly
    so. Each split has names of its own: 30 of each gender to train, 15 to validate and 15 to test, dealt by the seed. No
    two examples have the same names in the same roles. A smaller split is the beginning of a larger one with the same seed.

    Args:
        n_train: training examples, at most 24,360.
        n_val: validation examples, at most 2,730.
        n_test: test examples, at most 2,730.
        seed: another seed gives other names to the splits, and other stories.

    Raises:
        ValueError: a setting is out of range.
    """

    name: ClassVar[str] = "kinship"
    loss: ClassVar[Loss] = "cross_entropy"
    metric: ClassVar[Metric] = "exact_match"

    n_train: Annotated[int, Field(ge=1, strict=True)] = 300
    n_val: Annotated[int, Field(ge=1, strict=True)] = 100
    n_test: Annotated[int, Field(ge=1, strict=True)] = 300
    seed: Annotated[int, Field(ge=0, strict=True)] = 0

    def __post_init__(self) -> None:
        # Cheap enough to do at once; a size that cannot be had is then refused where it is asked for.
        _ = self._all_splits

    def build(self, split: Split) -> list[Example]:
        return self._all_splits[split]

    @cached_property
    def _all_splits(self) -> dict[Split, list[Example]]:
        rng = random.Random(f"{self.name} {self.seed}")
        shuffled = [rng.sample(names, len(names)) for names in map(str.split, _NAMES)]
        sizes: dict[Split, int] = {"train": self.n_train, "val": self.n_val, "test": self.n_test}
        built: dict[Split, list[Example]] = {}
        for split, part in _NAMES_OF_SPLIT.items():
            built[split] = self._examples(split, sizes[split], [names[part] for names in shuffled])
        return built

    @property
    def stop(self) -> tuple[str, ...]:
        """The end of a line or of a sentence."""
        return ("\n", ".")

    @property
    def chance(self) -> float:
        """One over the number of answers, 1/20; they are balanced, so no constant guess does better on 20, 40, ... examples."""
        return 1 / len(_ANSWERS)

    def _examples(self, split: Split, size: int, names: list[list[str]]) -> list[Example]:
        rng = random.Random(f"{self.name} {self.seed} {split}")
        triples = _name_places(len(names[_MALE]), rng)
        if size > len(triples):
            raise ValueError(f"n_{split}={size} is more than the {len(triples)} name triples of the split; ask for fewer")
        examples = []
        answers: list[str] = []
        for i, places in enumerate(triples[:size]):
            # A deck of all answers, shuffled anew each time it is used up, keeps them even and their order free.
            answers = answers or rng.sample(_ANSWERS, len(_ANSWERS))
            pairs = _PAIRS_OF[answers.pop()]
            pair = pairs[i // len(_ANSWERS) % len(pairs)]
            genders = (*pair.genders, rng.choice(pair.c_genders))
            people = [names[gender][place] for gender, place in zip(genders, places, strict=True)]
            examples.append(_example(pair, people, genders, rng))
        return examples


def _name_places(n: int, rng: random.Random) -> list[tuple[int, int, int]]:
    """All ordered triples of different places in a list of n names, in an order that uses the places evenly.

    Each run of n triples has every place once in every role.
    """
    shifts = [(b, c) for b in range(1, n) for c in range(1, n) if b != c]
    rng.shuffle(shifts)
    return [(a, (a + b) % n, (a + c) % n) for b, c in shifts for a in range(n)]


def _example(pair: _Pair, people: list[str], genders: tuple[int, ...], rng: random.Random) -> Example:
    def fact(kind: str, x: int, y: int) -> str:
        their = ("his", "her")[genders[y]]
        return rng.choice(_WORDINGS[kind]).format(x=people[x], y=people[y], word=_WORDS[kind][genders[x]], their=their)

    facts = [fact(pair.first, 0, 1), fact(pair.second, 1, 2)]
    rng.shuffle(facts)
    a, b, c = people
    return Example(
        prompt=f"{' '.join(facts)} How is {a} related to {c}? {a} is {c}'s",
        answer=f" {pair.answer}",
        info={
            "relation": pair.answer,
            "first": _WORDS[pair.first][genders[0]],
            "second": _WORDS[pair.second][genders[1]],
            "a": a,
            "b": b,
            "c": c,
        },
    )
