"""Countries and famous subjects: the tables behind the two tasks that ask about the world.

Two CSV files beside this one, compiled for this package. A cell may hold several names of one thing, separated by "|";
the first is the answer and the others are as right. A cell is empty where people would not agree on one answer (South
Africa has three capitals; India, Kenya and Switzerland no single main language; Russia and Turkey lie on two continents),
where the answer changed of late (the currency of Bulgaria) or the name gives it away (the continent of South Africa).
Borders are today's: Mozart was born in Austria.
"""

import csv
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from random import Random
from typing import Literal, TypeVar

from lofit_lens.tasks.base import SPLITS, Split

Relation = Literal["capital", "language", "currency", "continent"]
Kind = Literal["landmark", "person", "company", "creation"]

RELATIONS: tuple[Relation, ...] = ("capital", "language", "currency", "continent")
KINDS: tuple[Kind, ...] = ("landmark", "person", "company", "creation")

#: Three wordings of a question about a country; `place` is its name, or words that lead to it.
COUNTRY_QUESTIONS: dict[Relation, tuple[str, str, str]] = {
    "capital": (
        "What is the capital of {place}?",
        "Which city is the capital of {place}?",
        "What is the name of the capital city of {place}?",
    ),
    "language": (
        "What is the main language of {place}?",
        "Which language is spoken most in {place}?",
        "What is the most widely spoken language of {place}?",
    ),
    "currency": (
        "What is the currency of {place}?",
        "What is the national currency of {place}?",
        "What is the official currency of {place}?",
    ),
    "continent": (
        "On which continent is {place}?",
        "Which continent does {place} belong to?",
        "What continent is home to {place}?",
    ),
}

#: Which split an item falls into, by its number in its group: 3 to train, 3 to test, 1 to validate.
_DEAL: tuple[Split, ...] = ("train", "test", "val", "train", "test", "train", "test")

# Currencies of several countries, which nobody calls by one country's name.
_SHARED_CURRENCIES = ("euro", "CFA franc")

T = TypeVar("T")


@dataclass(frozen=True)
class Country:
    """A row of `countries.csv`.

    Args:
        name: as it stands inside a sentence, with its article if it has one.
        facts: for each relation the answer and its other names; empty if there is no single answer.
        adjective: as in "Japanese food".
        city: a city that is easily taken for the capital; may be empty.
        neighbour: the country that is most easily taken for this one.
        avoid: answers that are half true, so never to be offered as false ones.
        old_currency: the one before the euro; empty elsewhere.
    """

    name: str
    facts: dict[Relation, tuple[str, ...]]
    adjective: str
    city: str
    neighbour: str
    avoid: tuple[str, ...]
    old_currency: str


@dataclass(frozen=True)
class Subject:
    """A row of `subjects.csv`: something or somebody famous, and its country."""

    kind: Kind
    name: str
    country: str


@cache
def countries() -> dict[str, Country]:
    """All countries by name."""
    return {row["name"]: _country(row) for row in _rows("countries.csv")}


def region(country: Country) -> str:
    """Its continent, or its neighbour's where that is not a plain fact: for grouping, not for asking."""
    return (country.facts["continent"] or countries()[country.neighbour].facts["continent"])[0]


@cache
def subjects() -> tuple[Subject, ...]:
    kinds: dict[str, Kind] = {kind: kind for kind in KINDS}
    return tuple(Subject(kinds[row["kind"]], row["name"], row["country"]) for row in _rows("subjects.csv"))


@cache
def values(relation: Relation) -> tuple[str, ...]:
    """The distinct answers to one relation, over all countries."""
    facts = (country.facts[relation] for country in countries().values())
    return tuple(dict.fromkeys(fact[0] for fact in facts if fact))


def parts(items: Iterable[T], group: Callable[[T], Hashable], rng: Random) -> dict[Split, list[T]]:
    """Deal items to the splits, 3 to 1 to 3, evenly in every group."""
    shuffled = list(items)
    rng.shuffle(shuffled)
    dealt: dict[Split, list[T]] = {split: [] for split in SPLITS}
    seen: Counter[Hashable] = Counter()
    for item in shuffled:
        dealt[_DEAL[seen[group(item)] % len(_DEAL)]].append(item)
        seen[group(item)] += 1
    return dealt


def evenly(items: Iterable[T], group: Callable[[T], Hashable]) -> list[T]:
    """Reorder so that groups take turns: first the first item of every group, then the second of every group that has one.

    Inside a group, and among the groups of one turn, the order stays.
    """
    seen: Counter[Hashable] = Counter()
    turns: list[tuple[int, T]] = []
    for item in items:
        turns.append((seen[group(item)], item))
        seen[group(item)] += 1
    return [item for _, item in sorted(turns, key=lambda turn: turn[0])]


def first_so_many(examples: list[T], size: int, split: Split) -> list[T]:
    """The first `size` examples, or an error that says how many there are.

    Raises:
        ValueError: there are fewer.
    """
    if size > len(examples):
        raise ValueError(f"n_{split}={size} is more than the {len(examples)} examples that the {split} split can have")
    return examples[:size]


def _rows(name: str) -> list[dict[str, str]]:
    text = files("lofit_lens.tasks").joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _names(cell: str) -> tuple[str, ...]:
    return tuple(cell.split("|")) if cell else ()


def _country(row: dict[str, str]) -> Country:
    facts: dict[Relation, tuple[str, ...]] = {relation: _names(row[relation]) for relation in RELATIONS}
    if facts["currency"] and facts["currency"][0] not in _SHARED_CURRENCIES:
        # "Swedish krona", and of its other names those that do not say already whose they are.
        by_country = [f"{row['adjective']} {name}" for name in facts["currency"] if name.islower()]
        facts["currency"] = tuple(dict.fromkeys([*facts["currency"], *by_country]))
    return Country(
        name=row["name"],
        facts=facts,
        adjective=row["adjective"],
        city=row["city"],
        neighbour=row["neighbour"],
        avoid=_names(row["avoid"]),
        old_currency=row["old_currency"],
    )
