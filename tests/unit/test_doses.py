"""An edit at several strengths: every number is that of a call of its own."""

import math

import pytest
import torch

import lofit_lens as ll
from lofit_lens.analysis import DoseResponse, dose_response
from lofit_lens.heads import Head
from lofit_lens.interventions import HeadIntervention, PromptIntervention, ResidualIntervention
from lofit_lens.outcomes import Evaluation
from lofit_lens.side_effects import SideEffects
from lofit_lens.tasks import Example

GENERATOR = torch.Generator().manual_seed(0)
HEADS = HeadIntervention((Head(0, 1), Head(2, 2)), *torch.randn(2, 2, 16, generator=GENERATOR))
TEXTS = ["It was a bright cold day in April.", "The clocks were striking thirteen."]
EXAMPLES = [Example(f"Q: {i} and {i}? A:", f" {2 * i}", rejected=(f" {3 * i + 1}", " none", " who knows")) for i in range(8)]


@pytest.fixture
def task(toy_task):
    return toy_task({"test": EXAMPLES, "val": EXAMPLES[:3]}, metric="mc1")


def residual_edit_of(model) -> ResidualIntervention:
    return ResidualIntervention((1,), torch.randn(1, model.cfg.d_model, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("kind", ["heads", "residual"])
def test_every_dose_is_what_calls_of_its_own_give_bit_for_bit(model, task, kind):
    edit = HEADS if kind == "heads" else residual_edit_of(model)
    found = dose_response(model, task, edit, (2, -1, 0, 0.5, 1), texts=TEXTS)
    assert found.doses == (-1, 0, 0.5, 1, 2)
    assert found.evaluations[1] == ll.evaluate(model, task)
    assert found.evaluations[3] == ll.evaluate(model, task, edit)
    for dose, evaluation, costs in zip(found.doses, found.evaluations, found.side_effects, strict=True):
        assert evaluation == ll.evaluate(model, task, dose * edit)
        assert costs == ll.side_effects(model, dose * edit, TEXTS)
    assert len({evaluation.scores["margin"] for evaluation in found.evaluations}) == 5


def test_at_dose_0_ordinary_text_pays_nothing(llama, task):
    [costs] = dose_response(llama, task, HEADS, [0], texts=TEXTS).side_effects
    assert costs.cross_entropy == costs.base_cross_entropy
    assert costs.kl == (0.0, 0.0)


def test_dose_0_is_the_base_model_even_where_0_times_the_edit_is_not(llama, task):
    infinite = HeadIntervention((Head(0, 1),), offset=torch.full((1, 16), math.inf))
    assert (0 * infinite).offset.isnan().all()
    assert dose_response(llama, task, infinite, [0]).evaluations == (ll.evaluate(llama, task),)


def test_where_no_nonlinearity_follows_an_offset_margins_are_linear_in_the_dose(gpt2, toy_task):
    """Behind the last layer's heads there are only its MLP and the final norm, and hooks take both out.

    Answers of one token and one wrong one make a margin the difference of two logits.
    """
    task = toy_task({"test": [Example(f"Q: {i}? A:", "y", rejected=("n",)) for i in range(4)]}, metric="mc1")
    edit = HeadIntervention((Head(2, 1),), offset=torch.randn(1, 16, generator=torch.Generator().manual_seed(2)))
    normed = []
    linear = [
        ("blocks.2.hook_mlp_out", lambda value, hook: torch.zeros_like(value)),
        ("ln_final.hook_in", lambda value, hook: normed.append(value)),
        ("ln_final.hook_out", lambda value, hook: normed[-1]),
    ]
    with gpt2.hooks(fwd_hooks=linear):
        found = dose_response(gpt2, task, edit, (-1, 0, 1, 2))
    margins = torch.tensor([evaluation.scores["margin"] for evaluation in found.evaluations])
    effects = margins - margins[1]
    assert (effects[2].abs() > 1e-2).all()
    # Differences of float32 log-probabilities of size 1 to 10.
    torch.testing.assert_close(effects, torch.tensor([[-1.0], [0.0], [1.0], [2.0]]) * effects[2], rtol=0, atol=1e-5)


def test_split_metric_and_token_budget_reach_the_evaluation(llama, task, passes):
    found = dose_response(llama, task, HEADS, [1], split="val", metric="exact_match")
    assert found.evaluations == (ll.evaluate(llama, task, HEADS, split="val", metric="exact_match"),)
    passes.clear()
    dose_response(llama, task, HEADS, [1])
    whole = len(passes)
    dose_response(llama, task, HEADS, [1], token_budget=16)
    assert len(passes) - whole > whole


def test_the_base_model_reads_texts_once_for_all_doses(llama, task, passes):
    dose_response(llama, task, HEADS, [1, 2])
    without_texts = len(passes)
    passes.clear()
    dose_response(llama, task, HEADS, [1, 2], texts=TEXTS)
    assert len(passes) - without_texts == 3  # one batch of texts: the base model, and two doses


def evaluation(*scores: float) -> Evaluation:
    return Evaluation("toy", "test", "mc1", {"mc1": scores})


def test_the_frame_has_a_row_for_each_dose():
    found = DoseResponse(
        (0.0, 1.0),
        (evaluation(0.0, 1.0), evaluation(1.0, 1.0)),
        (SideEffects((2.0, 3.0), (2.0, 3.0), (0.0, 0.0), (9, 9)), SideEffects((2.5, 4.5), (2.0, 3.0), (0.1, 0.3), (9, 9))),
    )
    frame = found.to_frame()
    measured = ["dose", "task", "split", "metric", "value", "low", "high", "n"]
    assert list(frame.columns) == [
        *measured,
        *("rise_in_cross_entropy", "rise_in_cross_entropy_low", "rise_in_cross_entropy_high"),
        *("kl", "kl_low", "kl_high", "n_texts"),
    ]
    assert frame[["dose", "value", "n", "n_texts"]].to_numpy().tolist() == [[0, 0.5, 2, 2], [1, 1, 2, 2]]
    assert frame[["low", "high"]].to_numpy().tolist() == [list(one.interval()) for one in found.evaluations]
    assert frame["rise_in_cross_entropy"].tolist() == [0, pytest.approx((0.5 + 1.5) / 2)]
    assert frame["kl"].tolist() == [0, pytest.approx(0.2)]
    summary = found.side_effects[1].summary()
    assert frame.loc[1, ["kl_low", "kl_high"]].tolist() == summary.loc["kl", ["low", "high"]].tolist()
    assert list(DoseResponse(found.doses, found.evaluations).to_frame().columns) == measured


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("edit", "settings", "message"),
    [
        (HEADS, {"doses": []}, r"got the doses \[\]; wanted one or more finite numbers, none twice"),
        (HEADS, {"doses": [0, 1, 1.0]}, "none twice"),
        (HEADS, {"doses": [0, math.nan]}, r"got the doses \[0, nan\]"),
        (HEADS, {"doses": [math.inf]}, r"got the doses \[inf\]"),
        (PromptIntervention("Q:"), {}, "got a PromptIntervention, which cannot be multiplied; wanted a HeadIntervention"),
        (None, {}, "got a NoneType, which cannot be multiplied"),
        (HeadIntervention((Head(9, 9),), offset=torch.ones(1, 16)), {"doses": [0]}, "L9H9 is out of range"),
        (HEADS, {"texts": []}, "got 0 texts"),
        (HEADS, {"texts": ["A whole text.", ""]}, "text 1 has fewer than two tokens"),
        (HEADS, {"texts": TEXTS, "split": "train"}, "the train split of task 'toy' is empty"),
        (HEADS, {"texts": TEXTS, "metric": "f1"}, "metric 'f1'; wanted one of"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_run(llama, task, passes, edit, settings, message):
    with pytest.raises(ValueError, match=message):
        dose_response(llama, task, edit, **settings)
    assert passes == []
