"""Counterfactual: an imagined fact, and a question whose answer must follow it. Generated, so no files are needed.

MQuAKE's idea (Zhong et al., 2023, arXiv 2305.14795), with sentences and tables of our own: the first hop moves a famous
building, person, company or creation to another country, the second asks for that country's capital, language, currency
or continent. The answer that the real world would give is kept in `rejected`; it always differs.

Two examples (in the real world " Madrid" and " euro"):

    Q: Imagine that the United States is where flamenco comes from. What is the name of the capital city of the country that
    flamenco comes from? A:
     Washington

    Q: Imagine that the Brandenburg Gate is located in Libya. What is the currency of the country where the Brandenburg Gate
    is? A:
     dinar
"""

import itertools
import random
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
    Subject,
    countries,
    evenly,
    first_so_many,
    parts,
    region,
    subjects,
    values,
)

#: The imagined fact, and words for the country in question.
_FACTS: dict[Kind, tuple[str, ...]] = {
    "landmark": ("{subject} is in {country}", "{subject} is located in {country}"),
    "person": ("{subject} was born in {country}", "{country} is where {subject} was born"),
    "company": ("{subject} was founded in {country}", "{country} is where {subject} was founded"),
    "creation": ("{subject} comes from {country}", "{country} is where {subject} comes from"),
}
_PLACES: dict[Kind, tuple[str, ...]] = {
    "landmark": ("the country where {subject} is", "the country that {subject} is in"),
    "person": ("the country where {subject} was born", "the country that {subject} was born in"),
    "company": ("the country where {subject} was founded", "the country that {subject} was founded in"),
    "creation": ("the country that {subject} comes from", "the country where {subject} comes from"),
}


class _Edit(NamedTuple):
    """A subject, the country it is moved to, and what is asked about that country."""

    subject: Subject
    country: Country
    relation: Relation

    @property
    def answers(self) -> tuple[str, ...]:
        return self.country.facts[self.relation]

    @property
    def true_answers(self) -> tuple[str, ...]:
        return countries()[self.subject.country].facts[self.relation]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Counterfactual(Task):
    """Generated two-hop questions about an imagined world.

    Each split has subjects and imagined countries of its own (3/7 of both to train, 1/7 to validate, 3/7 to test, dealt by
    the seed), so no edit is shared; an answer is shared only where countries share it (a language, a currency, a
    continent). The four relations take turns, and the answers within each. A smaller split is the beginning of a larger
    one with the same seed. How many examples there are depends a little on the seed: some 14,000 to train, 1,600 to validate,
    13,000 to test.

    Args:
        n_train: training examples.
        n_val: validation examples.
        n_test: test examples.
        seed: another seed gives other subjects and countries to the splits, and other questions.

    Raises:
        ValueError: a setting is out of range.
    """

    name: ClassVar[str] = "counterfactual"
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
        subjects_of = parts(subjects(), lambda subject: subject.kind, rng)
        countries_of = parts(countries().values(), region, rng)
        sizes: dict[Split, int] = {"train": self.n_train, "val": self.n_val, "test": self.n_test}
        built: dict[Split, list[Example]] = {}
        for split in SPLITS:
            split_rng = random.Random(f"{self.name} {self.seed} {split}")
            edits = _edits(subjects_of[split], countries_of[split], split_rng)
            built[split] = [_example(edit, split_rng) for edit in first_so_many(edits, sizes[split], split)]
        return built

    @property
    def stop(self) -> tuple[str, ...]:
        """The end of a line or of a sentence."""
        return ("\n", ".")

    @property
    def chance(self) -> float:
        """What a uniform guess among all answers to the relation that is asked about scores, on average over the test."""
        n_answers: dict[str, int] = {relation: len(values(relation)) for relation in RELATIONS}
        guesses = [1 / n_answers[example.info["relation"]] for example in self.test]
        return sum(guesses) / len(guesses)

    def is_correct(self, generated: str, example: Example) -> bool:
        """Exact match up to the first full stop, on either side: a sentence may follow, and "Washington, D.C." counts.

        So does an article in front: "the yen".
        """

        def cut(text: str) -> str:
            return text.split(".")[0].strip().lower().removeprefix("the ")

        return cut(generated) in {cut(answer) for answer in example.right_answers}


def _edits(moved: list[Subject], imagined: list[Country], rng: random.Random) -> list[_Edit]:
    """All edits that change the answer, shuffled, with relations taking turns, and the answers within each relation."""
    edits = [_Edit(*edit) for edit in itertools.product(moved, imagined, RELATIONS)]
    edits = [edit for edit in edits if edit.answers and edit.true_answers and not _agree(edit)]
    rng.shuffle(edits)
    return evenly(evenly(edits, lambda edit: (edit.relation, edit.answers[0])), lambda edit: edit.relation)


def _agree(edit: _Edit) -> bool:
    return not set(edit.answers).isdisjoint(edit.true_answers)


def _example(edit: _Edit, rng: random.Random) -> Example:
    subject, country, relation = edit
    fact = rng.choice(_FACTS[subject.kind]).format(subject=subject.name, country=country.name)
    place = rng.choice(_PLACES[subject.kind]).format(subject=subject.name)
    question = rng.choice(COUNTRY_QUESTIONS[relation]).format(place=place)
    answer, *aliases = edit.answers
    return Example(
        prompt=f"Q: Imagine that {fact}. {question} A:",
        answer=f" {answer}",
        aliases=tuple(f" {alias}" for alias in aliases),
        rejected=(f" {edit.true_answers[0]}",),
        info={
            "relation": relation,
            "kind": subject.kind,
            "subject": subject.name,
            "country": country.name,
            "true_country": subject.country,
        },
    )
