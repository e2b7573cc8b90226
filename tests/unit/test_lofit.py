"""LoFiT: it finds the head that a signal was planted in, and learns there what cannot be learned elsewhere."""

import dataclasses
import json
import math
import random

import pytest
import torch

from lofit_lens import HeadIntervention, answer_logprobs, attached, generate, random_scores
from lofit_lens.heads import Head
from lofit_lens.methods import LoFiT
from lofit_lens.tasks.base import Example

ALL_HEADS = [Head(layer, index) for layer in range(3) for index in range(4)]


def taught_by(speaker, teacher: HeadIntervention, n: int, longest: int) -> list[Example]:
    """Prompts on which the edited model's answer is another than the bare model's: right is the edited model's."""
    letters = random.Random(0)
    prompts = ["".join(letters.choices("abcdefghijklmnopqrstuvwxyz ", k=letters.randint(5, 20))) for _ in range(4 * n)]
    taught, bare = (generate(speaker, prompts, edit, max_new_tokens=longest + 1) for edit in (teacher, None))
    return [
        Example(prompt, new, rejected=(old or "?",))
        for prompt, new, old in zip(prompts, taught, bare, strict=True)
        if 0 < len(new) <= longest and new != old
    ][:n]


# Planted truth


@pytest.mark.parametrize(
    ("planted", "strength", "loss"),
    [
        (Head(0, 2), 4.0, "cross_entropy"),
        (Head(1, 0), -3.0, "cross_entropy"),
        (Head(2, 3), -3.0, "cross_entropy"),
        (Head(2, 3), -3.0, "dpo"),
    ],
)
def test_selection_puts_the_head_that_carries_the_signal_first(speaker, toy_task, planted, strength, loss):
    teacher = HeadIntervention((planted,), scale=torch.full((1, 16), strength))
    task = toy_task({"train": taught_by(speaker, teacher, 48, longest=7)}, loss=loss)
    lofit = LoFiT(l1=5e-3, scale_lr=2e-2, scale_epochs=10, offset_epochs=1)
    scores = lofit.select(speaker, task, seed=0)
    losses = lofit.fit(speaker, task, seed=0).losses["selection"]
    first, second = scores.top(2)
    assert first == planted
    assert scores[first] > 1.1 * scores[second]
    assert len(scores.rank()) == 12
    assert (scores.quantity, scores.made_by["task"]) == ("norm of the learned scaling", "toy")
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])


def test_lofit_with_one_head_selects_it_and_beats_random_heads_on_held_out_examples(speaker, toy_task):
    planted = Head(1, 3)
    offset = 0.5 * torch.randn(1, 16, generator=torch.Generator().manual_seed(1))
    examples = taught_by(speaker, HeadIntervention((planted,), scale=torch.full((1, 16), -3.0), offset=offset), 45, longest=15)
    task = toy_task({"train": examples[:30], "test": examples[30:]})
    lofit = LoFiT(k=1, l1=5e-3, scale_lr=2e-2, offset_lr=5e-2, scale_epochs=10, offset_epochs=10)

    def held_out(fit) -> float:
        prompts, answers = zip(*((e.prompt, e.answer) for e in task.test), strict=True)
        return answer_logprobs(speaker, prompts, answers, fit.intervention).mean().item()

    fit = lofit.fit(speaker, task, seed=0)
    assert fit.intervention.heads == (planted,)
    controls = [head for head in random_scores(speaker).rank() if head != planted][:2]
    elsewhere = [dataclasses.replace(lofit, heads=(head,)).fit(speaker, task, seed=0) for head in controls]
    assert held_out(fit) > max(map(held_out, elsewhere)) + 0.5
    assert sum(fit.losses["offset"][-5:]) < min(sum(other.losses["offset"][-5:]) for other in elsewhere)


# What a fit is

EXAMPLES = [
    Example("how is Ann related to Bo? ", "aunt", rejected=("uncle",)),
    Example("Q: 2+2\nA:", " four", rejected=(" five",)),
    Example("x", " y", rejected=(" z",)),
]
SHORT = LoFiT(k=3, scale_epochs=1, offset_epochs=2, batch_size=2)


def test_a_fit_has_offsets_at_the_best_heads_and_says_how_it_was_made(model, toy_task):
    fit = SHORT.fit(model, toy_task({"train": EXAMPLES}), seed=7)
    assert fit.scores is not None
    assert fit.intervention.heads == fit.scores.top(3)
    assert fit.intervention.head_scores == tuple(fit.scores[head] for head in fit.intervention.heads)
    assert fit.intervention.scale is None
    assert fit.intervention.made_by == {
        "method": "LoFiT",
        "task": "toy",
        "task_settings": {},
        "seed": 7,
        "settings": SHORT.settings(),
    }
    assert {stage: len(losses) for stage, losses in fit.losses.items()} == {"selection": 2, "offset": 4}


def test_step_two_starts_from_the_base_model(llama, toy_task):
    task = toy_task({"train": EXAMPLES})
    both = SHORT.fit(llama, task, seed=0)
    second_alone = dataclasses.replace(SHORT, heads=both.intervention.heads).fit(llama, task, seed=0)
    assert torch.equal(second_alone.intervention.offset, both.intervention.offset)
    assert second_alone.losses["offset"] == both.losses["offset"]


def test_given_heads_skip_step_one_and_keep_their_order(llama, toy_task):
    heads = (Head(2, 1), Head(0, 3))
    fit = dataclasses.replace(SHORT, heads=heads).fit(llama, toy_task({"train": EXAMPLES}), seed=0)
    assert fit.intervention.heads == heads
    assert fit.scores is None
    assert fit.intervention.head_scores is None
    assert set(fit.losses) == {"offset"}


def test_a_fit_has_an_effect_and_survives_saving_bit_for_bit(llama, toy_task, tmp_path):
    tokens = torch.arange(3, 19).reshape(2, 8)
    fit = SHORT.fit(llama, toy_task({"train": EXAMPLES}), seed=0)
    fit.intervention.save(tmp_path / "adapter", llama)
    logits = []
    for intervention in (None, fit.intervention, HeadIntervention.load(tmp_path / "adapter", llama)):
        with attached(llama, intervention), torch.no_grad():
            logits.append(llama(tokens))
    assert torch.equal(logits[1], logits[2])
    assert (logits[1] - logits[0]).abs().max() > 1e-3


def test_the_same_seed_gives_the_same_fit_and_another_seed_another(llama, toy_task):
    fits = [SHORT.fit(llama, toy_task({"train": EXAMPLES}, loss="dpo"), seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(fits[0].intervention.offset, fits[1].intervention.offset)
    assert torch.equal(fits[0].scores.values, fits[1].scores.values)
    assert not torch.equal(fits[0].scores.values, fits[2].scores.values)


def test_step_one_can_penalise_whole_heads(llama, toy_task):
    task = toy_task({"train": EXAMPLES})

    def scores(l1, penalised):
        return dataclasses.replace(SHORT, l1=l1, penalised=penalised).select(llama, task).values

    assert torch.equal(scores(0.0, "heads"), scores(0.0, "entries"))
    assert not torch.equal(scores(0.1, "heads"), scores(0.1, "entries"))


def test_the_penalty_is_on_in_step_one_alone(llama, toy_task):
    task = toy_task({"train": EXAMPLES})
    plain, penalised = (
        dataclasses.replace(SHORT, l1=l1, scale_epochs=20, scale_lr=1e-3, heads=heads)
        for l1, heads in ((0.0, None), (1.0, None))
    )
    # Under a penalty larger than any gradient of the loss the scalings shrink from where they started.
    assert penalised.select(llama, task).values.max() < 0.5 * plain.select(llama, task).values.max()
    at = {"heads": (Head(1, 1),)}
    with_, without = (dataclasses.replace(lofit, **at).fit(llama, task) for lofit in (penalised, plain))
    assert torch.equal(with_.intervention.offset, without.intervention.offset)


def test_dpos_reference_is_the_bare_model_or_as_published_the_start(llama, toy_task):
    """Where nothing is learned yet, the first loss is log 2 if the reference has the same noise as the policy."""
    task = toy_task({"train": EXAMPLES}, loss="dpo")
    noisy = LoFiT(k=3, init_std=0.5, batch_size=3, scale_epochs=1, offset_epochs=1)
    first = {}
    for as_published in (False, True):
        fit = dataclasses.replace(noisy, as_published=as_published).fit(llama, task, seed=0)
        first[as_published] = [losses[0] for losses in fit.losses.values()]
    # Float32 sums of log-probabilities of order 50, in two kinds of batches.
    assert first[True] == pytest.approx([math.log(2)] * 2, abs=1e-4)
    assert all(abs(loss - math.log(2)) > 1e-2 for loss in first[False])


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 13}, "k = 13 heads asked for; wanted 1 to 12"),
        ({"heads": ((3, 0),)}, "L3H0 is out of range"),
        ({"heads": ((0, 0), (0, 0))}, "given twice: L0H0"),
        ({"heads": ()}, "no heads given"),
    ],
)
@pytest.mark.parametrize("loss", ["cross_entropy", "dpo"])
def test_heads_that_cannot_be_had_are_refused_before_anything_is_run(llama, toy_task, passes, settings, message, loss):
    with pytest.raises(ValueError, match=message):
        LoFiT(**settings).fit(llama, toy_task({"train": EXAMPLES}, loss=loss))
    assert passes == []


def test_a_task_that_cannot_be_trained_on_is_refused_before_anything_is_run(llama, toy_task, passes):
    with pytest.raises(ValueError, match="the train split of task 'toy' is empty"):
        LoFiT().fit(llama, toy_task({}))
    with pytest.raises(ValueError, match="no rejected answer"):
        LoFiT().fit(llama, toy_task({"train": [Example("a", "b")]}, loss="dpo"))
    assert passes == []


POSITIVE = ("scale_lr", "offset_lr", "clip_norm", "dpo_beta")


@pytest.mark.parametrize(
    "settings",
    [
        *({"k": k} for k in (0, -1, 0.0, 1.5, 2.0, math.nan, math.inf, True, "0.1")),
        *(
            {name: value}
            for name in ("scale_lr", "offset_lr", "clip_norm", "dpo_beta")
            for value in (0, -1e-3, math.nan, math.inf)
        ),
        *({name: value} for name in ("l1", "weight_decay", "init_std") for value in (-1e-3, math.nan, math.inf)),
        *({name: value} for name in ("scale_epochs", "offset_epochs", "batch_size", "token_budget") for value in (0, -1, 1.5)),
        {"heads": ((0, 1, 2),)},
        {"heads": "L0H1"},
    ],
)
def test_settings_out_of_range_are_refused_by_name(as_users_run_it, settings):
    [name] = settings
    with pytest.raises(ValueError, match=f"for LoFiT\n{name}"):
        LoFiT(**settings)


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError, match="learning_rate\n  Unexpected keyword argument"):
        LoFiT(learning_rate=1e-3)


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SHORT.k = 4


# Settings


@pytest.mark.parametrize(
    "lofit", [LoFiT(), LoFiT(k=27, heads=((2, 1), (0, 3)), l1=0.0), LoFiT.from_paper("gemma-7b", "mquake")]
)
def test_settings_are_json_and_make_the_method_again(lofit):
    settings = lofit.settings()
    assert json.loads(json.dumps(settings, allow_nan=False)) == settings
    assert LoFiT(**settings) == lofit


@pytest.mark.parametrize(
    ("model", "task", "share", "k", "l1", "scale_lr", "offset_lr"),
    [
        ("gemma-7b", "truthfulqa", "3%", 16, 5e-4, 5e-3, 2e-2),
        ("gemma-7b", "truthfulqa", "10%", 48, 5e-4, 5e-3, 8e-3),
        ("gemma-7b", "mquake", "3%", 16, 5e-4, 5e-3, 8e-3),
        ("gemma-7b", "clutrr", "10%", 48, 5e-3, 5e-4, 1e-2),
        ("llama2-7b", "truthfulqa", "3%", 32, 5e-4, 5e-3, 1e-2),
        ("llama2-7b", "mquake", "10%", 96, 1e-3, 5e-3, 5e-3),
        ("llama2-7b", "clutrr", "3%", 32, 5e-3, 5e-4, 1e-2),
        ("llama2-7b", "clutrr", "10%", 96, 5e-3, 5e-4, 5e-3),
        ("llama2-13b", "truthfulqa", "3%", 48, 1e-3, 1e-3, 2e-2),
        ("llama2-13b", "mquake", "3%", 48, 1e-3, 1e-3, 8e-3),
        ("llama2-13b", "clutrr", "10%", 160, 1e-3, 1e-3, 8e-3),
        ("llama2-7b", "svamp", "10%", 96, 1e-3, 1e-3, 1e-2),
        ("llama2-13b", "svamp", "10%", 160, 1e-3, 1e-3, 1e-2),
    ],
)
def test_the_papers_settings(model, task, share, k, l1, scale_lr, offset_lr):
    lofit = LoFiT.from_paper(model, task, share=share)
    wanted = LoFiT(
        k=k, l1=l1, scale_lr=scale_lr, offset_lr=offset_lr, scale_epochs=5, offset_epochs=5, batch_size=8,
        weight_decay=0, clip_norm=1, init_std=1e-3, dpo_beta=0.5,
    )  # fmt: skip
    assert lofit == wanted


@pytest.mark.parametrize(
    ("model", "task", "l1", "scale_lr", "offset_lr", "epochs", "batch_size"),
    [
        ("llama2-7b", "siqa", 5e-3, 5e-4, 1e-2, 3, 8),
        ("llama2-7b", "arc", 1e-3, 1e-3, 5e-3, 3, 8),
        ("llama2-7b", "boolq", 5e-3, 5e-4, 8e-3, 3, 4),
        ("llama2-13b", "siqa", 1e-3, 1e-3, 5e-3, 3, 8),
        ("llama2-13b", "boolq", 1e-3, 1e-3, 5e-3, 3, 2),
    ],
)
def test_the_papers_settings_of_tasks_with_three_epochs(model, task, l1, scale_lr, offset_lr, epochs, batch_size):
    lofit = LoFiT.from_paper(model, task)
    assert (lofit.l1, lofit.scale_lr, lofit.offset_lr) == (l1, scale_lr, offset_lr)
    assert (lofit.scale_epochs, lofit.offset_epochs, lofit.batch_size) == (epochs, epochs, batch_size)


@pytest.mark.parametrize(
    ("model", "task", "share"),
    [
        ("gemma-7b", "siqa", "10%"),
        ("llama2-7b", "siqa", "3%"),
        ("gpt2", "clutrr", "10%"),
        ("llama2-7b", "squad", "10%"),
        ("llama2-7b", "clutrr", "5%"),
    ],
)
def test_settings_that_the_paper_does_not_have_are_refused(as_users_run_it, model, task, share):
    with pytest.raises(ValueError, match=f"no settings for {model}/{task} at {share} of heads; it has: gemma-7b/truthfulqa,"):
        LoFiT.from_paper(model, task, share=share)


def test_bias_based_selection_goes_by_the_offsets_norms(speaker, toy_task):
    """The paper's ablation: step 1 learns offsets at all heads, as step 2 would, and keeps those that moved most."""
    teacher = HeadIntervention((Head(1, 3),), offset=torch.ones(1, 16))
    task = toy_task({"train": taught_by(speaker, teacher, 16, longest=7)})
    lofit = LoFiT(k=2, select_by="offset", offset_epochs=2, scale_epochs=7, scale_lr=0.5)
    fit = lofit.fit(speaker, task, seed=1)
    everywhere = dataclasses.replace(lofit, heads=tuple(ALL_HEADS)).fit(speaker, task, seed=1)
    for head, offset in zip(ALL_HEADS, everywhere.intervention.offset, strict=True):
        assert fit.scores[head] == pytest.approx(offset.norm().item(), rel=1e-5)
    assert fit.intervention.heads == fit.scores.top(2)
    assert fit.scores.quantity == "norm of the learned offset"
    assert set(fit.losses) == {"offset", "selection"}
