"""CLUTRR: the published prompt and scorer; on stories of our own, and on the published files where they are at hand."""

import json
from collections import Counter
from pathlib import Path

import pytest

import lofit_lens.tasks.clutrr
from lofit_lens.tasks import CLUTRR, Example

RECORD = {"clean_story": "[Ann]'s son [Bo] met his aunt [Cy].", "query": "('Ann', 'Cy')", "target_text": "sister", "id": 7}


def write(folder: Path, **splits: list[dict]) -> Path:
    (folder / "clutrr").mkdir()
    for split, records in splits.items():
        (folder / "clutrr" / f"{split}.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    train = [{**RECORD, "clean_story": f"Story {i}.", "target_text": ("son", "aunt", "wife")[i % 3]} for i in range(40)]
    return write(tmp_path, train=train, val=[RECORD] * 3, test=[RECORD] * 5)


def test_prompt_word_by_word(small: Path) -> None:
    example = CLUTRR(n_train=1, data_dir=small).val[0]
    assert example.prompt == (
        'Read the following story about a family. "Ann\'s son Bo met his aunt Cy." '
        "Assume the relations described in the story are all true. Based on relations between the fictional characters in "
        "the story (assume the relations are all true) and your commonsense knowledge about family relationship, "
        "how is Cy related to Ann? Answer: Cy is Ann 's\n"
    )
    assert example.answer == "sister"
    assert example.info == {"relation": "sister", "first": "Ann", "second": "Cy", "source": "val.json, record 1"}


def test_seed_draws_the_training_stories_and_nothing_else(small: Path) -> None:
    one, again, other = (CLUTRR(seed=seed, n_train=10, data_dir=small) for seed in (1, 1, 2))
    assert one.splits == again.splits
    assert {example.prompt for example in one.train} != {example.prompt for example in other.train}
    assert len({example.prompt for example in one.train}) == 10
    assert (one.val, one.test) == (other.val, other.test)


def test_sizes(small: Path) -> None:
    task = CLUTRR(n_train=None, n_val=2, data_dir=small)
    assert (len(task.train), len(task.val), len(task.test)) == (40, 2, 5)
    assert [example.info["source"] for example in task.train[:2]] == ["train.json, record 1", "train.json, record 2"]
    assert task.chance == 1 / 4  # son, aunt and wife in train, sister in test


@pytest.mark.parametrize(
    ("settings", "message"), [({}, "n_train=300 .* 40 records"), ({"n_train": 1, "n_test": 6}, "n_test=6 .* 5 rec")]
)
def test_more_than_there_are(small: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(CLUTRR(data_dir=small, **settings).splits.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": "Ann, Cy"}, "got 'Ann, Cy' for 'query', wanted two names"),
        ({"query": "('Ann',)"}, "for 'query', wanted two names"),
        ({"query": "('Ann', 3)"}, "for 'query', wanted two names"),
        ({"query": "('Ann', __import__('os'))"}, "for 'query', wanted two names"),
        ({"target_text": None}, r"got None \(NoneType\) for 'target_text', wanted str"),
    ],
)
def test_bad_record_is_refused_with_file_and_line(tmp_path: Path, change: dict, message: str) -> None:
    folder = write(tmp_path, train=[RECORD], val=[RECORD, {**RECORD, **change}], test=[RECORD])
    with pytest.raises(ValueError, match=r"clutrr/val\.json, line 8 \(record 2\): .*" + message):
        list(CLUTRR(n_train=1, data_dir=folder).splits.values())


def test_missing_files_are_named_when_a_split_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = CLUTRR(data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"clutrr/train\.json"):
        _ = task.train
    monkeypatch.setenv("LOFIT_LENS_DATA", str(write(tmp_path, train=[RECORD], val=[RECORD], test=[RECORD])))
    assert len(CLUTRR(n_train=1).train) == 1


@pytest.mark.parametrize(
    ("generated", "is_right"),
    [
        ("sister", True),
        (" Sister.", True),
        ("\nsister. She is", True),
        ("sister\nAnn", False),
        ("sister-in-law", False),
        ("the sister", False),
        ("", False),
    ],
)
def test_scorer(generated: str, is_right: bool) -> None:
    assert CLUTRR().is_correct(generated, Example(prompt="", answer="sister")) is is_right
    assert CLUTRR().stop == (".",)


def test_published_splits(published: Path) -> None:
    task = CLUTRR(data_dir=published)
    assert (len(task.train), len(task.val), len(task.test)) == (300, 450, 450)
    assert len(CLUTRR(n_train=None, data_dir=published).train) == 3151
    assert task.chance == 1 / 18
    assert Counter(example.answer for example in task.test).most_common(1) == [("sister", 46)]


def test_published_doubles_a_space_before_the_second_name(small: Path) -> None:
    ours, theirs = (CLUTRR(n_train=1, data_dir=small, as_published=published).test[0].prompt for published in (False, True))
    assert theirs.count("  ") == 2
    assert theirs.replace("  ", " ") == ours


def test_published_prompts(published: Path) -> None:
    task = CLUTRR(n_train=None, data_dir=published)
    for split in task.splits.values():
        for example in split:
            assert example.prompt.endswith(f" Answer: {example.info['second']} is {example.info['first']} 's\n")
            assert "[" not in example.prompt
            assert "  " not in example.prompt
            assert example.answer == example.answer.strip().lower() != ""


def test_published_overlap_and_documented_examples(published: Path) -> None:
    task = CLUTRR(n_train=None, data_dir=published)
    pool = {example.prompt for example in task.train}
    assert sum(example.prompt in pool for example in task.test) == 4
    text = " ".join((lofit_lens.tasks.clutrr.__doc__ or "").split())
    first, second = task.train[:2]
    assert " ".join((first.prompt + first.answer).split()) in text
    story, question = second.prompt.split('"')[1], second.prompt[second.prompt.index("how is") :]
    assert f'... "{story}" ... ' + " ".join((question + second.answer).split()) in text
