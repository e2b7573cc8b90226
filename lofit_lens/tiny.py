"""Tiny random models of many architectures, made from code alone: for tests, dry runs and trying out a notebook.

Their numbers mean nothing, but their structure is true to the family, and chosen so that bugs show: heads that do not
add up to the model's width, fewer key-value heads than query heads, a sliding window shorter than a sentence, biases
and norm weights that are never zero or one.
"""

from collections.abc import Mapping
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
#: Every byte is a token.
VOCAB_SIZE = 3 + 256

#: Everywhere 4 heads of 16. Here they make 64 in a model of width 48, and keys and values have 2 heads only.
_LLAMA_LIKE = {
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 80,
    "max_position_embeddings": 256,
}
#: In these families the heads always add up to the model's width.
_GPT_LIKE = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 256}
_SLIDING = {"sliding_window": 8}
_GEMMA = {**_LLAMA_LIKE, **_SLIDING, "query_pre_attn_scalar": 16}

#: Family -> model type and settings in transformers.
_SETTINGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "gpt2": ("gpt2", {"n_embd": 64, "n_head": 4, "n_inner": 80, "n_positions": 256}),
    "gpt_neox": ("gpt_neox", {**_GPT_LIKE, "intermediate_size": 80}),
    "llama": ("llama", _LLAMA_LIKE),
    "mistral": ("mistral", {**_LLAMA_LIKE, **_SLIDING}),
    "gemma": ("gemma", _LLAMA_LIKE),
    "qwen2": ("qwen2", _LLAMA_LIKE),
    "qwen3": ("qwen3", _LLAMA_LIKE),
    "gemma2": ("gemma2", _GEMMA),
    # Every second layer attends to everything, so that a model of few layers has both kinds (Gemma 2 does so anyway).
    "gemma3": ("gemma3_text", {**_GEMMA, "sliding_window_pattern": 2}),
    "phi": ("phi", {**_GPT_LIKE, "intermediate_size": 80}),
    "opt": ("opt", {**_GPT_LIKE, "ffn_dim": 80}),
    "olmo2": ("olmo2", _LLAMA_LIKE),
    "mixtral": ("mixtral", {**_LLAMA_LIKE, **_SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2}),
}

FAMILIES: tuple[str, ...] = tuple(_SETTINGS)


def tiny_config(family: str, *, n_layers: int = 3) -> PretrainedConfig:
    """The configuration of a tiny model.

    Args:
        family: one of `FAMILIES`.
        n_layers: blocks of the model.

    Raises:
        ValueError: no such family.
    """
    if family not in _SETTINGS:
        raise ValueError(f"no tiny model of family {family!r}; known are {', '.join(FAMILIES)}")
    model_type, settings = _SETTINGS[family]
    return AutoConfig.for_model(
        model_type,
        num_hidden_layers=n_layers,
        vocab_size=VOCAB_SIZE,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **settings,
    )


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """One token a byte, so any text there and back; like Llama's and Gemma's it puts `<bos>` in front."""
    specials = (PAD, BOS, EOS)
    vocabulary = {token: i for i, token in enumerate((*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    # TransformerLens looks up a tokenizer by its name, to reload it, unless it is told that this one adds <bos> already.
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        name_or_path="tiny",
        add_bos_token=True,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )


def tiny_pair(family: str, *, seed: int = 0, n_layers: int = 3) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A tiny random model and its tokenizer; nothing is downloaded.

    The model is in float32, in eval mode, on the CPU, with eager attention, and none of its weights requires grad.

    Args:
        family: one of `FAMILIES`.
        seed: the same seed gives the same weights; PyTorch's own random state is neither read nor changed.
        n_layers: blocks of the model.

    Raises:
        ValueError: no such family.
    """
    config = tiny_config(family, n_layers=n_layers)
    # Making the model draws its initial weights from the global random state.
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    _randomise(model, seed)
    # As in a configuration from the hub: TransformerLens chooses its adapter by it.
    model.config.architectures = [type(model).__name__]
    return model.eval().requires_grad_(False), tiny_tokenizer()


@torch.no_grad()
def _randomise(model: PreTrainedModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if "norm" in name or "ln_" in name:
            # Around what the family starts from: ones, or zeros where 1 is added later.
            weight.add_(0.2 * noise)
        elif weight.dim() == 1:
            weight.copy_(0.2 * noise)
        else:
            # Wide enough that heads and layers matter for the logits, narrow enough that nothing saturates.
            weight.copy_(noise * weight.shape[-1] ** -0.5)
