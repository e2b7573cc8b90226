"""What holds for every method: it fits, it has an effect, and what it found survives being saved."""

import pytest
import torch

import lofit_lens as ll
from lofit_lens.methods import ITI, METHODS, RED, BitFit, FewShot, JoLA, LoFiT, LoRA, LoReFT, RepE
from lofit_lens.tasks import Example

EXAMPLES = [
    Example(f"Q: Is {a} more than {b}? A:", f" {'Yes' if a > b else 'No'}.", rejected=(f" {'No' if a > b else 'Yes'}.",))
    for a, b in [(9, 2), (3, 4), (8, 1), (2, 7), (6, 5), (1, 3), (7, 4), (5, 8)]
]
#: Small enough for a test, strong enough to show.
MADE = {
    "lofit": LoFiT(k=3, scale_lr=2e-2, offset_lr=5e-2, scale_epochs=2, offset_epochs=3, batch_size=4),
    "iti": ITI(k=3, alpha=3.0),
    "repe": RepE(alpha=3.0),
    "red": RED(learning_rate=2e-2, epochs=3, batch_size=4),
    "lora": LoRA(rank=2, learning_rate=2e-2, epochs=3, batch_size=4),
    "loreft": LoReFT(rank=2, prefix=1, suffix=2, learning_rate=2e-2, epochs=3, batch_size=4),
    "bitfit": BitFit(learning_rate=2e-2, epochs=3, batch_size=4),
    "jola": JoLA(learning_rate=2e-2, penalty=1e-4, epochs=3, batch_size=4),
    "few_shot": FewShot(n_examples=2),
}
#: These train nothing.
UNTRAINED = ("iti", "repe", "few_shot")
#: The edit of these does not depend on the seed where every example has a wrong answer.
SEEDLESS = ("iti", "repe")


def test_every_method_is_tested_here():
    assert list(MADE) == list(METHODS)
    assert all(isinstance(MADE[name], method) for name, method in METHODS.items())


@pytest.mark.parametrize("loss", ["cross_entropy", "dpo"])
@pytest.mark.parametrize("name", MADE)
def test_a_fit_has_an_effect_and_survives_being_saved(llama, toy_task, tmp_path, name, loss):
    task = toy_task({"train": EXAMPLES, "val": EXAMPLES}, loss=loss)
    prompts, answers = [e.prompt for e in EXAMPLES], [e.answer for e in EXAMPLES]
    base = ll.answer_logprobs(llama, prompts, answers)
    fit = MADE[name].fit(llama, task, seed=1)
    assert torch.equal(ll.answer_logprobs(llama, prompts, answers), base)
    edited = ll.answer_logprobs(llama, prompts, answers, fit.intervention)
    assert (edited - base).abs().max() > 1e-2
    fit.intervention.save(tmp_path / name)
    again = ll.load_adapter(tmp_path / name, llama)
    assert type(again) is type(fit.intervention)
    assert torch.equal(ll.answer_logprobs(llama, prompts, answers, again), edited)
    assert again.made_by == {**fit.intervention.made_by, "settings": MADE[name].settings()}
    assert again.n_parameters == fit.intervention.n_parameters
    same, other = (
        ll.answer_logprobs(llama, prompts, answers, MADE[name].fit(llama, task, seed=seed).intervention) for seed in (1, 2)
    )
    assert torch.equal(same, edited)
    assert name in SEEDLESS or not torch.equal(other, same)


@pytest.mark.parametrize("name", [name for name in MADE if name not in UNTRAINED])
def test_what_is_trained_comes_down(llama, toy_task, name):
    task = toy_task({"train": EXAMPLES})
    (losses,) = list(MADE[name].fit(llama, task).losses.values())[-1:]
    assert sum(losses[-2:]) < sum(losses[:2])


def test_red_edits_the_layers_that_are_asked_for(llama, toy_task):
    task = toy_task({"train": EXAMPLES})
    layers = {}
    for half in ("all", "lower", "upper"):
        made = RED(layers=half, epochs=1).fit(llama, task).intervention
        assert made.scale.abs().min() > 0
        layers[half] = sorted({head.layer for head in made.heads})
        assert len(made.heads) == 4 * len(layers[half])
    assert layers == {"all": [0, 1, 2], "lower": [0], "upper": [1, 2]}


def test_sizes_are_those_of_the_papers_table_3():
    """Llama-2-7B: 32 layers of 32 heads, d_head 128; LoFiT at 10 % has 96 heads."""
    heads = [ll.Head(layer, index) for layer in range(32) for index in range(32)]
    assert ll.HeadIntervention(tuple(heads[:96]), offset=torch.zeros(96, 128)).n_parameters == 12_288
    everywhere = torch.zeros(1024, 128)
    assert ll.HeadIntervention(tuple(heads), scale=everywhere, offset=everywhere).n_parameters == 262_144
