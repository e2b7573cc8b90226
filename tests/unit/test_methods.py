"""What holds for every method: it fits, it has an effect, what it found survives being saved, and nothing else changes."""

import dataclasses
import random
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig

import lofit_lens as ll
from lofit_lens import lens, models
from lofit_lens.examination import ModelInfo
from lofit_lens.heads import Head
from lofit_lens.methods import ITI, METHODS, RED, BitFit, FewShot, JoLA, LoFiT, LoRA, LoReFT, RepE
from lofit_lens.tasks import Example
from lofit_lens.tiny import tiny_tokenizer


def comparison(a: int, b: int) -> Example:
    right, wrong = ("Yes", "No") if a > b else ("No", "Yes")
    return Example(f"Q: Is {a} more than {b}? A:", f" {right}.", rejected=(f" {wrong}.",))


EXAMPLES = [comparison(a, b) for a, b in [(9, 2), (3, 4), (8, 1), (2, 7), (6, 5), (1, 3), (7, 4), (5, 8)]]
VAL = [comparison(a, b) for a, b in [(9, 3), (4, 6), (7, 1)]]
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
    task = toy_task({"train": EXAMPLES, "val": VAL}, loss=loss)
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


@pytest.mark.parametrize("name", MADE)
def test_a_model_of_other_precision_is_edited_in_its_own(toy_task, name):
    task = toy_task({"train": EXAMPLES[:4], "val": VAL})
    for dtype in (torch.float64, torch.bfloat16):
        model = ll.tiny_model("llama").to(dtype)
        fit = MADE[name].fit(model, task)
        scores = ll.answer_logprobs(model, [VAL[0].prompt], [VAL[0].answer], fit.intervention)
        assert scores.isfinite().all()
        assert {weight.dtype for weight in lens.weights(model)} == {dtype}


@pytest.mark.parametrize("name", [name for name in MADE if name not in UNTRAINED])
def test_what_is_trained_comes_down(llama, toy_task, name):
    task = toy_task({"train": EXAMPLES})
    (losses,) = list(MADE[name].fit(llama, task).losses.values())[-1:]
    assert sum(losses[-2:]) < sum(losses[:2])


#: Nothing random in training: no dropout, and gates that are open whatever is drawn. Rates at which one step shows.
PLAINLY = {
    "lofit": ({"heads": ((0, 1), (2, 3)), "offset_lr": 5e-2}, "offset_epochs"),
    "red": ({"learning_rate": 2e-2}, "epochs"),
    "lora": ({"learning_rate": 5e-2, "alpha": 6.0, "dropout": 0.0}, "epochs"),
    "loreft": ({"learning_rate": 5e-2}, "epochs"),
    "bitfit": ({"learning_rate": 2e-2}, "epochs"),
    "jola": ({"learning_rate": 2e-2, "open_at_start": 50.0, "penalty": 0.0}, "epochs"),
}


@pytest.mark.parametrize("name", [name for name in MADE if name not in UNTRAINED])
def test_what_is_returned_is_what_was_trained(llama, toy_task, name):
    """The loss that training saw behind its first step is that of what one step returns."""
    settings, epochs = PLAINLY[name]
    method = dataclasses.replace(MADE[name], batch_size=len(EXAMPLES), **settings)
    task = toy_task({"train": EXAMPLES})
    one_step, two_steps = (dataclasses.replace(method, **{epochs: n}).fit(llama, task) for n in (1, 2))
    prompts, answers = [e.prompt for e in EXAMPLES], [e.answer for e in EXAMPLES]
    n_tokens = sum(len(answer.encode()) + 1 for answer in answers)  # bytes, and the end of the sequence
    returned = -ll.answer_logprobs(llama, prompts, answers, one_step.intervention, eos=True).sum().item() / n_tokens
    (losses,) = two_steps.losses.values()
    # Float32 sums in another order, of a loss of order 1.
    assert returned == pytest.approx(losses[1], rel=1e-5)
    assert abs(losses[1] - losses[0]) > 1e-3 * losses[0]


#: Prompts alone are put in front of others, and read when that prompt is.
@pytest.mark.parametrize("name", [name for name in MADE if name != "few_shot"])
@pytest.mark.parametrize(
    ("loss", "spoiled"),
    [
        ("cross_entropy", {"answer": ""}),
        ("cross_entropy", {"answer": "o" * 300}),
        ("dpo", {"answer": ""}),
        ("dpo", {"rejected": ("o" * 300,)}),
    ],
)
def test_a_bad_example_is_named_before_anything_is_run(llama, toy_task, passes, name, loss, spoiled):
    bad = dataclasses.replace(EXAMPLES[-1], info={"source": "mine.csv, record 8"}, **spoiled)
    task = toy_task({"train": [*EXAMPLES[:-1], bad], "val": EXAMPLES}, loss=loss)
    with pytest.raises(ValueError, match=r"example 7 \(mine.csv, record 8\)"):
        MADE[name].fit(llama, task)
    assert passes == []


@pytest.mark.parametrize("name", ["lofit", "iti", "jola"])
def test_scores_know_their_model_and_which_heads_share_keys_and_values(llama, toy_task, name):
    fit = MADE[name].fit(llama, toy_task({"train": EXAMPLES, "val": VAL}))
    assert fit.scores.base_model == fit.intervention.base_model
    assert (fit.scores.n_key_value_heads, fit.scores.heads_per_kv) == (2, 2)
    assert "KV head 1" in ll.plots.head_heatmap(fit.scores).data[0].text[0][3]


def test_red_edits_the_layers_that_are_asked_for(llama, toy_task):
    task = toy_task({"train": EXAMPLES})
    layers = {}
    for half in ("all", "lower", "upper"):
        made = RED(layers=half, epochs=1).fit(llama, task).intervention
        assert made.scale.abs().min() > 0
        layers[half] = sorted({head.layer for head in made.heads})
        assert len(made.heads) == 4 * len(layers[half])
    assert layers == {"all": [0, 1, 2], "lower": [0], "upper": [1, 2]}


class Shape(NamedTuple):
    """What the sizes of edits depend on."""

    n_layers: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_model: int


#: Selected heads, and numbers in the edit, of each method.
SIZES = {
    "lofit": lambda shape, k: k * shape.d_head,
    "iti": lambda shape, k: k * shape.d_head,
    "repe": lambda shape: shape.d_model,
    "red": lambda shape: 2 * shape.n_layers * shape.n_heads * shape.d_head,
    "lora": lambda shape, rank: sum(
        rank * (shape.d_model + n_heads * shape.d_head) * shape.n_layers for n_heads in (shape.n_heads, shape.n_key_value_heads)
    ),
    "loreft": lambda shape, rank: shape.n_layers * rank * (2 * shape.d_model + 1),
    "bitfit": lambda shape: shape.n_layers * shape.d_model,
    "jola": lambda shape, k: 2 * k * shape.d_head,
    "few_shot": lambda shape: 0,
}
#: Of `MADE`; with so short a training every gate of JoLA is open.
SETTINGS = {"lofit": (3,), "iti": (3,), "lora": (2,), "loreft": (2,), "jola": (12,)}


@pytest.mark.parametrize("name", MADE)
def test_sizes_of_fits_are_counted_by_formula(model, toy_task, name):
    cfg = model.cfg
    shape = Shape(cfg.n_layers, cfg.n_heads, cfg.n_key_value_heads or cfg.n_heads, cfg.d_head, cfg.d_model)
    made = MADE[name].fit(model, toy_task({"train": EXAMPLES[:4], "val": VAL})).intervention
    assert made.n_parameters == SIZES[name](shape, *SETTINGS.get(name, ()))


def heads_of(n_heads: int, n_selected: int) -> tuple[Head, ...]:
    return tuple(Head(*divmod(i, n_heads)) for i in range(n_selected))


LLAMA2_7B = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
LLAMA2_13B = LlamaConfig(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40)
GEMMA_7B = GemmaConfig(hidden_size=3072, intermediate_size=24576, num_hidden_layers=28, num_attention_heads=16, head_dim=256)


@pytest.mark.parametrize(
    ("config", "method", "size"),
    [
        # 10 % of heads.
        (LLAMA2_7B, LoFiT(heads=heads_of(32, 96)), 12_288),
        (LLAMA2_13B, LoFiT(heads=heads_of(40, 160)), 20_480),
        (GEMMA_7B, LoFiT(heads=heads_of(16, 48)), 12_288),
        (LLAMA2_7B, RED(), 262_144),
        (LLAMA2_13B, RED(), 409_600),
        (GEMMA_7B, RED(), 229_376),
        (LLAMA2_7B, LoRA(rank=8), 4_194_304),
        (LLAMA2_13B, LoRA(rank=8), 6_553_600),
        (GEMMA_7B, LoRA(rank=8), 3_211_264),
        # Printed as 2.10M and 3.28M: R and W of rank 8 at every layer, and 8 biases each. No rank gives Gemma's 2.10M.
        (LLAMA2_7B, LoReFT(rank=8), 2_097_152 + 256),
        (LLAMA2_13B, LoReFT(rank=8), 3_276_800 + 320),
    ],
)
def test_sizes_on_the_papers_models_are_those_of_its_table_3(monkeypatch, toy_task, config, method, size):
    """Of models without weights, on the meta device: everything but passes through them is done as ever."""
    with torch.device("meta"):
        hf_model = AutoModelForCausalLM.from_config(config)
    hf_model.config.architectures = [type(hf_model).__name__]
    model = TransformerBridge.boot_transformers("empty", hf_model=hf_model, tokenizer=tiny_tokenizer(), device="meta")
    cfg = model.cfg
    shape = (cfg.n_layers, cfg.n_heads, cfg.n_key_value_heads or cfg.n_heads, cfg.d_head, cfg.d_model, cfg.n_ctx)
    monkeypatch.setattr(models, "examine", lambda _: ModelInfo(*shape, tuple(range(cfg.n_layers)), False, False, False, False))
    monkeypatch.setattr(models, "fingerprint", lambda _: "of no weights")
    for module in ("fitting", "methods.red", "methods.lora", "methods.loreft"):
        monkeypatch.setattr(f"lofit_lens.{module}.train", lambda *_, **__: ())
    assert method.fit(model, toy_task({"train": EXAMPLES})).intervention.n_parameters == size


@pytest.fixture
def lived_in():
    """A model as somebody may have left it: in training mode, and one of its weights asks for a gradient."""
    model = ll.tiny_model("llama")
    model.train()
    model.blocks[1].attn.q.weight.requires_grad_(True)
    return model


def everything_of(model) -> dict[str, Any]:
    """All that an edit could leave behind."""
    weights = lens.weights(model)
    modules = list(torch.nn.Module.modules(model))
    return {
        "weights": [(id(weight), weight.detach().clone().numpy().tobytes()) for weight in weights],
        "names": sorted(model.state_dict()),
        "gradients": [(weight.requires_grad, weight.grad is None) for weight in weights],
        "modules": [(id(module), type(module).__module__, module.training) for module in modules],
        "torch hooks": sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules),
        "hooks": [name for name, point in model.hook_dict.items() if point.fwd_hooks or point.bwd_hooks],
    }


def random_states() -> list[Any]:
    """The checks of shapes draw random numbers themselves: `as_users_run_it`."""
    return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]


@pytest.mark.parametrize("name", MADE)
def test_the_model_and_the_random_numbers_of_others_stay_as_they_were(as_users_run_it, lived_in, toy_task, name):
    task = toy_task({"train": EXAMPLES, "val": VAL})
    ll.check_model(lived_in)
    before, random_before = everything_of(lived_in), random_states()
    made = MADE[name].fit(lived_in, task).intervention
    ll.answer_logprobs(lived_in, [EXAMPLES[0].prompt], [EXAMPLES[0].answer], made)
    assert everything_of(lived_in) == before
    assert random_states() == random_before


@pytest.mark.parametrize("name", [name for name in MADE if name != "few_shot"])
def test_a_fit_that_breaks_off_leaves_the_model_as_it_was(as_users_run_it, lived_in, toy_task, name):
    task = toy_task({"train": EXAMPLES, "val": VAL})
    ll.check_model(lived_in)
    passes = []

    def interrupted(z, hook):
        passes.append(1)
        if len(passes) == 4:
            raise KeyboardInterrupt

    before, random_before = everything_of(lived_in), random_states()
    method = dataclasses.replace(MADE[name], token_budget=64)
    with pytest.raises(KeyboardInterrupt), lived_in.hooks(fwd_hooks=[(lens.z_hook(1), interrupted)]):
        method.fit(lived_in, task)
    assert everything_of(lived_in) == before
    assert random_states() == random_before
