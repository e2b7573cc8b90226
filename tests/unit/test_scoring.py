"""What scoring costs: each place is unembedded once, a pass gives a bounded number of logits, and none outlive their pass."""

import dataclasses
import gc
import logging

import pytest
import torch

from lofit_lens import Head, HeadIntervention, answer_logprobs, batches, generate, models, scoring
from lofit_lens.batches import encode

#: With every short cut, padded batches behind shared prompts, and plain passes.
SHORT_CUTS = [{}, {"can_pack": False}, {"can_pack": False, "can_share_prefix": False}]


def scored(model, prompts, answers):
    """The scores, and how many places each pass unembeds."""
    models.check_model(model)  # has passes of its own where it is the first to look
    seen = []
    with model.hooks(fwd_hooks=[("unembed.hook_out", lambda value, hook: seen.append(value.shape[0] * value.shape[1]))]):
        return answer_logprobs(model, prompts, answers), seen


def plain_scores(model, prompts, answers) -> list[float]:
    scores = []
    for sequence in encode(model, prompts, answers, eos=False):
        with torch.no_grad():
            logprobs = model(torch.tensor([sequence.prompt + sequence.answer]))[0].log_softmax(-1)
        positions = range(len(sequence.prompt) - 1, len(sequence) - 1)
        scores.append(logprobs[positions, list(sequence.answer)].sum().item())
    return scores


def test_many_answers_of_one_token_need_one_row_of_logits(llama):
    answers = [letter for letter in map(chr, range(ord("!"), ord("~") + 1)) for _ in range(50)]
    found, seen = scored(llama, ["Which letter?"] * len(answers), answers)
    assert seen == [1]
    # Log-probabilities of size 1 to 10 in float32.
    assert found[::50].tolist() == pytest.approx(plain_scores(llama, ["Which letter?"] * 94, answers[::50]), abs=2e-5)


@pytest.mark.parametrize("short_cuts", SHORT_CUTS)
def test_a_pass_gives_few_logits_however_many_tokens_it_may_take(llama, monkeypatch, short_cuts):
    monkeypatch.setitem(models._CHECKED, llama, dataclasses.replace(models.check_model(llama), **short_cuts))
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 0)
    monkeypatch.setattr(scoring, "ROWS_OF_LOGITS", 12)
    prompts = [f"Question {i // 3}?" for i in range(60)]
    answers = [f" {'abcdefgh'[: 1 + i % 8]}{i}" for i in range(59)] + [" an answer longer than that"]
    found, seen = scored(llama, prompts, answers)
    assert sorted(seen)[-1] == len(answers[-1])
    assert sorted(seen)[-2] <= 12
    assert found.tolist() == pytest.approx(plain_scores(llama, prompts, answers), rel=1e-5)


def test_few_logits_do_not_make_passes_short(llama, monkeypatch):
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 0)
    monkeypatch.setattr(scoring, "ROWS_OF_LOGITS", 12)
    prompts = [f"{i}{' question' * 12}?" for i in range(10)]
    found, seen = scored(llama, prompts, [" y"] * 10)
    assert seen == [12, 8]  # two for each answer
    assert found.tolist() == pytest.approx(plain_scores(llama, prompts, [" y"] * 10), rel=1e-5)


@pytest.mark.parametrize("short_cuts", SHORT_CUTS)
def test_logits_do_not_outlive_their_pass(llama, monkeypatch, short_cuts):
    monkeypatch.setitem(models._CHECKED, llama, dataclasses.replace(models.check_model(llama), **short_cuts))
    alive = []

    def count(value, hook):
        tensors = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
        alive.append(sum(tensor.ndim == 2 and tensor.shape[-1] == llama.cfg.d_vocab for tensor in tensors))

    prompts = [f"{i}{' question' * 12}?" for i in range(6)]
    with llama.hooks(fwd_hooks=[("unembed.hook_in", count)]):
        answer_logprobs(llama, prompts, [" yes"] * 6, token_budget=150)
    assert len(alive) > 2
    assert set(alive) == {alive[0]}


@pytest.mark.parametrize("positions", ["all", "generated", "published"])
def test_it_is_said_once_a_call_that_prompts_share_nothing_under_an_edit_of_some_positions(llama, caplog, positions):
    caplog.set_level(logging.INFO, "lofit_lens")
    edit = HeadIntervention((Head(0, 1),), offset=torch.ones(1, 16), positions=positions)
    for calls, call in enumerate(
        (lambda: answer_logprobs(llama, ["a", "b"], ["c", "d"], edit), lambda: generate(llama, ["a"], edit)), 1
    ):
        call()
        wanted = 0 if positions == "all" else calls
        assert caplog.text.count("this edit depends on positions, so every prompt is read by itself") == wanted


def test_a_prompt_is_tokenised_once_for_all_its_answers(llama, monkeypatch):
    tokenised = []
    encode_prompt = batches.encode_prompt
    monkeypatch.setattr(batches, "encode_prompt", lambda *given: tokenised.append(given[1]) or encode_prompt(*given))
    encode(llama, ["Who?", "Who?", "When?", "Who?"], ["a", "b", "c", "d"], eos=False)
    assert tokenised == ["Who?", "When?"]
