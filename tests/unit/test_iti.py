"""ITI: directions and strengths against numbers worked by hand, and against a loop over plain passes."""

import numpy as np
import pytest
import torch

import lofit_lens as ll
from lofit_lens import lens
from lofit_lens.batches import encode
from lofit_lens.heads import Head
from lofit_lens.methods import ITI, iti
from lofit_lens.tasks import Example

EXAMPLES = [
    Example(f"Q: Is {a} more than {b}? A:", f" {right}.", rejected=(f" {wrong}.", " Who knows?"))
    for a, b in [(9, 2), (3, 4), (8, 1), (2, 7), (6, 5), (1, 3)]
    for right, wrong in [("Yes" if a > b else "No", "No" if a > b else "Yes")]
]


@pytest.fixture
def task(toy_task):
    return toy_task({"train": EXAMPLES})


def test_direction_and_strength_by_hand(llama, toy_task, monkeypatch):
    """Right answers at (3, 4) and (1, 2), wrong ones at (-1, 0) and (1, 0), in the first two dimensions of every head.

    Mass mean: (2, 3) - (0, 0) = (2, 3), length sqrt 13. Projections on it, times sqrt 13: 18, 8, -2, 2, whose mean is 6.5 and
    whose variance is (11.5^2 + 1.5^2 + 8.5^2 + 4.5^2) / 4 = 56.75.
    """
    points = torch.tensor([[3.0, 4.0], [-1.0, 0.0], [1.0, 2.0], [1.0, 0.0]])
    z = torch.zeros(3, 4, 4, 16)
    z[..., :2] = points[None, :, None]
    monkeypatch.setattr(iti, "last_token_z", lambda *_, **__: z)
    examples = [Example("a", " b", rejected=(" c",)), Example("d", " e", rejected=(" f",))]
    fit = ITI(k=2, alpha=10.0).fit(llama, toy_task({"train": examples}))
    theta = torch.tensor([2.0, 3.0]) / 13**0.5
    sigma = (56.75 / 13) ** 0.5
    torch.testing.assert_close(fit.intervention.offset[:, :2], (10 * sigma * theta).expand(2, 2))
    assert not fit.intervention.offset[:, 2:].any()


@torch.no_grad()
def z_of(model, prompt: str, answer: str) -> np.ndarray:
    """`[layer, head, d_head]` at the last token, from one plain pass."""
    (sequence,) = encode(model, [prompt], [answer], eos=False)
    found = {}
    hooks = [(lens.z_hook(layer), lambda z, hook, layer=layer: found.update({layer: z[0, -1].clone()})) for layer in range(3)]
    with model.hooks(fwd_hooks=hooks):
        model(torch.tensor([sequence.prompt + sequence.answer]))
    return torch.stack([found[layer] for layer in range(3)]).double().numpy()


@pytest.mark.parametrize("direction", ["mass-mean", "probe", "random"])
def test_equals_a_loop_over_texts_and_heads(llama, task, direction):
    made = ITI(k=3, alpha=2.0, direction=direction)
    fit = made.fit(llama, task, seed=5)
    right = [z_of(llama, e.prompt, answer) for e in EXAMPLES for answer in e.right_answers]
    wrong = [z_of(llama, e.prompt, answer) for e in EXAMPLES for answer in e.rejected]
    for i, head in enumerate(fit.intervention.heads):
        of_right, of_wrong = (np.array([z[head] for z in side]) for side in (right, wrong))
        offset = fit.intervention.offset[i].double().numpy()
        theta = offset / np.linalg.norm(offset)
        if direction == "mass-mean":
            expected = of_right.mean(0) - of_wrong.mean(0)
            np.testing.assert_allclose(theta, expected / np.linalg.norm(expected), atol=1e-4)
        sigma = np.std(np.concatenate([of_right, of_wrong]) @ theta)
        np.testing.assert_allclose(np.linalg.norm(offset), 2.0 * sigma, rtol=1e-4)
        assert fit.scores[head] == fit.intervention.head_scores[i]
    assert fit.intervention.heads == fit.scores.top(3)
    assert fit.scores.values.min() >= 0
    assert fit.scores.values.max() <= 1


def test_directions_differ_and_seeds_decide_random_ones(llama, task):
    heads = ((1, 2), (2, 0))
    offsets = {d: ITI(heads=heads, direction=d).fit(llama, task).intervention.offset for d in ("mass-mean", "probe", "random")}
    assert not torch.allclose(offsets["mass-mean"], offsets["random"])
    assert not torch.allclose(offsets["mass-mean"], offsets["probe"])
    random = ITI(heads=heads, direction="random")
    assert torch.equal(random.fit(llama, task).intervention.offset, offsets["random"])
    assert not torch.equal(random.fit(llama, task, seed=1).intervention.offset, offsets["random"])


def test_alpha_is_the_strength_and_is_remembered(llama, task):
    one, two = (ITI(k=2, alpha=alpha).fit(llama, task).intervention for alpha in (1.0, 2.0))
    torch.testing.assert_close(2 * one.offset, two.offset)
    assert two.made_by["settings"]["alpha"] == 2.0
    assert two.base_model is not None


def test_heads_can_be_given(llama, task):
    fit = ITI(heads=(Head(2, 3), Head(0, 1))).fit(llama, task)
    assert fit.intervention.heads == ((2, 3), (0, 1))
    with pytest.raises(ValueError, match="L9H0 is out of range"):
        ITI(heads=((9, 0),)).fit(llama, task)
    with pytest.raises(ValueError, match="k = 48 heads asked for; wanted 1 to 12"):
        ITI().fit(llama, task)


def test_saved_and_loaded_it_gives_the_same_logits(llama, task, tmp_path):
    made = ITI(k=3).fit(llama, task).intervention
    made.save(tmp_path / "iti")
    again = ll.HeadIntervention.load(tmp_path / "iti", llama)
    base, *edited = (ll.answer_logprobs(llama, ["Q: Is 5 more than 1? A:"], [" Yes."], edit) for edit in (None, made, again))
    assert torch.equal(*edited)
    assert not torch.allclose(base, edited[0])
