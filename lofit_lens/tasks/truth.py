"""Truth: one true answer and four false ones about countries and famous subjects. Generated, so no files are needed.

TruthfulQA's form (Lin et al., 2022, arXiv 2109.07958): a preference pair to train on, multiple choice to judge. The false
answers are plausible, and the first is the most tempting that the tables know: the famous city that is not the capital,
the currency before the euro, the neighbour's language. The rest are true of other countries, of the same continent as far
as there are any. (A country is only offered as a wrong home if it is the right one in another question: obscurity is no hint.)

Two examples (the true answer first):

    Q: Where does fado come from? A:
     Portugal / Spain / Russia / Finland / Iceland

    Q: What is the currency of Hungary? A:
     forint / leu / euro / ruble / franc
"""

import random
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Annotated, ClassVar, NamedTuple

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lofit_lens.tasks.base import SPLITS, Example, Loss, Metric, Split, Task
from lofit_lens.tasks.world import (
    COUNTRY_QUESTIONS,
    RELATIONS,
    Country,
    Kind,
    Relation,
    countries,
    evenly,
    first_so_many,
    parts,
    region,
    subjects,
)

#: False answers to every question; constant, so that chance is the same for all.
N_FALSE = 4

_SUBJECT_QUESTIONS: dict[Kind, tuple[str, str, str]] = {
    "landmark": ("In which country is {place}?", "Which country is {place} in?", "Where in the world is {place}?"),
    "person": ("In which country was {place} born?", "Which country was {place} born in?", "Where was {place} born?"),
    "company": ("In which country was {place} founded?", "Which country was {place} founded in?", "Where was {place} founded?"),
    "creation": (
        "Which country does {place} come from?",
        "In which country did {place} begin?",
        "Where does {place} come from?",
    ),
}

#: The continent that is most easily taken for another.
_NEXT_CONTINENT = {
    "Africa": "Asia",
    "Asia": "Europe",
    "Europe": "Asia",
    "North America": "South America",
    "South America": "North America",
    "Oceania": "Asia",
}


class _Fact(NamedTuple):
    """Something true: a relation of a country, or the country of a famous subject."""

    relation: Relation | Kind
    subject: str
    country: Country

    @property
    def answers(self) -> tuple[str, ...]:
        return _answers(self.country, self.relation)

    @property
    def questions(self) -> tuple[str, str, str]:
        return _QUESTIONS[self.relation]


_QUESTIONS: dict[Relation | Kind, tuple[str, str, str]] = {**COUNTRY_QUESTIONS, **_SUBJECT_QUESTIONS}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Truth(Task):
    """Generated multiple choice: one true answer, four false.

    A split has facts of its own (3/7 of them to train, 1/7 to validate, 3/7 to test, for each relation alike, dealt by the
    seed), and three wordings of each. All its facts come once before one comes again in another wording. A smaller split
    is the beginning of a larger one with the same seed.

    Args:
        n_train: training examples, at most 801.
        n_val: validation examples, at most 270.
        n_test: test examples, at most 795.
        seed: another seed gives other facts to the splits, and other wordings and false answers.

    Raises:
        ValueError: a setting is out of range.
    """

    name: ClassVar[str] = "truth"
    loss: ClassVar[Loss] = "dpo"
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

    @cached_property
    def _all_splits(self) -> dict[Split, list[Example]]:
        rng = random.Random(f"{self.name} {self.seed}")
        facts_of = parts(_facts(), lambda fact: fact.relation, rng)
        sizes: dict[Split, int] = {"train": self.n_train, "val": self.n_val, "test": self.n_test}
        built: dict[Split, list[Example]] = {}
        for split in SPLITS:
            split_rng = random.Random(f"{self.name} {self.seed} {split}")
            asked = [(fact, question) for fact in facts_of[split] for question in fact.questions]
            split_rng.shuffle(asked)
            in_turns = evenly(asked, lambda pair: (pair[0].relation, pair[0].subject))
            built[split] = [_example(*pair, split_rng) for pair in first_so_many(in_turns, sizes[split], split)]
        return built

    @property
    def chance(self) -> float:
        """One over the number of choices, 1/5."""
        return 1 / (1 + N_FALSE)


def _facts() -> Iterator[_Fact]:
    for country in countries().values():
        for relation in RELATIONS:
            if country.facts[relation]:
                yield _Fact(relation, country.name, country)
    for subject in subjects():
        yield _Fact(subject.kind, subject.name, countries()[subject.country])


def _answers(country: Country, relation: Relation | Kind) -> tuple[str, ...]:
    """What is asked about a subject is its country, so there the answer is the country's name."""
    return country.facts[relation] if relation in RELATIONS else (country.name,)


def _example(fact: _Fact, question: str, rng: random.Random) -> Example:
    answer, *aliases = fact.answers
    return Example(
        prompt=f"Q: {question.format(place=fact.subject)} A:",
        answer=f" {answer}",
        aliases=tuple(f" {alias}" for alias in aliases),
        rejected=tuple(f" {answer}" for answer in _false_answers(fact, rng)),
        info={"relation": fact.relation, "subject": fact.subject, "country": fact.country.name},
    )


def _false_answers(fact: _Fact, rng: random.Random) -> list[str]:
    """The tempting ones, then answers for other countries of the continent, then for any."""
    found: list[str] = []
    for names in _candidates(fact, rng):
        answer = names[0] if names else ""
        true_or_nearly = answer in fact.country.avoid or not set(names).isdisjoint(fact.answers)
        if answer and answer not in found and not true_or_nearly:
            found.append(answer)
        if len(found) == N_FALSE:
            return found
    raise AssertionError(f"the tables have no {N_FALSE} false answers for {fact}")


def _candidates(fact: _Fact, rng: random.Random) -> Iterable[tuple[str, ...]]:
    """Possible false answers, the most tempting first, each with its other names; some may be empty or true."""
    country, relation = fact.country, fact.relation
    neighbour = _answers(countries()[country.neighbour], relation)
    if relation == "capital":
        yield from ((country.city,), neighbour)
    elif relation == "language":
        yield from (neighbour, (country.adjective,), ("English",))
    elif relation == "currency":
        yield from ((country.old_currency,), neighbour, ("euro" if region(country) == "Europe" else "dollar",))
    elif relation == "continent":
        yield (_NEXT_CONTINENT[country.facts["continent"][0]],)
    homes = {subject.country for subject in subjects()}
    if relation not in RELATIONS and country.neighbour in homes:
        yield neighbour
    others = [other for other in countries().values() if relation in RELATIONS or other.name in homes]
    rng.shuffle(others)
    # A stable sort: countries of the same region first, in random order.
    others.sort(key=lambda other: region(other) != region(country))
    yield from (_answers(other, relation) for other in others)
