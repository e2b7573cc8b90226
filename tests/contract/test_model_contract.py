"""What must hold on every model that this library takes, whatever its architecture and its TransformerLens."""

import copy
import dataclasses
import logging

import pytest
import torch

import lofit_lens as ll
from lofit_lens import caches, lens, models
from lofit_lens.activations import collect_residual, collect_z
from lofit_lens.batches import TOKEN_BUDGET, collate, encode, encode_prompt
from lofit_lens.examination import ModelInfo
from lofit_lens.fitting import Optimisation, accumulate_gradient, weights_frozen
from lofit_lens.frozen import ResidualStore, residuals_shared
from lofit_lens.objectives import AnswerObjective
from lofit_lens.prefixes import unread_prefix
from lofit_lens.scoring import answer_logits
from lofit_lens.tasks import Example

PROMPTS = ["Once upon a time, in a land far away", "A", "The story of the three little pigs and the"]
ANSWERS = [" there", " b c", " wolf"]
#: Float32 sums in another order, on logits of size 1 to 10.
ROUNDING = 2e-5
#: The same in scores of answers of at most 6 tokens, sums of size 1 to 40; it grows with the size of the sum.
SCORE_ROUNDING = 1e-4


def vectors(model, n_heads: int = 3) -> ll.HeadIntervention:
    info = ll.check_model(model)
    heads = [ll.Head(0, 1), ll.Head(info.n_layers - 1, 0), ll.Head(info.n_layers - 1, 3)][:n_heads]
    generator = torch.Generator().manual_seed(0)
    scale, offset = torch.randn(2, len(heads), info.d_head, generator=generator)
    return ll.HeadIntervention(tuple(heads), scale=scale, offset=offset)


def tokens_of(model) -> torch.Tensor:
    return torch.tensor([encode_prompt(model, PROMPTS[0])])


@torch.no_grad()
def logits_of(model, intervention=None) -> torch.Tensor:
    with ll.attached(model, intervention):
        return model(tokens_of(model))


def test_the_check_finds_every_head(model):
    info = ll.check_model(model)
    assert (info.n_layers, info.n_heads, info.d_head) == (3, 4, 16)
    assert info.attention_layers == (0, 1, 2)
    assert info.can_resume


def test_edit_is_the_papers_arithmetic(model):
    """Published form: z concatenated over heads, a loop over its slices, `(A + 1) * z + v`."""
    made = vectors(model)
    info = ll.check_model(model)

    def published(layer):
        def edit(z, hook):
            flat = z.reshape(*z.shape[:2], -1).clone()
            for (edited_layer, index), a, v in zip(made.heads, made.scale, made.offset, strict=True):
                if edited_layer == layer:
                    part = slice(index * info.d_head, (index + 1) * info.d_head)
                    flat[..., part] = (a + 1) * flat[..., part] + v
            return flat.reshape(z.shape)

        return edit

    with torch.no_grad(), model.hooks(fwd_hooks=[(lens.z_hook(layer), published(layer)) for layer in range(3)]):
        theirs = model(tokens_of(model))
    ours = logits_of(model, made)
    assert torch.allclose(ours, theirs, atol=ROUNDING)
    assert (ours - logits_of(model)).abs().max() > 0.01


def test_zero_edit_and_detached_edit_are_bit_equal(model):
    before = logits_of(model)
    zero = 0.0 * vectors(model)
    assert torch.equal(logits_of(model, zero), before)
    with pytest.raises(KeyError), ll.attached(model, vectors(model)):
        raise KeyError
    assert torch.equal(logits_of(model), before)


def test_offsets_equal_a_bias_on_the_attention_output(model):
    """Fold: `z @ W_O` is linear, so an offset at z is the constant `offset @ W_O` behind it."""
    made = dataclasses.replace(vectors(model), scale=None)
    bias = made.residual_bias(model)
    if lens.is_bridge(model):
        folded = [(f"blocks.{i}.attn.hook_out", lambda value, hook, i=i: value + bias[i]) for i in range(3)]
    else:
        folded = [(f"blocks.{i}.hook_attn_out", lambda value, hook, i=i: value + bias[i]) for i in range(3)]
    with torch.no_grad(), model.hooks(fwd_hooks=folded):
        theirs = model(tokens_of(model))
    assert torch.allclose(logits_of(model, made), theirs, atol=ROUNDING)


def test_scaling_equals_scaled_rows_of_the_output_weights(model):
    """Fold: `((1 + a) * z) @ W_O = z @ (diag(1 + a) W_O)`; the difference it makes is `(a * z) @ W_O`."""
    made = dataclasses.replace(vectors(model, n_heads=1), offset=None)
    layer, index = made.heads[0]
    kept = {}
    with torch.no_grad(), model.hooks(fwd_hooks=[(lens.z_hook(layer), lambda z, hook: kept.update(z=z[:, :, index]))]):
        model(tokens_of(model))
    added = (made.scale[0] * kept["z"]) @ lens.head_output_weights(model, layer)[index]
    where = f"blocks.{layer}.attn.hook_out" if lens.is_bridge(model) else f"blocks.{layer}.hook_attn_out"
    with torch.no_grad(), model.hooks(fwd_hooks=[(where, lambda value, hook: value + added)]):
        theirs = model(tokens_of(model))
    assert torch.allclose(logits_of(model, made), theirs, atol=ROUNDING)


@pytest.mark.parametrize("kind", ["scale", "offset"])
def test_gradients_equal_finite_differences(model, kind):
    info = ll.check_model(model)
    examples = [Example(p, a) for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    objective = AnswerObjective(model, examples)
    start = 0.1 * torch.randn(1, info.d_head, generator=torch.Generator().manual_seed(2))

    def loss_and_gradient(value: torch.Tensor) -> tuple[float, torch.Tensor]:
        learned = value.clone().requires_grad_()
        made = ll.HeadIntervention((ll.Head(1, 2),), **{kind: learned})
        with weights_frozen(model):
            loss = accumulate_gradient(model, objective, made, [0, 1, 2], Optimisation(1.0), ResidualStore(model, 0))
        return loss, learned.grad

    _, gradient = loss_and_gradient(start)
    direction = torch.nn.functional.normalize(torch.randn(1, info.d_head, generator=torch.Generator().manual_seed(3)))
    step = 1e-2
    higher, lower = (loss_and_gradient(start + sign * step * direction)[0] for sign in (1, -1))
    slope = (higher - lower) / (2 * step)
    # A central difference errs by O(step^2) and by float32 rounding of the loss over the step, about 1e-6 / 1e-2.
    assert slope == pytest.approx((gradient * direction).sum().item(), rel=0.02, abs=5e-4)


def test_answer_logprobs_equal_one_plain_pass_each(model):
    for made in (None, vectors(model)):
        fast = ll.answer_logprobs(model, PROMPTS, ANSWERS, made)
        for i, sequence in enumerate(encode(model, PROMPTS, ANSWERS, eos=False)):
            with torch.no_grad(), ll.attached(model, made):
                logprobs = model(torch.tensor([sequence.prompt + sequence.answer]))[0].log_softmax(-1)
            positions = range(len(sequence.prompt) - 1, len(sequence) - 1)
            plain = sum(logprobs[p, t] for p, t in zip(positions, sequence.answer, strict=True))
            assert fast[i].item() == pytest.approx(plain.item(), abs=SCORE_ROUNDING)


#: With every short cut, padded batches behind shared prompts, and plain passes.
SHORT_CUTS = [{}, {"can_pack": False}, {"can_pack": False, "can_share_prefix": False}]


def without(model, monkeypatch, short_cuts) -> ModelInfo:
    info = dataclasses.replace(ll.check_model(model), **short_cuts)
    monkeypatch.setitem(models._CHECKED, model, info)
    return info


def test_every_family_shares_and_packs(model, caplog):
    info = ll.check_model(model)
    assert info.can_share_prefix
    assert info.can_pack == lens.is_bridge(model)
    caplog.set_level(logging.INFO)
    ll.answer_logprobs(model, PROMPTS, ANSWERS)
    window = lens.attention_window(model) if info.can_pack else None
    assert ("attention window of 8: batches are padded" in caplog.text) == (window is not None)


@pytest.mark.parametrize("short_cuts", SHORT_CUTS)
def test_answers_behind_one_prompt_equal_plain_passes_and_read_it_once(model, short_cuts, monkeypatch):
    info = without(model, monkeypatch, short_cuts)
    prompts = [prompt for prompt in PROMPTS[::2] for _ in ANSWERS]
    answers = ANSWERS * 2
    made = vectors(model)
    shapes = []
    look = (lens.z_hook(2), lambda z, hook: shapes.append(z.shape[:2]))
    with model.hooks(fwd_hooks=[look]):
        together = ll.answer_logprobs(model, prompts, answers, made)
    alone = [ll.answer_logprobs(model, [p], [a], made).item() for p, a in zip(prompts, answers, strict=True)]
    assert together.tolist() == pytest.approx(alone, abs=SCORE_ROUNDING)
    sequences = encode(model, prompts, answers, eos=False)
    longest = max(len(sequence.prompt) for sequence in sequences)
    if info.can_pack and lens.attention_window(model) is None:
        tree = {sequence.read[: n + 1] for sequence in sequences for n in range(len(sequence.read))}
        assert shapes == [(1, len(tree))]
    elif info.can_share_prefix:
        assert shapes == [(2, longest - 1), (6, max(map(len, ANSWERS)))]
    else:
        assert shapes == [(6, max(len(sequence.read) for sequence in sequences))]


def test_a_beginning_that_all_prompts_share_is_read_once(model):
    """Longer than the sliding windows of the tiny models, with questions of several lengths and answers to each."""
    preset = "Answer truthfully and shortly.\n\nQ: one?\nA: 1."
    questions = ["Q: two?\nA:", "Q: three?\nA:", "Q: six?\nA:", "Q: two or three?\nA:"]
    prompts = [f"{preset}\n\n{question}" for question in questions for _ in ANSWERS]
    answers = ANSWERS * len(questions)
    made = vectors(model)
    read = []
    look = (lens.z_hook(0), lambda z, hook: read.append(z.shape[0] * z.shape[1]))
    with model.hooks(fwd_hooks=[look]):
        together = ll.answer_logprobs(model, prompts, answers, made)
    sequences = encode(model, prompts, answers, eos=False)
    for i, sequence in enumerate(sequences):
        with torch.no_grad(), ll.attached(model, made):
            logprobs = model(torch.tensor([sequence.prompt + sequence.answer]))[0].log_softmax(-1)
        positions = range(len(sequence.prompt) - 1, len(sequence) - 1)
        plain = sum(logprobs[p, t] for p, t in zip(positions, sequence.answer, strict=True))
        assert together[i].item() == pytest.approx(plain.item(), abs=SCORE_ROUNDING)
    assert sum(read) < 0.3 * sum(map(len, sequences))
    texts = ll.generate(model, prompts[::3], made, max_new_tokens=4)
    assert texts == [ll.generate(model, [prompt], made, max_new_tokens=4)[0] for prompt in prompts[::3]]


@pytest.mark.parametrize("short_cuts", SHORT_CUTS)
def test_exact_match_equals_generating_everything(model, short_cuts, monkeypatch, toy_task):
    without(model, monkeypatch, short_cuts)
    texts = ll.generate(model, PROMPTS, max_new_tokens=5)
    gold = [texts[0] or "x", "no", texts[2] or "x"]
    examples = [Example(p, a) for p, a in zip(PROMPTS, gold, strict=True)]
    result = ll.evaluate(model, toy_task({"test": examples}, max_new_tokens=5, stop=()))
    assert list(result.texts) == texts


def test_the_last_mlp_runs_at_answers_only_unless_someone_looks(model):
    assert ll.check_model(model).can_trim_last_mlp == lens.is_bridge(model)
    batch = collate(model, encode(model, PROMPTS, ANSWERS, eos=True))
    seen = []
    look = [("blocks.2.hook_mlp_out", lambda value, hook: seen.append(value.clone()))]
    with torch.no_grad():
        trimmed = answer_logits(model, batch)
        with model.hooks(fwd_hooks=look):
            looked_at = answer_logits(model, batch)
            plain = model(batch.tokens, attention_mask=batch.attention_mask)[batch.rows, batch.columns]
    assert torch.equal(*seen)
    assert torch.allclose(trimmed, plain, atol=ROUNDING)
    assert torch.allclose(looked_at, plain, atol=ROUNDING)


@pytest.mark.parametrize("beneath", [None, ll.HeadIntervention((ll.Head(0, 1),), torch.ones(1, 16), positions="generated")])
def test_resuming_is_bit_equal_and_no_layer_is_run_in_vain(model, beneath):
    layer = 2
    made = ll.HeadIntervention((ll.Head(layer, 1),), offset=torch.ones(1, 16))
    # Longest first, as the store runs them: all three together.
    sequences = sorted(encode(model, PROMPTS, ANSWERS, eos=True), key=lambda sequence: -len(sequence))
    batch = collate(model, sequences)
    store = ResidualStore(model, layer)
    touched = []
    watch = [(lens.z_hook(i), lambda z, hook, i=i: touched.append(i)) for i in range(3)]
    with torch.no_grad(), ll.attached(model, beneath), model.hooks(fwd_hooks=watch):
        store.fill(model, sequences, TOKEN_BUDGET)
        with ll.attached(model, made):
            resumed = answer_logits(model, batch, store.resumption(range(3), batch.tokens.shape[1]))
    assert touched == [0, 1, 2]
    with torch.no_grad(), ll.attached(model, beneath), ll.attached(model, made):
        assert torch.equal(resumed, answer_logits(model, batch))


def test_what_is_stored_does_not_depend_on_the_order_of_the_sequences(model):
    sequences = encode(model, PROMPTS, ANSWERS, eos=True)
    there, back = ResidualStore(model, 1), ResidualStore(model, 1)
    there.fill(model, sequences, TOKEN_BUDGET)
    back.fill(model, sequences[::-1], TOKEN_BUDGET)
    width = max(map(len, sequences))
    assert torch.equal(there.resumption([0, 1, 2], width).residual, back.resumption([2, 1, 0], width).residual)


def test_nothing_is_stored_below_the_first_layer_or_where_the_pass_cannot_resume(model, monkeypatch):
    sequences = encode(model, PROMPTS, ANSWERS, eos=True)
    stores = [ResidualStore(model, 0)]
    monkeypatch.setitem(models._CHECKED, model, dataclasses.replace(ll.check_model(model), can_resume=False))
    stores.append(ResidualStore(model, 2))
    passes = []
    with model.hooks(fwd_hooks=[(lens.z_hook(0), lambda z, hook: passes.append(1))]):
        for store in stores:
            store.fill(model, sequences, TOKEN_BUDGET)
            assert store.resumption(range(3), 40) is None
    assert passes == []


def test_residuals_beyond_the_memory_budget_go_to_disk_and_back(model):
    sequences = encode(model, PROMPTS, ANSWERS, eos=True)
    batch = collate(model, sequences)
    stores = [ResidualStore(model, 1), ResidualStore(model, 1, memory_budget=0)]
    kept = []
    for store in stores:
        store.fill(model, sequences, TOKEN_BUDGET)
        kept.append(store.resumption(range(3), batch.tokens.shape[1]).residual)
        store.close()
    assert torch.equal(*kept)


def test_shared_residuals_are_run_once_and_are_the_same(model, tmp_path, monkeypatch):
    if lens.is_hooked(model):
        pytest.skip("this model has hooks of its own, under which nothing is shared")
    sequences = encode(model, PROMPTS, ANSWERS, eos=True)
    passes, plain_forward = [], lens.plain_forward
    monkeypatch.setattr(lens, "plain_forward", lambda *args: passes.append(1) or plain_forward(*args))

    def n_kept_after(layer=1, texts=sequences, token_budget=TOKEN_BUDGET):
        ResidualStore(model, layer).fill(model, texts, token_budget)
        return len(list(tmp_path.iterdir()))

    def residuals():
        store = ResidualStore(model, 1)
        store.fill(model, sequences, TOKEN_BUDGET)
        return store.resumption(range(3), max(map(len, sequences))).residual

    plain = residuals()
    with residuals_shared(tmp_path):
        assert torch.equal(residuals(), plain)
        n_passes = len(passes)
        assert torch.equal(residuals(), plain)
        assert len(passes) == n_passes
        # Another block, other texts, other batches: other residuals.
        assert (n_kept_after(), n_kept_after(layer=2), n_kept_after(texts=sequences[:2])) == (1, 2, 3)
        assert n_kept_after(token_budget=40) == 4
        with model.hooks(fwd_hooks=[(lens.z_hook(0), lambda z, hook: z * 2)]):
            assert n_kept_after(texts=sequences[1:]) == 4, "what somebody's hooks do to residuals is nobody else's"
    assert n_kept_after(texts=sequences[1:]) == 4


def test_a_model_that_cannot_resume_is_fitted_by_the_plain_pass(model, monkeypatch, toy_task):
    task = toy_task({"train": [Example(p, a) for p, a in zip(PROMPTS, ANSWERS, strict=True)]})
    method = ll.methods.LoFiT(heads=((2, 1), (2, 3)), offset_epochs=3, batch_size=2, offset_lr=0.1)
    fast = method.fit(model, task).intervention.offset
    monkeypatch.setitem(models._CHECKED, model, dataclasses.replace(ll.check_model(model), can_resume=False))
    plain = method.fit(model, task).intervention.offset
    # Residuals of another batch composition differ by rounding, and AdamW divides by small numbers.
    assert torch.allclose(fast, plain, atol=1e-3)
    assert fast.abs().max() > 0.05


def test_generation_equals_full_passes_token_by_token(model):
    made = vectors(model)
    texts = ll.generate(model, PROMPTS, made, max_new_tokens=5)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        ids = list(encode_prompt(model, prompt))
        new = []
        with torch.no_grad(), ll.attached(model, made):
            while len(new) < 5 and model.tokenizer.eos_token_id not in new:
                new.append(model(torch.tensor([ids + new]))[0, -1].argmax().item())
        assert text == model.tokenizer.decode([t for t in new if t != model.tokenizer.eos_token_id], skip_special_tokens=True)


@pytest.mark.parametrize("short_cuts", SHORT_CUTS)
def test_generation_does_not_depend_on_the_batch(model, short_cuts, monkeypatch):
    info = without(model, monkeypatch, short_cuts)
    prompts = [*PROMPTS, "And another", "Once upon a time", PROMPTS[1]]
    alone = [ll.generate(model, [prompt], max_new_tokens=12)[0] for prompt in prompts]
    assert ll.generate(model, prompts, max_new_tokens=12) == alone
    assert ll.generate(model, prompts, max_new_tokens=12, token_budget=1) == alone
    rows = []
    look = (lens.z_hook(0), lambda z, hook: rows.append(z.shape[0]) if z.shape[1] == 1 else None)
    with model.hooks(fwd_hooks=[look]):
        # A prompt at a time comes in, and those whose answers have not ended go on together.
        assert ll.generate(model, prompts, max_new_tokens=12, token_budget=60) == alone
    # Without a cache only a prompt of one token is ever read alone.
    n_alone = sum(len(encode_prompt(model, prompt)) == 1 for prompt in prompts)
    assert max(rows) > min(rows) if info.can_share_prefix else max(rows, default=0) <= n_alone


@pytest.mark.parametrize("short_cuts", SHORT_CUTS)
def test_activations_equal_one_plain_pass_each(model, short_cuts, monkeypatch):
    without(model, monkeypatch, short_cuts)
    prompts = [*PROMPTS, *PROMPTS[::2]]
    answers = [*ANSWERS, " there was", " wolves"]
    together = collect_z(model, prompts, answers)
    sequences = encode(model, prompts, answers, eos=False)
    for layer in range(model.cfg.n_layers):
        for i, sequence in enumerate(sequences):
            alone = []
            look = (lens.z_hook(layer), lambda z, hook, alone=alone: alone.append(z[0, -1].clone()))
            with torch.no_grad(), model.hooks(fwd_hooks=[look]):
                model(torch.tensor([sequence.prompt + sequence.answer]))
            assert torch.allclose(together[layer, i], alone[0], atol=1e-4)


@torch.no_grad()
def test_activations_at_other_tokens_and_in_some_layers_equal_a_plain_pass(model):
    (sequence,) = encode(model, [PROMPTS[0]], [ANSWERS[0]], eos=False)
    tokens = torch.tensor([sequence.prompt + sequence.answer])
    before, was_hooked = model(tokens), lens.is_hooked(model)
    first, last = 0, model.cfg.n_layers - 1
    seen = {}
    names = {layer: (lens.z_hook(layer), lens.resid_post_hook(model, layer)) for layer in (last, first)}
    look = [
        (name, lambda value, hook, name=name: seen.update({name: value[0].clone()})) for both in names.values() for name in both
    ]
    with model.hooks(fwd_hooks=look):
        model(tokens)
    for position in (1, len(sequence.prompt) - 1, -2):
        given = (model, [PROMPTS[0], "Another"], [ANSWERS[0], " one, and more"])
        positions = [position, -1]
        z = collect_z(*given, layers=[last, first], positions=positions)
        h = collect_residual(*given, layers=[last, first], positions=positions)
        for row, layer in enumerate((last, first)):
            z_name, h_name = names[layer]
            assert torch.allclose(z[row, 0], seen[z_name][position], atol=1e-4)
            assert torch.allclose(h[row, 0], seen[h_name][position], atol=1e-4)
    # Passes that were cut off behind the last layer looked at have left nothing behind.
    assert lens.is_hooked(model) == was_hooked
    assert torch.equal(model(tokens), before)


@torch.no_grad()
def test_rows_that_meet_shed_the_padding_that_others_have_left(model):
    long, short, other = (encode_prompt(model, prompt) for prompt in (PROMPTS[0], "Once upon", "A tale of"))
    left_alone = unread_prefix(model, [long, short]).read_on(model).select([1])
    assert left_alone.n_read == len(long) - 1
    joined = left_alone.joined(unread_prefix(model, [other]).read_on(model))
    assert joined.n_read == max(len(short), len(other)) - 1
    tokens = torch.tensor(joined.unread)
    mask = torch.cat([joined.mask, torch.ones_like(tokens)], dim=-1)
    logits, _ = caches.forward_with_cache(model, tokens, mask, joined.cache)
    for row, prompt in enumerate((short, other)):
        assert torch.allclose(logits[row, -1], model(torch.tensor([prompt]))[0, -1], atol=1e-4)


def test_lofit_learns_and_leaves_the_model_as_it_was(model, toy_task, tmp_path):
    before = logits_of(model)
    wanted_gradient = [weight.requires_grad for weight in lens.weights(model)]
    task = toy_task({"train": [Example(p, a) for p, a in zip(PROMPTS, ANSWERS, strict=True)]})
    method = ll.methods.LoFiT(k=2, scale_lr=0.05, offset_lr=0.1, scale_epochs=2, offset_epochs=10, batch_size=3)
    fit = method.fit(model, task)
    assert fit.losses["offset"][-1] < 0.95 * fit.losses["offset"][0]
    assert torch.equal(logits_of(model), before)
    assert [weight.requires_grad for weight in lens.weights(model)] == wanted_gradient
    assert all(weight.grad is None for weight in lens.weights(model))
    fit.intervention.save(tmp_path / "adapter", model)
    again = ll.HeadIntervention.load(tmp_path / "adapter", model)
    assert torch.equal(logits_of(model, again), logits_of(model, fit.intervention))


def test_bridge_and_hooked_transformer_agree(hooked_pair, tmp_path):
    bridge, hooked = hooked_pair
    made = vectors(bridge)
    for edit in (None, made):
        theirs = ll.answer_logprobs(hooked, PROMPTS, ANSWERS, edit)
        assert torch.allclose(ll.answer_logprobs(bridge, PROMPTS, ANSWERS, edit), theirs, atol=SCORE_ROUNDING)
    assert ll.generate(bridge, PROMPTS, made, max_new_tokens=5) == ll.generate(hooked, PROMPTS, made, max_new_tokens=5)
    made.save(tmp_path / "adapter", bridge)
    assert torch.equal(ll.HeadIntervention.load(tmp_path / "adapter", hooked).offset, made.offset)


def test_smollm2_agrees_on_both(hooked_smollm2):
    bridge, hooked = hooked_smollm2
    prompts, answers = ["The capital of France is", "Two plus two is"], [" Paris", " four"]
    heads = ll.random_scores(bridge).top(0.1)
    made = ll.HeadIntervention(heads, offset=0.1 * torch.randn(27, 64, generator=torch.Generator().manual_seed(0)))
    for edit in (None, made):
        theirs = ll.answer_logprobs(hooked, prompts, answers, edit)
        # 30 layers whose attention is computed in another order of operations.
        assert torch.allclose(ll.answer_logprobs(bridge, prompts, answers, edit), theirs, atol=1e-3)
    assert ll.generate(hooked, prompts[:1], max_new_tokens=3)[0].startswith(" Paris")
    assert models.fingerprint(bridge) == models.fingerprint(hooked)


def test_processed_models_are_refused_with_the_way_out(hooked_pair):
    _, hooked = hooked_pair
    # A configuration of its own: folding writes into it, and others use this model.
    folded = type(hooked)(copy.deepcopy(hooked.cfg), tokenizer=hooked.tokenizer)
    folded.load_and_process_state_dict(hooked.state_dict(), fold_ln=True)
    with pytest.raises(ValueError, match="from_pretrained_no_processing"):
        ll.check_model(folded)


def test_folded_values_are_refused(new_hooked_transformer):
    model = new_hooked_transformer()
    ll.check_model(model)
    model = new_hooked_transformer()
    model.load_and_process_state_dict(model.state_dict(), fold_ln=False, center_writing_weights=False, fold_value_biases=True)
    with pytest.raises(ValueError, match="value biases"):
        ll.check_model(model)


def test_a_compatibility_mode_bridge_is_refused():
    model = ll.tiny_model("gpt2")
    model.enable_compatibility_mode()
    with pytest.raises(ValueError, match="enable_compatibility_mode"):
        ll.answer_logprobs(model, PROMPTS, ANSWERS)


def test_something_else_is_refused():
    with pytest.raises(TypeError, match="boot_transformers"):
        ll.check_model(torch.nn.Linear(2, 2))
