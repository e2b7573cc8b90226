"""The table of ways to choose heads, on a small study: what it counts, and that its test finds what is there only."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

import lofit_lens as ll
from figures.choosers import table as choosers
from lofit_lens.tasks import Kinship, Truth

SIZES = {"n_train": 8, "n_val": 2, "n_test": 6}


@pytest.fixture(scope="module")
def study():
    return ll.Study(
        name="ways",
        models=["tiny-llama"],
        tasks={"kinship": Kinship(**SIZES), "truth": Truth(**SIZES)},
        methods={"lofit": {"scale_epochs": 1, "offset_epochs": 1}},
        heads=["own", "others", "random", "random-per-layer"],
        k=[2],
        seeds=[0, 1],
    )


@pytest.fixture(scope="module")
def store(study, tmp_path_factory):
    store = ll.RunStore(tmp_path_factory.mktemp("store"))
    ll.run_study(study, store)
    return store


@pytest.fixture(scope="module")
def runs(study, store):
    return choosers.cells([study], store)


def test_a_way_of_which_a_seed_is_missing_is_left_out(study, store):
    three_seeds = dataclasses.replace(study, seeds=[0, 1, 2], heads=["own", "random"])
    ll.run_study(dataclasses.replace(three_seeds, heads=["random"]), store)
    found = choosers.cells([three_seeds], store)
    assert set(found["way"]) == {"random"}
    assert set(found["seed"]) == {0, 1, 2}


def test_a_row_for_each_task_and_way(runs):
    table = choosers.table(runs)
    assert len(table) == 2 * 4
    assert set(table["heads chosen by"]) == {"own", "another task's", "random", "random-per-layer"}
    assert set(table["runs"]) == {2}
    own = table[table["heads chosen by"] == "own"]
    assert own["shared with own"].tolist() == [1.0, 1.0]


def test_a_row_for_each_way_that_is_not_blind(runs):
    summary = choosers.summary(runs)
    assert summary["heads chosen by"].tolist() == ["own", "another task's"]
    assert summary["strata"].tolist() == [2, 2]
    assert summary["p"].between(0, 1).all()
    assert (summary["q"] >= summary["p"]).all()


def test_models_are_summed_up_together_and_each(runs):
    both = pd.concat([runs, runs.assign(model="another", value=runs["value"] * 0 + (runs["way"] == "own"))])
    summary = choosers.summary(both)
    assert summary["models"].tolist() == ["all"] * 2 + ["tiny-llama"] * 2 + ["another"] * 2
    assert summary["strata"].tolist() == [4, 4, 2, 2, 2, 2]
    of_own = summary[summary["heads chosen by"] == "own"].set_index("models")
    assert of_own.loc["another", ["more than blind by", "more than random by"]].tolist() == [1.0, 1.0]
    for against in ("more than blind by", "more than random by"):
        assert of_own.loc["all", against] == pytest.approx((of_own.loc["tiny-llama", against] + 1) / 2, abs=1e-4)  # rounded
    # Own runs, two a task, are above two of random heads in two tasks; with those per layer, above four.
    assert of_own.loc["another", "p, random alone"] == pytest.approx(1 / 36, abs=0.005)
    assert of_own.loc["another", "p"] == pytest.approx(1 / 225, abs=0.002)


def test_what_is_better_everywhere_is_found_and_what_is_not_is_not():
    better = [([0.9, 0.8, 0.85], [0.1, 0.2, 0.15, 0.3, 0.2, 0.1])] * 3
    # In one stratum 1 of 84 ways to draw three of nine is as good; in three of them 1 of 84 ** 3.
    assert choosers.against_blind(better)["p"] == pytest.approx(1 / 20_001)
    assert choosers.against_blind(better)["more than blind by"] == pytest.approx(0.85 - 0.175)
    rng = np.random.default_rng(0)
    drawn = [[(rng.random(3).tolist(), rng.random(6).tolist()) for _ in range(3)] for _ in range(60)]
    found = sum(choosers.against_blind(strata)["p"] < 0.05 for strata in drawn)
    assert found <= 8, "5 % of 60 are 3; more than 8 come up once in 300 times"


def test_what_is_detectable_is_found_four_times_in_five():
    rng = np.random.default_rng(0)
    sizes = [(3, 6)] * 6
    pilots = [[(rng.normal(0, 1, a).tolist(), rng.normal(0, 1, b).tolist()) for a, b in sizes] for _ in range(40)]
    detectable = float(np.mean([choosers.against_blind(strata)["detectable"] for strata in pilots]))
    # (1.645 + 0.842) sqrt((1/3 + 1/6) / 6) with a known spread; estimating it costs a percent or two.
    assert detectable == pytest.approx(2.487 * (0.5 / 6) ** 0.5, rel=0.05)
    studies = [[(rng.normal(detectable, 1, a).tolist(), rng.normal(0, 1, b).tolist()) for a, b in sizes] for _ in range(100)]
    found = sum(choosers.against_blind(strata)["p"] < 0.05 for strata in studies)
    assert 68 <= found <= 92, "80 of 100 are expected; three standard errors are 12"
