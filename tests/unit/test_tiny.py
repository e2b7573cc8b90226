"""Tiny models are what their family is, the same for the same seed, and need nothing from outside."""

import socket

import pytest
import torch

from lofit_lens.tiny import BOS, EOS, FAMILIES, PAD, VOCAB_SIZE, tiny_config, tiny_pair, tiny_tokenizer

GROUPED = {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "olmo2", "mixtral"}
SLIDING = {"mistral", "gemma2", "gemma3", "mixtral"}
BIASED = {"gpt2", "gpt_neox", "qwen2", "phi", "opt"}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args):
        pytest.fail(f"tried to connect to {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("family", FAMILIES)
def test_model(family):
    model, tokenizer = tiny_pair(family, n_layers=2)
    assert not model.training
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert not any(weight.requires_grad for weight in model.parameters())
    assert model.config.num_hidden_layers == 2
    assert model.config.architectures == [type(model).__name__]
    assert model.config._attn_implementation == "eager"
    logits = model(tokenizer("Grüße", return_tensors="pt").input_ids).logits
    assert logits.shape == (1, 1 + len("Grüße".encode()), VOCAB_SIZE)
    # Neither flat nor saturated: an edit anywhere can be seen.
    assert 0.5 < logits.std() < 2
    assert logits.softmax(-1).max() < 0.6


@pytest.mark.parametrize("family", FAMILIES)
def test_structure(family):
    config = tiny_config(family)
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert (config.num_attention_heads, d_head) == (4, 16)
    if family in GROUPED:
        assert config.num_key_value_heads == 2
        assert config.num_attention_heads * d_head != config.hidden_size
    if family in SLIDING:
        assert config.sliding_window == 8


@pytest.mark.parametrize("family", FAMILIES)
def test_no_weight_is_constant(family):
    model, _ = tiny_pair(family, n_layers=1)
    constant = [name for name, weight in model.named_parameters() if weight.std() < 0.05]
    assert not constant
    attention_biases = [name for name, _ in model.named_parameters() if "att" in name and name.endswith("bias")]
    assert bool([name for name in attention_biases if "norm" not in name]) == (family in BIASED)


@pytest.mark.parametrize("family", FAMILIES)
def test_sliding_window(family):
    model, _ = tiny_pair(family, n_layers=1)
    tokens = torch.arange(10, 30).reshape(1, -1)
    other = tokens.clone()
    other[0, 0] = 99
    difference = (model(tokens).logits - model(other).logits).abs().amax(-1)[0]
    assert difference[1] > 0
    # Not quite zero in a mixture of experts: which tokens share an expert changes the order of its sums.
    assert (difference[8:].max() < 1e-5) == (family in SLIDING)


@pytest.mark.parametrize("family", FAMILIES)
def test_seed(family):
    global_state = torch.get_rng_state()
    first, again, other = (tiny_pair(family, seed=seed, n_layers=1)[0].state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), global_state)
    torch.manual_seed(123)
    later = tiny_pair(family, seed=3, n_layers=1)[0].state_dict()
    for name in first:
        assert torch.equal(first[name], again[name])
        assert torch.equal(first[name], later[name])
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "  two  spaces\n\n\ttab\r\n",
        "don't stop , . !",
        "naïve 日本語 \N{FAMILY} 🎉 e\N{COMBINING ACUTE ACCENT}",
        "".join(map(chr, range(0x250))),
        "\N{ZERO WIDTH JOINER}\U0010ffff",
        f"{BOS}literal{EOS}{PAD}",
    ],
)
def test_tokenizer_round_trip(text):
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text
    if BOS not in text:
        assert len(ids) == len(text.encode())
    assert tokenizer(text).input_ids == [tokenizer.bos_token_id, *ids]


def test_special_tokens():
    tokenizer = tiny_tokenizer()
    assert len(tokenizer) == VOCAB_SIZE
    assert [tokenizer.convert_tokens_to_ids(token) for token in (PAD, BOS, EOS)] == [0, 1, 2]
    config = tiny_config("llama")
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
    assert tokenizer.decode([1, *tokenizer("a", add_special_tokens=False).input_ids, 2, 0], skip_special_tokens=True) == "a"


def test_unknown_family():
    with pytest.raises(ValueError, match="no tiny model of family 'bert'; known are gpt2"):
        tiny_pair("bert")
