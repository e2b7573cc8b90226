"""ITI: directions and strengths against numbers worked by hand, and against a loop over plain passes."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import lofit_lens as ll
from lofit_lens import lens
from lofit_lens.batches import encode
from lofit_lens.heads import Head
from lofit_lens.methods import ITI, iti
from lofit_lens.probes import held_out, labelled_answers
from lofit_lens.tasks import Example

EXAMPLES = [
    Example(f"Q: Is {a} more than {b}? A:", f" {right}.", rejected=(f" {wrong}.", " Who knows?"))
    for a, b in [(9, 2), (3, 4), (8, 1), (2, 7), (6, 5), (1, 3)]
    for right, wrong in [("Yes" if a > b else "No", "No" if a > b else "Yes")]
]


@pytest.fixture
def task(toy_task):
    return toy_task({"train": EXAMPLES})


@pytest.fixture
def two_questions(toy_task, monkeypatch):
    """Right answers at (3, 4) and (1, 2), wrong ones at (-1, 0) and (1, 0), in the first two dimensions of every head."""
    points = torch.tensor([[3.0, 4.0], [-1.0, 0.0], [1.0, 2.0], [1.0, 0.0]])
    z = torch.zeros(3, 4, 4, 16)
    z[..., :2] = points[None, :, None]
    monkeypatch.setattr(iti, "collect_z", lambda *_, **__: z)
    return toy_task({"train": [Example("a", " b", rejected=(" c",)), Example("d", " e", rejected=(" f",))]})


def test_mass_mean_direction_and_strength_by_hand(llama, two_questions):
    """Mass mean: (2, 3) - (0, 0) = (2, 3), length sqrt 13.

    Projections on it, times sqrt 13: 18, 8, -2, 2, whose mean is 6.5 and whose variance is
    (11.5^2 + 1.5^2 + 8.5^2 + 4.5^2) / 4 = 56.75.
    """
    fit = ITI(k=2, alpha=10.0).fit(llama, two_questions)
    theta = torch.tensor([2.0, 3.0]) / 13**0.5
    sigma = (56.75 / 13) ** 0.5
    torch.testing.assert_close(fit.intervention.offset[:, :2], (10 * sigma * theta).expand(2, 2))
    assert not fit.intervention.offset[:, 2:].any()


def test_probe_direction_and_strength_by_hand(llama, two_questions):
    """One question is held out, so a probe is fitted on two points, and its weights point from the wrong one to the right one.

    On points as they are: along (4, 4) or (0, 2). Standardised, both are at (+-1, +-1) or at (0, +-1), so that the weights are
    equal, and then divided by the standard deviations (2, 2), or (0, 1). Either way theta is (1, 1) / sqrt 2, where projections
    times sqrt 2 are 7, -1, 3, 1, of mean 2.5 and variance (4.5^2 + 3.5^2 + 0.5^2 + 1.5^2) / 4 = 8.75; or (0, 1), where they are
    4, 0, 2, 0, of variance 2.75.
    """
    by_question = [(torch.tensor([1.0, 1.0]) / 2**0.5, (8.75 / 2) ** 0.5), (torch.tensor([0.0, 1.0]), 2.75**0.5)]
    seeds = {bool(held_out([0, 0, 1, 1], 0.2, seed=seed)[0]): seed for seed in range(10)}
    for first_is_held_out, (theta, sigma) in zip((False, True), by_question, strict=True):
        for standardise in (True, False):
            method = ITI(heads=((1, 3),), alpha=-2.0, direction="probe", standardise=standardise)
            (offset,) = method.fit(llama, two_questions, seed=seeds[first_is_held_out]).intervention.offset
            # As exact as the probe's solver is.
            torch.testing.assert_close(offset[:2], -2 * sigma * theta, rtol=1e-3, atol=1e-3)
            assert not offset[2:].any()


def test_random_directions_and_their_strength_by_hand(llama, two_questions):
    """Along (x, y, ...) of length 1, projections are 3 x + 4 y, -x, x + 2 y and x."""
    made = ITI(heads=((1, 3), (0, 0)), alpha=3.0, direction="random").fit(llama, two_questions, seed=7).intervention
    generator = torch.Generator().manual_seed(7)
    for offset in made.offset:
        drawn = torch.randn(16, generator=generator)
        x, y, *_ = theta = (drawn / drawn.norm()).tolist()
        sigma = np.std([3 * x + 4 * y, -x, x + 2 * y, x])
        torch.testing.assert_close(offset, 3 * torch.tensor(theta) * float(sigma))


@pytest.mark.parametrize(("positions", "late"), [("all", None), ("generated", 0), ("published", 2)])
def test_positions_are_where_the_offset_goes(llama, task, positions, late):
    """By hand, in plain passes: everywhere, or from so many tokens behind the prompt's last one on."""
    made = ITI(k=3, positions=positions).fit(llama, task).intervention
    assert made.positions == positions
    assert torch.equal(made.offset, ITI(k=3).fit(llama, task).intervention.offset)
    prompts, answers = [e.prompt for e in EXAMPLES[:2]], [" Yes, and more.", " No."]
    found = ll.answer_logprobs(llama, prompts, answers, made)
    for sequence, score in zip(encode(llama, prompts, answers, eos=False), found, strict=True):
        n = len(sequence.prompt)
        first = 0 if late is None else n - 1 + late

        def by_hand(head, vector, first=first):
            def edit(z, hook):
                z = z.clone()
                for place in range(first, z.shape[1]):
                    z[0, place, head.index] += vector
                return z

            return lens.z_hook(head.layer), edit

        hooks = [by_hand(head, vector) for head, vector in zip(made.heads, made.offset, strict=True)]
        with torch.no_grad(), llama.hooks(fwd_hooks=hooks):
            logprobs = llama(torch.tensor([sequence.prompt + sequence.answer]))[0].log_softmax(-1)
        total = sum(logprobs[n - 1 + place, token].item() for place, token in enumerate(sequence.answer))
        # Float32 sums in another order; log-probabilities of order 10 to 100.
        assert score.item() == pytest.approx(total, abs=1e-3)


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


def test_scores_are_those_of_a_probe_at_every_head(llama, toy_task):
    many = toy_task({"train": EXAMPLES * 3})
    scores = ITI(k=3, val_share=0.4).select(llama, many, seed=2)
    labelled = labelled_answers(many.train, seed=2)
    z = np.array([z_of(llama, prompt, answer) for prompt, answer in zip(labelled.prompts, labelled.answers, strict=True)])
    held, labels = held_out(labelled.questions, 0.4, seed=2), np.array(labelled.is_right)
    for layer, head in np.ndindex(3, 4):
        of_head = z[:, layer, head]
        of_head = (of_head - of_head[~held].mean(0)) / of_head[~held].std(0)
        probe = LogisticRegression(max_iter=1000, random_state=2).fit(of_head[~held], labels[~held])
        assert scores.values[layer, head].item() == pytest.approx(probe.score(of_head[held], labels[held]))
    assert len(scores.values.unique()) > 1, "heads differ, so that one taken for another shows"


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


@pytest.mark.parametrize("setting", [{"val_share": 0.6}, {"standardise": False}, {"max_iter": 1}])
def test_the_probes_settings_change_the_probes(llama, task, setting):
    plain, other = (ITI(heads=((1, 2),), direction="probe", **more).fit(llama, task) for more in ({}, setting))
    assert not torch.equal(plain.intervention.offset, other.intervention.offset)


def test_a_head_that_says_the_same_of_all_answers_gets_no_offset(llama, toy_task, monkeypatch):
    z = torch.zeros(3, 4, 4, 16)
    z[:2, :, :, 0] = torch.tensor([3.0, -1.0, 1.0, 0.0])[:, None]
    monkeypatch.setattr(iti, "collect_z", lambda *_, **__: z)
    task = toy_task({"train": [Example("a", " b", rejected=(" c",)), Example("d", " e", rejected=(" f",))]})
    fit = ITI(heads=((0, 0), (2, 1))).fit(llama, task)
    assert fit.intervention.offset[0].any()
    assert not fit.intervention.offset[1].any()
