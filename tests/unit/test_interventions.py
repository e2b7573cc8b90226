"""The edit: what it does to a model, that it leaves nothing behind, and the arithmetic of its vectors."""

from contextlib import ExitStack

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from lofit_lens import load_model
from lofit_lens.heads import Head
from lofit_lens.interventions import HeadIntervention, attached, scores_from_norms
from lofit_lens.models import check_model
from lofit_lens.tiny import tiny_pair

D_HEAD = 16
TOKENS = torch.randint(3, 259, (2, 9), generator=torch.Generator().manual_seed(0))
HEADS = (Head(2, 3), Head(0, 1), Head(0, 0), Head(1, 2))
# Two float32 passes over 3 layers that sum in another order; logits are of order 1.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def zero_intervention(heads, d_head: int) -> HeadIntervention:
    heads = tuple(Head(*head) for head in heads)
    return HeadIntervention(heads, scale=torch.zeros(len(heads), d_head), offset=torch.zeros(len(heads), d_head))


def noise(n_heads: int, seed: int, size: float = 0.5) -> Tensor:
    return size * torch.randn(n_heads, D_HEAD, generator=torch.Generator().manual_seed(seed))


def logits_of(model, *interventions: HeadIntervention) -> Tensor:
    with ExitStack() as stack, torch.no_grad():
        for intervention in interventions:
            stack.enter_context(attached(model, intervention))
        return model(TOKENS)


def vectors_of(intervention: HeadIntervention) -> dict[Head, tuple[list[float] | None, list[float] | None]]:
    scale, offset = (
        [None] * len(intervention.heads) if vectors is None else vectors.tolist()
        for vectors in (intervention.scale, intervention.offset)
    )
    return dict(zip(intervention.heads, zip(scale, offset, strict=True), strict=True))


# What it does to a model


def papers_logits(family: str, heads, scale: Tensor, offset: Tensor) -> Tensor:
    """The paper's arithmetic, head by head on flat z, in front of the output projection of the bare Hugging Face model."""
    model, _ = tiny_pair(family)

    def edit_of(layer: int):
        def edit(projection, inputs):
            z = inputs[0].clone()
            for head, A, v in zip(heads, scale, offset, strict=True):
                own = slice(head.index * D_HEAD, (head.index + 1) * D_HEAD)
                if head.layer == layer:
                    z[..., own] = (A + 1) * z[..., own] + v
            return z

        return edit

    for layer in range(3):
        output_projection(model, layer).register_forward_pre_hook(edit_of(layer))
    with torch.no_grad():
        return model(TOKENS).logits


def output_projection(hf_model, layer: int):
    if hasattr(hf_model, "transformer"):
        return hf_model.transformer.h[layer].attn.c_proj
    return hf_model.model.layers[layer].self_attn.o_proj


@pytest.mark.parametrize("kinds", ["scale", "offset", "both"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_the_edit_is_the_papers_arithmetic(family, kinds, request):
    model = request.getfixturevalue(family)
    scale = None if kinds == "offset" else noise(4, seed=1)
    offset = None if kinds == "scale" else noise(4, seed=2)
    zeros = torch.zeros(4, D_HEAD)
    wanted = papers_logits(family, HEADS, zeros if scale is None else scale, zeros if offset is None else offset)
    got = logits_of(model, HeadIntervention(HEADS, scale=scale, offset=offset))
    torch.testing.assert_close(got, wanted, **ROUNDING)
    assert (got - logits_of(model)).abs().max() > 0.1


def test_grouped_query_attention_is_what_llama_and_gemma3_test(llama, gemma3):
    for model in (llama, gemma3):
        assert model.cfg.n_heads * model.cfg.d_head != model.cfg.d_model
        assert model.cfg.n_key_value_heads < model.cfg.n_heads


def test_zero_vectors_are_the_base_model_bit_for_bit(model):
    heads = check_model(model).all_heads
    assert torch.equal(logits_of(model, zero_intervention(heads, D_HEAD)), logits_of(model))
    assert torch.equal(logits_of(model, 0 * HeadIntervention(HEADS, scale=noise(4, 1), offset=noise(4, 2))), logits_of(model))


def test_heads_that_are_not_edited_keep_their_output_bit_for_bit(llama):
    def heads_out(intervention):
        kept = {}
        hooks = [(f"blocks.{layer}.attn.hook_z", lambda z, hook, layer=layer: kept.update({layer: z})) for layer in range(3)]
        with attached(llama, intervention), llama.hooks(fwd_hooks=hooks), torch.no_grad():
            llama(TOKENS)
        return kept

    bare = heads_out(None)
    edited = heads_out(HeadIntervention((Head(1, 2),), offset=noise(1, seed=2)))
    changed = [
        (layer, head)
        for layer in range(3)
        for head in range(4)
        if not torch.equal(bare[layer][:, :, head], edited[layer][:, :, head])
    ]
    # Its own head, and the layer above, which reads what it wrote.
    assert changed == [(1, 2), (2, 0), (2, 1), (2, 2), (2, 3)]
    assert (bare[1][:, :, 2] != edited[1][:, :, 2]).any(-1).all(), "the edit has to be at work at every position"


def test_detached_the_model_is_the_base_model_bit_for_bit(model):
    intervention = HeadIntervention(HEADS, scale=noise(4, 1), offset=noise(4, 2))
    bare = logits_of(model)
    assert not torch.equal(logits_of(model, intervention), bare)
    assert torch.equal(logits_of(model), bare)


def test_detached_by_an_exception_the_model_is_the_base_model_bit_for_bit(model):
    bare = logits_of(model)
    with pytest.raises(KeyboardInterrupt), attached(model, HeadIntervention(HEADS, offset=noise(4, 2))):  # noqa: PT012
        assert not torch.equal(logits_of(model), bare)
        raise KeyboardInterrupt
    assert torch.equal(logits_of(model), bare)


def test_an_inner_block_that_ends_leaves_the_outer_edit_at_work(model):
    outer, inner = HeadIntervention(HEADS, offset=noise(4, 2)), HeadIntervention(HEADS, scale=noise(4, 1))
    alone = logits_of(model, outer)
    with attached(model, outer):
        assert not torch.equal(logits_of(model, inner), alone)
        assert torch.equal(logits_of(model), alone)


def test_nothing_attached_is_the_base_model(llama):
    with attached(llama, None) as same:
        assert same is llama
        assert torch.equal(logits_of(same), logits_of(llama))


# bfloat16


@pytest.fixture(scope="module")
def bfloat16_llama():
    return load_model("tiny-llama", dtype=torch.bfloat16)


def test_in_bfloat16_the_arithmetic_is_float32_and_then_cast(bfloat16_llama):
    # Between 1 and 1 + 2**-7 there is no bfloat16 number, so in bfloat16 `1 + scale` would be 1.
    scale, offset = torch.full((1, D_HEAD), 0.003), torch.full((1, D_HEAD), 1e-4)
    [(_, edit)] = HeadIntervention((Head(1, 2),), scale=scale, offset=offset).fwd_hooks(bfloat16_llama)
    z = torch.randn(2, 9, 4, D_HEAD, generator=torch.Generator().manual_seed(0)).bfloat16()
    edited = edit(z, None)
    assert edited.dtype == torch.bfloat16
    assert torch.equal(edited[:, :, 2], (z[:, :, 2].float() * 1.003 + 1e-4).bfloat16())
    assert torch.equal(edited[:, :, [0, 1, 3]], z[:, :, [0, 1, 3]])
    assert not torch.equal(edited[:, :, 2], z[:, :, 2] * (1 + scale.bfloat16()) + offset.bfloat16())


def test_a_bfloat16_model_is_edited_and_with_zero_vectors_is_the_base_model(bfloat16_llama):
    bare = logits_of(bfloat16_llama)
    assert bare.dtype == torch.bfloat16
    assert torch.equal(logits_of(bfloat16_llama, zero_intervention(HEADS, D_HEAD)), bare)
    assert not torch.equal(logits_of(bfloat16_llama, HeadIntervention(HEADS, offset=noise(4, 2))), bare)


# An offset is a bias


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_the_residual_bias_is_the_sum_over_heads_of_offset_times_output_weights(family, request):
    model = request.getfixturevalue(family)
    offset = noise(4, seed=2)
    bias = HeadIntervention(HEADS, scale=noise(4, 1), offset=offset).residual_bias(model)
    hf_model, _ = tiny_pair(family)
    wanted = torch.zeros(3, model.cfg.d_model)
    for (layer, head), v in zip(HEADS, offset, strict=True):
        weight = output_projection(hf_model, layer).weight.detach()
        from_z = weight if family == "gpt2" else weight.T  # GPT-2's layers keep [in, out], others [out, in]
        for i in range(D_HEAD):
            wanted[layer] += v[i] * from_z[head * D_HEAD + i]
    # Sums of 16 to 32 products of order 0.1, in another order.
    torch.testing.assert_close(bias, wanted, rtol=1e-5, atol=1e-6)


def test_an_offset_equals_its_residual_bias_behind_the_output_projection(model):
    intervention = HeadIntervention(HEADS, offset=noise(4, seed=2))
    bias = intervention.residual_bias(model)
    hooks = [(f"blocks.{layer}.attn.hook_out", lambda out, hook, layer=layer: out + bias[layer]) for layer in range(3)]
    with model.hooks(fwd_hooks=hooks), torch.no_grad():
        folded = model(TOKENS)
    torch.testing.assert_close(logits_of(model, intervention), folded, **ROUNDING)
    assert (folded - logits_of(model)).abs().max() > 0.1


def test_a_scale_has_no_residual_bias(llama):
    assert torch.equal(HeadIntervention(HEADS, scale=noise(4, 1)).residual_bias(llama), torch.zeros(3, 48))


# Arithmetic of vectors

A = HeadIntervention(
    (Head(0, 1), Head(2, 0)), scale=noise(2, 1), offset=noise(2, 2), made_by={"method": "a"}, head_scores=(0.5, 0.25)
)
B = HeadIntervention((Head(2, 0), Head(1, 3)), scale=noise(2, 3), offset=noise(2, 4), made_by={"method": "b"})


def test_a_number_times_an_intervention_multiplies_both_vectors():
    for doubled in (2 * A, A * 2):
        assert doubled.heads == A.heads
        assert torch.equal(doubled.scale, A.scale + A.scale)
        assert torch.equal(doubled.offset, A.offset + A.offset)
    assert torch.equal((-A).scale, 0 - A.scale)
    assert torch.equal((-A).offset, 0 - A.offset)


def test_arithmetic_leaves_what_it_starts_from_alone():
    scale, offset = A.scale.clone(), A.offset.clone()
    for _ in (2 * A, -A, A + B, A - B, B - A, A.restrict([(2, 0)])):
        assert torch.equal(A.scale, scale)
        assert torch.equal(A.offset, offset)


@pytest.mark.parametrize("sign", [1, -1])
def test_vectors_of_heads_that_both_edit_add_up_and_the_others_are_kept(sign):
    total = A + B if sign == 1 else A - B
    assert total.heads == (Head(0, 1), Head(2, 0), Head(1, 3))
    for name in ("scale", "offset"):
        a, b = getattr(A, name), getattr(B, name)
        assert torch.equal(getattr(total, name), torch.stack([a[0], a[1] + sign * b[0], sign * b[1]]))


def test_the_sum_of_a_scale_and_an_offset_has_both_with_zeros_elsewhere():
    scale, offset = noise(1, 1), noise(1, 2)
    total = HeadIntervention((Head(0, 1),), scale=scale) + HeadIntervention((Head(1, 3),), offset=offset)
    zeros = torch.zeros(1, D_HEAD)
    assert total.heads == (Head(0, 1), Head(1, 3))
    assert torch.equal(total.scale, torch.cat([scale, zeros]))
    assert torch.equal(total.offset, torch.cat([zeros, offset]))


def test_the_sum_of_two_offsets_has_no_scale():
    total = HeadIntervention((Head(0, 1),), offset=noise(1, 1)) + HeadIntervention((Head(0, 1),), offset=noise(1, 2))
    assert total.scale is None


def test_the_sum_of_offsets_is_both_edits_at_once(model):
    a = HeadIntervention((Head(0, 1), Head(2, 0)), offset=noise(2, 2))
    b = HeadIntervention((Head(2, 0), Head(1, 3)), offset=noise(2, 4))
    torch.testing.assert_close(logits_of(model, a + b), logits_of(model, a, b), **ROUNDING)
    torch.testing.assert_close(logits_of(model, a - b), logits_of(model, a, -b), **ROUNDING)
    torch.testing.assert_close(logits_of(model, 2 * a), logits_of(model, a, a), **ROUNDING)
    assert (logits_of(model, a + b) - logits_of(model, a)).abs().max() > 0.1


def test_scales_of_disjoint_heads_add_up_to_both_edits_at_once(model):
    a, b = HeadIntervention((Head(0, 1),), scale=noise(1, 2)), HeadIntervention((Head(0, 2), Head(1, 3)), scale=noise(2, 4))
    torch.testing.assert_close(logits_of(model, a + b), logits_of(model, a, b), **ROUNDING)


def test_an_intervention_minus_itself_is_the_base_model_bit_for_bit(llama):
    assert torch.equal(logits_of(llama, A - A), logits_of(llama))


def test_strength_and_origin_are_recorded():
    assert (2 * A).made_by == {"strength": 2, "of": {"method": "a"}}
    assert (A + B).made_by == {"sum_of": [{"method": "a"}, {"method": "b"}]}


def test_interventions_of_different_d_head_do_not_add():
    with pytest.raises(ValueError, match="d_head = 16 and 8"):
        A + HeadIntervention((Head(0, 1),), offset=torch.zeros(1, 8))


def test_restricted_to_some_heads_it_keeps_their_vectors_and_scores_in_the_asked_order():
    back_to_front = A.restrict([(2, 0), (0, 1)])
    assert back_to_front.heads == (Head(2, 0), Head(0, 1))
    assert vectors_of(back_to_front) == vectors_of(A)
    assert back_to_front.head_scores == (0.25, 0.5)
    assert back_to_front.made_by == A.made_by
    assert vectors_of(A.restrict([(2, 0)])) == {Head(2, 0): vectors_of(A)[Head(2, 0)]}
    assert HeadIntervention((Head(0, 1),), offset=noise(1, 1)).restrict([(0, 1)]).scale is None


def test_an_intervention_restricted_to_parts_adds_up_to_the_whole(llama):
    parts = [A.restrict([head]) for head in A.heads]
    torch.testing.assert_close(logits_of(llama, *parts), logits_of(llama, A), **ROUNDING)


def test_restricting_to_heads_that_it_does_not_edit_is_refused():
    with pytest.raises(ValueError, match=r"L1H3.*edited are \['L0H1', 'L2H0'\]"):
        A.restrict([(0, 1), (1, 3)])
    with pytest.raises(ValueError, match="no heads"):
        A.restrict([])


# Errors


@pytest.mark.parametrize(
    ("heads", "message"),
    [([(3, 0)], "L3H0 is out of range"), ([(0, 4)], "L0H4 is out of range"), ([(0, 1), (0, 1)], "given twice: L0H1")],
)
def test_heads_that_the_model_does_not_have_are_refused_and_nothing_is_attached(llama, heads, message):
    bare = logits_of(llama)
    with pytest.raises(ValueError, match=message), attached(llama, zero_intervention(heads, D_HEAD)):
        pytest.fail("the block must not be entered")
    assert torch.equal(logits_of(llama), bare)


def test_vectors_of_another_d_head_are_refused(llama):
    with pytest.raises(ValueError, match="d_head = 8, the model's heads 16"):
        logits_of(llama, zero_intervention([(0, 1)], d_head=8))


@pytest.mark.parametrize(
    ("scale", "offset", "message"),
    [
        ((2, 16), None, r"scale has shape \(2, 16\); wanted \[3, d_head\]"),
        (None, (4, 16), r"offset has shape \(4, 16\); wanted \[3, d_head\]"),
        (None, (16,), r"offset has shape \(16,\)"),
        ((3, 16), (3, 8), r"scale is \(3, 16\) and offset \(3, 8\)"),
        (None, None, "needs a scale or an offset"),
    ],
)
def test_vectors_that_do_not_fit_their_heads_are_refused(as_users_run_it, scale, offset, message):
    vectors = {name: torch.zeros(shape) for name, shape in {"scale": scale, "offset": offset}.items() if shape}
    with pytest.raises(ValueError, match=message):
        HeadIntervention((Head(0, 0), Head(0, 1), Head(1, 0)), **vectors)


def test_scores_are_the_norms_of_the_vectors_and_nan_where_there_is_none():
    vectors = torch.zeros(2, D_HEAD)
    vectors[0, :2], vectors[1, 5] = torch.tensor([3.0, -4.0]), -2.0
    scores = scores_from_norms(vectors, (Head(1, 1), Head(0, 2)), n_layers=2, n_heads=3, quantity="norm", made_by={"seed": 0})
    nan = float("nan")
    torch.testing.assert_close(scores.values, torch.tensor([[nan, nan, 2.0], [nan, 5.0, nan]]), equal_nan=True)
    assert (scores.quantity, scores.made_by) == ("norm", {"seed": 0})


def test_an_edit_goes_to_the_device_of_its_layer(llama):
    """Layers of a model that is split are elsewhere than its embedding; "meta" is a device that every machine has."""
    made = HeadIntervention((Head(0, 1), Head(2, 3)), scale=torch.ones(2, D_HEAD), offset=torch.ones(2, D_HEAD))
    hooks = dict(made.fwd_hooks(llama))
    z = {0: torch.ones(1, 3, 4, 16), 2: torch.ones(1, 3, 4, 16, device="meta")}
    edited = {layer: hooks[f"blocks.{layer}.attn.hook_z"](z[layer], None) for layer in z}
    assert [edited[0].device.type, edited[2].device.type] == ["cpu", "meta"]
    assert edited[0][0, 0].unique(dim=0).tolist() == [[1.0] * 16, [3.0] * 16]


def test_a_model_is_split_over_as_many_devices_as_are_asked_for(monkeypatch):
    asked = {}

    def boot(path, **settings):
        asked.update(settings)
        raise OSError("no such model")

    monkeypatch.setattr(TransformerBridge, "boot_transformers", boot)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="cannot load model 'org/large'"):
        load_model("org/large", n_devices=2)
    assert asked["n_devices"] == 2
    assert "device" not in asked


@pytest.mark.parametrize("n_devices", [-3, 0, 3])
def test_devices_that_are_not_there_are_refused(monkeypatch, n_devices):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=f"got n_devices {n_devices}; wanted 1, or as many of the 2 GPUs here"):
        load_model("tiny-llama", n_devices=n_devices)


def test_a_dtype_is_torchs():
    with pytest.raises(TypeError, match=r"got dtype 'bfloat16'; wanted one of torch's, such as torch\.bfloat16"):
        load_model("tiny-llama", dtype="bfloat16")
