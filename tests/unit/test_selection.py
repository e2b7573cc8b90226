"""Head scores by gradients, greedy or one at a time, and by layer probes, against loops over examples and heads."""

import collections
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import lofit_lens as ll
from lofit_lens.activations import collect_z
from lofit_lens.batches import encode
from lofit_lens.fitting import weights_frozen
from lofit_lens.heads import HeadScores
from lofit_lens.models import base_of
from lofit_lens.probes import held_out, labelled_answers
from lofit_lens.selection import (
    gradient_scores,
    greedy_gradient_scores,
    layer_probe_scores,
    random_scores,
    spread_over_layers,
)
from lofit_lens.selection.gradient import greedy_values
from lofit_lens.tasks import Example

EXAMPLES = [
    Example("Q: who? A:", " Bo.", rejected=(" Al.",)),
    Example("Q: when was it, and where? A:", " now", rejected=(" never", " here")),
    Example("Q: why? A:", " so", rejected=(" no",)),
    Example("Q: how? A:", " thus, as it were", rejected=(" not",)),
    Example("Q: what? A:", " that", rejected=(" this",)),
]


@pytest.fixture(params=["cross_entropy", "dpo"])
def task(toy_task, request):
    return toy_task({"train": EXAMPLES}, loss=request.param)


def answer_logprob(model, prompt: str, answer: str) -> tuple[torch.Tensor, int]:
    (sequence,) = encode(model, [prompt], [answer], eos=True)
    logprobs = model(torch.tensor([sequence.prompt + sequence.answer]))[0].log_softmax(-1)
    places = range(len(sequence.prompt) - 1, len(sequence) - 1)
    return sum(logprobs[i, token] for i, token in zip(places, sequence.answer, strict=True)), len(sequence.answer)


def gradients_by_loop(model, task, kind: str) -> np.ndarray:
    """`[example, head, d_head]`, heads in the order of layer and index."""
    heads = tuple(ll.Head(*head) for head in ll.check_model(model).all_heads)
    found = []
    with weights_frozen(model):
        for example in EXAMPLES:
            vectors = torch.zeros(len(heads), 16, requires_grad=True)
            with ll.attached(model, ll.HeadIntervention(heads, **{kind: vectors})):
                chosen, n_tokens = answer_logprob(model, example.prompt, example.answer)
                if task.loss == "cross_entropy":
                    loss = -chosen / n_tokens
                else:
                    # At the reference itself the sigmoid's argument is 0.
                    rejected, _ = answer_logprob(model, example.prompt, example.rejected[0])
                    margin = 0.7 * (chosen - chosen.detach() - rejected + rejected.detach())
                    loss = -torch.nn.functional.logsigmoid(margin)
            loss.backward()
            found.append(vectors.grad.double().numpy())
    return np.stack(found)


@pytest.mark.parametrize("kind", ["scale", "offset"])
def test_gradient_scores_equal_a_loop_over_examples(llama, task, kind):
    g = gradients_by_loop(llama, task, kind)
    mean, mean_square = g.mean(0), (g**2).mean(0)
    expected = {
        "norm": [math.sqrt(sum(x * x for x in row)) for row in mean],
        "signed": [-sum(row) for row in mean],
        "fisher": (mean**2 / (mean_square + 1e-3 * mean_square.mean())).sum(-1),
    }
    for measure, values in expected.items():
        scores = gradient_scores(llama, task, kind=kind, measure=measure, dpo_beta=0.7)
        # Float32 gradients on our side, through three layers.
        np.testing.assert_allclose(scores.values.double().numpy().ravel(), values, rtol=2e-3, atol=1e-6)
        assert scores.made_by["method"] == f"gradient ({kind}, {measure})"


def test_the_model_is_left_alone(llama, task):
    before = [weight.requires_grad for weight in llama.parameters()]
    logprobs = ll.answer_logprobs(llama, ["Q:"], [" a"])
    gradient_scores(llama, task)
    assert [weight.requires_grad for weight in llama.parameters()] == before
    assert torch.equal(ll.answer_logprobs(llama, ["Q:"], [" a"]), logprobs)


@pytest.mark.usefixtures("as_users_run_it")
def test_unknown_kinds_and_measures_are_refused(llama, task):
    with pytest.raises(ValueError, match="got kind 'scale' and measure 'size'; wanted one of"):
        gradient_scores(llama, task, measure="size")


# Greedy

#: 12 examples, 8 heads of 3 dimensions, of which the first heads have the larger gradients.
GRADIENTS = torch.randn(12, 8, 3, generator=torch.Generator().manual_seed(0)).double() + 0.4
GRADIENTS *= torch.tensor([9.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.1]).reshape(8, 1)


def gain_by_hand(g: np.ndarray, heads: list[int], ridges: np.ndarray) -> float:
    """1/2 g_S^T (F_SS + Lambda)^-1 g_S, as it stands."""
    rows = np.concatenate([g[:, head] for head in heads], axis=1)
    mean, fisher = rows.mean(0), sum(np.outer(row, row) for row in rows) / len(rows)
    return 0.5 * mean @ np.linalg.inv(fisher + np.diag(ridges[heads].repeat(g.shape[2]))) @ mean


def greedy_by_hand(g: np.ndarray, count: int, ridges: np.ndarray) -> tuple[list[int], np.ndarray]:
    """The heads in the order in which they are chosen, and every head's score."""
    chosen, scores, gain = [], np.zeros(g.shape[1]), 0.0
    for _ in range(count):
        gains = {head: gain_by_hand(g, [*chosen, head], ridges) for head in range(g.shape[1]) if head not in chosen}
        best = max(gains, key=gains.get)
        scores[best] = 1 - 2 * gain
        gain = gains[best]
        chosen.append(best)
    for head in set(range(g.shape[1])) - set(chosen):
        scores[head] = 2 * (gain_by_hand(g, [*chosen, head], ridges) - gain)
    return chosen, scores


@pytest.mark.parametrize("own_scale", [True, False])
@pytest.mark.parametrize("ridge", [0.1, 10.0])
@pytest.mark.parametrize("count", [1, 4, 8])
def test_greedy_values_equal_a_loop_with_inverses_of_the_fisher(ridge, own_scale, count):
    g = GRADIENTS.numpy()
    ridges = ridge * (np.array([(g[:, head] ** 2).mean() for head in range(8)]) if own_scale else np.full(8, (g**2).mean()))
    chosen, expected = greedy_by_hand(g, count, ridges)
    values = greedy_values(GRADIENTS, count, ridge, own_scale=own_scale)
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-9)
    ranked = values.argsort(descending=True).tolist()
    assert ranked[:count] == chosen
    assert values.max() == 1


def test_a_head_that_repeats_another_comes_after_a_weaker_one_of_its_own():
    generator = torch.Generator().manual_seed(1)
    strong, weak, noise = (torch.randn(40, 4, generator=generator) for _ in range(3))
    gradients = torch.stack([0.01 * noise, strong + 1.0, strong + 1.0, weak + 0.5], dim=1)
    alone = [greedy_values(gradients[:, [head]], 1, 1.0, own_scale=False)[0] for head in range(4)]
    assert alone == [1.0] * 4
    by_norm = gradients.mean(0).norm(dim=-1).argsort(descending=True, stable=True).tolist()
    assert by_norm == [1, 2, 3, 0]
    for own_scale in (True, False):
        values = greedy_values(gradients, 2, 1.0, own_scale=own_scale)
        assert values.argsort(descending=True)[:2].tolist() == [1, 3]


def test_on_its_own_scale_it_does_not_matter_how_large_a_heads_gradients_are():
    resized = GRADIENTS * torch.logspace(-3, 3, 8).double().reshape(8, 1)
    values = greedy_values(GRADIENTS, 4, 1.0, own_scale=True)
    np.testing.assert_allclose(greedy_values(resized, 4, 1.0, own_scale=True), values, rtol=1e-9)
    assert set(greedy_values(resized, 4, 1.0, own_scale=False).topk(4).indices.tolist()) == {4, 5, 6, 7}
    silent = torch.cat([GRADIENTS, torch.zeros(12, 1, 3)], dim=1)
    np.testing.assert_allclose(greedy_values(silent, 4, 1.0, own_scale=True), [*values, 0.0], rtol=1e-9)


@pytest.mark.parametrize("kind", ["scale", "offset"])
def test_greedy_scores_are_those_of_the_examples_gradients(llama, task, kind):
    g = gradients_by_loop(llama, task, kind)
    ridges = 2.0 * (g**2).mean((0, 2))
    chosen, expected = greedy_by_hand(g, 5, ridges)
    scores = greedy_gradient_scores(llama, task, k=5, kind=kind, ridge=2.0, dpo_beta=0.7)
    # Float32 gradients on our side, through three layers.
    np.testing.assert_allclose(scores.values.double().numpy().ravel(), expected, rtol=2e-3, atol=1e-5)
    assert scores.top(5) == tuple(ll.Head(*divmod(head, 4)) for head in chosen)
    assert scores.made_by == {
        "method": f"gradient ({kind}, greedy)",
        "task": "toy",
        "task_settings": {},
        "k": 5,
        "ridge": 2.0,
        "own_scale": True,
    }
    over_all = greedy_gradient_scores(llama, task, k=5, kind=kind, ridge=2.0, own_scale=False, dpo_beta=0.7)
    _, expected = greedy_by_hand(g, 5, np.full(12, 2.0 * (g**2).mean()))
    np.testing.assert_allclose(over_all.values.double().numpy().ravel(), expected, rtol=2e-3, atol=1e-5)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 13}, "k = 13 heads asked for; wanted 1 to 12"),
        ({"k": 3, "kind": "gate"}, "got kind 'gate' and ridge 10.0; wanted one of"),
        ({"k": 3, "ridge": 0.0}, "got kind 'offset' and ridge 0.0; wanted one of .*, and a number above 0"),
        ({"k": 3, "ridge": math.nan}, "and ridge nan"),
    ],
)
def test_what_greedy_cannot_use_is_refused(llama, task, settings, message):
    with pytest.raises(ValueError, match=message):
        greedy_gradient_scores(llama, task, **settings)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_scores_of_gradients_that_say_nothing_are_refused(llama, task, monkeypatch, value):
    monkeypatch.setattr(
        "lofit_lens.selection.gradient._example_gradients", lambda *_, **__: iter([torch.full((12, 16), value)])
    )
    for measure in ("norm", "fisher"):
        with pytest.raises(ValueError, match=r"the mean squared gradient is .*, wanted a finite number above 0"):
            gradient_scores(llama, task, measure=measure)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("own_scale", [True, False])
def test_gradients_that_say_nothing_are_refused(value, own_scale):
    with pytest.raises(ValueError, match=r"the mean squared gradient is .*, wanted a finite number above 0"):
        greedy_values(torch.full((4, 3, 2), value), 2, 1.0, own_scale=own_scale)


# Random heads


def test_random_scores_order_all_heads_by_the_seed_alone(llama):
    state = torch.get_rng_state()
    scores = random_scores(llama, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(scores.rank()) == list(ll.check_model(llama).all_heads)
    assert sorted(scores.values.flatten().tolist()) == list(range(1, 13))
    assert scores.rank() == random_scores(llama, seed=3).rank()
    assert scores.made_by == {"method": "random", "seed": 3}
    assert len({random_scores(llama, seed=seed).top(4) for seed in range(10)}) == 10


def test_random_heads_are_uniform(llama):
    drawn = collections.Counter(random_scores(llama, seed=seed).top(1)[0] for seed in range(1200))
    # Twelve equally likely heads: 100 of each expected, standard deviation 9.6; five of them is 1 in 10^6.
    assert [head for head in ll.check_model(llama).all_heads if not 52 < drawn[head] < 148] == []


@pytest.mark.parametrize(("k", "per_layer"), [(6, {2}), (7, {2, 3}), (2, {0, 1}), (12, {4})])
def test_random_heads_can_be_as_many_in_each_layer(llama, k, per_layer):
    drawn = {spread_over_layers(random_scores(llama, seed=seed)).top(k) for seed in range(10)}
    assert len(drawn) == 10
    for heads in drawn:
        assert {sum(head.layer == layer for head in heads) for layer in range(3)} == per_layer


def test_random_heads_can_be_as_many_in_each_layer_as_others_are(llama):
    others = [(2, 0), (0, 1), (2, 3)]
    drawn = {random_scores(llama, seed=seed, like=others).top(3) for seed in range(30)}
    assert len(drawn) > 10
    assert {tuple(sorted(head.layer for head in heads)) for heads in drawn} == {(0, 2, 2)}
    scores = random_scores(llama, seed=0, like=others)
    assert scores.rank() == random_scores(llama, seed=0, like=others[::-1]).rank()
    assert sorted(scores.rank()) == list(ll.check_model(llama).all_heads)
    assert scores.made_by == {"method": "random", "seed": 0, "like": ["L2H0", "L0H1", "L2H3"]}
    with pytest.raises(ValueError, match="head L9H0 is out of range"):
        random_scores(llama, like=[(9, 0)])


# Layers in turn


def test_layers_take_turns_by_their_best_heads():
    nan = math.nan
    scores = HeadScores(
        torch.tensor([[0.9, 0.8, 0.7], [nan, nan, nan], [0.1, 0.3, 0.3], [0.5, nan, 0.6]]), "norm", {"task": "toy"}
    )
    spread = spread_over_layers(scores)
    order = [(0, 0), (3, 2), (2, 1), (0, 1), (3, 0), (2, 2), (0, 2), (2, 0)]
    assert spread.rank() == tuple(ll.Head(*head) for head in order)
    assert [spread[head] for head in order] == list(range(8, 0, -1))
    assert spread.values.isnan().equal(scores.values.isnan())
    assert spread.made_by == {"method": "spread over layers", "of": {"task": "toy"}}
    assert spread.quantity == "place from the end; layers take turns, by norm"


def test_heads_that_score_the_same_take_turns_in_their_own_order():
    spread = spread_over_layers(HeadScores(torch.zeros(3, 2)))
    assert spread.rank() == tuple(ll.Head(layer, index) for index in range(2) for layer in range(3))


# Probe-layers


@pytest.mark.parametrize("standardise", [True, False])
def test_layer_probes_equal_a_probe_on_the_heads_side_by_side(llama, toy_task, standardise):
    task = toy_task({"train": EXAMPLES * 3})
    scores = layer_probe_scores(llama, task, seed=2, val_share=0.4, standardise=standardise)
    labelled = labelled_answers(task.train, seed=2)
    z = collect_z(llama, labelled.prompts, labelled.answers).double()
    held = held_out(labelled.questions, 0.4, seed=2)
    labels = np.array(labelled.is_right)
    for layer in range(3):
        features = np.concatenate([z[layer, :, head].numpy() for head in range(4)], axis=1)
        if standardise:
            features = (features - features[~held].mean(0)) / features[~held].std(0)
        probe = LogisticRegression(max_iter=1000, random_state=2).fit(features[~held], labels[~held])
        assert scores.values[layer].tolist() == pytest.approx([probe.score(features[held], labels[held])] * 4)
    best = scores.top(4)
    assert len({head.layer for head in best}) == 1
    assert [head.index for head in best] == [0, 1, 2, 3]


def test_scores_say_of_which_model_they_are_and_whether_they_are_signed(llama, task):
    signed = gradient_scores(llama, task, measure="signed")
    found = [
        signed,
        gradient_scores(llama, task),
        greedy_gradient_scores(llama, task, k=2),
        layer_probe_scores(llama, task),
        random_scores(llama),
        spread_over_layers(signed),
    ]
    assert [scores.is_signed for scores in found] == [True] + [False] * 5
    assert all(scores.base_model == base_of(llama) and scores.heads_per_kv == 2 for scores in found)
