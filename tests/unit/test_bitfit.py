"""BitFit against biases in the weights: the same effect where a bias is there and where one is added, and the same training."""

import pytest
import torch
from torch import nn

import lofit_lens as ll
from lofit_lens import lens
from lofit_lens.methods import BitFit
from lofit_lens.tasks import Example
from lofit_lens.tiny import tiny_pair

TOKENS = torch.randint(3, 259, (2, 9), generator=torch.Generator().manual_seed(0))
EXAMPLES = [Example(f"Q: Is {a} more than {b}? A:", " Yes." if a > b else " No.") for a, b in [(9, 2), (3, 4), (8, 1), (2, 7)]]


@pytest.fixture
def task(toy_task):
    return toy_task({"train": EXAMPLES})


def biases_of(hf_model) -> list[nn.Parameter]:
    """The bias of every attention's output map; one of zeros is added where there is none."""
    if hasattr(hf_model, "transformer"):
        return [block.attn.c_proj.bias for block in hf_model.transformer.h]
    projections = [block.self_attn.o_proj for block in hf_model.model.layers]
    for projection in projections:
        assert projection.bias is None
        projection.bias = nn.Parameter(torch.zeros(projection.out_features))
    return [projection.bias for projection in projections]


@torch.no_grad()
def test_it_is_the_bias_edited_in_the_weights(model, task):
    made = BitFit(learning_rate=5e-2, epochs=3, batch_size=4).fit(model, task).intervention
    family = model.cfg.model_name.removeprefix("tiny-")
    hf_model, _ = tiny_pair(family)
    biases = biases_of(hf_model)
    assert all(bias.any() for bias in biases) == (family == "gpt2")
    for bias, vector in zip(biases, made.vectors, strict=True):
        bias += vector
    with ll.attached(model, made):
        edited = model(TOKENS)
    # Float32 sums in another order through three layers; logits of order 1 to 10.
    torch.testing.assert_close(edited, hf_model(TOKENS).logits, rtol=1e-4, atol=1e-4)
    assert (edited - model(TOKENS)).abs().max() > 0.1


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_it_learns_what_training_the_bias_in_the_weights_learns(family, request, task):
    model = request.getfixturevalue(family)
    made = BitFit(learning_rate=1e-2, epochs=3, batch_size=4).fit(model, task).intervention
    hf_model, tokenizer = tiny_pair(family)
    biases = [bias.requires_grad_() for bias in biases_of(hf_model)]
    start = [bias.detach().clone() for bias in biases]
    optimiser = torch.optim.AdamW(biases, weight_decay=0.0)
    for step in range(3):
        losses = []
        for example in EXAMPLES:
            prompt = tokenizer(example.prompt)["input_ids"]
            answer = [*tokenizer(example.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            logprobs = hf_model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            losses += [-logprobs[len(prompt) - 1 + place, token] for place, token in enumerate(answer)]
        optimiser.zero_grad()
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(biases, 1.0)
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / 3)
        optimiser.step()
    for vector, bias, before in zip(made.vectors, biases, start, strict=True):
        # Gradients differ by rounding, and AdamW divides by small numbers: a hundredth of the way that was gone.
        torch.testing.assert_close(vector, bias.detach() - before, rtol=0, atol=2e-4)
        assert vector.abs().max() > 1e-2


def test_the_models_own_parameters_stay(gpt2, task):
    before = [weight.detach().clone() for weight in lens.weights(gpt2)]
    BitFit(learning_rate=5e-2, epochs=1).fit(gpt2, task)
    assert all(torch.equal(weight, old) for weight, old in zip(lens.weights(gpt2), before, strict=True))
