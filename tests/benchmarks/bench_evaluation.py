"""What evaluations cost, ours against the obvious way, in one run: float32, 2 threads, the published files.

Printed, never asserted: machines differ and are noisy. That both ways come to the same scores is asserted.
"""

import resource
import time

import pytest
import torch

import lofit_lens as ll
from lofit_lens.batches import encode, padded
from lofit_lens.generation import generated_text

QUESTIONS = 100


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(2)
    return ll.load_model("smollm2-135m-instruct")


def an_edit(model) -> ll.HeadIntervention:
    heads = ll.random_scores(model).top(27)
    vectors = 0.05 * torch.randn(27, model.cfg.d_head, generator=torch.Generator().manual_seed(0))
    return ll.HeadIntervention(heads, offset=vectors)


@torch.no_grad()
def obvious_choices(model, task) -> dict[str, list[float]]:
    """The published way: one full pass for each answer, logits of every position."""
    scores: dict[str, list[float]] = {"mc1": [], "mc2": [], "mc3": []}
    for example in task.test:
        answers = (*example.right_answers, *example.rejected)
        found = []
        for sequence in encode(model, [example.prompt] * len(answers), answers, eos=False):
            logprobs = model(torch.tensor([sequence.prompt + sequence.answer]))[0].log_softmax(-1)
            places = range(len(sequence.prompt) - 1, len(sequence) - 1)
            found.append(sum(logprobs[i, token] for i, token in zip(places, sequence.answer, strict=True)))
        own = torch.stack(found).double()
        right, wrong = own[: len(example.right_answers)], own[len(example.right_answers) :]
        scores["mc1"].append(float(right[0] > wrong.max()))
        scores["mc2"].append((right.exp().sum() / own.exp().sum()).item())
        scores["mc3"].append((right > wrong.max()).double().mean().item())
    return scores


@pytest.mark.parametrize("edited", [False, True], ids=["base", "edited"])
def test_truthfulqa_choices(model, published, edited):
    task = ll.tasks.TruthfulQA(n_test=QUESTIONS, data_dir=published)
    edit = an_edit(model) if edited else None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    ours = ll.evaluate(model, task, edit)
    took = time.perf_counter() - started
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    started = time.perf_counter()
    with ll.attached(model, edit):
        theirs = obvious_choices(model, task)
    obvious = time.perf_counter() - started
    for metric, scores in theirs.items():
        assert list(ours.scores[metric]) == pytest.approx(scores, abs=1e-4)
    print(
        f"\nTruthfulQA, {QUESTIONS} questions, {'edited' if edited else 'base'}: ours {took:.0f} s, one pass an answer "
        f"{obvious:.0f} s, {obvious / took:.1f} times faster; peak memory grew by {memory:.0f} MB"
    )


@torch.no_grad()
def obvious_answers(model, task) -> list[str]:
    """Batches of 16 in the order of the file, 16 tokens for every prompt, logits of every position."""
    texts = []
    for first in range(0, len(task.test), 16):
        sequences = encode(
            model, [e.prompt for e in task.test[first : first + 16]], ["x"] * len(task.test[first : first + 16]), eos=False
        )
        tokens, mask = padded(model, [sequence.prompt for sequence in sequences], side="left")
        new, cache = tokens, None
        generated = []
        for _ in range(16):
            logits, cache = model(
                new, attention_mask=mask, past_key_values=cache, return_type="logits_and_cache", use_cache=True
            )
            new = logits[:, -1:].argmax(-1)
            generated.append(new)
            mask = torch.cat([mask, torch.ones_like(new)], dim=-1)
        texts += [generated_text(model, row.tolist(), task.stop) for row in torch.cat(generated, dim=-1)]
    return texts


@pytest.mark.parametrize("edited", [False, True], ids=["base", "edited"])
def test_mquake_exact_match(model, published, edited):
    task = ll.tasks.MQuAKE(data_dir=published)
    edit = an_edit(model) if edited else None
    started = time.perf_counter()
    ours = ll.evaluate(model, task, edit)
    took = time.perf_counter() - started
    started = time.perf_counter()
    with ll.attached(model, edit):
        texts = obvious_answers(model, task)
    obvious = time.perf_counter() - started
    verdicts = [float(task.is_correct(text, example)) for text, example in zip(texts, task.test, strict=True)]
    assert list(ours.scores["exact_match"]) == verdicts
    print(
        f"\nMQuAKE, {len(texts)} questions, {'edited' if edited else 'base'}: ours {took:.0f} s ({ours.generated} generated), "
        f"16 tokens for each {obvious:.0f} s, {obvious / took:.1f} times faster"
    )
