"""Edits that were fitted at several values of one quantity."""

import math

import pytest
import torch

import lofit_lens as ll
from lofit_lens.analysis import Sweep, sweep
from lofit_lens.heads import Head
from lofit_lens.interventions import HeadIntervention, PromptIntervention
from lofit_lens.outcomes import Evaluation
from lofit_lens.statistics import mean_interval
from lofit_lens.tasks import Example

EXAMPLES = [Example(f"Q: {i} and {i}? A:", f" {2 * i}", rejected=(f" {3 * i + 1}", " none", " who knows")) for i in range(8)]
MISFIT = HeadIntervention((Head(9, 9),), offset=torch.ones(1, 16))


def edit(seed: int, k: int = 2) -> HeadIntervention:
    generator = torch.Generator().manual_seed(seed)
    return HeadIntervention(tuple(Head(0, i) for i in range(k)), offset=torch.randn(k, 16, generator=generator))


@pytest.fixture
def task(toy_task):
    return toy_task({"test": EXAMPLES, "val": EXAMPLES[:3]}, metric="mc1")


def test_every_cell_is_what_a_call_of_its_own_gives(llama, task):
    fitted = {50: [edit(0, 4)], 3: [edit(1), edit(2)], 10: [edit(3, 3), PromptIntervention("Q: 1 and 1? A: 2\n")]}
    found = sweep(llama, task, fitted, quantity="heads (% of all)")
    assert found.quantity == "heads (% of all)"
    assert list(found.evaluations) == [3, 10, 50]
    for x, edits in fitted.items():
        assert found.evaluations[x] == tuple(ll.evaluate(llama, task, one) for one in edits)
    assert len({one.scores["margin"] for runs in found.evaluations.values() for one in runs}) == 5


def test_split_metric_and_token_budget_reach_the_evaluation(llama, task, passes):
    found = sweep(llama, task, {1: [edit(0)]}, quantity="x", split="val", metric="exact_match")
    assert found.evaluations == {1: (ll.evaluate(llama, task, edit(0), split="val", metric="exact_match"),)}
    passes.clear()
    sweep(llama, task, {1: [edit(0)]}, quantity="x")
    whole = len(passes)
    sweep(llama, task, {1: [edit(0)]}, quantity="x", token_budget=16)
    assert len(passes) - whole > whole


def evaluation(*scores: float) -> Evaluation:
    return Evaluation(
        "toy", "test", "mc1", {"mc1": scores, "mc2": tuple(score / 2 for score in scores)}, task_settings={"a": 1}
    )


SWEEP = Sweep(
    "training examples",
    {20: (evaluation(0.0, 1.0, 0.0, 0.0), evaluation(0.0, 1.0, 1.0, 1.0)), 100: (evaluation(1.0, 1.0, 0.0, 1.0),)},
)


def test_runs_are_averaged_example_by_example():
    mean = SWEEP.mean(20)
    assert mean.scores == {"mc1": (0.0, 1.0, 0.5, 0.5), "mc2": (0.0, 0.5, 0.25, 0.25)}
    assert (mean.task, mean.split, mean.metric, mean.task_settings) == ("toy", "test", "mc1", {"a": 1})
    # Twice the same run is no more than one.
    doubled = Sweep("", {1: SWEEP.evaluations[100] * 2})
    assert doubled.mean(1).interval() == SWEEP.evaluations[100][0].interval()


def test_the_frame_has_a_row_for_each_x_and_run():
    frame = SWEEP.to_frame()
    assert list(frame.columns) == ["quantity", "x", "run", "task", "split", "metric", "value", "low", "high", "n"]
    assert frame[["x", "run", "value", "n"]].to_numpy().tolist() == [[20, 0, 0.25, 4], [20, 1, 0.75, 4], [100, 0, 0.75, 4]]
    assert frame.loc[1, ["low", "high"]].tolist() == list(SWEEP.evaluations[20][1].interval())
    assert set(frame["quantity"]) == {"training examples"}


def test_the_summary_has_a_row_for_each_x():
    summary = SWEEP.summary()
    assert list(summary.columns) == ["quantity", "x", "n_runs", "task", "split", "metric", "value", "low", "high", "n"]
    assert summary[["x", "n_runs", "value", "n"]].to_numpy().tolist() == [[20, 2, 0.5, 4], [100, 1, 0.75, 4]]
    assert summary.loc[0, ["low", "high"]].tolist() == list(mean_interval((0.0, 1.0, 0.5, 0.5)))
    assert summary.loc[1, ["low", "high"]].tolist() == list(SWEEP.evaluations[100][0].interval())


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("fitted", "settings", "message"),
    [
        ({}, {}, r"got \{\} \(x: number of edits\); wanted one or more finite x"),
        ({1: [edit(0)], 2: []}, {}, r"got \{1: 1, 2: 0\} .* at least one edit at each"),
        ({math.nan: [edit(0)]}, {}, r"got \{nan: 1\}"),
        ({1: [edit(0)], 2: [edit(0), MISFIT]}, {}, "L9H9 is out of range"),
        ({1: [edit(0)]}, {"split": "train"}, "the train split of task 'toy' is empty"),
        ({1: [edit(0)]}, {"metric": "f1"}, "metric 'f1'; wanted one of"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_run(llama, task, passes, fitted, settings, message):
    with pytest.raises(ValueError, match=message):
        sweep(llama, task, fitted, quantity="x", **settings)
    assert passes == []
