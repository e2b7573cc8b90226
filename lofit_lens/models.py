"""Load a model, and check once that it is one this library can work on exactly."""

import hashlib
import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformer_lens.model_bridge import TransformerBridge

from lofit_lens import lens
from lofit_lens.embedded import EMBEDDED, embedded_path
from lofit_lens.lens import LensModel
from lofit_lens.progress import hub_bars_on_a_terminal_only
from lofit_lens.tiny import FAMILIES, tiny_pair

logger = logging.getLogger(__name__)

#: Entries sampled from each weight for the fingerprint: enough to tell apart any two fine-tunes, quick to read.
FINGERPRINT_SAMPLES = 256


@dataclass(frozen=True)
class ModelInfo:
    """What `check_model` found out.

    Args:
        n_layers: blocks of the model.
        n_heads: query heads a layer (keys and values may be fewer: grouped-query attention).
        d_head: size of a head's output; not always `d_model / n_heads`.
        d_model: width of the residual stream.
        n_ctx: the longest sequence in tokens.
        attention_layers: the layers whose `hook_z` fires.
        can_resume: whether the pass can start at a stored residual with equal logits.
        can_trim_last_mlp: whether the last block's MLP can run at some positions only, with equal logits there.
    """

    n_layers: int
    n_heads: int
    d_head: int
    d_model: int
    n_ctx: int
    attention_layers: tuple[int, ...]
    can_resume: bool
    can_trim_last_mlp: bool

    @property
    def all_heads(self) -> tuple[tuple[int, int], ...]:
        return tuple((layer, index) for layer in self.attention_layers for index in range(self.n_heads))


#: What a pass raises on an architecture that a hook of ours does not suit.
UNFIT = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError)

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
        ValueError: no such model.
        PermissionError: the model's licence has to be accepted first.
    """
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
        _CHECKED[model] = _examine(model)
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


@torch.no_grad()
def _examine(model: LensModel) -> ModelInfo:
    cfg = model.cfg
    tokens = torch.arange(1, 5, device=lens.model_device(model)).reshape(1, -1) % cfg.d_vocab
    mask = torch.ones_like(tokens)
    shapes: dict[int, tuple[int, ...]] = {}
    residual: dict[str, torch.Tensor] = {}

    def watch(layer: int) -> tuple[str, Any]:
        return lens.z_hook(layer), lambda z, hook: shapes.update({layer: tuple(z.shape)})

    hook_points = model.hook_dict
    watched = [watch(layer) for layer in range(cfg.n_layers) if lens.z_hook(layer) in hook_points]
    resume_at = cfg.n_layers // 2
    keep = (lens.resid_pre_hook(resume_at), lambda value, hook: residual.update(kept=value.clone()))
    with model.hooks(fwd_hooks=[*watched, keep]):
        full = lens.plain_forward(model, tokens, mask)

    wanted = (1, tokens.shape[1], cfg.n_heads, cfg.d_head)
    for layer, shape in shapes.items():
        if shape != wanted:
            raise ValueError(f"{lens.z_hook(layer)} gives {shape}, wanted [batch, pos, n_heads, d_head] = {wanted}")
    if not shapes:
        raise ValueError("no attn.hook_z fired in any layer; this architecture has no heads that could be edited")
    if not full.isfinite().all():
        raise ValueError("the model's logits are not finite on its first tokens; load it in float32, or its weights again")
    if not _gives_answers_only(model, tokens, mask, full, trim_last_mlp=False):
        raise ValueError("logits of some positions alone differ from the full pass; this architecture cannot be used")

    return ModelInfo(
        n_layers=cfg.n_layers,
        n_heads=cfg.n_heads,
        d_head=cfg.d_head,
        d_model=cfg.d_model,
        n_ctx=cfg.n_ctx,
        attention_layers=tuple(sorted(shapes)),
        can_resume=_resumes(model, tokens, mask, full, residual["kept"], resume_at),
        can_trim_last_mlp=lens.is_bridge(model) and _gives_answers_only(model, tokens, mask, full, trim_last_mlp=True),
    )


def _gives_answers_only(
    model: LensModel, tokens: torch.Tensor, mask: torch.Tensor, full: torch.Tensor, *, trim_last_mlp: bool
) -> bool:
    rows, columns = torch.tensor([0, 0]), torch.tensor([1, 3])
    try:
        with model.hooks(fwd_hooks=lens.answer_only_hooks(model, rows, columns, trim_last_mlp=trim_last_mlp)):
            some = lens.plain_forward(model, tokens, mask)
    except UNFIT as error:
        logger.info("logits cannot be had at some positions only here (trim_last_mlp=%s): %s", trim_last_mlp, error)
        return False
    # A matrix product over two rows and over four may be summed in another order: some units in the last place.
    tolerance = 32 * torch.finfo(full.dtype).eps * full.abs().max()
    return some.shape[1] == 2 and bool((some - full[:, columns]).abs().max() <= tolerance)


def _resumes(
    model: LensModel, tokens: torch.Tensor, mask: torch.Tensor, full: torch.Tensor, residual: torch.Tensor, layer: int
) -> bool:
    try:
        with (
            lens.bypassed(model, layer),
            model.hooks(fwd_hooks=[(lens.resid_pre_hook(layer), lambda value, hook: residual)]),
        ):
            resumed = lens.plain_forward(model, tokens, mask)
    except UNFIT as error:
        logger.info("this architecture cannot resume from a stored residual (%s); every pass will run all layers", error)
        return False
    if not torch.equal(resumed, full):
        logger.info("resuming from a stored residual changes the logits here; every pass will run all layers")
        return False
    return True


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
        for weights in (attention.W_Q.detach().flatten(), attention.W_O.detach().flatten()):
            step = max(1, weights.numel() // FINGERPRINT_SAMPLES)
            samples = weights[::step][:FINGERPRINT_SAMPLES].to(torch.bfloat16).view(torch.int16).cpu()
            digest.update(samples.numpy().tobytes())
    return digest.hexdigest()[:16]
