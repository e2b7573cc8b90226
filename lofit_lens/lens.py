"""The part of a TransformerLens model that this library stands on, and the few places where its two model classes differ.

`TransformerBridge` (TransformerLens 3.9 and 4) and `HookedTransformer` (3.9) have the same hook points and the same
`hooks()`, but not the same unembedding hooks, blocks and KV caches. What differs is here and in `caches`, in small functions,
so that everything above is written once. A model is never subclassed and never changed: `bypassed` puts back what it replaces.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

#: The norm in front of the unembedding.
FINAL_NORM = "ln_final"


@runtime_checkable
class LensModel(Protocol):
    """What a model must have. Both TransformerLens classes do."""

    cfg: Any
    tokenizer: Any

    def hooks(self, fwd_hooks: list[Any] = ..., bwd_hooks: list[Any] = ...) -> AbstractContextManager[Any]: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def __getattr__(self, name: str) -> Any:
        """Blocks, components and weights, which the Bridge looks up by name."""
        ...


def is_bridge(model: LensModel) -> bool:
    """Whether the model is a TransformerBridge, which wraps a Hugging Face model."""
    return hasattr(model, "original_model")


def z_hook(layer: int) -> str:
    """Name of the hook point of the heads' outputs before W_O, `[batch, pos, head, d_head]`."""
    return f"blocks.{layer}.attn.hook_z"


def pattern_hook(layer: int) -> str:
    """Where a layer's attention has gone through its softmax: `[batch, head, to, source]`."""
    return f"blocks.{layer}.attn.hook_pattern"


def resid_pre_hook(layer: int) -> str:
    """Name of the hook point of the residual stream that enters a block, `[batch, pos, d_model]`."""
    return f"blocks.{layer}.hook_resid_pre"


def resid_post_hook(model: LensModel, layer: int) -> str:
    """Name of the hook point of the residual stream behind a block, `[batch, pos, d_model]`."""
    return f"blocks.{layer}.hook_out" if is_bridge(model) else f"blocks.{layer}.hook_resid_post"


def attn_out_hook(model: LensModel, layer: int) -> str:
    """Name of the hook point of what W_O gives, biases included, before any norm of it, `[batch, pos, d_model]`.

    Raises:
        ValueError: a HookedTransformer with a norm there (Gemma 2's), whose hook point comes behind it.
    """
    if not is_bridge(model) and model.cfg.use_normalization_before_and_after:
        raise ValueError(
            "this HookedTransformer has no hook between W_O and the norm behind it; load it as a TransformerBridge"
        )
    return f"blocks.{layer}.attn.hook_out" if is_bridge(model) else f"blocks.{layer}.hook_attn_out"


def end_tokens(model: LensModel) -> frozenset[int]:
    """Ids at which generated text ends: the tokenizer's, and those of a Bridge's generation settings, which may name several.

    (Gemma's chats end with `<end_of_turn>`, Llama 3's with `<|eot_id|>`, though their tokenizers name another token.)
    """
    settings = getattr(model.original_model, "generation_config", None) if is_bridge(model) else None
    named = getattr(settings, "eos_token_id", None)
    named = named if isinstance(named, list) else [named]
    return frozenset(token for token in (*named, model.tokenizer.eos_token_id) if token is not None)


def unembed_input_hook(model: LensModel) -> str:
    """Name of the last hook point before the unembedding where positions are still independent of each other.

    A hook there that returns only some positions makes the unembedding pay for those alone.
    """
    return "unembed.hook_in" if is_bridge(model) else "ln_final.hook_normalized"


def answer_only_hooks(
    model: LensModel, rows: Int[Tensor, "place"], columns: Int[Tensor, "place"], *, trim_last_mlp: bool
) -> list[tuple[str, Any]]:
    """Hooks that make a pass give logits for some positions only, `[1, place, d_vocab]`, and pay for no others there.

    With `trim_last_mlp` the last block's MLP runs at those positions only as well, because nothing behind it mixes positions.
    Elsewhere its output is zero, which nobody reads; if a hook is there already that would see it, nothing is trimmed.
    """

    def gather(value: Tensor, hook: Any) -> Tensor:
        return value[rows.to(value.device), columns.to(value.device)].unsqueeze(0)

    shape: list[int] = []

    def gather_and_note_shape(value: Tensor, hook: Any) -> Tensor:
        shape[:] = value.shape
        return gather(value, hook)

    def scatter(value: Tensor, hook: Any) -> Tensor:
        spread = value.new_zeros(*shape[:2], value.shape[-1])
        spread[rows.to(value.device), columns.to(value.device)] = value.squeeze(0)
        return spread

    unembed = (unembed_input_hook(model), gather)
    if not trim_last_mlp or _last_mlp_is_watched(model):
        return [unembed]
    mlp = f"blocks.{model.cfg.n_layers - 1}.mlp"
    return [(f"{mlp}.hook_in", gather_and_note_shape), (f"{mlp}.hook_out", scatter), unembed]


def last_position_only(model: LensModel) -> tuple[str, Any]:
    """A hook that makes a pass give logits for the last position only."""
    return unembed_input_hook(model), lambda value, hook: value[:, -1:]


def no_logits(model: LensModel) -> tuple[str, Any]:
    """A hook that makes a pass give logits for no position: what is read is to be remembered only."""
    return unembed_input_hook(model), lambda value, hook: value[:, :0]


def _last_mlp_is_watched(model: LensModel) -> bool:
    last = f"blocks.{model.cfg.n_layers - 1}"
    from_there_on = tuple(f"{last}.{part}" for part in ("mlp", "ln2", "hook_mlp", "hook_out", "hook_resid_post"))
    from_there_on += ("ln_final", "unembed", "hook_unembed")
    return _hook_points_in_use(model, from_there_on)


def is_hooked(model: LensModel) -> bool:
    """Whether a hook of somebody's is at work in a forward pass: at a hook point, or PyTorch's own on another module."""
    hooks = [
        hook
        for module in modules(model)
        if not hasattr(module, "fwd_hooks")
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    # A Bridge puts some of its own on norms and MLPs when it first runs, transformers its recorders of hidden states.
    theirs = ("transformer_lens.", "transformers.")
    foreign = any(not str(getattr(hook, "__module__", "")).startswith(theirs) for hook in hooks)
    return foreign or _hook_points_in_use(model, ("",))


def _hook_points_in_use(model: LensModel, parts: tuple[str, ...]) -> bool:
    """Whether a hook of somebody's is at a hook point whose name starts with one of these."""
    return any(point.fwd_hooks or point.bwd_hooks for name, point in model.hook_dict.items() if name.startswith(parts))


def head_output_weights(model: LensModel, layer: int) -> Float[Tensor, "head d_head d_model"]:
    """W_O of one layer, each head's map from `z` into the residual stream."""
    return model.blocks[layer].attn.W_O.detach()


def unembedding_weights(model: LensModel) -> Float[Tensor, "d_model d_vocab"]:
    """W_U, the map from the normalised residual stream to logits."""
    return model.W_U.detach()


def norm_behind_attention(model: LensModel, layer: int) -> str | None:
    """Name of the norm between W_O and the residual stream, if there is one (Gemma 2 and 3, OLMo 2).

    Raises:
        ValueError: something else is in between, such as Granite's multiplier.
    """
    if not is_bridge(model):
        return f"blocks.{layer}.ln1_post" if model.cfg.use_normalization_before_and_after else None
    # The Bridge gives the hook point of what attention adds to the stream the name of the component that puts it out.
    point = model.hook_dict.get(f"blocks.{layer}.hook_attn_out")
    component = "nothing known" if point is None else point.name.removesuffix(".hook_out")
    if component == f"blocks.{layer}.attn":
        return None
    if norm_scale_hook(component) not in model.hook_dict:
        raise ValueError(
            f"between W_O and the residual stream, layer {layer} has {component}, which is no norm; what a head adds to the "
            "stream cannot be told for this architecture"
        )
    return component


def norm_scale_hook(norm: str) -> str:
    """Name of the hook point of what a norm divides by, `[batch, pos, 1]`."""
    return f"{norm}.hook_scale"


@torch.no_grad()
def norm_parts(
    model: LensModel, norm: str, vectors: Float[Tensor, "n d_model"]
) -> tuple[Float[Tensor, "n d_model"], Float[Tensor, "n 1"]]:
    """`A x` and `s(x)` of a norm that makes `A x / s(x) + b` of x, for each vector x, in float32.

    `A` centres (LayerNorm only) and multiplies by the learned weights. The norm itself is run, as families store those in
    several ways.

    Raises:
        ValueError: the model has no such norm.
    """
    if norm_scale_hook(norm) not in model.hook_dict:
        raise ValueError(
            f"the model has no norm {norm!r} with a hook_scale; wanted an architecture with a LayerNorm or RMSNorm"
        )
    module, scales = model.get_submodule(norm), []
    inputs = torch.stack([vectors, torch.zeros_like(vectors)]).to(next(module.parameters(), unembedding_weights(model)))
    with model.hooks(fwd_hooks=[(norm_scale_hook(norm), lambda scale, hook: scales.append(scale))]):
        normalised, bias = module(inputs).float().to(vectors.device).unbind(0)
    scale = scales[0][0].float().to(vectors.device)
    return (normalised - bias) * scale, scale


def plain_forward(
    model: LensModel,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | Float[Tensor, "batch 1 pos pos"],
    positions: Int[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, "_ _ d_vocab"]:
    """The logits of one pass over right-padded tokens, without filling a KV cache that nobody reads.

    With positions, and for a Bridge only, the mask is what is added to the attention scores of every pair.
    """
    keywords: dict[str, Any] = {"use_cache": False} if is_bridge(model) else {}
    if positions is not None:
        keywords["position_ids"] = positions
    return model(tokens, attention_mask=attention_mask, **keywords)


class AllSeenError(Exception):
    """Raised by a hook behind which the pass need not be run."""


@contextmanager
def ending_early(model: LensModel, hooks: list[Any]) -> Iterator[None]:
    """Inside, these hooks are at work, and a pass ends where one of them raises `AllSeenError`."""
    with suppress(AllSeenError), model.hooks(fwd_hooks=hooks):
        yield


@contextmanager
def bypassed(model: LensModel, below: int) -> Iterator[None]:
    """For the duration, blocks 0 to `below - 1` hand their input on unchanged and cost nothing.

    Raises:
        RuntimeError: a block's forward is replaced already.
    """

    def hand_on(*args: Any, **kwargs: Any) -> Any:
        return args[0] if args else kwargs["hidden_states"]

    blocks: list[nn.Module] = [model.blocks[layer] for layer in range(below)]
    # Into the instance's own dictionary: setattr on a Bridge component lands on the module that it wraps.
    for block in blocks:
        if "forward" in block.__dict__:
            raise RuntimeError("a block's forward is replaced already; `bypassed` does not nest, or another tool is at work")
    try:
        for block in blocks:
            block.__dict__["forward"] = hand_on
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def attention_window(model: LensModel) -> int | None:
    """How far back the shortest-sighted layer of a Bridge looks, in tokens, its own included; None is without a limit."""
    config = model.original_model.config.get_text_config()
    names = ("sliding_window", "attention_chunk_size", "window_size")
    return min((size for name in names if (size := getattr(config, name, None)) is not None), default=None)


def modules(model: LensModel) -> list[nn.Module]:
    """Every module of the model, a Bridge's own and those of the model that it wraps."""
    roots: list[nn.Module] = [model, model.original_model] if is_bridge(model) else [model]  # pyright: ignore[reportAssignmentType]
    return list({id(module): module for root in roots for module in nn.Module.modules(root)}.values())


def weights(model: LensModel) -> list[nn.Parameter]:
    """Every weight of the model; a Bridge holds some of its own beside the wrapped model's (GPT-2's split queries, say)."""
    own = (weight for module in modules(model) for weight in nn.Module.parameters(module, recurse=False))
    return list({id(weight): weight for weight in own}.values())


def model_device(model: LensModel) -> torch.device:
    """Where tokens go in: the device of the embedding."""
    return torch.device(model.cfg.device) if model.cfg.device is not None else next(model.parameters()).device
