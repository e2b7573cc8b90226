"""Load a model, and check once that it is one this library can work on exactly."""

import hashlib
import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformer_lens.model_bridge import TransformerBridge

from lofit_lens import bfloat16, lens
from lofit_lens.embedded import EMBEDDED, embedded_path
from lofit_lens.examination import ModelInfo, examine
from lofit_lens.lens import LensModel
from lofit_lens.progress import hub_bars_on_a_terminal_only
from lofit_lens.tiny import FAMILIES, tiny_pair

logger = logging.getLogger(__name__)

_NAMES = ("_name_or_path", "model_name", "tokenizer_name", "transformers_version")
#: In configurations, and no matter to what a model computes; dtype and device, its weights have.
_NO_MATTER = frozenset((*_NAMES, "dtype", "torch_dtype", "device", "n_devices", "seed"))
#: Entries sampled from each weight for the fingerprint: enough to tell apart any two fine-tunes, quick to read.
FINGERPRINT_SAMPLES = 256


_CHECKED: WeakKeyDictionary[Any, ModelInfo] = WeakKeyDictionary()


def load_model(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    n_devices: int = 1,
    accept_license: Collection[str] = (),
) -> TransformerBridge:
    """Load a model as a TransformerBridge with raw weights, and check it.

    Args:
        name_or_path: an embedded model (`lofit-lens models` lists them; no account, no hub), `tiny-<family>` (random
            weights, for trying things out), or whatever `TransformerBridge.boot_transformers` takes.
        dtype: of the model. The learned vectors are float32 in any case.
        device: default is TransformerLens's choice (a GPU when there is one).
        n_devices: split the layers over so many GPUs.
        accept_license: licences you accept, for embedded models that ask (`{"gemma"}`).

    Raises:
        TypeError: a dtype that is none of torch's.
        ValueError: no such model, or not so many GPUs.
        PermissionError: the model's licence has to be accepted first.
    """
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"got dtype {dtype!r}; wanted one of torch's, such as torch.bfloat16")
    if n_devices != 1 and not 1 < n_devices <= torch.cuda.device_count():
        raise ValueError(f"got n_devices {n_devices}; wanted 1, or as many of the {torch.cuda.device_count()} GPUs here")
    name = str(name_or_path)
    placement: dict[str, Any] = {"device": device} if n_devices == 1 else {"n_devices": n_devices}
    if name.startswith("tiny-"):
        return tiny_model(name.removeprefix("tiny-"), dtype=dtype, device=device or "cpu")
    path = str(embedded_path(name, accept_license=accept_license)) if name in EMBEDDED else name
    try:
        with hub_bars_on_a_terminal_only():
            model = TransformerBridge.boot_transformers(path, dtype=dtype, **placement)
    except (OSError, KeyError) as error:
        raise ValueError(
            f"cannot load model {name!r}: {error}\nWanted one of the embedded models ({', '.join(EMBEDDED)}), a folder "
            "with a Hugging Face model, or a hub name (needs a connection; private models need a token)"
        ) from error
    model.cfg.model_name = name
    if name in EMBEDDED:
        # TransformerLens puts BOS in front of every model; SmolLM2 was trained without and is worse with it.
        model.cfg.default_prepend_bos = EMBEDDED[name].prepends_bos
    if bfloat16.is_slow(dtype, lens.model_device(model)):
        logger.warning(
            "this processor cannot multiply bfloat16, which is many times slower on it than float32; studies compute their "
            "products in float32, elsewhere load in float32, or see lofit_lens.bfloat16.products_in_float32"
        )
    check_model(model)
    return model


def tiny_model(
    family: str = "llama",
    *,
    seed: int = 0,
    n_layers: int = 3,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> TransformerBridge:
    """A tiny random model of an architecture family, with a byte tokenizer; nothing is downloaded.

    Raises:
        ValueError: unknown family.
    """
    if family not in FAMILIES:
        raise ValueError(f"no tiny model of family {family!r}; known are {', '.join(FAMILIES)}")
    hf_model, tokenizer = tiny_pair(family, seed=seed, n_layers=n_layers)
    cast(nn.Module, hf_model).to(device=device, dtype=dtype)
    return TransformerBridge.boot_transformers(
        f"tiny-{family}", hf_model=hf_model, tokenizer=tokenizer, device=device, dtype=dtype
    )


def check_model(model: LensModel) -> ModelInfo:
    """Check that edits at `hook_z` mean what the paper means by them, by running a few short passes; remembered per model.

    Raises:
        TypeError: not a TransformerLens model.
        ValueError: processed weights, a hook point that never fires or has another shape, or logits that are not finite or
            differ at single positions from the full pass.
    """
    for attribute in ("cfg", "hooks", "tokenizer", "blocks"):
        if not hasattr(model, attribute):
            raise TypeError(
                f"a {type(model).__name__} has no {attribute!r}; wanted a TransformerBridge or HookedTransformer: "
                "lofit_lens.load_model(name), or TransformerBridge.boot_transformers(name, hf_model=your_model)"
            )
    refuse_processed(model)
    if model not in _CHECKED:
        _CHECKED[model] = examine(model)
    return _CHECKED[model]


def refuse_processed(model: LensModel) -> None:
    """Refuse a model whose weights were rewritten: folding b_V moves it out of z, so `(1 + scale) * z` is another edit.

    Raises:
        ValueError: with the way to load the model unprocessed.
    """
    reason = None
    if getattr(model, "_weights_processed", False):
        reason = "its weights were processed by enable_compatibility_mode(); load it again without, or with no_processing=True"
    elif not lens.is_bridge(model):
        way_out = "; load it with HookedTransformer.from_pretrained_no_processing"
        if model.cfg.normalization_type in ("LNPre", "RMSPre"):
            reason = "its LayerNorm is folded into the weights" + way_out
        elif _values_folded(model):
            reason = "its value biases are folded into b_O" + way_out
    if reason:
        raise ValueError(f"this model cannot be used: {reason}")


def _values_folded(model: LensModel) -> bool:
    attentions = [block.attn for block in model.blocks]
    b_V = [getattr(attention, "b_V", None) for attention in attentions]
    b_O = [getattr(attention, "b_O", None) for attention in attentions]
    no_value_bias = all(bias is None or not bias.any() for bias in b_V)
    output_bias = any(bias is not None and bool(bias.any()) for bias in b_O)
    return no_value_bias and output_bias


def base_of(model: LensModel) -> dict[str, Any]:
    """What an adapter says of the model that it was made for, as plain JSON values."""
    info = check_model(model)
    return {
        "name": getattr(model.cfg, "model_name", "unknown"),
        "fingerprint": fingerprint(model),
        "n_layers": info.n_layers,
        "n_heads": info.n_heads,
        "d_head": info.d_head,
    }


def fingerprint(model: LensModel) -> str:
    """A short hash of the model's shape and of samples of every layer's W_Q and W_O, the same in float32 and bfloat16.

    It tells a base model from its fine-tunes, whatever the folder is called. Entries are rounded to bfloat16, the coarsest
    dtype that models are commonly stored in, so that loading in another dtype keeps the fingerprint.
    """
    info = check_model(model)
    digest = hashlib.sha256(repr((info.n_layers, info.n_heads, info.d_head, info.d_model)).encode())
    for layer in info.attention_layers:
        attention = model.blocks[layer].attn
        for weights in (attention.W_Q, attention.W_O):
            digest.update(_samples(weights))
    return digest.hexdigest()[:16]


def exact_fingerprint(model: LensModel) -> str:
    """A short hash of all that the model's outputs depend on: configuration, tokenizer, BOS, every weight to the last bit.

    Reading the weights takes a second for a gigabyte or two. In another dtype a model is another one, and a HookedTransformer
    is another one than a TransformerBridge, as either computes other bits. Hooks are no part of it.
    """
    tokenizer = model.tokenizer
    texts = [sorted(tokenizer.get_vocab().items()), tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.chat_template]
    # Values that JSON does not know are left out: what they print may differ from run to run.
    read_by = [_configuration(model), texts, bool(model.cfg.default_prepend_bos)]
    digest = hashlib.sha256(json.dumps(read_by, default=lambda _: None, sort_keys=True).encode())
    for weights in lens.weights(model):
        digest.update(f"{weights.dtype} {tuple(weights.shape)}".encode())
        digest.update(weights.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _configuration(model: LensModel) -> dict[str, Any]:
    """What the model's layers go by besides their weights: the wrapped Hugging Face model's configuration, or `cfg`.

    Without what is no matter to them: names, versions, placement, and the dtype, which the weights have. Of a Hugging Face
    configuration what it does not leave at its default, as later versions add settings.
    """
    found = model.original_model.config.to_diff_dict() if lens.is_bridge(model) else model.cfg.to_dict()
    return {name: value for name, value in found.items() if name not in _NO_MATTER}


def _samples(weights: torch.Tensor) -> bytes:
    flat = weights.detach().flatten()
    step = max(1, flat.numel() // FINGERPRINT_SAMPLES)
    return flat[::step][:FINGERPRINT_SAMPLES].to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes()
