"""On real models: the fast pass is the plain pass, for the base model and for every kind of edit."""

import pytest
import torch

import lofit_lens as ll
from lofit_lens.batches import TOKEN_BUDGET, TokenSequence, collate, encode
from lofit_lens.fitting import weights_frozen
from lofit_lens.frozen import ResidualStore
from lofit_lens.losses import mean_answer_loss
from lofit_lens.scoring import answer_logits, target_logprobs

PROMPTS = [
    "The capital of France is",
    "Q: What is the longest river in the world, measured from its source to the sea? A:",
    "Two plus two equals",
]
ANSWERS = [" Paris", " The Nile, though some say the Amazon", " four"]
PRESET = "Answer each question with a colour, and with nothing else.\n\nQ: What colour is the sky?\nA: blue.\n\n"
QUESTIONS = ["Q: What colour is blood?\nA:", "Q: What colour is a ripe tomato?\nA:", "Q: And the sun in the evening?\nA:"]
#: Longer than Gemma 3's sliding window of 512 tokens.
LONG = ("So that a window is passed: " + "one sheep, two sheep, many sheep jump over a fence; " * 42, " and all are asleep")
#: Sums over another order of additions in float32; the scores are of short answers, and of size 1 to 40.
TOLERANCE = 1e-4


def edit(model, scale: bool, offset: bool) -> ll.HeadIntervention | None:
    if not (scale or offset):
        return None
    info = ll.check_model(model)
    heads = ll.random_scores(model).top(0.1)
    generator = torch.Generator().manual_seed(0)
    vectors = 0.3 * torch.randn(2, len(heads), info.d_head, generator=generator)
    return ll.HeadIntervention(heads, scale=vectors[0] if scale else None, offset=0.3 * vectors[1] if offset else None)


def plain_logprob(model, sequence: TokenSequence) -> torch.Tensor:
    """One sequence, no padding, no cache, logits of every position.

    The softmax is in float64: PyTorch's own float32 log_softmax over Gemma's 262,144 tokens is off by 3e-4.
    """
    logits = model(torch.tensor([sequence.prompt + sequence.answer]))[0]
    logprobs = logits[len(sequence.prompt) - 1 : -1].double().log_softmax(-1)
    return sum(logprobs[i, token] for i, token in enumerate(sequence.answer))


@pytest.mark.parametrize(("scale", "offset"), [(False, False), (True, False), (False, True), (True, True)])
def test_answer_logprobs_equal_the_plain_pass(real_model, scale, offset):
    intervention = edit(real_model, scale, offset)
    # Several answers to each prompt, and prompts that begin alike: all in one tree, each token read once.
    prompts = [*PROMPTS * 2, *(f"{PRESET}{question}" for question in QUESTIONS for _ in range(2))]
    answers = [*ANSWERS, " not Lyon", " The Nile, of course", " 4", *[" red.", " red, as far as I know."] * len(QUESTIONS)]
    if scale and offset:
        # Longer than a window, so Gemma's prompts are padded next to each other, and keys and values are used twice.
        prompts += [LONG[0], LONG[0]]
        answers += [LONG[1], " and one is awake"]
    fast = ll.answer_logprobs(real_model, prompts, answers, intervention)
    with torch.no_grad(), ll.attached(real_model, intervention):
        plain = torch.stack([plain_logprob(real_model, s) for s in encode(real_model, prompts, answers, eos=False)])
    assert (fast - plain).abs().max() < TOLERANCE


def test_the_edits_differ_from_the_base_model(real_model):
    """Negative control of the test above."""
    base = ll.answer_logprobs(real_model, PROMPTS, ANSWERS)
    for scale, offset in [(True, False), (False, True)]:
        edited = ll.answer_logprobs(real_model, PROMPTS, ANSWERS, edit(real_model, scale, offset))
        assert (edited - base).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize(("scale", "offset"), [(True, False), (False, True), (True, True)])
def test_gradients_equal_the_plain_pass(real_model, scale, offset):
    sequences = encode(real_model, PROMPTS, ANSWERS, eos=False)

    def gradients(loss_of) -> list[torch.Tensor]:
        made = edit(real_model, scale, offset)
        vectors = [v.requires_grad_() for v in (made.scale, made.offset) if v is not None]
        with weights_frozen(real_model), ll.attached(real_model, made):
            loss_of().backward()
        return [v.grad for v in vectors]

    def fast() -> torch.Tensor:
        batch = collate(real_model, sequences)
        return mean_answer_loss(target_logprobs(answer_logits(real_model, batch), batch))

    def plain() -> torch.Tensor:
        return -sum(plain_logprob(real_model, s) for s in sequences) / sum(len(s.answer) for s in sequences)

    for ours, theirs in zip(gradients(fast), gradients(plain), strict=True):
        assert (ours - theirs).norm() < 1e-4 * theirs.norm()


def test_resuming_above_frozen_layers_is_bit_equal(real_model):
    info = ll.check_model(real_model)
    assert info.can_resume
    layer = info.n_layers // 2
    # Longest first, as the store runs them: all three together.
    sequences = sorted(encode(real_model, PROMPTS, ANSWERS, eos=True), key=lambda sequence: -len(sequence))
    batch = collate(real_model, sequences)
    heads = tuple(ll.Head(layer + i, i % info.n_heads) for i in range(3))
    made = ll.HeadIntervention(heads, offset=torch.randn(3, info.d_head, generator=torch.Generator().manual_seed(1)))
    store = ResidualStore(real_model, layer)
    touched: list[int] = []
    store.fill(real_model, sequences, TOKEN_BUDGET)
    with torch.no_grad(), ll.attached(real_model, made):
        full = answer_logits(real_model, batch)
        watch = [(f"blocks.{i}.attn.hook_z", lambda z, hook, i=i: touched.append(i)) for i in range(info.n_layers)]
        with real_model.hooks(fwd_hooks=watch):
            resumed = answer_logits(real_model, batch, store.resumption(range(3), batch.tokens.shape[1]))
    assert torch.equal(resumed, full)
    assert touched == list(range(layer, info.n_layers))


def test_generation_with_and_without_its_batch(real_model):
    texts = ll.generate(real_model, PROMPTS, max_new_tokens=8)
    assert texts == [ll.generate(real_model, [prompt], max_new_tokens=8)[0] for prompt in PROMPTS]
    assert len(set(texts)) == 3
