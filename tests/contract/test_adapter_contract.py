"""Every kind of adapter on every model: an effect, nothing left behind, and short cuts that equal the plain pass."""

import pytest
import torch

import lofit_lens as ll
from lofit_lens import lens
from lofit_lens.batches import TokenSequence, encode, encode_prompt
from lofit_lens.interventions import (
    Adapter,
    LoRAIntervention,
    LowRankIntervention,
    PromptIntervention,
    ResidualIntervention,
    prompted,
)
from lofit_lens.interventions.lora import LoRALayers
from lofit_lens.layout import laid_out, right_padded

PROMPTS = ["Once upon a time, in a land", "A", "The story of the three little pigs and the"]
ANSWERS = [" there", " b c", " wolf"]
#: Float32 sums in another order, on logits of order 10 and sums of up to five log-probabilities.
ROUNDING = 1e-3
NEW_TOKENS = 2


def normal(*shape: int, size: float = 1.0) -> torch.Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def head_edit(model) -> Adapter:
    return ll.HeadIntervention((ll.Head(0, 1), ll.Head(2, 3)), scale=normal(2, 16), offset=normal(2, 16))


def late_head_edit(model) -> Adapter:
    return ll.HeadIntervention((ll.Head(0, 1), ll.Head(2, 3)), offset=normal(2, 16), positions="generated")


def steering_vector(model) -> Adapter:
    return ResidualIntervention((1,), normal(1, ll.check_model(model).d_model))


def attention_biases(model) -> Adapter:
    return ResidualIntervention((0, 1, 2), normal(3, ll.check_model(model).d_model, size=0.5), "attn_out")


def low_rank_edit(model) -> Adapter:
    d_model = ll.check_model(model).d_model
    R = torch.linalg.qr(normal(2, d_model, 2)).Q.mT
    return LowRankIntervention((0, 2), R, normal(2, 2, d_model), normal(2, 2), prefix=1, suffix=2)


def lora(model) -> Adapter:
    factors = LoRALayers(model, 2, 4.0).factors
    return LoRAIntervention(2, 4.0, {name: normal(*factor.shape, size=0.3) for name, factor in factors.items()})


def worked_example(model) -> Adapter:
    return PromptIntervention("Once more: a b c.\n\n")


KINDS = (head_edit, late_head_edit, steering_vector, attention_biases, low_rank_edit, lora, worked_example)


@pytest.fixture(params=KINDS, ids=lambda make: make.__name__)
def adapter(request, model) -> Adapter:
    if request.param is lora and not lens.is_bridge(model):
        with pytest.raises(ValueError, match="LoRA changes layers of the Hugging Face model inside a TransformerBridge"):
            lora(model)
        pytest.skip("a HookedTransformer has no linear layers to change, and is refused")
    return request.param(model)


@torch.no_grad()
def plain_logits(model, adapter: Adapter | None, prompt: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
    """One pass over everything, no short cut taken; `[pos, d_vocab]`."""
    tokens = torch.tensor([prompt + answer])
    with ll.attached(model, adapter), laid_out(right_padded([len(prompt)], tokens.shape[1])):
        return model(tokens)[0]


def plain_score(model, adapter: Adapter | None, sequence: TokenSequence) -> float:
    prompt, answer = sequence.prompt, sequence.answer
    logprobs = plain_logits(model, adapter, prompt, answer).log_softmax(-1)
    return sum(logprobs[len(prompt) - 1 + place, token].item() for place, token in enumerate(answer))


def test_at_work_it_has_an_effect_and_afterwards_nothing_is_left(model, adapter):
    # Short, so that the last token sees what is put in front of it on models that look back 8 tokens only.
    prompt, text = (encode_prompt(model, written) for written in ("A", *prompted(adapter, ["A"])))
    before = plain_logits(model, None, prompt, ())
    assert (plain_logits(model, adapter, text, ())[-1] - before[-1]).abs().max() > 0.01
    assert torch.equal(plain_logits(model, None, prompt, ()), before)
    with pytest.raises(KeyError), ll.attached(model, adapter):
        raise KeyError
    assert torch.equal(plain_logits(model, None, prompt, ()), before)


def test_scores_and_generation_equal_the_plain_pass(model, adapter):
    scores = ll.answer_logprobs(model, PROMPTS, ANSWERS, adapter)
    texts = ll.generate(model, PROMPTS, adapter, max_new_tokens=NEW_TOKENS)
    for i, sequence in enumerate(encode(model, prompted(adapter, PROMPTS), ANSWERS, eos=False)):
        prompt = sequence.prompt
        assert scores[i].item() == pytest.approx(plain_score(model, adapter, sequence), abs=ROUNDING)
        new: tuple[int, ...] = ()
        while len(new) < NEW_TOKENS and model.tokenizer.eos_token_id not in new:
            new += (int(plain_logits(model, adapter, prompt, new)[-1].argmax()),)
        assert texts[i] == model.tokenizer.decode(new, skip_special_tokens=True)


def test_a_prompt_is_read_once_for_all_its_answers(model, adapter):
    prompts, answers = [prompt for prompt in PROMPTS[::2] for _ in ANSWERS], ANSWERS * 2
    read = []
    ll.check_model(model)  # which reads too, the first time
    with model.hooks(fwd_hooks=[(lens.z_hook(2), lambda z, hook: read.append(z.shape[0] * z.shape[1]))]):
        scores = ll.answer_logprobs(model, prompts, answers, adapter)
    sequences = encode(model, prompted(adapter, prompts), answers, eos=False)
    for sequence, score in zip(sequences, scores.tolist(), strict=True):
        assert score == pytest.approx(plain_score(model, adapter, sequence), abs=ROUNDING)
    longest_prompt, longest_answer = (max(len(getattr(s, side)) for s in sequences) for side in ("prompt", "answer"))
    assert sum(read) <= 2 * (longest_prompt - 1) + len(sequences) * longest_answer


def test_biases_that_would_land_behind_a_norm_are_refused(new_hooked_transformer):
    model = new_hooked_transformer()
    made = attention_biases(model)
    model.cfg.use_normalization_before_and_after = True
    with pytest.raises(ValueError, match="has no hook between W_O and the norm behind it"), ll.attached(model, made):
        pytest.fail("the block must not be entered")
