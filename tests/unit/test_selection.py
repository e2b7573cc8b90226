"""Head scores by gradients and by layer probes, against loops over examples and heads."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import lofit_lens as ll
from lofit_lens.activations import last_token_z
from lofit_lens.batches import encode
from lofit_lens.fitting import weights_frozen
from lofit_lens.probes import held_out, labelled_answers
from lofit_lens.selection import gradient_scores, layer_probe_scores
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


def test_layer_probes_equal_a_probe_on_the_heads_side_by_side(llama, toy_task):
    task = toy_task({"train": EXAMPLES * 3})
    scores = layer_probe_scores(llama, task, seed=2, val_share=0.4, standardise=False)
    labelled = labelled_answers(task.train, seed=2)
    z = last_token_z(llama, labelled.prompts, labelled.answers).double()
    held = held_out(labelled.questions, 0.4, seed=2)
    labels = np.array(labelled.is_right)
    for layer in range(3):
        features = np.concatenate([z[layer, :, head].numpy() for head in range(4)], axis=1)
        probe = LogisticRegression(max_iter=1000, random_state=2).fit(features[~held], labels[~held])
        assert scores.values[layer].tolist() == pytest.approx([probe.score(features[held], labels[held])] * 4)
    best = scores.top(4)
    assert len({head.layer for head in best}) == 1
    assert [head.index for head in best] == [0, 1, 2, 3]
