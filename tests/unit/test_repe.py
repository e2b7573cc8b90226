"""RepE: directions by hand, and the chosen layer against a plain loop."""

import math

import pytest
import torch

import lofit_lens as ll
from lofit_lens import lens
from lofit_lens.batches import encode
from lofit_lens.methods import RepE, repe
from lofit_lens.tasks import Example

TRAIN = [Example("a", " b", rejected=(" c", " x")), Example("d", " e", aliases=(" y",), rejected=(" f",))]
VAL = [Example("Q: one? A:", " 1.", rejected=(" 2.",)), Example("Q: and two? A:", " It is 2.", rejected=(" 3.",))]


@pytest.fixture
def task(toy_task):
    return toy_task({"train": TRAIN, "val": VAL})


@pytest.fixture
def by_hand(monkeypatch):
    """Residuals at the last tokens of a b, a c, a x, d e, d y, d f, in the first two dimensions of both layers.

    Pairs are the first right and the first wrong answer: b - c and e - f.
    """
    at = {" b": (7.0, 1.0), " c": (1.0, 1.0), " x": (90.0, 90.0), " e": (2.0, 6.0), " y": (80.0, 80.0), " f": (0.0, 0.0)}

    def collect_residual(model, prompts, answers, *, layers, **_):
        h = torch.zeros(len(layers), len(answers), 48)
        for place, answer in enumerate(answers):
            h[0, place, :2] = torch.tensor(at[answer])
            h[1, place, :2] = -torch.tensor(at[answer])
        return h

    monkeypatch.setattr(repe, "collect_residual", collect_residual)


def fitted(model, task, layer: int, **settings) -> torch.Tensor:
    """The vector at one of the two layers whose residuals are given."""
    both = []
    for chosen in (0, 1):
        losses = iter([0.0, 1.0] if chosen == 0 else [1.0, 0.0])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(repe, "mean_loss", lambda *_, losses=losses, **__: next(losses))
            made = RepE(layers=(0, 2), **settings).fit(model, task).intervention
        assert made.layers == ((0, 2)[chosen],)
        both.append(made.vectors[0])
    return both[layer]


def test_the_contrast_vector_by_hand(llama, task, by_hand):
    """Differences (6, 0) and (2, 6): their mean is (4, 3), of length 5."""
    vector = fitted(llama, task, 0, vector="contrast", alpha=10.0)
    assert torch.allclose(vector[:2], torch.tensor([8.0, 6.0]))
    assert not vector[2:].any()
    assert torch.allclose(fitted(llama, task, 1, vector="contrast", alpha=10.0)[:2], torch.tensor([-8.0, -6.0]))


def test_the_reading_vector_by_hand(llama, task, by_hand):
    """Differences (6, 0) and (2, 6): the sum of their outer products is [[40, 12], [12, 36]].

    Its eigenvalues are 38 +- sqrt(148), and to the larger one belongs (12, sqrt(148) - 2), which points as the mean does.
    """
    direction = torch.tensor([12.0, 148**0.5 - 2])
    expected = 10 * direction / direction.norm()
    vector = fitted(llama, task, 0, vector="reading", alpha=10.0)
    torch.testing.assert_close(vector[:2], expected)
    assert vector[2:].abs().max() < 1e-5
    torch.testing.assert_close(fitted(llama, task, 1, vector="reading", alpha=10.0)[:2], -expected)
    torch.testing.assert_close(fitted(llama, task, 0, vector="reading", alpha=-2.0)[:2], -expected / 5)


@torch.no_grad()
def mean_loss_by_hand(model, layer: int, vector: torch.Tensor) -> float:
    """Cross-entropy of every answer token of the validation examples, one plain pass each, with the vector added by a hook."""
    total, count = 0.0, 0
    for sequence in encode(model, [e.prompt for e in VAL], [e.answer for e in VAL], eos=True):
        with model.hooks(fwd_hooks=[(lens.resid_post_hook(model, layer), lambda h, hook: h + vector)]):
            logprobs = model(torch.tensor([sequence.prompt + sequence.answer]))[0].log_softmax(-1)
        for place, token in enumerate(sequence.answer, start=len(sequence.prompt)):
            total -= logprobs[place - 1, token].item()
            count += 1
    return total / count


@pytest.mark.parametrize("kind", ["reading", "contrast"])
def test_the_layer_is_the_best_one_that_a_plain_loop_finds(llama, task, kind):
    fit = RepE(vector=kind, alpha=3.0, layers=(2, 0, 1)).fit(llama, task)
    losses = {}
    for layer in (2, 0, 1):
        (alone,) = RepE(vector=kind, alpha=3.0, layers=(layer,)).fit(llama, task).intervention.vectors
        assert alone.norm().item() == pytest.approx(3.0, rel=1e-5)
        losses[layer] = mean_loss_by_hand(llama, layer, alone)
    assert fit.losses["validation, by layer"] == pytest.approx(list(losses.values()), abs=1e-4)
    assert fit.intervention.layers == (min(losses, key=losses.__getitem__),)


def test_as_many_validation_examples_are_looked_at_as_asked_for(llama, toy_task):
    first, both = (
        RepE(n_val=n, layers=(1,)).fit(llama, toy_task({"train": TRAIN, "val": VAL})).losses["validation, by layer"]
        for n in (1, 2)
    )
    alone = RepE(layers=(1,)).fit(llama, toy_task({"train": TRAIN, "val": VAL[:1]})).losses["validation, by layer"]
    assert first == alone != both


def test_a_preference_tasks_layers_are_judged_by_dpo(llama, toy_task):
    """Of one pair, the loss is -log sigmoid(beta m): the same margin m under each beta."""
    task = toy_task({"train": TRAIN, "val": VAL[:1]}, loss="dpo")
    edit, losses = None, {}
    for beta in (0.5, 2.0):
        fit = RepE(alpha=3.0, layers=(1,), dpo_beta=beta).fit(llama, task)
        edit, (losses[beta],) = fit.intervention, fit.losses["validation, by layer"]
    prompts, answers = [VAL[0].prompt] * 2, [VAL[0].answer, VAL[0].rejected[0]]
    moved = ll.answer_logprobs(llama, prompts, answers, edit, eos=True) - ll.answer_logprobs(llama, prompts, answers, eos=True)
    margin = (moved[0] - moved[1]).item()
    assert abs(margin) > 1e-2
    assert losses == {beta: pytest.approx(math.log1p(math.exp(-beta * margin)), rel=1e-4) for beta in (0.5, 2.0)}


@pytest.mark.parametrize("layers", [(), (0, 3), (1, 1)])
def test_layers_that_cannot_be_chosen_from_are_refused_before_anything_is_run(llama, task, layers):
    ll.check_model(llama)
    passes = []
    watch = [(lens.z_hook(0), lambda z, hook: passes.append(1))]
    with (
        llama.hooks(fwd_hooks=watch),
        pytest.raises(ValueError, match=r"got layers .*wanted at least one of 0 to 2, and none twice"),
    ):
        RepE(layers=layers).fit(llama, task)
    assert passes == []
