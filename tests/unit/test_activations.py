"""Activations on disk: mapped back, and taken again for the same texts and model only. (Their values: the model contract.)"""

import pytest
import torch

import lofit_lens as ll
from lofit_lens import activations, lens, tiny
from lofit_lens.activations import last_token_residual, last_token_z
from lofit_lens.batches import encode_prompt
from lofit_lens.tasks import Example

PROMPTS, ANSWERS = ["Q: who? A:", "Q: who? A:", "Q: when? A:"], [" Bo", " nobody", " now"]


def passes(run) -> int:
    """How many packs go through the model."""
    seen = []
    pass_through = lens.plain_forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lens, "plain_forward", lambda *given: seen.append(1) or pass_through(*given))
        run()
    return len(seen)


def test_on_disk_it_is_the_same_and_taken_again(llama, tmp_path):
    in_memory = last_token_z(llama, PROMPTS, ANSWERS)
    assert torch.equal(last_token_z(llama, PROMPTS, ANSWERS, folder=tmp_path), in_memory)
    assert passes(lambda: last_token_z(llama, PROMPTS, ANSWERS, folder=tmp_path)) == 0
    assert torch.equal(last_token_z(llama, PROMPTS, ANSWERS, folder=tmp_path), in_memory)
    assert passes(lambda: last_token_z(llama, PROMPTS, ANSWERS[::-1], folder=tmp_path)) == 1
    other = ll.tiny_model("llama", seed=1)
    assert not torch.equal(last_token_z(other, PROMPTS, ANSWERS, folder=tmp_path), in_memory)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_model_that_differs_in_one_entry_of_one_weight_has_a_file_of_its_own(tmp_path):
    tuned = ll.tiny_model("llama")
    weights = lens.weights(tuned)
    last_token_z(tuned, PROMPTS, ANSWERS, folder=tmp_path)
    for weight in weights:
        with torch.no_grad():
            weight.view(-1)[weight.numel() // 3 + 1] += 1.0
        assert torch.equal(last_token_z(tuned, PROMPTS, ANSWERS, folder=tmp_path), last_token_z(tuned, PROMPTS, ANSWERS))
    assert len(list(tmp_path.iterdir())) == len(weights) + 1 == 31


def test_a_model_under_an_edit_is_not_taken_for_the_bare_one(llama, toy_task, tmp_path):
    last_token_z(llama, PROMPTS, ANSWERS, folder=tmp_path)
    edit = ll.HeadIntervention((ll.Head(0, 1),), offset=torch.ones(1, 16))
    with ll.attached(llama, edit):
        assert last_token_z(llama, PROMPTS, ANSWERS).isfinite().all()
        with pytest.raises(ValueError, match=r"the model has hooks.*collect without folder"):
            last_token_z(llama, PROMPTS, ANSWERS, folder=tmp_path)
    task = toy_task({"train": [Example("Q: who? A:", " Bo")]})
    with ll.attached(llama, ll.methods.LoRA(learning_rate=0.1).fit(llama, task).intervention):
        assert last_token_z(llama, PROMPTS, ANSWERS).isfinite().all()
        # Two edits of the same factors may differ in alpha alone, which is no weight.
        with pytest.raises(ValueError, match=r"the model has LoRA layers.*collect without folder"):
            last_token_z(llama, PROMPTS, ANSWERS, folder=tmp_path)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_of_pytorch_is_not_overlooked(tmp_path, register):
    hooked = ll.tiny_model("llama")
    handle = getattr(hooked.original_model.model.layers[0].mlp, register)(lambda *_: None)
    with pytest.raises(ValueError, match=r"the model has hooks.*or take them off"):
        last_token_z(hooked, PROMPTS, ANSWERS, folder=tmp_path)
    handle.remove()
    assert torch.equal(last_token_z(hooked, PROMPTS, ANSWERS, folder=tmp_path), last_token_z(hooked, PROMPTS, ANSWERS))


def test_hooks_that_a_model_puts_on_its_own_parts_are_not_somebodys(model):
    last_token_z(model, PROMPTS, ANSWERS)
    assert not lens.is_hooked(model)


def test_a_model_of_another_configuration_has_a_file_of_its_own(tmp_path, monkeypatch):
    found = []
    for window in (8, 100):
        model_type, settings = tiny._SETTINGS["mistral"]
        monkeypatch.setitem(tiny._SETTINGS, "mistral", (model_type, {**settings, "sliding_window": window}))
        sighted = ll.tiny_model("mistral")
        found.append(last_token_z(sighted, PROMPTS, ANSWERS, folder=tmp_path))
        assert torch.equal(found[-1], last_token_z(sighted, PROMPTS, ANSWERS))
    assert not torch.equal(*found)


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


def test_no_texts_are_refused(llama, tmp_path):
    with pytest.raises(ValueError, match="got no prompts and no answers"):
        last_token_z(llama, [], [], folder=tmp_path)
    with pytest.raises(ValueError, match="got no prompts and no answers"):
        last_token_residual(llama, [], [], [0])
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_is_read_once_under_all_its_answers(llama):
    sizes = []
    look = ("blocks.0.hook_resid_pre", lambda value, hook: sizes.append(value.shape[0] * value.shape[1]))
    with llama.hooks(fwd_hooks=[look]):
        last_token_z(llama, ["a long question" * 4] * 5, [" yes", " no", " so", " oh", " ah"])
    prompt = len(encode_prompt(llama, "a long question" * 4))
    assert sum(sizes) < 2 * prompt


def test_recorders_that_transformers_leaves_behind_are_no_edit(tmp_path):
    model = ll.tiny_model("llama")
    model.original_model(torch.tensor([[5, 6]]), output_hidden_states=True)
    last_token_z(model, PROMPTS, ANSWERS, folder=tmp_path)
