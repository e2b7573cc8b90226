"""One head of a tiny network carries the signal: LoFiT and the analyses give that head, its direction and its token.

The head's W_O is u w^T and a little noise, with u a direction of its z and w what the unembedding reads the token "&" by. Every
other head writes noise. So whoever wants the model to say "&" adds a multiple of u to that head's z. u has entries of one size,
because Adam's steps are of one size in every coordinate whatever the gradient's is.
"""

import random

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import lofit_lens as ll
from lofit_lens.analysis import attribute_offsets, collect_head_activations, head_overlap, offset_geometry, read_offsets
from lofit_lens.heads import Head
from lofit_lens.tasks.base import Example
from lofit_lens.tiny import tiny_pair

PLANTED, TOKEN = Head(1, 2), "&"
D_HEAD = 16
LOFIT = ll.methods.LoFiT(k=1, scale_lr=2e-2, l1=5e-3, offset_lr=2e-1, scale_epochs=8, offset_epochs=4)


@pytest.fixture(scope="module")
def direction():
    """u."""
    return torch.randint(0, 2, (D_HEAD,), generator=torch.Generator().manual_seed(3)) * 2.0 - 1.0


@pytest.fixture(scope="module")
def planted(direction):
    hf_model, tokenizer = tiny_pair("llama")
    unembedding = hf_model.get_output_embeddings().weight
    with torch.no_grad():
        for layer, block in enumerate(hf_model.model.layers):
            W_O = block.self_attn.o_proj.weight  # [d_model, head * d_head]
            W_O.mul_(0.1)
            if layer == PLANTED.layer:
                (token,) = tokenizer(TOKEN, add_special_tokens=False)["input_ids"]
                own = slice(PLANTED.index * D_HEAD, (PLANTED.index + 1) * D_HEAD)
                W_O[:, own] += torch.outer(unembedding[token], direction)
    return TransformerBridge.boot_transformers("tiny-planted", hf_model=hf_model, tokenizer=tokenizer, device="cpu")


@pytest.fixture(scope="module")
def task(toy_task):
    letters = random.Random(0)
    prompts = ["".join(letters.choices("abcdefghij ", k=letters.randint(4, 12))) for _ in range(60)]
    examples = [Example(prompt, TOKEN, rejected=("k",)) for prompt in prompts]
    return toy_task({"train": examples[:40], "val": examples[40:50], "test": examples[50:]})


@pytest.fixture(scope="module")
def fit(planted, task):
    return LOFIT.fit(planted, task, seed=0)


def test_the_head_is_found(planted, task, fit):
    assert fit.scores.top(1) == (PLANTED,)
    first, second = fit.scores.rank()[:2]
    assert fit.scores[first] > 1.1 * fit.scores[second]
    again = LOFIT.select(planted, task, seed=1)
    overlap = head_overlap({"planted": [fit.scores, again]}, 1).matrix()
    assert overlap.loc["planted", "planted"] == 1.0


def test_the_offset_points_where_the_signal_was_planted(planted, task, fit, direction):
    offset = fit.intervention.offset[0]
    assert torch.cosine_similarity(offset, direction, dim=0) > 0.99
    truth = ll.HeadIntervention((PLANTED,), offset=direction[None])
    activations = collect_head_activations(planted, task, heads=[PLANTED])
    geometry = offset_geometry(planted, fit.intervention, activations, others={"planted": truth})
    cosines = geometry.to_frame().query("direction == 'planted'").set_index("space")["cosine"]
    assert cosines["z"] > 0.99
    assert cosines["residual"] > 0.99
    assert geometry.to_frame().query("direction == 'planted' and space == 'z'")["p"].item() < 1e-9


def test_the_token_is_read(planted, task, fit):
    for lens in ("without norm", "with norm"):
        (tokens,) = read_offsets(planted, fit.intervention, k=2).of(lens, k=2).values()
        assert tokens[0].token == TOKEN
        assert tokens[0].logit > tokens[1].logit + 0.5
    assert attribute_offsets(planted, task, fit.intervention).to_frame()["low"].item() > 0


def test_the_model_says_it(planted, task, fit):
    prompts = [example.prompt for example in task.test]

    def probability(edit: ll.HeadIntervention | None) -> float:
        return ll.answer_logprobs(planted, prompts, [TOKEN] * len(prompts), edit).exp().mean().item()

    elsewhere = ll.HeadIntervention((Head(1, 1),), offset=fit.intervention.offset)
    assert probability(None) < 0.05
    assert probability(fit.intervention) > 0.5
    assert probability(elsewhere) < 0.05
