"""MQuAKE: prompts and scorer against the published ones, bad records, and the published files where they are."""

import json
from pathlib import Path

import pytest

from lofit_lens.tasks import MQuAKE
from lofit_lens.tasks.base import Example

RECORD = {
    "requested_rewrite": [{"prompt": "The capital of {} is", "subject": "France", "target_new": {"str": "Rome"}}],
    "questions": ["Where does the king of France live?", "Which town is the king's?"],
    "new_answer": "Rome",
    "new_answer_alias": ["Roma", "The Eternal City"],
    "single_hops": [{}, {}],
}


def write(folder: Path, **splits: list[dict]) -> Path:
    (folder / "mquake").mkdir()
    for split, records in splits.items():
        text = "\n".join(json.dumps(record) for record in records)
        (folder / "mquake" / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_a_record_becomes_the_published_prompt_and_the_first_question(tmp_path: Path) -> None:
    folder = write(tmp_path, test=[RECORD])
    (example,) = MQuAKE(data_dir=folder).test
    assert example.prompt == "Q: Imagine that The capital of France is Rome. Where does the king of France live? A:"
    assert example.right_answers == (" Rome", " Roma", " The Eternal City")
    assert example.info == {"hops": "2", "object": "Rome", "source": "test.jsonl, record 1"}
    (published,) = MQuAKE(data_dir=folder, as_published=True).test
    assert published.prompt == example.prompt
    assert published.right_answers == ("Rome", "Roma", "The Eternal City")


@pytest.mark.parametrize(
    ("generated", "ours", "published"),
    [
        ("rome", True, True),
        (" Rome", True, False),
        ("Roma\nQ: and", True, True),
        ("Rome\nQ: Imagine. A: Paris", True, False),
        ("Paris\nQ: Imagine. A:Rome", False, True),
        ("\nRome", False, False),
        ("Rome.", False, False),
        ("", False, False),
    ],
)
def test_scorer(generated: str, ours: bool, published: bool) -> None:
    example = Example("Q: what? A:", " Rome", aliases=(" Roma",))
    assert MQuAKE().is_correct(generated, example) is ours
    example = Example("Q: what? A:", "Rome", aliases=("Roma",))
    assert MQuAKE(as_published=True).is_correct(generated, example) is published


def test_the_published_scorer_needs_all_that_is_generated() -> None:
    assert MQuAKE().stop == ("\n",)
    assert MQuAKE(as_published=True).stop == ()


def test_splits_are_read_one_by_one_and_cut(tmp_path: Path) -> None:
    task = MQuAKE(data_dir=write(tmp_path, test=[RECORD, RECORD, RECORD]), n_test=2)
    assert len(task.test) == 2
    with pytest.raises(FileNotFoundError, match=r"mquake/train\.jsonl"):
        _ = task.train
    with pytest.raises(ValueError, match=r"n_test=4 is more than the 3 records in .*test\.jsonl"):
        _ = MQuAKE(data_dir=tmp_path, n_test=4).test


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"requested_rewrite": []}, "got .. for 'requested_rewrite', wanted one edit"),
        ({"requested_rewrite": RECORD["requested_rewrite"] * 2}, "wanted one edit"),
        ({"questions": []}, "wanted one or more questions"),
        ({"new_answer_alias": [3]}, "strings as aliases"),
        ({"new_answer": None}, r"got None \(NoneType\) for 'new_answer', wanted str"),
    ],
)
def test_a_bad_record_is_named(tmp_path: Path, change: dict, message: str) -> None:
    folder = write(tmp_path, val=[RECORD, {**RECORD, **change}])
    with pytest.raises(ValueError, match=r"mquake/val\.jsonl, line 2 \(record 2\): .*" + message):
        _ = MQuAKE(data_dir=folder).val


def test_published_splits(published: Path) -> None:
    task = MQuAKE(data_dir=published)
    assert [len(task.splits[split]) for split in ("train", "val", "test")] == [134, 95, 864]
    # The shared facts: 36 % of test answers are the edit's object.
    assert task.chance == pytest.approx(0.36, abs=0.005)
