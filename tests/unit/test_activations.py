"""Activations on disk: mapped back, and taken again for the same texts and model only. (Their values: the model contract.)"""

import pytest
import torch

import lofit_lens as ll
from lofit_lens import activations, lens, tiny
from lofit_lens.activations import collect_residual, collect_z
from lofit_lens.batches import encode_answer, encode_prompt
from lofit_lens.tasks import Example

#: Hook points in the order of a block.
STAGES = ("attn.hook_z", "mlp.hook_out")
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
    in_memory = collect_z(llama, PROMPTS, ANSWERS)
    assert torch.equal(collect_z(llama, PROMPTS, ANSWERS, folder=tmp_path), in_memory)
    assert passes(lambda: collect_z(llama, PROMPTS, ANSWERS, folder=tmp_path)) == 0
    assert torch.equal(collect_z(llama, PROMPTS, ANSWERS, folder=tmp_path), in_memory)
    assert passes(lambda: collect_z(llama, PROMPTS, ANSWERS[::-1], folder=tmp_path)) == 1
    other = ll.tiny_model("llama", seed=1)
    assert not torch.equal(collect_z(other, PROMPTS, ANSWERS, folder=tmp_path), in_memory)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_model_that_differs_in_one_entry_of_one_weight_has_a_file_of_its_own(tmp_path):
    tuned = ll.tiny_model("llama")
    weights = lens.weights(tuned)
    collect_z(tuned, PROMPTS, ANSWERS, folder=tmp_path)
    for weight in weights:
        with torch.no_grad():
            weight.view(-1)[weight.numel() // 3 + 1] += 1.0
        assert torch.equal(collect_z(tuned, PROMPTS, ANSWERS, folder=tmp_path), collect_z(tuned, PROMPTS, ANSWERS))
    assert len(list(tmp_path.iterdir())) == len(weights) + 1 == 31


def test_a_model_under_an_edit_is_not_taken_for_the_bare_one(llama, toy_task, tmp_path):
    collect_z(llama, PROMPTS, ANSWERS, folder=tmp_path)
    edit = ll.HeadIntervention((ll.Head(0, 1),), offset=torch.ones(1, 16))
    with ll.attached(llama, edit):
        assert collect_z(llama, PROMPTS, ANSWERS).isfinite().all()
        with pytest.raises(ValueError, match=r"the model has hooks.*collect without folder"):
            collect_z(llama, PROMPTS, ANSWERS, folder=tmp_path)
    task = toy_task({"train": [Example("Q: who? A:", " Bo")]})
    with ll.attached(llama, ll.methods.LoRA(learning_rate=0.1).fit(llama, task).intervention):
        assert collect_z(llama, PROMPTS, ANSWERS).isfinite().all()
        # Two edits of the same factors may differ in alpha alone, which is no weight.
        with pytest.raises(ValueError, match=r"the model has LoRA layers.*collect without folder"):
            collect_z(llama, PROMPTS, ANSWERS, folder=tmp_path)


@pytest.mark.parametrize("positions", ["generated", "published"])
def test_an_edit_that_begins_where_prompts_end_does_so_in_every_batch(llama, positions):
    """Texts of several lengths at once, next to each by itself with the edit's first column worked out here."""
    prompts, answers = ["Q: who? A:", "Q: when was it? A:", "Q:"], [" Bo went home", " now", " a b c d"]
    offset = torch.linspace(-3, 3, 16)
    plain = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([encode_prompt(llama, prompt) + encode_answer(llama, answer, eos=False)])
        first = len(encode_prompt(llama, prompt)) - 1 + (2 if positions == "published" else 0)

        def from_first(z, hook, first=first):
            z[:, first:, 1] += offset
            return z

        with torch.no_grad(), llama.hooks(fwd_hooks=[("blocks.0.attn.hook_z", from_first)]):
            _, cache = llama.run_with_cache(ids)
        plain.append(cache["blocks.2.attn.hook_z"][0, -1])
    edit = ll.HeadIntervention((ll.Head(0, 1),), offset=offset[None], positions=positions)
    with ll.attached(llama, edit):
        for token_budget in (1, 2048):
            found = collect_z(llama, prompts, answers, layers=[2], token_budget=token_budget)[0]
            # float32 rounding: a batch's products are summed in another order than a single text's
            torch.testing.assert_close(found, torch.stack(plain), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_of_pytorch_is_not_overlooked(tmp_path, register):
    hooked = ll.tiny_model("llama")
    handle = getattr(hooked.original_model.model.layers[0].mlp, register)(lambda *_: None)
    with pytest.raises(ValueError, match=r"the model has hooks.*or take them off"):
        collect_z(hooked, PROMPTS, ANSWERS, folder=tmp_path)
    handle.remove()
    assert torch.equal(collect_z(hooked, PROMPTS, ANSWERS, folder=tmp_path), collect_z(hooked, PROMPTS, ANSWERS))


def test_hooks_that_a_model_puts_on_its_own_parts_are_not_somebodys(model):
    collect_z(model, PROMPTS, ANSWERS)
    assert not lens.is_hooked(model)


def test_a_model_of_another_configuration_has_a_file_of_its_own(tmp_path, monkeypatch):
    found = []
    for window in (8, 100):
        model_type, settings = tiny._SETTINGS["mistral"]
        monkeypatch.setitem(tiny._SETTINGS, "mistral", (model_type, {**settings, "sliding_window": window}))
        sighted = ll.tiny_model("mistral")
        found.append(collect_z(sighted, PROMPTS, ANSWERS, folder=tmp_path))
        assert torch.equal(found[-1], collect_z(sighted, PROMPTS, ANSWERS))
    assert not torch.equal(*found)


def test_what_is_read_back_can_be_changed_without_spoiling_the_file(llama, tmp_path):
    z = collect_z(llama, PROMPTS, ANSWERS, folder=tmp_path)
    again = collect_z(llama, PROMPTS, ANSWERS, folder=tmp_path)
    z += 1
    assert torch.equal(collect_z(llama, PROMPTS, ANSWERS, folder=tmp_path), again)


def test_nothing_is_kept_of_a_collection_that_was_stopped(llama, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(activations, "_run", stopped)
    with pytest.raises(KeyboardInterrupt):
        collect_z(llama, PROMPTS, ANSWERS, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_layers_and_positions_have_files_of_their_own(llama, tmp_path):
    wanted = [{}, {"layers": [2, 0]}, {"layers": [0, 2]}, {"positions": -2}, {"positions": [0, -1, 2]}]
    for collect in (collect_z, collect_residual):
        for given in wanted:
            kept = collect(llama, PROMPTS, ANSWERS, folder=tmp_path, **given)
            assert torch.equal(kept, collect(llama, PROMPTS, ANSWERS, **given))
            assert passes(lambda collect=collect, given=given: collect(llama, PROMPTS, ANSWERS, folder=tmp_path, **given)) == 0
    assert len(list(tmp_path.iterdir())) == 2 * len(wanted)
    # The same text, whatever of it is the prompt.
    whole = [prompt + answer for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    parted = [text[:-1] for text in whole], [text[-1] for text in whole]
    assert passes(lambda: collect_z(llama, *parted, folder=tmp_path)) == 0
    # The same position, said in another way.
    assert passes(lambda: collect_z(llama, PROMPTS[:1], ANSWERS[:1], positions=0, folder=tmp_path)) == 1
    n_tokens = len(encode_prompt(llama, PROMPTS[0] + ANSWERS[0]))
    assert passes(lambda: collect_z(llama, PROMPTS[:1], ANSWERS[:1], positions=-n_tokens, folder=tmp_path)) == 0


def test_nothing_is_run_behind_the_last_layer_that_is_looked_at(llama):
    reached = []
    look = [(f"blocks.{layer}.{hook}", lambda value, hook: reached.append(hook.name)) for layer in range(3) for hook in STAGES]
    with llama.hooks(fwd_hooks=look):
        collect_z(llama, PROMPTS, ANSWERS, layers=[1, 0])
    assert reached[-1].startswith("blocks.1")
    assert not any(("blocks.1" in name and "mlp" in name) or "blocks.2" in name for name in reached)
    reached.clear()
    with llama.hooks(fwd_hooks=look):
        collect_residual(llama, PROMPTS, ANSWERS, layers=[1])
    assert "mlp" in reached[-1]
    assert not any("blocks.2" in name for name in reached)


def test_what_one_analysis_has_collected_the_next_one_takes(llama, toy_task, tmp_path):
    examples = [Example(f"Q: {i}? A:", f" {i}", rejected=(f" {i + 1}",)) for i in range(8)]
    task = toy_task({"train": examples, "val": examples[:2]})
    kept = ll.methods.ITI(k=2, folder=str(tmp_path))
    scores = kept.select(llama, task)
    assert torch.equal(scores.values, ll.methods.ITI(k=2).select(llama, task).values)
    assert passes(lambda: kept.fit(llama, task)) == 0
    assert passes(lambda: ll.selection.layer_probe_scores(llama, task, folder=str(tmp_path))) == 0
    heads = [(1, 2), (0, 3)]
    of_heads = ll.analysis.collect_head_activations(llama, task, heads=heads)
    assert passes(lambda: ll.analysis.collect_head_activations(llama, task, heads=heads, folder=tmp_path)) == 0
    assert torch.equal(ll.analysis.collect_head_activations(llama, task, heads=heads, folder=tmp_path).z, of_heads.z)
    assert kept.settings() == ll.methods.ITI(k=2).settings()
    repe = ll.methods.RepE(layers=(0, 1), folder=str(tmp_path))
    first = repe.fit(llama, task).intervention
    n_files = len(list(tmp_path.iterdir()))
    again = repe.fit(llama, task).intervention
    assert torch.equal(first.vectors, again.vectors)
    assert len(list(tmp_path.iterdir())) == n_files == 2
    assert "folder" not in first.made_by["settings"]


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layers": [0, 3]}, r"got the layers \(0, 3\), wanted one or more of 0 to 2"),
        ({"layers": [-1]}, r"got the layers \(-1,\)"),
        ({"layers": []}, r"got the layers \(\)"),
        ({"positions": 200}, r"text 0 has \d+ tokens, so none at position 200"),
        ({"positions": [0, -200, 0]}, r"text 1 has \d+ tokens, so none at position -200"),
        ({"positions": [0, 1]}, "got 2 positions for 3 texts; wanted one for all, or one for each"),
    ],
)
def test_layers_and_positions_that_are_not_there_are_refused(llama, given, message):
    for collect in (collect_z, collect_residual):
        with pytest.raises(ValueError, match=message):
            collect(llama, PROMPTS, ANSWERS, **given)


def test_the_text_without_such_a_position_is_called_by_its_name(llama):
    with pytest.raises(ValueError, match=r"record 8 has \d+ tokens, so none at position 99"):
        collect_z(llama, PROMPTS, ANSWERS, names=["record 7", "record 8", "record 9"], positions=[0, 99, 0])


def test_texts_that_do_not_fit_are_refused(llama):
    with pytest.raises(ValueError, match="example 1 needs"):
        collect_z(llama, ["a", "b" * 300], [" c", " d"])


def test_no_texts_are_refused(llama, tmp_path):
    with pytest.raises(ValueError, match="got no prompts and no answers"):
        collect_z(llama, [], [], folder=tmp_path)
    with pytest.raises(ValueError, match="got no prompts and no answers"):
        collect_residual(llama, [], [])
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_is_read_once_under_all_its_answers(llama):
    sizes = []
    look = ("blocks.0.hook_resid_pre", lambda value, hook: sizes.append(value.shape[0] * value.shape[1]))
    with llama.hooks(fwd_hooks=[look]):
        collect_z(llama, ["a long question" * 4] * 5, [" yes", " no", " so", " oh", " ah"])
    prompt = len(encode_prompt(llama, "a long question" * 4))
    assert sum(sizes) < 2 * prompt


def test_recorders_that_transformers_leaves_behind_are_no_edit(tmp_path):
    model = ll.tiny_model("llama")
    bare = collect_z(model, PROMPTS, ANSWERS)
    model.original_model(torch.tensor([[5, 6]]), output_hidden_states=True)
    assert not lens.is_hooked(model)
    assert torch.equal(collect_z(model, PROMPTS, ANSWERS, folder=tmp_path), bare)
