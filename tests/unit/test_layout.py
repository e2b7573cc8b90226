"""Which columns are edited, by hand; and edits that do not treat all positions alike, against plain passes with a mask."""

import pytest
import torch

import lofit_lens as ll
from lofit_lens import lens
from lofit_lens.batches import encode_answer, encode_prompt
from lofit_lens.interventions import LowRankIntervention
from lofit_lens.layout import behind_prompts, layout_of, left_padded, positions_matter, right_padded
from lofit_lens.tasks import Example

PROMPTS = ["Q: 1+1 A:", "Q: 1+1 A:", "Q: what is this, then? A:", "x"]
ANSWERS = [" 2", " three", " that", " y and z"]
#: Float32 sums of up to 8 log-probabilities, of size 1 to 40, in another order.
SCORE_ROUNDING = 1e-4


def rows(mask: torch.Tensor) -> list[str]:
    return ["".join("x" if here else "." for here in row) for row in mask.tolist()]


def test_prompts_of_two_and_three_tokens_with_answers_behind_them():
    scored = right_padded([2, 3], 6)
    assert rows(scored.edited("all")) == ["xxxxxx", "xxxxxx"]
    assert rows(scored.edited("generated")) == [".xxxxx", "..xxxx"]
    assert rows(scored.edited("published")) == ["...xxx", "....xx"]
    assert rows(right_padded([2, 3], 6, generates=True).edited("published")) == [".xxxxx", "..xxxx"]
    assert rows(scored.edges(1, 1)) == ["xx....", "x.x..."]
    assert rows(scored.edges(0, 2)) == ["xx....", ".xx..."]


def test_prompts_padded_on_the_left_and_tokens_behind_them():
    assert rows(left_padded([2, 4], 4).edges(1, 1)) == ["..xx", "x..x"]
    assert rows(left_padded([2, 4], 4).edited("published")) == ["...x", "...x"]
    assert rows(behind_prompts(1, 2).edited("generated")) == ["xx"]
    assert rows(behind_prompts(1, 2).edges(5, 5)) == [".."]


def test_prompts_of_which_something_was_read_before_or_is_read_later():
    assert rows(right_padded([1, 2], 3, n_read=[3, 0]).edges(1, 1)) == ["x..", "xx."]
    assert rows(right_padded([1, 2], 3, n_read=[1, 0]).edges(2, 0)) == ["x..", "xx."]
    assert rows(left_padded([1, 1], 1, n_read=[1, 4]).edges(3, 0)) == ["x", "."]
    to_come = left_padded([3, 4], 4, n_to_come=1)
    assert rows(to_come.edges(1, 2)) == [".x.x", "x..x"]
    assert rows(to_come.edited("generated")) == ["....", "...."]


def test_a_pass_that_nobody_has_described():
    assert rows(layout_of(torch.zeros(1, 3, 8)).edited("generated")) == ["..x"]
    assert rows(layout_of(torch.zeros(1, 1, 8)).edited("generated")) == ["x"]


@pytest.fixture
def offset() -> ll.HeadIntervention:
    return ll.HeadIntervention(
        (ll.Head(1, 2), ll.Head(2, 0)), offset=torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    )


def late_hooks(edit: ll.HeadIntervention, first: int):
    """The offsets of an edit from a position on."""

    def hook_of(head, vector):
        def add(z, hook):
            z = z.clone()
            z[:, first:, head.index] += vector
            return z

        return lens.z_hook(head.layer), add

    return [hook_of(head, vector) for head, vector in zip(edit.heads, edit.offset, strict=True)]


@pytest.mark.parametrize("positions", ["generated", "published"])
def test_scores_are_those_of_one_pass_each_edited_from_that_token_on(llama, offset, positions):
    edit = ll.HeadIntervention(offset.heads, offset=offset.offset, positions=positions)
    found = ll.answer_logprobs(llama, PROMPTS, ANSWERS, edit)
    assert not positions_matter()
    for prompt, answer, score in zip(PROMPTS, ANSWERS, found, strict=True):
        p, a = encode_prompt(llama, prompt), encode_answer(llama, answer, eos=False)
        first = len(p) - 1 + (2 if positions == "published" else 0)

        hooks = late_hooks(offset, first)
        with llama.hooks(fwd_hooks=hooks), torch.no_grad():
            logprobs = llama(torch.tensor([[*p, *a]])).log_softmax(-1)[0, len(p) - 1 : -1]
        assert score == pytest.approx(logprobs[range(len(a)), list(a)].sum().item(), abs=SCORE_ROUNDING)


@pytest.mark.parametrize("positions", ["generated", "published"])
def test_generation_is_the_models_own_under_that_edit(llama, offset, positions):
    edit = 8 * ll.HeadIntervention(offset.heads, offset=offset.offset, positions=positions)
    together = ll.generate(llama, PROMPTS, edit, max_new_tokens=6)
    alone = [ll.generate(llama, [prompt], edit, max_new_tokens=6)[0] for prompt in PROMPTS]
    assert together == alone
    assert together != ll.generate(llama, PROMPTS, max_new_tokens=6)
    for prompt, text in zip(PROMPTS, together, strict=True):
        ids = list(encode_prompt(llama, prompt))
        written: list[int] = []
        for _ in range(6):
            # Without a cache: the prompt's last token and all behind it are edited.
            hooks = late_hooks(edit, len(ids) - 1)
            with llama.hooks(fwd_hooks=hooks), torch.no_grad():
                written.append(int(llama(torch.tensor([ids + written]))[0, -1].argmax()))
            if written[-1] == llama.tokenizer.eos_token_id:
                break
        assert llama.tokenizer.decode(written, skip_special_tokens=True) == text


@pytest.mark.parametrize("positions", ["generated", "published"])
def test_guesses_of_answers_do_not_change_what_is_generated(llama, toy_task, offset, positions):
    edit = 8 * ll.HeadIntervention(offset.heads, offset=offset.offset, positions=positions)
    written = ll.generate(llama, PROMPTS, edit, max_new_tokens=6)
    examples = tuple(Example(prompt, answer) for prompt, answer in zip(PROMPTS, [*written[:2], " no", " n"], strict=True))
    task = toy_task({"test": examples}, stop=(), max_new_tokens=6)
    assert list(ll.evaluate(llama, task, edit).texts) == written


def test_a_low_rank_edit_is_its_formula_at_the_edges_of_each_prompt(llama):
    generator = torch.Generator().manual_seed(0)
    d = llama.cfg.d_model
    R = torch.linalg.qr(torch.randn(d, 2, generator=generator)).Q.T
    W, b = torch.randn(2, d, generator=generator), torch.randn(2, generator=generator)
    edit = LowRankIntervention((1,), R[None], W[None], b[None], prefix=1, suffix=2)
    found = ll.answer_logprobs(llama, PROMPTS, ANSWERS, edit)
    for prompt, answer, score in zip(PROMPTS, ANSWERS, found, strict=True):
        p, a = encode_prompt(llama, prompt), encode_answer(llama, answer, eos=False)

        edges = {0, *range(max(len(p) - 2, 0), len(p))}

        def by_hand(h, hook, edges=edges):
            h = h.clone()
            for place in edges:
                row = h[0, place]
                h[0, place] = row + R.T @ (W @ row + b - R @ row)
            return h

        with llama.hooks(fwd_hooks=[("blocks.1.hook_out", by_hand)]), torch.no_grad():
            logprobs = llama(torch.tensor([[*p, *a]])).log_softmax(-1)[0, len(p) - 1 : -1]
        assert score == pytest.approx(logprobs[range(len(a)), list(a)].sum().item(), abs=SCORE_ROUNDING)


def test_edits_at_different_positions_do_not_add_up(as_users_run_it, offset):
    late = ll.HeadIntervention(offset.heads, offset=offset.offset, positions="generated")
    with pytest.raises(ValueError, match="cannot add interventions at 'all' and at 'generated' positions"):
        offset + late
    with pytest.raises(ValueError, match="got positions 'late'; wanted one of all, generated, published"):
        ll.HeadIntervention(offset.heads, offset=offset.offset, positions="late")
