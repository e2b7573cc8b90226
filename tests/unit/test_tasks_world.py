"""The tables of the world, against facts written down again here; and the two helpers that deal and order."""

import itertools
import random
from collections import Counter

import pytest

from lofit_lens.tasks.world import KINDS, RELATIONS, countries, evenly, parts, region, subjects, values

# Country: capital, main language, currency, continent. None: the table must not ask.
KNOWN = {
    "Japan": ("Tokyo", "Japanese", "yen", "Asia"),
    "Brazil": ("Brasília", "Portuguese", "real", "South America"),
    "Egypt": ("Cairo", "Arabic", "pound", "Africa"),
    "Australia": ("Canberra", "English", "dollar", None),
    "Turkey": ("Ankara", "Turkish", "lira", None),
    "South Africa": (None, None, "rand", None),
    "Switzerland": ("Bern", None, "franc", "Europe"),
    "Canada": ("Ottawa", None, "dollar", "North America"),
    "Myanmar": ("Naypyidaw", "Burmese", "kyat", "Asia"),
    "Tanzania": ("Dodoma", "Swahili", "shilling", "Africa"),
    "Poland": ("Warsaw", "Polish", "zloty", "Europe"),
    "New Zealand": ("Wellington", "English", "dollar", "Oceania"),
    "the United States": ("Washington", "English", "dollar", "North America"),
    "Bulgaria": ("Sofia", "Bulgarian", None, "Europe"),
    "Bolivia": (None, "Spanish", "boliviano", "South America"),
    "Vietnam": ("Hanoi", "Vietnamese", "dong", "Asia"),
    "Finland": ("Helsinki", "Finnish", "euro", "Europe"),
    "Iran": ("Tehran", "Persian", "rial", "Asia"),
}

HOMES = {
    "the Eiffel Tower": "France",
    "Machu Picchu": "Peru",
    "Marie Curie": "Poland",
    "Usain Bolt": "Jamaica",
    "IKEA": "Sweden",
    "Nokia": "Finland",
    "pho": "Vietnam",
    "reggae": "Jamaica",
    "Topkapi Palace": "Turkey",
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_facts(name: str) -> None:
    facts = countries()[name].facts
    assert tuple(facts[relation][0] if facts[relation] else None for relation in RELATIONS) == KNOWN[name]


def test_known_homes() -> None:
    homes = {subject.name: subject.country for subject in subjects()}
    assert {name: homes[name] for name in HOMES} == HOMES


def test_aliases() -> None:
    assert countries()["China"].facts["currency"] == ("yuan", "renminbi", "RMB", "Chinese yuan", "Chinese renminbi")
    assert countries()["Ukraine"].facts["capital"] == ("Kyiv", "Kiev")
    assert countries()["the United States"].facts["capital"] == (
        "Washington",
        "Washington, D.C.",
        "Washington D.C.",
        "Washington DC",
        "Washington, DC",
    )
    assert countries()["France"].facts["currency"] == ("euro",)


def test_tables_are_large_enough_and_of_one_piece() -> None:
    assert len(countries()) >= 60
    assert len(subjects()) >= 60
    assert len({subject.name for subject in subjects()}) == len(subjects())
    assert {subject.country for subject in subjects()} <= set(countries())
    counts = Counter(subject.kind for subject in subjects())
    assert set(counts) == set(KINDS)
    assert min(counts.values()) >= 40
    for country in countries().values():
        assert country.neighbour in countries()
        assert country.neighbour != country.name
        assert country.adjective
        assert any(country.facts.values())


def test_cells_are_clean() -> None:
    cells = [
        cell
        for country in countries().values()
        for cell in (country.name, country.adjective, *country.avoid, *itertools.chain(*country.facts.values()))
    ]
    cells += [subject.name for subject in subjects()]
    assert all(cell and cell == cell.strip() and "|" not in cell and "  " not in cell for cell in cells)


def test_tempting_cities_are_not_capitals() -> None:
    capitals = set(values("capital"))
    assert len(capitals) == sum(bool(country.facts["capital"]) for country in countries().values())
    for country in countries().values():
        assert bool(country.city) == bool(country.facts["capital"])
        assert country.city not in capitals


def test_old_currencies_belong_to_the_euro() -> None:
    for country in countries().values():
        assert bool(country.old_currency) == (country.facts["currency"][:1] == ("euro",))


def test_continents() -> None:
    assert set(values("continent")) == {"Africa", "Asia", "Europe", "North America", "Oceania", "South America"}
    assert region(countries()["Mali"]) == region(countries()["South Africa"]) == "Africa"
    assert region(countries()["Russia"]) == "Europe"


def test_parts_deal_every_group_alike_and_every_item_once() -> None:
    items = [(group, i) for group, size in (("a", 70), ("b", 7), ("c", 8)) for i in range(size)]
    dealt = parts(items, lambda item: item[0], random.Random(0))
    assert sorted(itertools.chain(*dealt.values())) == items
    counts = {split: Counter(group for group, _ in of_split) for split, of_split in dealt.items()}
    assert counts == {"train": {"a": 30, "b": 3, "c": 4}, "val": {"a": 10, "b": 1, "c": 1}, "test": {"a": 30, "b": 3, "c": 3}}
    assert dealt != parts(items, lambda item: item[0], random.Random(1))


def test_evenly_takes_turns() -> None:
    assert "".join(evenly("aaabbcaad", str)) == "abcdabaaa"
    assert evenly([], str) == []
