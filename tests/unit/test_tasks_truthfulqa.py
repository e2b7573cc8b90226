"""TruthfulQA: both prompts, the columns of the table, bad records, and the published files where they are."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from lofit_lens import evaluate
from lofit_lens.methods import LoFiT
from lofit_lens.probes import labelled_answers
from lofit_lens.tasks import TruthfulQA

COLUMNS = ["Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source"]
ROW = {
    "Type": "Adversarial",
    "Category": "Animals",
    "Question": "Do pigs fly?\n",
    "Best Answer": "No, pigs don't fly",
    "Correct Answers": 'Pigs stay on the ground.; No, pigs don\'t fly; They, "do" not',
    "Incorrect Answers": "Yes; Only at night.",
    "Source": "a,\nb",
}


def write(folder: Path, **splits: list[dict]) -> Path:
    (folder / "truthfulqa").mkdir()
    (folder / "truthfulqa" / "mc_prompt.txt").write_text("Be honest.\n\nQ: a?\nA: b.", encoding="utf-8")
    for split, rows in splits.items():
        with open(folder / "truthfulqa" / f"fold_0_{split}_seed_42.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    return folder


def test_training_pairs(tmp_path: Path) -> None:
    folder = write(tmp_path, train=[ROW])
    (pair,) = TruthfulQA(data_dir=folder).train
    assert (pair.prompt, pair.answer, pair.rejected[0]) == ("Q: Do pigs fly? A:", " No, pigs don't fly", " Yes")
    (published,) = TruthfulQA(data_dir=folder, as_published=True).train
    assert (published.prompt, published.answer, published.rejected[0]) == (pair.prompt, "No, pigs don't fly", "Yes")
    every = TruthfulQA(data_dir=folder, all_pairs=True).train
    assert [(e.answer, *e.rejected) for e in every][::3] == [
        (" Pigs stay on the ground.", " Yes"),
        (" No, pigs don't fly", " Only at night."),
    ]
    assert len(every) == 6


@pytest.mark.parametrize("all_pairs", [False, True])
def test_probes_learn_from_all_answers(tmp_path: Path, all_pairs: bool) -> None:
    labelled = labelled_answers(TruthfulQA(data_dir=write(tmp_path, train=[ROW]), all_pairs=all_pairs).train)
    right = {answer for answer, is_right in zip(labelled.answers, labelled.is_right, strict=True) if is_right}
    assert right == {" No, pigs don't fly", " Pigs stay on the ground.", ' They, "do" not'}
    assert set(labelled.answers) - right == {" Yes", " Only at night."}
    assert len(labelled.answers) == 5


def test_no_answer_is_preferred_to_itself(tmp_path: Path) -> None:
    row = {**ROW, "Correct Answers": "Unknown; No, pigs don't fly", "Incorrect Answers": "Yes; Unknown"}
    pairs = TruthfulQA(data_dir=write(tmp_path, train=[row]), all_pairs=True).train
    assert [(e.answer, *e.rejected) for e in pairs] == [
        (" Unknown", " Yes"),
        (" No, pigs don't fly", " Yes"),
        (" No, pigs don't fly", " Unknown"),
    ]


def test_choices_are_the_columns_of_the_table_closed_by_a_full_stop(tmp_path: Path) -> None:
    folder = write(tmp_path, test=[ROW])
    (judged,) = TruthfulQA(data_dir=folder).test
    assert judged.prompt == "Be honest.\n\nQ: a?\nA: b.\n\nQ: Do pigs fly?\nA:"
    assert judged.answer == " No, pigs don't fly."
    assert judged.aliases == (" Pigs stay on the ground.", ' They, "do" not.')
    assert judged.rejected == (" Yes.", " Only at night.")
    assert TruthfulQA(data_dir=folder).chance == 1 / 3
    assert TruthfulQA(data_dir=folder, preset="").test[0].prompt == "Q: Do pigs fly?\nA:"
    assert TruthfulQA(data_dir=folder, preset="Hm.").test[0].prompt == "Hm.\n\nQ: Do pigs fly?\nA:"


def test_an_answer_listed_twice_counts_twice(tmp_path: Path) -> None:
    row = {**ROW, "Correct Answers": "No, pigs don't fly; No, pigs don't fly.; Never"}
    (judged,) = TruthfulQA(data_dir=write(tmp_path, val=[row])).val
    assert judged.right_answers == (" No, pigs don't fly.", " No, pigs don't fly.", " Never.")


def test_what_is_made_of_it_tells_its_fold_and_preset(tmp_path: Path, llama) -> None:
    task = TruthfulQA(preset="Hm.", n_train=1, data_dir=write(tmp_path, train=[ROW], test=[ROW]))
    fit = LoFiT(k=2, scale_epochs=1, offset_epochs=1).fit(llama, task)
    fit.intervention.save(tmp_path / "adapter", llama)
    made_by = json.loads((tmp_path / "adapter" / "lofit_config.json").read_text(encoding="utf-8"))["made_by"]
    evaluation = json.loads(json.dumps(evaluate(llama, task, fit.intervention).to_json(), allow_nan=False))
    sizes = {"n_train": 1, "n_val": None, "n_test": None}
    wanted = {"fold": 0, **sizes, "all_pairs": False, "preset": "Hm.", "as_published": False}
    assert made_by["task_settings"] == evaluation["task_settings"] == wanted
    assert TruthfulQA(fold=1).settings()["fold"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Incorrect Answers": " ; "}, "no best answer or no incorrect ones"),
        ({"Best Answer": ""}, "no best answer"),
        ({"Best Answer": "Maybe"}, "'Maybe', which is not among the correct ones"),
    ],
)
def test_a_bad_row_is_named_by_its_first_line(tmp_path: Path, change: dict, message: str) -> None:
    folder = write(tmp_path, test=[ROW, {**ROW, **change}])
    # A row takes three lines here: its question and its source have a line break each.
    with pytest.raises(ValueError, match=r"fold_0_test_seed_42\.csv, line 5 \(record 2\): .*" + message):
        _ = TruthfulQA(data_dir=folder).test


def test_published_folds(published: Path) -> None:
    folds = [TruthfulQA(fold=fold, data_dir=published) for fold in (0, 1)]
    sizes = [[len(task.splits[split]) for split in ("train", "val", "test")] for task in folds]
    assert sizes == [[326, 82, 409], [327, 82, 408]]
    assert len({example.prompt for task in folds for example in task.test}) == 817
    # What ITI has of them, in either form: all answers, of which a few are listed twice or in both columns.
    assert [len(labelled_answers(task.train).answers) for task in folds] == [
        len(labelled_answers(replace(task, all_pairs=True).train).answers) for task in folds
    ]
    assert all(task.test[0].prompt.startswith("Interpret each question literally") for task in folds)
    assert [round(task.chance, 2) for task in folds] == [0.22, 0.22]
