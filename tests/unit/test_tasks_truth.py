"""Truth: one true answer, four false ones, the most tempting first."""

import itertools
import re
from collections import Counter

import pytest

from lofit_lens.tasks import Example, Truth
from lofit_lens.tasks.world import KINDS, RELATIONS, countries, subjects

# Question -> true answer and the most tempting false one, worked out by hand.
KNOWN = {
    ("capital", "Australia"): ("Canberra", "Sydney"),
    ("capital", "Turkey"): ("Ankara", "Istanbul"),
    ("capital", "Brazil"): ("Brasília", "Rio de Janeiro"),
    ("language", "Brazil"): ("Portuguese", "Spanish"),
    ("language", "Austria"): ("German", "Austrian"),
    ("language", "Iran"): ("Persian", "Arabic"),
    ("currency", "Germany"): ("euro", "mark"),
    ("currency", "Japan"): ("yen", "yuan"),
    ("currency", "Switzerland"): ("franc", "euro"),
    ("continent", "Kenya"): ("Africa", "Asia"),
    ("continent", "Mexico"): ("North America", "South America"),
    ("landmark", "Angkor Wat"): ("Cambodia", "Thailand"),
    ("person", "Roger Federer"): ("Switzerland", "Austria"),
    ("company", "Lego"): ("Denmark", "Sweden"),
    ("creation", "fado"): ("Portugal", "Spain"),
}


@pytest.fixture(scope="module")
def task() -> Truth:
    """Every question there is."""
    return Truth(n_train=801, n_val=270, n_test=795, seed=4)


@pytest.fixture(scope="module")
def examples(task: Truth) -> list[Example]:
    return [*task.train, *task.val, *task.test]


def fact(example: Example) -> tuple[str, str]:
    return example.info["relation"], example.info["subject"]


def test_all_facts_of_the_tables_are_asked_in_three_wordings(examples: list[Example]) -> None:
    counts = Counter(map(fact, examples))
    assert set(counts.values()) == {3}
    asked = sum(bool(facts) for country in countries().values() for facts in country.facts.values())
    assert len(counts) == asked + len(subjects())
    assert len({example.prompt for example in examples}) == len(examples)


def test_known_answers(examples: list[Example]) -> None:
    found = {fact(example): (example.answer.strip(), example.rejected[0].strip()) for example in examples}
    assert {known: found[known] for known in KNOWN} == KNOWN


def test_question_names_its_subject_and_not_its_answer(examples: list[Example]) -> None:
    for example in examples:
        assert example.prompt.startswith("Q: ")
        assert example.prompt.endswith("? A:")
        assert example.info["subject"] in example.prompt
        assert not re.search(rf"\b{re.escape(example.answer.strip())}\b", example.prompt), example.prompt


def test_no_right_answer_twice(examples: list[Example]) -> None:
    for example in examples:
        assert len(set(example.right_answers)) == len(example.right_answers), example


def test_four_different_false_answers(examples: list[Example]) -> None:
    for example in examples:
        assert len(set(example.rejected)) == 4
        assert not set(example.rejected) & set(example.right_answers)


def test_false_answers_are_false_under_all_their_names(examples: list[Example]) -> None:
    """No wrong choice is another name of the right one, nor half true."""
    for example in examples:
        relation, country = example.info["relation"], countries()[example.info["country"]]
        for choice in (answer.strip() for answer in example.rejected):
            assert choice not in country.avoid
            if relation in RELATIONS:
                right = set(country.facts[relation])
                named = [set(other.facts[relation]) for other in countries().values() if choice in other.facts[relation][:1]]
                assert choice not in right
                # Where a choice is true of other countries, one of them has no name in common with the right answer.
                assert not named or any(names.isdisjoint(right) for names in named)
            else:
                assert choice in countries()
                assert choice != country.name


def test_false_homes_are_homes_elsewhere(examples: list[Example]) -> None:
    homes = {subject.country for subject in subjects()}
    neighbours = {name: country.neighbour for name, country in countries().items()}
    for example in examples:
        if example.info["relation"] in KINDS:
            for choice in (answer.strip() for answer in example.rejected):
                assert choice in homes or choice == neighbours[example.info["country"]]


def test_no_fact_in_two_splits(task: Truth) -> None:
    facts = [set(map(fact, split)) for split in (task.train, task.val, task.test)]
    assert not any(one & other for one, other in itertools.combinations(facts, 2))


def test_splits_have_relations_in_the_same_shares(task: Truth) -> None:
    shares = []
    for split in (task.train, task.val, task.test):
        counts = Counter(example.info["relation"] for example in split)
        shares.append([counts[relation] / len(split) for relation in (*RELATIONS, *KINDS)])
    for of_relation in zip(*shares, strict=True):
        assert max(of_relation) - min(of_relation) < 0.02


def test_every_fact_comes_once_before_one_comes_again(task: Truth) -> None:
    for split in (task.train, task.val, task.test):
        n_facts = len(set(map(fact, split)))
        assert len(split) == 3 * n_facts
        assert len(set(map(fact, split[:n_facts]))) == len(set(map(fact, split[n_facts : 2 * n_facts]))) == n_facts


def test_chance_is_one_in_the_number_of_choices(task: Truth) -> None:
    assert {1 + len(example.rejected) for example in task.test} == {5}
    assert task.chance == 0.2
    assert (Truth.loss, Truth.metric) == ("dpo", "mc1")
