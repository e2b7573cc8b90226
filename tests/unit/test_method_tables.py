"""What the table of methods is made of: fits picked by validation, paired tests, costs that belong to the fits beside them."""

import json
from types import SimpleNamespace

import pytest

import lofit_lens as ll
from figures import studies
from figures.methods import study
from figures.studies import best_of, paired, stored
from lofit_lens.tasks import Kinship


def evaluated(scores, split="test"):
    return ll.Evaluation("kinship", split, "exact_match", {"exact_match": tuple(map(float, scores))})


def cell_of(*scores, seed=0, rate=0.1, val_of_other=0.5):
    trial = {"settings": {"learning_rate": rate}, "seconds": 2.0, "val": 0.6}
    return {
        "made_of": {"task": {}, "methods": [{"learning_rate": rate}, {"learning_rate": 0.9}], "seed": seed},
        "chosen": 0,
        "trials": [trial, {"settings": {"learning_rate": 0.9}, "seconds": 2.0, "val": val_of_other}],
        "selection_seconds": 1.0,
        "n_parameters": 10,
        "test": evaluated(scores).to_json(),
    }


def test_pairs_are_examples_with_their_mean_over_seeds():
    """Differences 1, 1, .5 and 1: of the 16 ways to swap sides only two are as far from 0, so that p = 1/8."""
    ours = [cell_of(1, 1, 1, 1), cell_of(1, 1, 1, 1)]
    theirs = [cell_of(0, 0, 1, 0), cell_of(0, 0, 0, 0)]
    mean, low, high, p = paired(ours, theirs)
    assert (mean, p) == (pytest.approx(3.5 / 4), pytest.approx(2 / 16))
    assert low <= mean <= high
    assert paired(theirs, ours)[0] == pytest.approx(-3.5 / 4)


@pytest.fixture
def judge(monkeypatch):
    """Edits are numbers, and as good as they are large, on a split of so many questions; which were asked is kept."""
    asked = []

    def evaluate(model, task, edit, *, split="test"):
        asked.append((edit, split))
        return evaluated([edit], split)

    monkeypatch.setattr(studies.ll, "evaluate", evaluate)
    return asked


def giving(edit):
    return SimpleNamespace(fit=lambda *_, **__: SimpleNamespace(intervention=edit), settings=lambda: {"edit": edit})


def test_validation_picks_of_equal_fits_the_first_and_the_test_split_sees_it_alone(judge):
    edit, found = best_of(None, None, [giving(0.2), giving(0.7), giving(0.7)], seed=0)
    assert (edit, found["chosen"]) == (0.7, 1)
    assert [trial["val"] for trial in found["trials"]] == [0.2, 0.7, 0.7]
    assert judge == [(0.2, "val"), (0.7, "val"), (0.7, "val"), (0.7, "test")]


def test_a_lone_fit_is_not_asked_for_its_validation_score(judge):
    assert best_of(None, None, [giving(0.3)], seed=0)[1]["chosen"] == 0
    assert judge == [(0.3, "test")]


def test_a_cell_is_computed_once_and_refused_where_it_was_made_of_something_else(tmp_path):
    path = tmp_path / "cell.json"
    assert stored(path, {"seed": 0}, lambda: {"value": 1})["value"] == 1
    assert stored(path, {"seed": 0}, lambda: {"value": 2})["value"] == 1
    with pytest.raises(ValueError, match=r"was made of .* delete it, and it is made again"):
        stored(path, {"seed": 1}, lambda: {"value": 2})


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A task with a fit of LoFiT for each of two seeds, one of RED, and what zero-shot prompts give."""
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    monkeypatch.setattr(study, "TASKS", {"kinship": Kinship()})
    cells = {
        ("zero-shot", 0): cell_of(0, 0, 0, 1),
        ("LoFiT", 0): cell_of(1, 1, 1, 0),
        ("LoFiT", 1): cell_of(1, 1, 0, 1, seed=1),
        ("RED", 0): cell_of(1, 1, 1, 1, val_of_other=0.6),
        ("RED", 1): cell_of(1, 1, 1, 1, seed=1),
    }
    monkeypatch.setattr(study, "candidates", lambda task_name: dict.fromkeys(("zero-shot", "LoFiT", "RED")))
    for (name, seed), cell in cells.items():
        study.cell_path("kinship", name, seed).write_text(json.dumps(cell))
    return tmp_path


def write_costs():
    costs = {
        path.stem: {"rise_in_cross_entropy": i / 10, "kl": 1.0} for i, path in enumerate(study.cell_paths("kinship").values())
    }
    study.costs_path("kinship").parent.mkdir(exist_ok=True)
    study.costs_path("kinship").write_text(json.dumps({"made_of": study.costs_made_of("kinship"), "costs": costs}))


def test_the_table_says_how_much_less_than_lofit_each_method_has(results):
    write_costs()
    rows = study.table().set_index("method")
    assert rows.loc["LoFiT", ["mean", "seeds", "less than LoFiT by", "p", "q"]].tolist() == [0.75, 2, "", "", ""]
    assert rows.loc["zero-shot", "seeds"] == 1
    assert rows.loc["zero-shot", "less than LoFiT by"].startswith("0.500 [")  # its one seed next to each of LoFiT's
    assert rows.loc["RED", "less than LoFiT by"].startswith("-0.250 [")
    assert rows["processor seconds of a fit"].tolist() == [3, 3, 3]
    assert rows["rise in cross-entropy"].tolist() == [0.0, 0.15, 0.35]
    assert rows["picked"].tolist() == ["learning_rate 0.1", "learning_rate 0.1", "learning_rate 0.1 (tied)"]
    assert float(rows.loc["zero-shot", "q"]) >= float(rows.loc["zero-shot", "p"])


def test_what_other_fits_cost_is_not_shown(results):
    write_costs()
    study.cell_path("kinship", "RED", 1).write_text(json.dumps(cell_of(1, 1, 1, 1, seed=1, rate=0.2)))
    assert study.table()["KL"].tolist() == ["", "", ""]
    write_costs()
    assert study.table()["KL"].tolist() == [1.0, 1.0, 1.0]
    study.costs_path("kinship").unlink()
    assert study.table()["rise in cross-entropy"].tolist() == ["", "", ""]
