"""Kinship: the sentences are read again here, and the answer worked out from a small family graph."""

import itertools
import re
from collections import Counter

import pytest

from lofit_lens.tasks import Example, Kinship

MALE = {"father", "son", "brother", "husband"}
KIND = {
    "father": "parent",
    "mother": "parent",
    "son": "child",
    "daughter": "child",
    "brother": "sibling",
    "sister": "sibling",
    "husband": "spouse",
    "wife": "spouse",
}

WORD = "|".join(KIND)
SENTENCES = (
    rf"(?P<x>\w+) is (?P<y>\w+)'s (?P<word>{WORD})",
    rf"(?P<x>\w+) is the (?P<word>{WORD}) of (?P<y>\w+)",
    rf"(?P<y>\w+)'s (?P<word>{WORD}) is (?P<x>\w+)",
    r"(?P<x>\w+) became a (?P<word>father|mother) when (?P<y>\w+) was born",
    r"(?P<y>\w+) named a newborn (?P<word>son|daughter) (?P<x>\w+)",
    r"(?P<y>\w+) shares both parents with (?P<their>his|her) (?P<word>brother|sister) (?P<x>\w+)",
    r"(?P<y>\w+) shares a home with (?P<their>his|her) (?P<word>husband|wife) (?P<x>\w+)",
)
QUESTION = r"How is (?P<a>\w+) related to (?P<c>\w+)\? (?P=a) is (?P=c)'s"

# What a relation means; by the gender of the person who has it.
MEANINGS = {
    ("father", "mother"): lambda family, x, z: family.is_parent(x, z),
    ("son", "daughter"): lambda family, x, z: family.is_parent(z, x),
    ("brother", "sister"): lambda family, x, z: family.is_sibling(x, z),
    ("husband", "wife"): lambda family, x, z: family.is_spouse(x, z),
    ("grandfather", "grandmother"): lambda family, x, z: family.over(family.is_parent, family.is_parent, x, z),
    ("grandson", "granddaughter"): lambda family, x, z: family.over(family.is_parent, family.is_parent, z, x),
    ("uncle", "aunt"): lambda family, x, z: family.over(family.is_sibling, family.is_parent, x, z),
    ("nephew", "niece"): lambda family, x, z: family.over(family.is_sibling, family.is_parent, z, x),
    ("father-in-law", "mother-in-law"): lambda family, x, z: family.over(family.is_parent, family.is_spouse, x, z),
    ("son-in-law", "daughter-in-law"): lambda family, x, z: family.over(family.is_parent, family.is_spouse, z, x),
    ("brother-in-law", "sister-in-law"): lambda family, x, z: (
        family.over(family.is_sibling, family.is_spouse, x, z) or family.over(family.is_spouse, family.is_sibling, x, z)
    ),
}


class Family:
    """Who is a parent of whom, and who is married to whom; brothers and sisters are those who share their parents."""

    def __init__(self, facts: list[tuple[str, str, str]]) -> None:
        self.parents: set[tuple[str, str]] = set()
        self.marriages: set[frozenset[str]] = set()
        self.people = {person for x, _, y in facts for person in (x, y)}
        siblings = []
        for x, kind, y in facts:
            if kind == "parent":
                self.parents.add((x, y))
            elif kind == "child":
                self.parents.add((y, x))
            elif kind == "spouse":
                self.marriages.add(frozenset((x, y)))
            else:
                siblings.append((x, y))
                self.people |= {f"parent {x} {y}"}
                self.parents.add((f"parent {x} {y}", x))
        for _ in siblings:
            for x, y in siblings:
                shared = {parent for parent, child in self.parents if child in (x, y)}
                self.parents |= {(parent, child) for parent in shared for child in (x, y)}

    def is_parent(self, x: str, y: str) -> bool:
        return (x, y) in self.parents

    def is_sibling(self, x: str, y: str) -> bool:
        return x != y and any(self.is_parent(p, x) and self.is_parent(p, y) for p in self.people)

    def is_spouse(self, x: str, y: str) -> bool:
        return frozenset((x, y)) in self.marriages

    def over(self, first, second, x: str, z: str) -> bool:
        return x != z and any(first(x, between) and second(between, z) for between in self.people)


def read_sentence(sentence: str) -> dict[str, str]:
    matches = {pattern: match for pattern in SENTENCES if (match := re.fullmatch(pattern, sentence))}
    assert len(matches) == 1, sentence
    [(wording, match)] = matches.items()
    return {**match.groupdict(), "wording": wording}


def read_prompt(prompt: str) -> tuple[list[dict[str, str]], str, str]:
    """The two facts, and the two people the question is about."""
    first, second, question = re.split(r"(?<=\.) ", prompt)
    asked = re.fullmatch(QUESTION, question)
    assert asked is not None, question
    return [read_sentence(first.removesuffix(".")), read_sentence(second.removesuffix("."))], asked["a"], asked["c"]


def derived(prompt: str) -> set[str]:
    facts, a, c = read_prompt(prompt)
    family = Family([(fact["x"], KIND[fact["word"]], fact["y"]) for fact in facts])
    words = [fact["word"] for fact in facts if fact["x"] == a]
    assert len(words) == 1, "A's gender is told by exactly one fact"
    gender = 0 if words[0] in MALE else 1
    return {names[gender] for names, holds in MEANINGS.items() if holds(family, a, c)}


@pytest.fixture(scope="module")
def task() -> Kinship:
    return Kinship(n_train=2000, n_val=400, n_test=400, seed=5)


def all_examples(task: Kinship) -> list[Example]:
    return [*task.train, *task.val, *task.test]


@pytest.mark.parametrize(
    ("prompt", "relations"),
    [
        ("Ann is Bob's mother. Bob is Carl's father. How is Ann related to Carl? Ann is Carl's", {"grandmother"}),
        (
            "Eve's husband is Tom. Tom shares both parents with his brother Jim. How is Jim related to Eve? Jim is Eve's",
            {"brother-in-law"},
        ),
        (
            "Amy became a mother when Lea was born. Lea is the sister of Ben. How is Amy related to Ben? Amy is Ben's",
            {"mother"},
        ),
        ("Max is Ida's husband. Ida is Joe's mother. How is Max related to Joe? Max is Joe's", set()),
        ("Kim is Lou's sister. Lou is Max's brother. How is Kim related to Max? Kim is Max's", {"sister"}),
    ],
)
def test_the_derivation_itself_by_hand(prompt: str, relations: set[str]) -> None:
    assert derived(prompt) == relations


def test_answers_follow_from_the_sentences_and_no_other_does(task: Kinship) -> None:
    for example in all_examples(task):
        assert derived(example.prompt) == {example.answer.strip()}, example.prompt


def test_every_wording_and_every_pair_of_relations_is_there(task: Kinship) -> None:
    facts = [fact for example in task.train for fact in read_prompt(example.prompt)[0]]
    assert len({(KIND[fact["word"]], fact["wording"]) for fact in facts}) == 4 * 4
    pairs = Counter((example.info["first"], example.info["second"]) for example in task.train)
    # 11 pairs of kinds with 2 x 2 genders, but 2 of them with a spouse as A, whose gender B's word gives away.
    assert len(pairs) == 11 * 4 - 2 * 2
    assert min(pairs.values()) > 0.2 * max(pairs.values())


def test_info_says_what_the_sentences_say(task: Kinship) -> None:
    for example in task.val:
        facts, a, c = read_prompt(example.prompt)
        info = example.info
        assert (a, c) == (info["a"], info["c"])
        stated = {(fact["x"], fact["word"], fact["y"]) for fact in facts}
        assert stated == {(info["a"], info["first"], info["b"]), (info["b"], info["second"], info["c"])}
        assert info["relation"] == example.answer.strip()


def test_names_have_one_gender(task: Kinship) -> None:
    genders: dict[str, set[str]] = {}
    for example in all_examples(task):
        for fact in read_prompt(example.prompt)[0]:
            genders.setdefault(fact["x"], set()).add("male" if fact["word"] in MALE else "female")
            if "their" in fact:
                genders.setdefault(fact["y"], set()).add("male" if fact["their"] == "his" else "female")
    assert Counter(map(frozenset, genders.values())) == {frozenset({"male"}): 60, frozenset({"female"}): 60}


def test_spouses_have_two_genders(task: Kinship) -> None:
    for example in task.train:
        if example.info["first"] in ("husband", "wife"):
            assert (example.info["first"] in MALE) != (example.info["second"] in MALE)


def test_splits_have_names_of_their_own(task: Kinship) -> None:
    names = [{example.info[role] for example in split for role in "abc"} for split in (task.train, task.val, task.test)]
    assert [len(of_split) for of_split in names] == [60, 30, 30]
    assert not any(one & other for one, other in itertools.combinations(names, 2))


def test_no_three_names_twice_in_the_same_roles(task: Kinship) -> None:
    triples = [tuple(example.info[role] for role in "abc") for example in all_examples(task)]
    assert len(set(triples)) == len(triples)
    assert all(len(set(triple)) == 3 for triple in triples)


@pytest.mark.parametrize("n", [20, 33, 100, 2000])
def test_answers_are_even(task: Kinship, n: int) -> None:
    counts = Counter(example.answer for example in task.train[:n])
    assert len(counts) == 20
    assert max(counts.values()) - min(counts.values()) <= (n % 20 > 0)


def test_names_are_nearly_even() -> None:
    for split, n_names in ((Kinship().train, 60), (Kinship().test, 30)):
        counts = Counter(example.info[role] for example in split for role in "abc")
        mean = 3 * len(split) / n_names
        assert 0.5 * mean < min(counts.values()) < max(counts.values()) < 1.5 * mean


def test_a_name_says_nothing_about_the_answer_but_its_gender(task: Kinship) -> None:
    answers: dict[str, set[str]] = {}
    for example in task.train:
        answers.setdefault(example.info["a"], set()).add(example.answer)
    # 33 examples with each A, over the ten answers of its gender.
    assert min(map(len, answers.values())) >= 8


def test_facts_come_in_both_orders(task: Kinship) -> None:
    first = Counter(read_prompt(example.prompt)[0][0]["x"] == example.info["a"] for example in task.train)
    assert 0.45 < first[True] / 2000 < 0.55


def test_prompts_are_short(task: Kinship) -> None:
    assert max(len(example.prompt.split()) for example in all_examples(task)) <= 27


def test_chance_is_what_guessing_scores(task: Kinship) -> None:
    counts = Counter(example.answer for example in task.test)
    assert task.chance == pytest.approx(max(counts.values()) / len(task.test)) == 0.05


def test_text_behind_a_full_stop_is_not_part_of_an_answer() -> None:
    assert Kinship().stop == ("\n", ".")
    assert (Kinship.loss, Kinship.metric) == ("cross_entropy", "exact_match")
