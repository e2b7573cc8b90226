"""Prompts that have been read in advance, where little or nothing of them has been."""

import pytest
import torch

from lofit_lens import answer_logprobs, tiny, tiny_model
from lofit_lens.batches import encode


@pytest.fixture(params=["mistral", "gemma3"])
def wide_window(request, monkeypatch):
    """Its prompts fit into the attention window as packed rows, the long answers behind them do not."""
    model_type, settings = tiny._SETTINGS[request.param]
    wider = {**settings, "sliding_window": 300, "max_position_embeddings": 512}
    monkeypatch.setitem(tiny._SETTINGS, request.param, (model_type, wider))
    return tiny_model(request.param)


@pytest.mark.parametrize("prompts", [["", "ab"], ["", ""]])
def test_prompts_of_one_token_leave_nothing_to_be_read_in_advance(wide_window, prompts):
    answers = ["x" * 310, "y"]
    found = answer_logprobs(wide_window, prompts, answers)
    sequences = encode(wide_window, prompts, answers, eos=False)
    assert len(sequences[0].prompt) == 1
    for sequence, score in zip(sequences, found.tolist(), strict=True):
        with torch.no_grad():
            logprobs = wide_window(torch.tensor([sequence.prompt + sequence.answer]))[0].double().log_softmax(-1)
        positions = range(len(sequence.prompt) - 1, len(sequence) - 1)
        plain = logprobs[positions, list(sequence.answer)].sum().item()
        # A sum of up to 310 log-probabilities, each of which float32 rounds.
        assert score == pytest.approx(plain, rel=1e-5)
