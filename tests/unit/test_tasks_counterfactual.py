"""Counterfactual: each prompt is read again here, and its answer looked up in a table of this file."""

import itertools
import re
from collections import Counter

import pytest

from lofit_lens.tasks import Counterfactual, Example
from lofit_lens.tasks.world import countries, values

PROMPT = re.compile(r"Q: Imagine that (?P<fact>.+?)\. (?P<question>[^?]+\?) A:")
FACTS = (
    r"(?P<subject>.+) is (?:located )?in (?P<country>.+)",
    r"(?P<subject>.+) was (?:born|founded) in (?P<country>.+)",
    r"(?P<subject>.+) comes from (?P<country>.+)",
    r"(?P<country>.+) is where (?P<subject>.+) (?:was born|was founded|comes from)",
)
ASKED = ("capital", "language", "currency", "continent")

# Written down here again, all names that count: capital, language, currency, continent.
KNOWN = {
    "Japan": (["Tokyo"], ["Japanese"], ["yen", "Japanese yen"], ["Asia"]),
    "Italy": (["Rome"], ["Italian"], ["euro"], ["Europe"]),
    "Kenya": (["Nairobi"], [], ["shilling", "Kenyan shilling"], ["Africa"]),
    "Mexico": (["Mexico City", "Ciudad de México", "CDMX"], ["Spanish"], ["peso", "Mexican peso"], ["North America"]),
    "Thailand": (["Bangkok"], ["Thai"], ["baht", "Thai baht"], ["Asia"]),
    "Sweden": (
        ["Stockholm"],
        ["Swedish"],
        ["krona", "kronor", "crown", "Swedish krona", "Swedish kronor", "Swedish crown"],
        ["Europe"],
    ),
    "Peru": (["Lima"], ["Spanish"], ["sol", "nuevo sol", "Peruvian sol", "Peruvian nuevo sol"], ["South America"]),
    "China": (
        ["Beijing", "Peking"],
        ["Chinese", "Mandarin", "Mandarin Chinese", "Standard Chinese"],
        ["yuan", "renminbi", "RMB", "Chinese yuan", "Chinese renminbi"],
        ["Asia"],
    ),
    "Iceland": (
        ["Reykjavik", "Reykjavík"],
        ["Icelandic"],
        ["krona", "króna", "crown", "Icelandic krona", "Icelandic króna", "Icelandic crown"],
        ["Europe"],
    ),
    "Australia": (["Canberra"], ["English"], ["dollar", "Australian dollar"], []),
}


def read(example: Example) -> tuple[str, str, str]:
    """Subject, imagined country and relation, from the prompt alone."""
    prompt = PROMPT.fullmatch(example.prompt)
    assert prompt is not None, example.prompt
    found = [match for pattern in FACTS if (match := re.fullmatch(pattern, prompt["fact"]))]
    assert len(found) == 1, prompt["fact"]
    asked = [relation for relation in ASKED if re.search(rf"\b{relation}\b", prompt["question"])]
    assert len(asked) == 1, prompt["question"]
    assert found[0]["subject"] in prompt["question"]
    return found[0]["subject"], found[0]["country"], asked[0]


@pytest.fixture(scope="module")
def task() -> Counterfactual:
    return Counterfactual(n_train=1500, n_val=300, n_test=1000, seed=2)


def all_examples(task: Counterfactual) -> list[Example]:
    return [*task.train, *task.val, *task.test]


def test_prompt_says_what_info_says(task: Counterfactual) -> None:
    for example in all_examples(task):
        assert read(example) == (example.info["subject"], example.info["country"], example.info["relation"])


def test_answers_follow_the_imagined_fact(task: Counterfactual) -> None:
    checked: Counter[str] = Counter()
    for example in all_examples(task):
        _, country, relation = read(example)
        if country in KNOWN:
            checked[country] += 1
            right = KNOWN[country][ASKED.index(relation)]
            assert [answer.strip() for answer in example.right_answers] == right
    assert len(checked) == len(KNOWN)
    assert min(checked.values()) >= 3


def test_true_answer_is_rejected_and_is_another(task: Counterfactual) -> None:
    for example in all_examples(task):
        true_answers = countries()[example.info["true_country"]].facts[example.info["relation"]]
        assert example.rejected == (f" {true_answers[0]}",)
        assert not {answer.strip() for answer in example.right_answers} & set(true_answers)


def test_no_answer_stands_in_its_prompt(task: Counterfactual) -> None:
    for example in all_examples(task):
        for answer in example.right_answers:
            assert not re.search(rf"\b{re.escape(answer.strip())}\b", example.prompt), example


def test_splits_have_subjects_and_imagined_countries_of_their_own(task: Counterfactual) -> None:
    splits = (task.train, task.val, task.test)
    for what in ("subject", "country"):
        entities = [{example.info[what] for example in split} for split in splits]
        assert all(entities)
        assert not any(one & other for one, other in itertools.combinations(entities, 2))


def test_no_edit_is_asked_twice(task: Counterfactual) -> None:
    edits = [tuple(example.info[what] for what in ("subject", "country", "relation")) for example in all_examples(task)]
    assert len(set(edits)) == len(edits)


@pytest.mark.parametrize("n", [4, 100, 300])
def test_relations_are_even(task: Counterfactual, n: int) -> None:
    for split in (task.train, task.val, task.test):
        assert set(Counter(example.info["relation"] for example in split[:n]).values()) == {n // 4}


def test_answers_are_even_within_a_relation(task: Counterfactual) -> None:
    # 25 examples of each relation; a split has 6 continents, some 20 languages and currencies, and 45 capitals to deal.
    for relation, most in (("continent", 6), ("language", 2), ("currency", 2), ("capital", 1)):
        counts = Counter(example.answer for example in task.test[:100] if example.info["relation"] == relation)
        assert max(counts.values()) <= most


def test_all_kinds_and_wordings_are_there(task: Counterfactual) -> None:
    assert len(Counter(example.info["kind"] for example in task.train)) == 4
    shapes = set()
    for example in task.train:
        subject, country, _ = read(example)
        shapes.add(example.prompt.replace(subject, "S").replace(country, "C"))
    # 4 kinds, 2 ways to say the fact, 2 to point to the country, 12 questions; 1500 examples do not meet quite all.
    assert 0.95 * 192 < len(shapes) <= 192


def test_chance(task: Counterfactual) -> None:
    assert len(values("continent")) == 6
    expected = sum(1 / len(values(relation)) for relation in ("capital", "language", "currency", "continent")) / 4
    assert task.chance == pytest.approx(expected)
    assert 0.04 < task.chance < 0.06


@pytest.mark.parametrize(
    ("generated", "is_right"),
    [
        (" Washington", True),
        (" washington.", True),
        (" Washington, D.C.", True),
        (" Washington DC. It is a city.", True),
        (" New York", False),
        (" Washington is", False),
        ("", False),
    ],
)
def test_scorer(task: Counterfactual, generated: str, is_right: bool) -> None:
    example = Example(prompt="Q: ... A:", answer=" Washington", aliases=(" Washington, D.C.", " Washington DC"))
    assert task.is_correct(generated, example) is is_right
