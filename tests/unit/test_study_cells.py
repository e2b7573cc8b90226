"""Which cells a study has: what is skipped, and that none is there twice."""

from typing import Any

import pytest

from lofit_lens.study import Study
from lofit_lens.tasks import Counterfactual, Kinship, Truth

SIZES = {"n_train": 4, "n_val": 2, "n_test": 2}


def study(**settings: Any) -> Study:
    tasks = {"kinship": Kinship(**SIZES), "counterfactual": Counterfactual(**SIZES), "truth": Truth(**SIZES)}
    return Study("x", **{"models": ("tiny-llama",), "tasks": tasks, "methods": {"lofit": {}, "red": {}}, **settings})


def places(grid: Study, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(getattr(cell, name) for name in names) for cell in grid.cells()]


def test_what_is_skipped_is_left_out_and_all_else_stays() -> None:
    whole = study(heads=("own", "random"), k=(1, 2))
    skip = ({"method": "red", "task": "truth"}, {"heads": "random", "k": 2}, {"task": "counterfactual"})
    left = [cell for cell in whole.cells() if cell.task != "counterfactual"]
    left = [cell for cell in left if (cell.heads, cell.k) != ("random", 2) and (cell.method, cell.task) != ("red", "truth")]
    assert list(study(heads=("own", "random"), k=(1, 2), skip=skip).cells()) == left
    assert 0 < len(left) < len(list(whole.cells()))


@pytest.mark.parametrize(
    ("skip", "message"),
    [
        ({"task": "clutrr"}, "skip has task = 'clutrr'; wanted one of kinship, counterfactual, truth"),
        ({"method": "iti"}, "skip has method = 'iti'; wanted one of lofit, red"),
        ({"heads": "others"}, "skip has heads = 'others'; wanted one of own, own-per-layer, iti"),
        ({"n_train": 3}, "skip has n_train = 3; wanted one of none, as the study does not vary it"),
        ({"seed": 0}, "skip.0.seed"),
        ({"heads": "iti"}, "skip has {'heads': 'iti'}, which is no cell"),
        ({"heads": "kinship", "task": "kinship"}, "which is no cell; a task's heads for itself are called 'own'"),
        ({}, "leaves no cell; wanted at least one"),
    ],
)
def test_a_skip_that_never_applies_is_refused(skip: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study(skip=(skip,))


def test_exceptions_hold_for_own_heads_that_only_others_take() -> None:
    where = [{"heads": "own", "set": {"scale_lr": 0.5}}]
    assert study(heads=("others",), methods={"lofit": {"where": where}}).methods["lofit"].where
    with pytest.raises(ValueError, match=r"methods.lofit.where has \{'heads': 'random'\}, which is no cell"):
        study(methods={"lofit": {"where": [{"heads": "random", "set": {"scale_lr": 0.5}}]}})


def test_a_task_that_is_named_is_its_own_lender_once() -> None:
    grid = study(heads=("own", "others", "kinship"), methods={"lofit": {}})
    assert places(grid, "task", "heads")[1:4] == [("kinship", heads) for heads in ("own", "counterfactual", "truth")]
    assert len(set(grid.cells())) == len(list(grid.cells()))


def test_data_of_skipped_cells_need_not_be_there() -> None:
    too_many = {"n_train": (2, 10_000), "methods": {"red": {}}}
    with pytest.raises(ValueError, match="n_train=10000"):
        study(**too_many).check_data()
    study(**too_many, skip=({"n_train": 10_000},)).check_data()
