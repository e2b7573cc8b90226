"""TriviaQA and Natural Questions as multiple choice, and OpenWebText, from files in the hub's schemas."""

from pathlib import Path

import pandas as pd
import pytest

from lofit_lens.tasks import NaturalQuestions, TriviaQA, open_web_text, sources

TRIVIA = {
    "question": "Which ocean is the largest? ",
    "answer": {"value": "Pacific", "aliases": ["the Pacific", "Pacific", "Pacific Ocean"]},
    "false_answer": "Atlantic",
}
NATURAL = {"question": "who wrote emma", "answer": ["Jane Austen", "Austen"], "false_answer": "Emily Bronte"}


def write(folder: Path, name: str, records: list[dict]) -> None:
    (folder / name).mkdir(parents=True)
    pd.DataFrame(records).to_parquet(folder / name / "validation.parquet")


def test_trivia_qa(tmp_path):
    write(tmp_path, "trivia_qa", [TRIVIA, TRIVIA])
    first, _ = TriviaQA(data_dir=tmp_path).test
    assert first.prompt == "Q: Which ocean is the largest?\nA:"
    assert (first.answer, first.aliases, first.rejected) == (" Pacific", (" the Pacific", " Pacific Ocean"), (" Atlantic",))
    assert len(TriviaQA(data_dir=tmp_path, n_test=1).test) == 1


def test_natural_questions_with_a_preset(tmp_path):
    write(tmp_path, "natural_questions", [NATURAL])
    task = NaturalQuestions(data_dir=tmp_path, preset="Answer shortly.")
    (example,) = task.test
    assert example.prompt == "Answer shortly.\n\nQ: who wrote emma\nA:"
    assert (example.answer, example.aliases, example.rejected) == (" Jane Austen", (" Austen",), (" Emily Bronte",))
    assert (task.train, task.val) == ((), ())
    assert task.chance == 0.5


@pytest.mark.parametrize("answer", [[], [" "], ["Austen", None]])
def test_a_record_without_an_answer_is_named(tmp_path, answer):
    write(tmp_path, "natural_questions", [NATURAL, {**NATURAL, "answer": answer}])
    with pytest.raises(ValueError, match=r"validation.parquet, line 2 \(record 2\): got .* wanted one or more texts"):
        _ = NaturalQuestions(data_dir=tmp_path).test


def test_blank_aliases_are_no_answers(tmp_path):
    write(tmp_path, "natural_questions", [{**NATURAL, "answer": ["", "Jane Austen", " ", "Austen"]}])
    assert NaturalQuestions(data_dir=tmp_path).test[0].right_answers == (" Jane Austen", " Austen")


def test_questions_whose_false_answer_is_right_are_left_out_with_one_warning(tmp_path, caplog):
    unfit = [{**NATURAL, "false_answer": "Austen "}, {**NATURAL, "false_answer": "Jane Austen"}]
    write(tmp_path, "natural_questions", [NATURAL, *unfit, {**NATURAL, "question": "who wrote persuasion"}])
    task = NaturalQuestions(data_dir=tmp_path, n_test=2)
    assert [example.info["source"] for example in task.test] == [f"validation.parquet, record {n}" for n in (1, 4)]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.endswith("natural_questions/validation.parquet: 2 left out, whose false answer is a right one: records 2, 3")
    with pytest.raises(ValueError, match="n_test=3 is more than the 2 records"):
        _ = NaturalQuestions(data_dir=tmp_path, n_test=3).test


@pytest.mark.parametrize("wrong", ["", " "])
def test_a_false_answer_that_is_none_is_named(tmp_path, wrong):
    write(tmp_path, "natural_questions", [NATURAL, {**NATURAL, "false_answer": wrong}])
    with pytest.raises(ValueError, match=rf"line 2 \(record 2\): got '{wrong}' for 'false_answer', wanted a text"):
        _ = NaturalQuestions(data_dir=tmp_path).test


def test_open_web_text(tmp_path):
    (tmp_path / "open_web_text").mkdir()
    texts = [f"Text number {i}." for i in range(20)]
    pd.DataFrame({"text": texts}).to_parquet(tmp_path / "open_web_text" / "train.parquet")
    drawn = open_web_text(5, data_dir=tmp_path)
    assert drawn == open_web_text(5, data_dir=tmp_path) != open_web_text(5, seed=0, data_dir=tmp_path)
    assert set(drawn) < set(texts)
    with pytest.raises(ValueError, match="more than the 20 records"):
        open_web_text(21, data_dir=tmp_path)


def test_files_that_are_missing_can_be_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "cache_dir", lambda: tmp_path)
    monkeypatch.setenv("LOFIT_LENS_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="lofit-lens download trivia_qa"):
        _ = TriviaQA().test
