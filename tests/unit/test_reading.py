"""What offsets say: the lenses against loops, and a planted token that comes out first."""

import dataclasses

import pytest
import torch
from torch import nn
from transformer_lens.tools.analysis import JacobianLens

import lofit_lens as ll
from lofit_lens.analysis import read_offsets
from lofit_lens.lens import is_hooked
from lofit_lens.vocabulary import token_labels

#: Float32 sums in another order, on logits of size 1 to 10.
ROUNDING = 2e-5
HEADS = (ll.Head(2, 3), ll.Head(0, 1))


@pytest.fixture
def offsets():
    return torch.randn(2, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def edit(offsets):
    return ll.HeadIntervention(HEADS, scale=torch.ones(2, 16), offset=offsets)


def centred_and_weighted(norm, x):
    """The linear part of a norm, from the Hugging Face model's own weights."""
    if isinstance(norm, nn.LayerNorm):
        return (x - x.mean()) * norm.weight
    return x * (1 + norm.weight if "Gemma" in type(norm).__name__ else norm.weight)


def hugging_face(model):
    """The final norm, and for each layer the slice of W_O of each head, and the norm behind it if there is one."""
    wrapped = model.original_model
    if hasattr(wrapped, "transformer"):  # GPT-2 keeps its weights transposed
        return wrapped.transformer.ln_f.original_component, [b.attn.c_proj.weight for b in wrapped.transformer.h], None
    weights = [block.self_attn.o_proj.weight.T for block in wrapped.model.layers]
    gemma = "Gemma" in type(wrapped).__name__
    behind = [block.post_attention_layernorm.original_component for block in wrapped.model.layers] if gemma else None
    return wrapped.model.norm.original_component, weights, behind


def loop_of(model, offset, head, *, transport=None, norm: bool):
    """A lens's logits, one product after another."""
    final, W_O, behind = hugging_face(model)
    displacement = torch.zeros(model.cfg.d_model)
    for i in range(16):
        displacement += offset[i] * W_O[head.layer][16 * head.index + i]
    if behind is not None:
        displacement = centred_and_weighted(behind[head.layer], displacement)
    if transport is not None:
        displacement = transport @ displacement
    if norm:
        centred = displacement - displacement.mean() if isinstance(final, nn.LayerNorm) else displacement
        eps = final.eps if hasattr(final, "eps") else final.variance_epsilon
        displacement = centred_and_weighted(final, displacement) / (centred.pow(2).mean() + eps).sqrt()
    return torch.stack([displacement @ row for row in model.original_model.get_output_embeddings().weight])


def check(model, read, logits):
    """Whether the read tokens of one head, lens and side are those of a full ranking."""
    order = logits.argsort(descending=read[0].side == "top")[: len(read)]
    assert [token.rank for token in read] == list(range(1, len(read) + 1))
    assert [token.token for token in read] == token_labels(model.tokenizer, order.tolist())
    assert [token.logit for token in read] == pytest.approx(logits[order].tolist(), abs=ROUNDING)
    assert [token.probability for token in read] == pytest.approx(logits.softmax(-1)[order].tolist(), rel=1e-4)


@pytest.mark.parametrize("lens", ["without norm", "with norm"])
@pytest.mark.parametrize("side", ["top", "bottom"])
def test_a_lens_is_the_loop(model, edit, offsets, lens, side):
    found = read_offsets(model, edit, k=7).of(lens, side, 7)
    assert list(found) == list(HEADS)
    for offset, (head, read) in zip(offsets, found.items(), strict=True):
        check(model, read, loop_of(model, offset, head, norm=lens == "with norm"))


@pytest.mark.parametrize("head", HEADS)
def test_an_offset_that_points_at_a_token_says_it(gpt2, head):
    """In GPT-2 a head's 16 dimensions reach a 16-dimensional part of the stream; v is what gets closest to the token in it."""
    token = gpt2.tokenizer("k", add_special_tokens=False)["input_ids"][0]
    W_O = gpt2.original_model.transformer.h[head.layer].attn.c_proj.weight[16 * head.index : 16 * head.index + 16]
    solved = torch.linalg.lstsq(W_O.T, gpt2.W_U[:, [token]]).solution.T
    reading = read_offsets(gpt2, ll.HeadIntervention((head,), offset=solved), k=3)
    for lens in ("without norm", "with norm"):
        assert reading.of(lens, k=3)[head][0].token == "k"
    assert reading.table(1).loc[head.label, "tokens"] == "k"
    opposite = read_offsets(gpt2, ll.HeadIntervention((head,), offset=-solved), k=3)
    assert opposite.of("without norm", "bottom", 3)[head][0].token == "k"


def test_a_random_offset_does_not_say_it(gpt2, edit):
    assert all(read[0].token != "k" for read in read_offsets(gpt2, edit).of("with norm").values())


def test_a_negated_offset_reads_the_other_way_round(model, edit):
    """So no bias, of a norm or of the unembedding, is in the logits."""
    reading, opposite = read_offsets(model, edit), read_offsets(model, -edit)
    for lens in ("without norm", "with norm"):
        top, bottom = reading.of(lens), opposite.of(lens, "bottom")
        assert [[read.token for read in row] for row in top.values()] == [
            [read.token for read in row] for row in bottom.values()
        ]
        assert all(
            one.logit == pytest.approx(-other.logit, abs=ROUNDING)
            for head in HEADS
            for one, other in zip(top[head], bottom[head], strict=True)
        )


@pytest.mark.parametrize("family", ["gpt_neox", "gemma3"])
def test_a_model_in_bfloat16_says_much_the_same(family, offsets):
    edit = ll.HeadIntervention(HEADS, offset=offsets)
    full, half = (ll.tiny_model(family, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    for head in HEADS:
        ours, theirs = (read_offsets(model, edit, k=259).to_frame() for model in (half, full))
        ours, theirs = (
            frame[(frame["head"] == head.label) & (frame.side == "top")].set_index(["lens", "token"]).logit.sort_index()
            for frame in (ours, theirs)
        )
        # Weights of 8 bits: logits are sums of some 50 products of size 1, each off by up to 2 ** -8 or so.
        assert (ours - theirs).abs().max() < 0.02 * theirs.abs().max()


def test_the_length_of_an_offset_counts_without_the_norm_only(llama, edit):
    one, ten = read_offsets(llama, edit), read_offsets(llama, 10.0 * edit)
    for head in HEADS:
        assert ten.of("without norm")[head][0].logit == pytest.approx(10 * one.of("without norm")[head][0].logit, rel=1e-5)
        # The norm's epsilon, 1e-6 next to mean squares of about 1, is all that is left of the length.
        assert ten.of("with norm")[head][0].logit == pytest.approx(one.of("with norm")[head][0].logit, rel=1e-4)


# The Jacobian lens


@pytest.fixture(scope="module")
def fitted(llama):
    text = "Once upon a time, in a land far away, there lived"
    return JacobianLens.fit(llama, [text], corpus="a test", show_progress=False)


def test_the_jacobian_lens_transports_first_and_leaves_the_last_layer_where_it_is(llama, edit, offsets, fitted):
    found = read_offsets(llama, edit, k=7, jacobian_lens=fitted).of("Jacobian", k=7)
    check(llama, found[HEADS[0]], loop_of(llama, offsets[0], HEADS[0], norm=True))
    check(llama, found[HEADS[1]], loop_of(llama, offsets[1], HEADS[1], transport=fitted.jacobians[0], norm=True))
    assert found[HEADS[1]] != read_offsets(llama, edit, k=7).of("with norm", k=7)[HEADS[1]]


def test_the_jacobian_is_the_mean_change_of_the_final_stream_under_a_displacement_at_every_token(llama, fitted):
    """What the module says of J_l, by finite differences behind block 0 on the text that the lens was fitted on."""
    text = "Once upon a time, in a land far away, there lived"
    tokens = llama.to_tokens(text)
    valid = slice(16, tokens.shape[1] - 1)  # what a fit averages over: its default leaves out the first 16, and the last
    displacement = torch.randn(llama.cfg.d_model, generator=torch.Generator().manual_seed(1))

    def final_stream(strength: float) -> torch.Tensor:
        def add(value, hook):
            moved = value.clone()
            moved[:, valid] += strength * displacement
            return moved

        kept = []
        hooks = [("blocks.0.hook_out", add), ("blocks.2.hook_out", lambda value, hook: kept.append(value[0, valid]))]
        with torch.no_grad(), llama.hooks(fwd_hooks=hooks):
            llama(tokens)
        return kept[0]

    change = (final_stream(0.01) - final_stream(-0.01)).mean(0) / 0.02
    # Central differences at a step of 0.01 in float32: 1e-7 / 0.01 from rounding, and 1e-4 from the third derivative.
    assert torch.allclose(fitted.transport(displacement, 0), change, atol=2e-3)
    assert (fitted.transport(displacement, 0) - displacement).abs().max() > 0.1


def test_a_jacobian_lens_of_other_layers_or_another_model_is_refused(llama, gpt2, fitted):
    part = JacobianLens({0: fitted.jacobians[0]}, n_prompts=1, d_model=fitted.d_model)
    middle = ll.HeadIntervention((ll.Head(1, 0),), offset=torch.ones(1, 16))
    with pytest.raises(ValueError, match=r"no layers \[1\].*fit it with them"):
        read_offsets(llama, middle, jacobian_lens=part)
    with pytest.raises(ValueError, match="fitted for model"):
        read_offsets(gpt2, middle, jacobian_lens=fitted)


# The result


def test_the_frame_has_a_row_for_each_head_lens_side_and_rank(llama, edit):
    frame = read_offsets(llama, edit, k=4).to_frame()
    assert list(frame) == ["head", "layer", "index", "lens", "side", "rank", "token", "logit", "probability"]
    assert len(frame) == len(frame.drop_duplicates(["head", "lens", "side", "rank"])) == 2 * 2 * 2 * 4
    assert frame[["head", "layer", "index"]].drop_duplicates().to_numpy().tolist() == [["L2H3", 2, 3], ["L0H1", 0, 1]]
    assert set(frame.lens) == {"without norm", "with norm"}
    assert set(frame.side) == {"top", "bottom"}


def test_the_table_has_a_row_for_each_head_with_its_tokens_in_order(llama, edit):
    reading = read_offsets(llama, edit, k=4)
    table = reading.table(3, lens="without norm", side="bottom")
    assert (table.index.name, list(table.index)) == ("head", ["L2H3", "L0H1"])
    frame = reading.to_frame().query("lens == 'without norm' and side == 'bottom' and rank <= 3")
    for label, tokens in table.tokens.items():
        assert tokens == ", ".join(frame[frame["head"] == label].token)


def test_what_was_not_read_is_refused(llama, edit):
    reading = read_offsets(llama, edit, k=4)
    with pytest.raises(ValueError, match=r"k = 5, of which 4 tokens were read"):
        reading.table(5)
    with pytest.raises(ValueError, match=r"got lens 'Jacobian'.*wanted one of \['without norm', 'with norm'\]"):
        reading.of("Jacobian", k=4)


# Refusals


def test_an_edit_without_offsets_is_refused(llama):
    with pytest.raises(ValueError, match=r"the intervention has no offsets.*wanted one that adds a vector"):
        read_offsets(llama, ll.HeadIntervention(HEADS, scale=torch.ones(2, 16)))
    with pytest.raises(ValueError, match="no offsets"):
        read_offsets(llama, ll.HeadIntervention((), offset=torch.ones(0, 16)))


@pytest.mark.parametrize("k", [0, 260])
def test_fewer_than_one_token_or_more_than_there_are_is_refused(llama, edit, k):
    with pytest.raises(ValueError, match=rf"k = {k} tokens asked for; wanted 1 to 259"):
        read_offsets(llama, edit, k=k)


def test_heads_that_the_model_does_not_have_are_refused(llama, edit):
    with pytest.raises(ValueError, match="L9H0 is out of range"):
        read_offsets(llama, dataclasses.replace(edit, heads=(ll.Head(9, 0), ll.Head(0, 1))))


def test_what_is_between_W_O_and_the_stream_is_refused_unless_it_is_a_norm(edit):
    """Granite multiplies there; TransformerLens then gives the block a hook point of its own."""
    scaled = ll.tiny_model("llama")
    ll.check_model(scaled)
    scaled.hook_dict["blocks.0.hook_attn_out"].name = "blocks.0.hook_attn_out"
    with pytest.raises(ValueError, match=r"layer 0 has blocks\.0\.hook_attn_out, which is no norm"):
        read_offsets(scaled, edit)


def test_the_model_is_left_as_it_was(model, edit):
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = model(tokens)
        read_offsets(model, edit)
        assert torch.equal(model(tokens), before)
    assert not is_hooked(model)
