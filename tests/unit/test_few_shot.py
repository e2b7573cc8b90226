"""Few-shot and zero-shot: what the model gets to read, and what it must not."""

import random

import pytest
import torch

import lofit_lens as ll
from lofit_lens.batches import encode_answer, encode_prompt
from lofit_lens.methods import FewShot
from lofit_lens.tasks import Example

TRAIN = [Example(f"Q: Is {a} odd?\nA:", " Yes." if a % 2 else " No.", rejected=(" Who knows?",)) for a in range(8)]
TEST = [Example("Q: Is 30 odd?\nA:", " No.", rejected=(" Yes.", " Perhaps.")), Example("Q: Is 31 odd?\nA:", " Yes.")]


@pytest.fixture
def task(toy_task):
    return toy_task({"train": TRAIN, "test": TEST}, max_new_tokens=3)


def text_of(seed: int, n: int, separator: str = "\n\n") -> str:
    return "".join(e.prompt + e.answer + separator for e in random.Random(seed).sample(TRAIN, n))


def reading(model, run) -> list[str]:
    """The texts that the model reads while `run` runs, a row each."""
    seen = []
    with model.hooks(fwd_hooks=[("embed.hook_in", lambda tokens, hook: seen.extend(tokens.tolist()))]):
        run()
    return [model.tokenizer.decode(row, skip_special_tokens=True) for row in seen]


@pytest.mark.parametrize("n", [1, 3])
def test_the_model_reads_the_examples_and_then_the_question(llama, task, n):
    ll.check_model(llama)
    made = FewShot(n_examples=n).fit(llama, task, seed=4).intervention
    wanted = f"{text_of(4, n)}{TEST[0].prompt}"
    assert wanted.count("Q:") == n + 1
    # The last token of an answer is predicted, and not read.
    assert reading(llama, lambda: ll.answer_logprobs(llama, [TEST[0].prompt], [" No."], made)) == [f"{wanted} No"]
    assert reading(llama, lambda: ll.generate(llama, [TEST[0].prompt], made, max_new_tokens=1))[0] == wanted
    assert reading(llama, lambda: ll.answer_logprobs(llama, [TEST[0].prompt], [" No."])) == [f"{TEST[0].prompt} No"]


def test_scores_and_generation_are_those_of_the_written_out_prompts(llama, task):
    made = FewShot(n_examples=2, separator="\n--\n").fit(llama, task, seed=1).intervention
    prompts, answers = [e.prompt for e in TEST], [e.answer for e in TEST]
    written_out = [text_of(1, 2, "\n--\n") + prompt for prompt in prompts]
    found = ll.answer_logprobs(llama, prompts, answers, made)
    for prompt, answer, score in zip(written_out, answers, found, strict=True):
        p, a = encode_prompt(llama, prompt), encode_answer(llama, answer, eos=False)
        with torch.no_grad():
            logprobs = llama(torch.tensor([[*p, *a]]))[0].log_softmax(-1)
        plain = sum(logprobs[len(p) - 1 + i, token].item() for i, token in enumerate(a))
        # Float32 sums in another order, over a shared beginning; log-probabilities of order 20.
        assert score.item() == pytest.approx(plain, abs=1e-3)
    assert ll.generate(llama, prompts, made, max_new_tokens=3) == ll.generate(llama, written_out, max_new_tokens=3)
    assert list(ll.evaluate(llama, task, made).texts) == ll.generate(llama, written_out, max_new_tokens=3, stop=task.stop)


def test_the_seed_decides_the_examples(llama, task):
    texts = [FewShot(n_examples=3).fit(llama, task, seed=seed).intervention.text for seed in (0, 0, 1, 2)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_zero_shot_is_the_bare_model(llama, task):
    made = FewShot(n_examples=0).fit(llama, task).intervention
    assert (made.text, made.n_parameters) == ("", 0)
    prompts, answers = [e.prompt for e in TEST], [e.answer for e in TEST]
    assert torch.equal(ll.answer_logprobs(llama, prompts, answers, made), ll.answer_logprobs(llama, prompts, answers))
    assert ll.generate(llama, prompts, made) == ll.generate(llama, prompts)
    assert ll.evaluate(llama, task, made).texts == ll.evaluate(llama, task).texts


def test_an_example_that_will_be_asked_is_never_shown(llama, toy_task):
    """Published splits overlap: 13 of CLUTRR's training stories are in its other splits."""
    asked = {"val": TRAIN[2:4], "test": [Example(TRAIN[5].prompt, " Yes, it is."), *TEST]}
    task = toy_task({"train": TRAIN, **asked})
    text = FewShot(n_examples=5).fit(llama, task).intervention.text
    assert sorted(text.split("\n\n")[:-1]) == sorted(f"{TRAIN[i].prompt}{TRAIN[i].answer}" for i in (0, 1, 4, 6, 7))
    with pytest.raises(ValueError, match="got 5 training examples of toy that no other split asks, wanted 6 or more"):
        FewShot(n_examples=6).fit(llama, task)


def test_no_examples_need_no_data(llama, toy_task):
    assert FewShot(n_examples=0).fit(llama, toy_task({"test": TEST})).intervention.text == ""


def test_published_stories_that_are_asked_are_not_shown(llama, published):
    task = ll.tasks.CLUTRR(n_train=None, data_dir=published)
    others = {example.prompt for split in ("val", "test") for example in task.splits[split]}
    assert sum(example.prompt in others for example in task.train) == 13
    text = FewShot(n_examples=3138).fit(llama, task).intervention.text
    assert not [prompt for prompt in others if prompt in text]
