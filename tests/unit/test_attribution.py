"""Direct logit attribution of offsets, against the running model with everything but the direct path held still."""

import dataclasses
import warnings

import pytest
import torch
from torch import nn

import lofit_lens as ll
from lofit_lens.analysis import OffsetAttribution, attribute_offsets
from lofit_lens.batches import encode
from lofit_lens.statistics import mean_interval
from lofit_lens.tasks import Example

#: Float32 sums in another order, on logits of size 1 to 10.
ROUNDING = 2e-5
HEADS = (ll.Head(2, 3), ll.Head(0, 1), ll.Head(2, 0))
WITH_WRONG = (
    Example("Who is it? ", "Bo", rejected=("Al", "Cy")),
    Example("And who was it the day before that? ", "Di", rejected=("Ed",)),
    Example("Who? ", "Al", rejected=("Bo", "Cy", "Di")),
)
WITHOUT_WRONG = tuple(dataclasses.replace(example, rejected=()) for example in WITH_WRONG)


@pytest.fixture
def edit():
    scale, offset = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    return ll.HeadIntervention(HEADS, scale=scale, offset=offset)


def frozen_norm_logits(model, change, stream):
    """Logits of a change of the final stream, with the final norm's scale at what the stream makes it."""
    wrapped = model.original_model
    norm = (wrapped.transformer.ln_f if hasattr(wrapped, "transformer") else wrapped.model.norm).original_component
    eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    weight = 1 + norm.weight if "Gemma" in type(norm).__name__ else norm.weight
    if isinstance(norm, nn.LayerNorm):
        stream, change = (x - x.mean(-1, keepdim=True) for x in (stream, change))
    return (change * weight / (stream.pow(2).mean(-1, keepdim=True) + eps).sqrt()) @ wrapped.get_output_embeddings().weight.T


def final_stream(model, edit, tokens, held=None):
    """The stream behind the last block, `[pos, d_model]`, with what hook points put out as it is `held`; and all they did."""
    points = [f"blocks.{layer}.{name}" for layer in range(3) for name in ("hook_attn_out", "hook_mlp_out")]
    points += [f"blocks.{layer}.ln1_post.hook_scale" for layer in range(3) if hasattr(model.blocks[layer], "ln1_post")]
    put_out = {}

    def hook_for(point):
        def hook(value, hook):
            put_out[point] = value
            return held.get(point) if held else None

        return point, hook

    end = ("blocks.2.hook_out", lambda value, hook: put_out.update(end=value[0]))
    with torch.no_grad(), ll.attached(model, edit), model.hooks(fwd_hooks=[*map(hook_for, points), end]):
        model(torch.tensor([tokens]))
    return put_out.pop("end"), put_out


def lost_without(model, edit, head, tokens):
    """Logits of what the final stream loses without a head's offset when later heads and MLPs put out what they did."""
    stream, put_out = final_stream(model, edit, tokens)
    held = {point: value for point, value in put_out.items() if int(point.split(".")[1]) >= head.layer}
    del held[f"blocks.{head.layer}.hook_attn_out"]
    offset = edit.offset.clone()
    offset[edit.heads.index(head)] = 0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A forward hook edited hook_scale")  # of the Bridge, on Gemma's norms
        without, _ = final_stream(model, dataclasses.replace(edit, offset=offset), tokens, held)
    return frozen_norm_logits(model, stream - without, stream)


def first_token(model, text):
    return model.tokenizer(text, add_special_tokens=False)["input_ids"][0]


@pytest.mark.parametrize("head", HEADS)
def test_a_heads_part_is_what_the_direct_path_loses_without_its_offset(model, toy_task, edit, head):
    found = attribute_offsets(model, toy_task({"test": WITH_WRONG}), edit)
    assert (found.heads, found.baseline) == (HEADS, "wrong answers")
    for example, value in zip(WITH_WRONG, found.values[HEADS.index(head)], strict=True):
        (sequence,) = encode(model, [example.prompt], [example.answer], eos=False)
        logits = lost_without(model, edit, head, sequence.prompt)[-1]
        wrong = [logits[first_token(model, answer)] for answer in example.rejected]
        assert value.item() == pytest.approx((logits[sequence.answer[0]] - sum(wrong) / len(wrong)).item(), abs=ROUNDING)


@pytest.mark.parametrize("answer_tokens", ["first", "all"])
def test_without_wrong_answers_the_vocabulary_is_the_baseline_and_all_answer_tokens_may_count(
    model, toy_task, edit, answer_tokens
):
    examples = (*WITHOUT_WRONG, Example("Which of them? ", "Both, I think"))
    found = attribute_offsets(model, toy_task({"val": examples}), edit, split="val", answer_tokens=answer_tokens)
    assert found.baseline == "vocabulary"
    for example, value in zip(examples, found.values[0], strict=True):
        (sequence,) = encode(model, [example.prompt], [example.answer], eos=False)
        logits = lost_without(model, edit, HEADS[0], sequence.read)[len(sequence.prompt) - 1 :]
        each = [own[token] - own.mean() for own, token in zip(logits, sequence.answer, strict=True)]
        expected = each[0] if answer_tokens == "first" else sum(each) / len(each)
        assert value.item() == pytest.approx(expected.item(), abs=ROUNDING)


def test_all_heads_parts_add_up_to_what_the_offsets_add_directly(model, toy_task, edit):
    """In the last layer, where the displacements go through one norm at most, and so in one sum."""
    last = edit.restrict([HEADS[0], HEADS[2]])
    (example,) = WITH_WRONG[:1]
    (sequence,) = encode(model, [example.prompt], [example.answer], eos=False)
    stream, put_out = final_stream(model, last, sequence.prompt)
    held = {point: value for point, value in put_out.items() if point.endswith(("2.hook_mlp_out", "2.ln1_post.hook_scale"))}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A forward hook edited hook_scale")
        without, _ = final_stream(model, dataclasses.replace(last, offset=None), sequence.prompt, held)
    logits = frozen_norm_logits(model, stream, stream)[-1] - frozen_norm_logits(model, without, stream)[-1]
    wrong = [logits[first_token(model, answer)] for answer in example.rejected]
    found = attribute_offsets(model, toy_task({"test": (example,)}), last).values.sum()
    assert found.item() == pytest.approx((logits[sequence.answer[0]] - sum(wrong) / 2).item(), abs=ROUNDING)


def test_an_offset_that_points_at_an_answer_helps_where_it_is_right_and_hurts_where_it_is_wrong(gpt2, toy_task):
    head, token = ll.Head(1, 2), first_token(gpt2, "B")
    W_O = gpt2.original_model.transformer.h[head.layer].attn.c_proj.weight[32:48]
    planted = ll.HeadIntervention((head,), offset=torch.linalg.lstsq(W_O.T, gpt2.W_U[:, [token]]).solution.T)
    where_right, _, where_wrong = attribute_offsets(gpt2, toy_task({"test": WITH_WRONG}), planted).values[0].tolist()
    # The planted token is all of the right answers in the one, and a third of the wrong ones in the other.
    assert where_right > 0.1 > 0 > where_wrong
    opposite = attribute_offsets(gpt2, toy_task({"test": WITH_WRONG}), -1 * planted).values[0].tolist()
    assert opposite[0] < 0 < opposite[2]


def test_one_example_without_wrong_answers_makes_the_vocabulary_the_baseline_of_all(llama, toy_task, edit):
    mixed = attribute_offsets(llama, toy_task({"test": (*WITH_WRONG[:2], WITHOUT_WRONG[2])}), edit)
    assert mixed.baseline == "vocabulary"
    assert torch.equal(mixed.values, attribute_offsets(llama, toy_task({"test": WITHOUT_WRONG}), edit).values)


def test_a_wrong_answer_that_begins_with_the_right_token_counts_0(llama, toy_task, edit):
    examples = (Example("Who? ", "Bo", rejected=("Ba",)),)
    assert attribute_offsets(llama, toy_task({"test": examples}), edit).values.tolist() == [[0.0]] * 3


def test_batches_change_nothing(model, toy_task, edit):
    task = toy_task({"test": WITH_WRONG})
    together, alone = (attribute_offsets(model, task, edit, token_budget=budget) for budget in (2048, 1))
    assert torch.allclose(together.values, alone.values, atol=ROUNDING)


def test_the_frame_has_a_row_for_each_head_with_mean_and_interval():
    found = OffsetAttribution((ll.Head(3, 1), ll.Head(0, 2)), torch.tensor([[1.0, 2.0, 6.0], [-1.0, -1.0, -1.0]]), "vocabulary")
    frame = found.to_frame()
    assert list(frame) == ["head", "layer", "index", "mean", "low", "high", "n"]
    low, high = mean_interval([1.0, 2.0, 6.0])
    assert frame.to_numpy().tolist() == [["L3H1", 3, 1, 3.0, low, high, 3], ["L0H2", 0, 2, -1.0, -1.0, -1.0, 3]]
    assert low < 3.0 < high


# Refusals


def test_an_edit_without_offsets_is_refused(llama, toy_task, passes):
    with pytest.raises(ValueError, match=r"the intervention has no offsets.*wanted one that adds a vector"):
        attribute_offsets(llama, toy_task({"test": WITH_WRONG}), ll.HeadIntervention(HEADS, scale=torch.ones(3, 16)))
    assert passes == []


def test_an_edit_at_some_positions_is_refused_with_the_way_out(llama, toy_task, edit, passes):
    partial = dataclasses.replace(edit, positions="generated")
    with pytest.raises(ValueError, match=r"made at 'generated' positions, wanted 'all'.*dataclasses\.replace"):
        attribute_offsets(llama, toy_task({"test": WITH_WRONG}), partial)
    assert passes == []


def test_other_answer_tokens_and_an_empty_split_are_refused(llama, toy_task, edit, as_users_run_it):
    with pytest.raises(ValueError, match=r"got answer_tokens 'last'; wanted one of \('first', 'all'\)"):
        attribute_offsets(llama, toy_task({"test": WITH_WRONG}), edit, answer_tokens="last")
    with pytest.raises(ValueError, match="the val split of task 'toy' is empty"):
        attribute_offsets(llama, toy_task({"test": WITH_WRONG}), edit, split="val")


def test_an_edit_that_has_diverged_is_no_attribution(llama, toy_task, edit):
    with pytest.raises(ArithmeticError, match=r"scales of norms are not finite; the edit has diverged"):
        attribute_offsets(llama, toy_task({"test": WITH_WRONG}), 1e38 * edit)
