"""The training loop, against the same steps written plainly on the bare Hugging Face model."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lofit_lens import check_model, load_model, models, tiny_model
from lofit_lens.fitting import (
    NonFiniteLossError,
    Optimisation,
    fit_vectors,
)
from lofit_lens.heads import Head
from lofit_lens.interventions import HeadIntervention
from lofit_lens.objectives import AnswerObjective, PreferenceObjective, mean_loss, objective_of
from lofit_lens.tasks.base import Example
from lofit_lens.tiny import tiny_pair

D_HEAD = 16
BETA = 0.5
HEADS = (Head(2, 3), Head(0, 1), Head(0, 0), Head(1, 2))
EXAMPLES = [
    Example("how is Ann related to Bo? ", "aunt", rejected=("uncle", "cousin")),
    Example("Q: 2+2\nA:", " four", rejected=(" five",)),
    Example("x", " y", rejected=(" and so on",)),
    Example("the capital of France is", " Paris", rejected=(" Rome",)),
    Example("yes or no?", " no", rejected=(" yes",)),
]
#: So small a step that the vectors stay where they start, to 12 digits.
STANDING_STILL = Optimisation(learning_rate=1e-12, epochs=1)


def objective(model, kind: str, examples=tuple(EXAMPLES)):
    return PreferenceObjective(model, examples, BETA) if kind == "dpo" else AnswerObjective(model, examples)


def fit(model, loss: str, kind, optimisation: Optimisation, *, seed: int = 0, heads=HEADS, examples=tuple(EXAMPLES)):
    return fit_vectors(
        model, objective(model, loss, examples), heads, kind, optimisation, seed=seed, description="test", settings={}
    )


# The plain way


def plain_logprobs(hf_model, tokenizer, example: Example, answer: str) -> Tensor:
    """Log-probability of each token of `answer` and of the end of sequence: one sequence, no padding, all logits."""
    prompt = tokenizer(example.prompt)["input_ids"]
    targets = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    logits = hf_model(torch.tensor([prompt + targets])).logits[0]
    logprobs = logits.log_softmax(-1)
    return torch.stack([logprobs[len(prompt) - 1 + i, target] for i, target in enumerate(targets)])


def plain_fit(family: str, loss: str, kind: str, start: Tensor, optimisation: Optimisation) -> tuple[Tensor, list[float]]:
    """Every step on all examples: the paper's loop, with the paper's edit head by head in front of the output projection."""
    hf_model, tokenizer = tiny_pair(family)
    with torch.no_grad():
        reference = [[plain_logprobs(hf_model, tokenizer, e, a).sum() for a in (e.answer, e.rejected[0])] for e in EXAMPLES]
    vectors = start.clone().requires_grad_()

    def edit_of(layer: int) -> Callable[..., Tensor]:
        def edit(projection, inputs) -> Tensor:
            pieces = list(inputs[0].split(D_HEAD, dim=-1))
            for head, vector in zip(HEADS, vectors, strict=True):
                if head.layer == layer:
                    pieces[head.index] = (1 + vector) * pieces[head.index] if kind == "scale" else pieces[head.index] + vector
            return torch.cat(pieces, dim=-1)

        return edit

    for layer in range(3):
        block = hf_model.transformer.h[layer].attn.c_proj if family == "gpt2" else hf_model.model.layers[layer].self_attn.o_proj
        block.register_forward_pre_hook(edit_of(layer))

    def batch_loss() -> Tensor:
        if loss == "cross_entropy":
            return -torch.cat([plain_logprobs(hf_model, tokenizer, e, e.answer) for e in EXAMPLES]).mean()
        margins = []
        for e, (reference_chosen, reference_rejected) in zip(EXAMPLES, reference, strict=True):
            chosen = plain_logprobs(hf_model, tokenizer, e, e.answer).sum()
            rejected = plain_logprobs(hf_model, tokenizer, e, e.rejected[0]).sum()
            margins.append((chosen - reference_chosen) - (rejected - reference_rejected))
        return -torch.sigmoid(BETA * torch.stack(margins)).log().mean()

    optimiser = torch.optim.AdamW([vectors], weight_decay=optimisation.weight_decay)
    losses = []
    for step in range(optimisation.epochs):
        optimiser.param_groups[0]["lr"] = optimisation.learning_rate * (1 - step / optimisation.epochs)
        optimiser.zero_grad()
        value = batch_loss()
        per_head = {"entries": Tensor.abs, "heads": lambda head: head.square().sum().mul(len(head)).sqrt()}[
            optimisation.penalised
        ]
        (value + optimisation.l1 * sum(per_head(head).sum() for head in vectors)).backward()
        torch.nn.utils.clip_grad_norm_([vectors], optimisation.clip_norm)
        optimiser.step()
        losses.append(value.item())
    return vectors.detach(), losses


@pytest.mark.parametrize("loss", ["cross_entropy", "dpo"])
@pytest.mark.parametrize("kind", ["scale", "offset"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("penalised", ["entries", "heads"])
def test_three_steps_equal_the_same_steps_written_plainly(request, family, kind, loss, penalised):
    # A start large enough that no |entry| is near 0, where the penalty's gradient jumps; a clip that cuts.
    settings = {"batch_size": 8, "l1": 5e-3, "penalised": penalised, "weight_decay": 0.1, "clip_norm": 0.05, "init_std": 0.1}
    model = request.getfixturevalue(family)
    start, _ = fit(model, loss, kind, dataclasses.replace(STANDING_STILL, **settings))
    optimisation = Optimisation(learning_rate=1e-2, epochs=3, **settings)
    vectors, losses = fit(model, loss, kind, optimisation)
    wanted, wanted_losses = plain_fit(family, loss, kind, start, optimisation)
    # AdamW divides by the gradient's own size, so entries with the smallest gradients keep the fewest digits:
    # 1e-4 of steps that add up to 2e-2.
    torch.testing.assert_close(vectors, wanted, rtol=0, atol=2e-6)
    assert losses == pytest.approx(wanted_losses, rel=1e-5)
    assert (vectors - start).abs().mean() > 1e-3
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("loss", ["cross_entropy", "dpo"])
def test_the_mean_loss_is_that_of_a_step_on_all_examples_though_prompts_are_read_once(llama, loss):
    behind_one_preset = [dataclasses.replace(example, prompt=f"Answer! {example.prompt}") for example in EXAMPLES]
    settings = dataclasses.replace(STANDING_STILL, init_std=0.3)
    vectors, (of_the_step,) = fit(llama, loss, "offset", settings, examples=behind_one_preset)
    edit = HeadIntervention(HEADS, torch.zeros_like(vectors), vectors)
    assert mean_loss(llama, objective(llama, loss, behind_one_preset), edit) == pytest.approx(of_the_step, rel=1e-5)
    assert mean_loss(llama, objective(llama, loss, behind_one_preset), None) != pytest.approx(of_the_step, rel=1e-2)


# How examples are batched


def test_each_epoch_passes_over_each_example_once_in_its_own_order(llama):
    optimisation = dataclasses.replace(STANDING_STILL, epochs=2, batch_size=1, init_std=0.0)
    alone = [fit(llama, "cross_entropy", "offset", STANDING_STILL, examples=[e])[1][0] for e in EXAMPLES]
    orders = []
    for seed in (0, 1):
        _, losses = fit(llama, "cross_entropy", "offset", optimisation, seed=seed)
        # Nothing is learned, so the loss says which example it is of; vectors of size 1e-3 or 0 change its third digit.
        order = [min(range(5), key=lambda i, loss=loss: abs(alone[i] - loss)) for loss in losses]
        assert sorted(order[:5]) == sorted(order[5:]) == [0, 1, 2, 3, 4]
        orders += [order[:5], order[5:]]
    assert len(set(map(tuple, orders))) > 1


def test_the_last_batch_of_an_epoch_may_be_smaller(llama):
    _, losses = fit(llama, "cross_entropy", "offset", Optimisation(1e-3, epochs=2, batch_size=2))
    assert len(losses) == 6


def test_the_loss_is_reported_without_the_penalty(llama):
    settings = dataclasses.replace(STANDING_STILL, init_std=0.1)
    _, plain = fit(llama, "cross_entropy", "scale", settings)
    _, penalised = fit(llama, "cross_entropy", "scale", dataclasses.replace(settings, l1=100.0))
    assert penalised == plain


KINDS_OF_FIT = [
    ("gpt2", "scale", "dpo"),
    ("gpt2", "offset", "cross_entropy"),
    ("llama", "scale", "cross_entropy"),
    ("llama", "offset", "dpo"),
    ("gemma3", "offset", "cross_entropy"),
]


@pytest.mark.parametrize(("family", "kind", "loss"), KINDS_OF_FIT)
def test_a_small_token_budget_changes_nothing_but_the_rounding(request, family, kind, loss):
    model = request.getfixturevalue(family)
    results = []
    for token_budget in (1, 60, 2048):
        optimisation = Optimisation(1e-2, epochs=2, batch_size=4, init_std=0.1, token_budget=token_budget)
        results.append(fit(model, loss, kind, optimisation))
    for vectors, losses in results[1:]:
        # As above: AdamW keeps fewest digits of the entries with the smallest gradients.
        torch.testing.assert_close(vectors, results[0][0], rtol=0, atol=2e-6)
        assert losses == pytest.approx(results[0][1], rel=1e-5)


# What makes it fast


@pytest.mark.parametrize(("family", "kind", "loss"), KINDS_OF_FIT)
def test_resuming_above_the_frozen_layers_changes_nothing_but_the_rounding(request, family, kind, loss, monkeypatch):
    model = request.getfixturevalue(family)
    heads = (Head(2, 3), Head(1, 0), Head(2, 0))
    optimisation = Optimisation(1e-2, epochs=3, batch_size=2, init_std=0.1)
    passes = []

    def run() -> tuple[Tensor, tuple[float, ...]]:
        passes.append(0)

        def count(z, hook):
            passes[-1] += 1

        examples = objective(model, loss)
        with model.hooks(fwd_hooks=[("blocks.0.attn.hook_z", count)]):
            return fit_vectors(model, examples, heads, kind, optimisation, seed=0, description="test", settings={})

    assert models.check_model(model).can_resume
    vectors, losses = run()
    monkeypatch.setitem(models._CHECKED, model, dataclasses.replace(models.check_model(model), can_resume=False))
    all_layers_vectors, all_layers_losses = run()
    assert passes == [1, 9], "block 0 runs once for all examples, and without resuming for three batches in three epochs"
    torch.testing.assert_close(vectors, all_layers_vectors, rtol=0, atol=2e-6)
    assert losses == pytest.approx(all_layers_losses, rel=1e-5)


# Seeds


def test_the_same_seed_gives_the_same_vectors_and_another_seed_others(llama):
    optimisation = Optimisation(1e-2, epochs=2, batch_size=2)
    first, again, other = (fit(llama, "cross_entropy", "offset", optimisation, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("std", [1e-3, 0.5])
def test_the_start_is_normal_noise_of_the_asked_size(llama, std):
    heads = tuple(Head(*head) for head in models.check_model(llama).all_heads)
    start, _ = fit(llama, "cross_entropy", "scale", dataclasses.replace(STANDING_STILL, init_std=std), heads=heads)
    # Of 192 draws the mean is known to std / 14 and the standard deviation to std / 20; four of each.
    assert start.mean().abs() < std * 4 / 14
    assert abs(start.std().item() / std - 1) < 4 / 20


def test_the_global_random_state_is_not_touched(llama):
    before = torch.get_rng_state()
    fit(llama, "cross_entropy", "offset", Optimisation(1e-2, epochs=1))
    assert torch.equal(torch.get_rng_state(), before)


# What is left behind


TOKENS = torch.arange(3, 19).reshape(2, 8)


def test_the_model_is_afterwards_as_it_was_before():
    model = tiny_model("llama")
    weights = list(model.original_model.parameters())
    for weight in weights[::2]:
        weight.requires_grad_(True)
    wanted_gradient = [weight.requires_grad for weight in weights]
    logits = model(TOKENS)
    fit(model, "dpo", "offset", Optimisation(1e-2, epochs=2), heads=(Head(1, 0),))
    assert [weight.requires_grad for weight in weights] == wanted_gradient
    assert all(weight.grad is None for weight in weights)
    assert torch.equal(model(TOKENS), logits)
    assert not any("forward" in vars(block) for block in model.blocks)


def test_the_vectors_come_back_without_a_graph(llama):
    vectors, _ = fit(llama, "cross_entropy", "offset", Optimisation(1e-2, epochs=1))
    assert not vectors.requires_grad
    assert vectors.shape == (4, D_HEAD)


def test_it_learns_where_gradients_are_switched_off_outside(llama):
    with torch.no_grad():
        _, losses = fit(llama, "cross_entropy", "offset", Optimisation(1e-1, epochs=8, batch_size=8))
    assert losses[-1] < losses[0] - 0.1


# Errors


def test_a_learning_rate_that_explodes_stops_the_fit_and_is_named():
    # Vectors are float32 and can grow that far; cast to a float16 model's z they are infinite.
    model = load_model("tiny-llama", dtype=torch.float16)
    weights = list(model.original_model.parameters())
    weights[0].requires_grad_(True)
    wanted_gradient = [weight.requires_grad for weight in weights]
    logits = model(TOKENS)
    with pytest.raises(NonFiniteLossError, match=r"at step 2 of 3 \(test\), examples \[.*\], learning rate 6\.67e\+05"):
        fit(model, "cross_entropy", "offset", Optimisation(1e6, epochs=3, batch_size=8))
    assert [weight.requires_grad for weight in weights] == wanted_gradient
    assert torch.equal(model(TOKENS), logits)


@pytest.mark.parametrize("kind", ["scale", "offset"])
def test_a_model_that_gives_nan_stops_at_the_first_step(kind):
    model = tiny_model("llama")
    check_model(model)
    with torch.no_grad():
        next(iter(model.blocks[2].mlp.parameters())).fill_(float("inf"))
    with pytest.raises(NonFiniteLossError, match=r"the loss is nan .* at step 1 of 5 .*learning rate 1\.00e-02"):
        fit(model, "cross_entropy", kind, Optimisation(1e-2, batch_size=8))


def test_a_preference_task_without_a_rejected_answer_is_refused(llama, toy_task):
    task = toy_task({"train": [EXAMPLES[0], Example("what is it?", " this")]}, loss="dpo")
    with pytest.raises(ValueError, match=r"example 1 has no rejected answer; DPO needs one: 'what is it\?'"):
        objective_of(llama, task, dpo_beta=BETA)


@pytest.mark.parametrize("beta", [0.0, -0.5, math.nan])
def test_a_beta_that_turns_preferences_round_or_off_is_refused(llama, toy_task, beta):
    with pytest.raises(ValueError, match=f"got dpo_beta {beta}; wanted a number above 0"):
        objective_of(llama, toy_task({"train": EXAMPLES}, loss="dpo"), dpo_beta=beta)


def test_an_empty_training_split_is_named(llama, toy_task):
    with pytest.raises(ValueError, match="the train split of task 'toy' is empty"):
        objective_of(llama, toy_task({"test": EXAMPLES}), dpo_beta=BETA)


@pytest.mark.parametrize(("loss", "kind"), [("cross_entropy", AnswerObjective), ("dpo", PreferenceObjective)])
def test_the_task_names_the_loss(llama, toy_task, loss, kind):
    assert type(objective_of(llama, toy_task({"train": EXAMPLES}, loss=loss), dpo_beta=BETA)) is kind


def test_heads_that_the_model_does_not_have_are_refused(llama):
    with pytest.raises(ValueError, match="L3H0 is out of range"):
        fit(llama, "cross_entropy", "offset", Optimisation(1e-2), heads=(Head(3, 0),))
    with pytest.raises(ValueError, match="no heads given"):
        fit(llama, "cross_entropy", "offset", Optimisation(1e-2), heads=())


def test_the_reference_of_dpo_keeps_to_the_token_budget_too(llama, toy_task):
    sizes = []
    task = toy_task({"train": EXAMPLES}, loss="dpo")
    with llama.hooks(fwd_hooks=[("blocks.0.attn.hook_z", lambda z, hook: sizes.append(z.shape[0] * z.shape[1]))]):
        objective_of(llama, task, dpo_beta=BETA, token_budget=40)
        assert max(sizes) <= 40
        sizes.clear()
        objective_of(llama, task, dpo_beta=BETA)
    assert max(sizes) > 40
