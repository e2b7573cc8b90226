"""What must hold on every model for offsets to be read: how a displacement reaches the stream, and the stream the logits."""

import dataclasses
import warnings

import pytest
import torch

import lofit_lens as ll
from lofit_lens import lens
from lofit_lens.activations import collect_norm_scales
from lofit_lens.analysis import attribute_offsets, read_offsets
from lofit_lens.batches import encode_prompt
from lofit_lens.displacements import offset_displacements
from lofit_lens.tasks import Example, Task

PROMPT = "Once upon a time, in a land far away"
#: Float32 sums in another order, on streams and logits of size 1 to 10.
ROUNDING = 2e-5


class Who(Task):
    name, loss, metric, chance = "who", "cross_entropy", "exact_match", 0.0

    def build(self, split):
        return [Example("Who? ", "Bo", rejected=("Al", "Cy")), Example("And who was it then? ", "Di", rejected=("Ed",))]


def edit_of(model) -> ll.HeadIntervention:
    offset = torch.randn(3, ll.check_model(model).d_head, generator=torch.Generator().manual_seed(0))
    return ll.HeadIntervention((ll.Head(2, 3), ll.Head(0, 1), ll.Head(0, 2)), offset=offset)


def seen(model, points, edit=None, held=None):
    """What hook points put out on the prompt; those that are held put out something else."""
    put_out = {}

    def hook_for(point):
        def hook(value, hook):
            put_out[point] = value[0]
            return (held or {}).get(point)

        return point, hook

    with warnings.catch_warnings(), torch.no_grad(), ll.attached(model, edit), model.hooks(fwd_hooks=[*map(hook_for, points)]):
        warnings.filterwarnings("ignore", message="A forward hook edited hook_scale")  # of the Bridge, on a norm's scale
        put_out["logits"] = model(torch.tensor([encode_prompt(model, PROMPT)]))[0]
    return put_out


def moved_and_displaced(model):
    """For each head, how far a block's output moves with the MLP and a norm's scale held still, and what was expected."""
    edit = edit_of(model)
    displacements = offset_displacements(model, edit)
    for head, displacement in zip(edit.heads, displacements, strict=True):
        norm = lens.norm_behind_attention(model, head.layer)
        still = [f"blocks.{head.layer}.hook_mlp_out", *([] if norm is None else [lens.norm_scale_hook(norm)])]
        end = lens.resid_post_hook(model, head.layer)
        after = seen(model, [*still, end], edit.restrict([head]))
        before = seen(model, [*still, end], held={point: after[point].unsqueeze(0) for point in still})
        scale = 1 if norm is None else after[lens.norm_scale_hook(norm)]
        yield after[end] - before[end], (displacement / scale).expand_as(after[end])


def test_an_offset_moves_the_stream_by_its_displacement(model):
    for moved, displaced in moved_and_displaced(model):
        torch.testing.assert_close(moved, displaced, atol=ROUNDING, rtol=1e-5)
        assert moved.abs().max() > 0.01


def test_a_hooked_transformers_norm_behind_attention_is_not_forgotten(new_hooked_transformer):
    plain = new_hooked_transformer()
    cfg = dataclasses.replace(plain.cfg, use_normalization_before_and_after=True, normalization_type="RMS")
    model = type(plain)(cfg, tokenizer=plain.tokenizer, default_padding_side="right").eval()
    assert lens.norm_behind_attention(model, 1) == "blocks.1.ln1_post"
    with torch.no_grad():
        for block in model.blocks:
            block.ln1_post.w.add_(torch.randn(cfg.d_model, generator=torch.Generator().manual_seed(1)))
    for moved, displaced in moved_and_displaced(model):
        torch.testing.assert_close(moved, displaced, atol=ROUNDING, rtol=1e-5)


def test_the_stream_becomes_logits_by_the_final_norms_linear_part_its_scale_and_W_U(model):
    end = lens.resid_post_hook(model, 2)
    run = seen(model, [end])
    linear, scale = lens.norm_parts(model, lens.FINAL_NORM, run[end])
    logits, cap = run["logits"], model.cfg.output_logits_soft_cap
    if cap > 0:
        logits = cap * torch.atanh(logits / cap)
    ours = (linear / scale) @ lens.unembedding_weights(model)
    # Biases are the same at every token.
    assert torch.allclose(ours - ours[0], logits - logits[0], atol=ROUNDING)


def test_scales_are_those_of_the_run(model):
    norms = [lens.FINAL_NORM, *filter(None, [lens.norm_behind_attention(model, layer) for layer in (0, 2)])]
    points = [lens.norm_scale_hook(norm) for norm in norms]
    edit = edit_of(model)
    run = seen(model, points, edit)
    n_tokens = len(encode_prompt(model, PROMPT))
    with ll.attached(model, edit):
        found = collect_norm_scales(model, [PROMPT] * n_tokens, [" there"] * n_tokens, norms, positions=range(n_tokens))
    assert torch.allclose(found, torch.stack([run[point].squeeze(-1) for point in points]), rtol=1e-5)


def test_offsets_can_be_read_and_attributed_on_every_model(model):
    reading, attribution = read_offsets(model, edit_of(model), k=3), attribute_offsets(model, Who(), edit_of(model))
    assert len(reading.to_frame()) == 3 * 2 * 2 * 3
    assert attribution.values.shape == (3, 2)
    assert attribution.values.abs().min() > 0


def test_a_hooked_transformer_says_the_same(hooked_pair):
    ours, theirs = (read_offsets(model, edit_of(model)).to_frame() for model in hooked_pair)
    assert ours.token.tolist() == theirs.token.tolist()
    assert ours.logit.tolist() == pytest.approx(theirs.logit.tolist(), abs=ROUNDING)
    ours, theirs = (attribute_offsets(model, Who(), edit_of(model)).values for model in hooked_pair)
    assert torch.allclose(ours, theirs, atol=ROUNDING)
