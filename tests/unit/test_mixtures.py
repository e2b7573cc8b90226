"""Weighted sums of two edits, against sums made by hand."""

import math

import pytest
import torch

import lofit_lens as ll
from lofit_lens.analysis import Mixture, mixture
from lofit_lens.heads import Head
from lofit_lens.interventions import HeadIntervention, ResidualIntervention
from lofit_lens.outcomes import Evaluation
from lofit_lens.tasks import Example

GENERATOR = torch.Generator().manual_seed(0)
#: One head of each is the other's too; only one has scales.
A = HeadIntervention((Head(0, 1), Head(2, 2)), *torch.randn(2, 2, 16, generator=GENERATOR))
B = HeadIntervention((Head(2, 2), Head(1, 0)), offset=torch.randn(2, 16, generator=GENERATOR))
EXAMPLES = [Example(f"Q: {i} and {i}? A:", f" {2 * i}", rejected=(f" {3 * i + 1}", " none", " who knows")) for i in range(8)]


@pytest.fixture
def tasks(toy_task):
    likely, spoken = toy_task({"test": EXAMPLES, "val": EXAMPLES[:3]}, metric="mc1"), toy_task({"test": EXAMPLES[6:]})
    return {"by likelihood": likely, "generated": spoken}


def summed_by_hand(weight_a: float, weight_b: float) -> HeadIntervention:
    zero = torch.zeros(16)
    offsets = (
        weight_a * A.offset[0] + weight_b * zero,
        weight_a * A.offset[1] + weight_b * B.offset[0],
        weight_a * zero + weight_b * B.offset[1],
    )
    scales = (weight_a * A.scale[0], weight_a * A.scale[1], zero)
    return HeadIntervention((Head(0, 1), Head(2, 2), Head(1, 0)), torch.stack(scales), torch.stack(offsets))


def test_every_cell_is_what_the_sum_made_by_hand_gives(model, tasks):
    found = mixture(model, tasks, A, B)
    assert found.tasks == ("by likelihood", "generated")
    assert found.weights == ((0, 0), (1, 0), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0, 1), (1, 1))
    for weights in found.weights:
        for name, task in tasks.items():
            assert found.evaluations[weights, name] == ll.evaluate(model, task, summed_by_hand(*weights))
    assert len({found.evaluations[weights, "by likelihood"].scores["margin"] for weights in found.weights}) == 7


def test_the_ends_are_the_edits_alone_and_no_weight_is_the_base_model(llama, tasks):
    task = tasks["by likelihood"]
    ends = mixture(llama, tasks, A, B, [(0, 0), (0, 1), (1, 0)]).evaluations
    alone = [ll.evaluate(llama, task, edit) for edit in (None, B, A)]
    assert [ends[pair, "by likelihood"] for pair in [(0, 0), (0, 1), (1, 0)]] == alone


def test_split_and_token_budget_reach_the_evaluation(llama, tasks, passes):
    task = tasks["by likelihood"]
    found = mixture(llama, {"t": task}, A, B, [(1, 1)], split="val")
    assert found.evaluations == {((1.0, 1.0), "t"): ll.evaluate(llama, task, A + B, split="val")}
    passes.clear()
    mixture(llama, {"t": task}, A, B, [(1, 1)])
    whole = len(passes)
    mixture(llama, {"t": task}, A, B, [(1, 1)], token_budget=16)
    assert len(passes) - whole > whole


def test_the_frame_has_a_row_for_each_pair_of_weights_and_task():
    cells = {
        ((0.5, 0.5), "x"): Evaluation("toy", "test", "mc1", {"mc1": (1.0, 0.0)}),
        ((0.5, 0.5), "y"): Evaluation("toy", "test", "exact_match", {"exact_match": (1.0,)}),
        ((1.0, 1.0), "x"): Evaluation("toy", "test", "mc1", {"mc1": (0.0, 0.0)}),
        ((1.0, 1.0), "y"): Evaluation("toy", "test", "exact_match", {"exact_match": (0.0,)}),
    }
    frame = Mixture(((0.5, 0.5), (1.0, 1.0)), ("x", "y"), cells).to_frame()
    assert list(frame.columns) == ["weight_a", "weight_b", "task", "split", "metric", "value", "low", "high", "n"]
    assert frame[["weight_a", "weight_b", "task", "metric", "value", "n"]].to_numpy().tolist() == [
        [0.5, 0.5, "x", "mc1", 0.5, 2],
        [0.5, 0.5, "y", "exact_match", 1, 1],
        [1, 1, "x", "mc1", 0, 2],
        [1, 1, "y", "exact_match", 0, 1],
    ]
    assert frame[["low", "high"]].to_numpy().tolist() == [list(cell.interval()) for cell in cells.values()]


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("a", "b", "weights", "message"),
    [
        (A, B, [], r"got the weights \[\]; wanted one or more pairs of finite numbers, none twice"),
        (A, B, [(1, 0), (1.0, 0.0)], "none twice"),
        (A, B, [(1, math.nan)], r"got the weights \[\(1, nan\)\]"),
        (A, ResidualIntervention((1,), torch.ones(1, 32)), [(1, 1)], "got a ResidualIntervention, which cannot be added"),
        (A, HeadIntervention((Head(0, 0),), offset=torch.ones(1, 8)), [(1, 1)], "cannot add .* d_head = 16 and 8"),
        (A, HeadIntervention((Head(0, 0),), offset=torch.ones(1, 16), positions="generated"), [(1, 1)], "cannot add"),
        (A, HeadIntervention((Head(9, 9),), offset=torch.ones(1, 16)), [(1, 0), (0, 1)], "L9H9 is out of range"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_run(llama, tasks, passes, a, b, weights, message):
    with pytest.raises(ValueError, match=message):
        mixture(llama, tasks, a, b, weights)
    with pytest.raises(ValueError, match="got no tasks; wanted at least one"):
        mixture(llama, {}, A, B)
    with pytest.raises(ValueError, match="the val split of task 'toy' is empty"):
        mixture(llama, tasks, A, B, split="val")
    assert passes == []
