"""Activations on disk: mapped back, and taken again for the same texts and model only. (Their values: the model contract.)"""

import pytest
import torch

import lofit_lens as ll
from lofit_lens import activations, lens
from lofit_lens.activations import last_token_z

PROMPTS, ANSWERS = ["Q: who? A:", "Q: who? A:", "Q: when? A:"], [" Bo", " nobody", " now"]


def passes(model, run) -> int:
    """How often block 0 runs."""
    seen = []
    with model.hooks(fwd_hooks=[(lens.z_hook(0), lambda z, hook: seen.append(1))]):
        run()
    return len(seen)


def test_on_disk_it_is_the_same_and_taken_again(llama, tmp_path):
    in_memory = last_token_z(llama, PROMPTS, ANSWERS)
    assert torch.equal(last_token_z(llama, PROMPTS, ANSWERS, folder=tmp_path), in_memory)
    assert passes(llama, lambda: last_token_z(llama, PROMPTS, ANSWERS, folder=tmp_path)) == 0
    assert torch.equal(last_token_z(llama, PROMPTS, ANSWERS, folder=tmp_path), in_memory)
    assert passes(llama, lambda: last_token_z(llama, PROMPTS, ANSWERS[::-1], folder=tmp_path)) == 1
    other = ll.tiny_model("llama", seed=1)
    assert not torch.equal(last_token_z(other, PROMPTS, ANSWERS, folder=tmp_path), in_memory)
    assert len(list(tmp_path.iterdir())) == 3


def test_what_is_read_back_can_be_changed_without_spoiling_the_file(llama, tmp_path):
    z = last_token_z(llama, PROMPTS, ANSWERS, folder=tmp_path)
    again = last_token_z(llama, PROMPTS, ANSWERS, folder=tmp_path)
    z += 1
    assert torch.equal(last_token_z(llama, PROMPTS, ANSWERS, folder=tmp_path), again)


def test_nothing_is_kept_of_a_collection_that_was_stopped(llama, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(activations, "_at_last_tokens", stopped)
    with pytest.raises(KeyboardInterrupt):
        last_token_z(llama, PROMPTS, ANSWERS, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_texts_that_do_not_fit_are_refused(llama):
    with pytest.raises(ValueError, match="example 1 needs"):
        last_token_z(llama, ["a", "b" * 300], [" c", " d"])
