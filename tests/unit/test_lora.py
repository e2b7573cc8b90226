"""LoRA: its formula against weights changed by hand, and what it leaves behind in the model, which is nothing."""

import sys

import pytest
import torch

import lofit_lens as ll
from lofit_lens.interventions import LoRAIntervention
from lofit_lens.interventions.lora import LoRALayers
from lofit_lens.methods import LoRA
from lofit_lens.tasks import Example
from lofit_lens.tiny import tiny_pair

TOKENS = torch.randint(3, 259, (2, 9), generator=torch.Generator().manual_seed(0))
RANK, ALPHA = 3, 4.5
EXAMPLES = [Example(f"Q: Is {a} more than {b}? A:", " Yes." if a > b else " No.") for a, b in [(9, 2), (3, 4), (8, 1), (2, 7)]]


@torch.no_grad()
def logits_of(model, edit=None) -> torch.Tensor:
    with ll.attached(model, edit):
        return model(TOKENS)


def random_edit(model) -> LoRAIntervention:
    generator = torch.Generator().manual_seed(0)
    shapes = {name: factor.shape for name, factor in LoRALayers(model, RANK, ALPHA).factors.items()}
    return LoRAIntervention(
        RANK, ALPHA, {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    )


def weight_by_hand(hf_model, layer: int, part: str) -> torch.Tensor:
    """W_Q or W_V of the Hugging Face model as `[out, in]`, to be changed in place."""
    if hasattr(hf_model, "transformer"):
        # GPT-2 keeps queries, keys and values side by side, as [in, 3 * 64].
        first = {"q": 0, "v": 128}[part]
        return hf_model.transformer.h[layer].attn.c_attn.weight[:, first : first + 64].T
    return getattr(hf_model.model.layers[layer].self_attn, f"{part}_proj").weight


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_it_is_the_weights_changed_by_hand(family, request):
    model = request.getfixturevalue(family)
    edit = random_edit(model)
    hf_model, _ = tiny_pair(family)
    for layer in range(3):
        for part in ("q", "v"):
            A, B = (edit.factors[f"{layer}.{part}.{factor}"] for factor in "AB")
            weight = weight_by_hand(hf_model, layer, part)
            for r in range(RANK):
                weight += ALPHA / RANK * torch.outer(B[:, r], A[r])
    by_hand = hf_model(TOKENS).logits
    # Float32 sums in another order through three layers; logits of order 1 to 10.
    torch.testing.assert_close(logits_of(model, edit), by_hand, rtol=1e-4, atol=1e-4)
    assert (by_hand - logits_of(model)).abs().max() > 0.1


def test_putting_it_to_work_draws_no_random_number(llama):
    edit = random_edit(llama)
    before = torch.get_rng_state()
    logits_of(llama, edit)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_at_work_in_training_only(llama):
    edit = random_edit(llama)
    layers = LoRALayers(llama, RANK, ALPHA, dropout=0.5)
    with torch.no_grad():
        for name, factor in layers.factors.items():
            factor.copy_(edit.factors[name])
    assert torch.equal(logits_of(llama, layers), logits_of(llama, edit))
    layers.dropout(on=True)
    assert not torch.allclose(logits_of(llama, layers), logits_of(llama, edit))


def test_of_a_bfloat16_model_the_factors_are_float32_and_learn(toy_task):
    model = ll.load_model("tiny-llama", dtype=torch.bfloat16)
    before = logits_of(model)
    # So small a rate that bfloat16 could not take its steps: A starts at order 0.1, whose neighbours are 0.0005 away.
    fit = LoRA(rank=2, learning_rate=1e-5, epochs=2, batch_size=4, dropout=0.0).fit(model, toy_task({"train": EXAMPLES}))
    start = LoRA(rank=2, learning_rate=1e-12, epochs=1, batch_size=4, dropout=0.0).fit(model, toy_task({"train": EXAMPLES}))
    assert {factor.dtype for factor in fit.intervention.factors.values()} == {torch.float32}
    moved = [fit.intervention.factors[f"1.q.{factor}"] != start.intervention.factors[f"1.q.{factor}"] for factor in "AB"]
    assert all(part.float().mean() > 0.5 for part in moved)
    assert logits_of(model, fit.intervention).dtype == torch.bfloat16
    assert torch.equal(logits_of(model), before)


def test_one_inside_another_is_refused_with_the_reason(llama):
    edit = random_edit(llama)
    with ll.attached(llama, edit), pytest.raises(ValueError, match=r"W_Q of layer 0 is a peft.*no other LoRA at work"):
        logits_of(llama, edit)


def test_factors_of_another_model_are_refused(llama, gpt2):
    with pytest.raises(ValueError, match=r"factors \['0.q.A', .* do not fit this model"):
        logits_of(gpt2, random_edit(llama))


def test_a_fit_has_dropout(llama, toy_task):
    task = toy_task({"train": EXAMPLES})
    plain, dropped = (LoRA(dropout=share, epochs=2).fit(llama, task).intervention for share in (0.0, 0.5))
    assert any(not torch.equal(factor, dropped.factors[name]) for name, factor in plain.factors.items())


def test_without_the_extra_nothing_is_run(llama, toy_task, passes, monkeypatch):
    """The reference of DPO would be a pass over all examples."""
    task = toy_task({"train": [Example("q", " a", rejected=(" b",))]}, loss="dpo")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="lofit-lens\\[lora\\]"):
        LoRA().fit(llama, task)
    assert not passes
