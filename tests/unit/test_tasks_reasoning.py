"""The four reasoning tasks: prompts, labels, who gets which record, bad records, and the published files where they are."""

import json
from pathlib import Path

import pandas as pd
import pytest

from lofit_lens.tasks import SVAMP, ARCChallenge, BoolQ, Example, SocialIQA

PLEASE = "Please choose the correct answer to the question. Question: "
SIQA = {"context": "Bo ran.", "question": "Why?", "answerA": "fear", "answerB": "joy", "answerC": "cold", "label": "2"}
ARC = {"question": "Which?", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "3"}
BOOLQ = {"passage": "Ice is cold.", "question": "is ice hot", "answer": False}
PROBLEM = {"Body": "Ann has 3 pens", "Question": "How many?", "Equation": "( 3.0 + 0.0 )", "Answer": 3.0}


def write(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")


def test_social_iqa(tmp_path: Path) -> None:
    write(tmp_path / "social_iqa" / "validation.jsonl", [SIQA])
    task = SocialIQA(data_dir=tmp_path)
    (example,) = task.test
    assert example.prompt == f"{PLEASE}Bo ran. Why? A. fear B. joy C. cold Answer:"
    assert (example.answer, example.rejected) == (" B", (" A", " C"))
    assert task.chance == 1 / 3
    assert task.is_correct("b", example)


def test_arc_keeps_the_labels_of_the_file(tmp_path: Path) -> None:
    write(tmp_path / "arc_challenge" / "test.jsonl", [ARC])
    task = ARCChallenge(data_dir=tmp_path)
    (example,) = task.test
    assert example.prompt == f"{PLEASE}Which? 1. x 2. y 3. z Answer:"
    assert (example.answer, example.rejected) == (" 3", (" 1", " 2"))
    assert task.chance == 1 / 3


def test_boolq_reads_parquet_too(tmp_path: Path) -> None:
    (tmp_path / "boolq").mkdir()
    pd.DataFrame([BOOLQ, {**BOOLQ, "answer": True}]).to_parquet(tmp_path / "boolq" / "validation.parquet")
    no, yes = BoolQ(data_dir=tmp_path).test
    assert no.prompt == "Ice is cold. Question: is ice hot Answer:"
    assert (no.answer, no.rejected, yes.answer, yes.rejected) == (" no", (" yes",), " yes", (" no",))


def test_svamp_is_judged_by_its_value(tmp_path: Path) -> None:
    write(tmp_path / "svamp" / "SVAMP.jsonl", [PROBLEM] * 3)
    task = SVAMP(n_train=1, n_val=1, n_test=None, data_dir=tmp_path)
    (example,) = task.test
    assert example.prompt == "Question: Ann has 3 pens. How many? Equation:"
    assert example.answer == " ( 3.0 + 0.0 ) Answer: 3"
    for generated, is_right in {
        " ( 1.0 + 2.0 ) Answer: 3.0": True,
        "Answer: 3 pens": True,
        "( 3.0 + 0.0 )": False,
        "Answer: 33": False,
        "Answer: -3": False,
        "3": False,
    }.items():
        assert task.is_correct(generated, example) is is_right


def test_splits_of_one_file_share_no_record_and_the_seed_says_which(tmp_path: Path) -> None:
    write(tmp_path / "social_iqa" / "train.jsonl", [{**SIQA, "context": f"{i}."} for i in range(30)])
    write(tmp_path / "svamp" / "SVAMP.jsonl", [{**PROBLEM, "Body": f"{i}"} for i in range(30)])

    def prompts(examples: tuple[Example, ...]) -> list[str]:
        return [example.prompt for example in examples]

    for family in (SocialIQA, SVAMP):
        task = family(n_train=10, n_val=15, data_dir=tmp_path)
        parts = [prompts(task.train), prompts(task.val)] + (
            [prompts(SVAMP(10, 15, 5, data_dir=tmp_path).test)] * (family is SVAMP)
        )
        assert len({prompt for part in parts for prompt in part}) == sum(map(len, parts))
        assert prompts(family(n_train=10, n_val=15, data_dir=tmp_path).train) == prompts(task.train)
        assert prompts(family(n_train=10, n_val=15, seed=1, data_dir=tmp_path).train) != prompts(task.train)
        with pytest.raises(ValueError, match=r"n_val=21 is more than the 20 records"):
            _ = family(n_train=10, n_val=21, data_dir=tmp_path).val


@pytest.mark.parametrize(
    ("family", "file", "record", "change", "message"),
    [
        (SocialIQA, "social_iqa/validation.jsonl", SIQA, {"label": "4"}, r"\['A', 'B', 'C'\] and the answer 'none'"),
        (SocialIQA, "social_iqa/validation.jsonl", SIQA, {"label": 2}, "got 2 .int. for 'label'"),
        (ARCChallenge, "arc_challenge/test.jsonl", ARC, {"answerKey": "4"}, "the answer '4'"),
        (ARCChallenge, "arc_challenge/test.jsonl", ARC, {"choices": {"text": [], "label": []}}, "wanted two or more"),
        (ARCChallenge, "arc_challenge/test.jsonl", ARC, {"choices": {"text": ["x", "y"], "label": ["1", "1"]}}, "two or more"),
        (ARCChallenge, "arc_challenge/test.jsonl", ARC, {"choices": {"text": "xy"}}, "wanted lists of strings"),
        (BoolQ, "boolq/validation.jsonl", BOOLQ, {"answer": "no"}, "got 'no' .str. for 'answer', wanted bool"),
        (SVAMP, "svamp/SVAMP.jsonl", PROBLEM, {"Answer": "3"}, "got '3' .str. for 'Answer', wanted float"),
    ],
)
def test_a_bad_record_is_named(tmp_path: Path, family, file: str, record: dict, change: dict, message: str) -> None:
    write(tmp_path / file, [record, {**record, **change}])
    with pytest.raises(ValueError, match=rf"{file}, line 2 \(record 2\): .*" + message):
        _ = family(data_dir=tmp_path).test


def test_published_files(published: Path) -> None:
    assert len(SocialIQA(data_dir=published).test) == 1954
    arc = ARCChallenge(data_dir=published)
    assert (len(arc.train), len(arc.test)) == (100, 1172)
    assert arc.chance == pytest.approx(0.25, abs=0.001)
    svamp = SVAMP(data_dir=published)
    assert [len(svamp.splits[split]) for split in ("train", "val", "test")] == [350, 350, 300]
    assert all(svamp.is_correct(example.answer, example) for example in svamp.test)
