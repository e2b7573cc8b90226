"""IOI: who is named where, what is disjoint, and that names are single tokens."""

import re
from collections import Counter

import pytest

from lofit_lens import evaluate
from lofit_lens.tasks import IOI
from lofit_lens.tasks.base import SPLITS


@pytest.fixture(scope="module")
def task() -> IOI:
    return IOI()


def test_the_subject_is_named_twice_and_the_answer_once(task: IOI) -> None:
    for split in SPLITS:
        for i, example in enumerate(task.splits[split]):
            words = re.findall(r"\w+", example.prompt)
            answer, subject = example.answer.strip(), example.rejected[0].strip()
            assert (words.count(answer), words.count(subject)) == (1, 2)
            order = [word for word in words if word in (answer, subject)]
            wanted = [answer, subject, subject] if example.info["order"] == "ABBA" else [subject, answer, subject]
            assert order == wanted
            assert example.info["order"] == ("ABBA", "BABA")[i % 2]


def test_no_pair_of_names_is_in_two_splits(task: IOI) -> None:
    pairs = [{frozenset((e.answer, *e.rejected)) for e in task.splits[split]} for split in SPLITS]
    assert not pairs[0] & pairs[1]
    assert not pairs[0] & pairs[2]
    assert not pairs[1] & pairs[2]


def test_names_are_even(task: IOI) -> None:
    counts = Counter(example.answer for example in IOI(n_train=1200).train)
    assert len(counts) == 64
    assert max(counts.values()) < 3 * 1200 / 64


def test_accuracy_and_margin(gpt2, task: IOI) -> None:
    result = evaluate(gpt2, IOI(n_test=12))
    assert result.metric == "mc1"
    assert [margin > 0 for margin in result.scores["margin"]] == [score == 1 for score in result.scores["mc1"]]
    low, high = result.interval("margin")
    assert low <= result.mean("margin") <= high
    assert task.chance == 1 / 2
