"""What a model allows, found out by running four tokens through it.

Architectures differ in more ways than their configurations say. So nothing is concluded from a name: each short cut that
this library takes is tried once against the plain pass, and not taken where the two differ.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lofit_lens import caches, lens
from lofit_lens.batches import padded
from lofit_lens.lens import LensModel
from lofit_lens.packing import packs

logger = logging.getLogger(__name__)

#: What a pass raises on an architecture that a hook of ours does not suit.
UNFIT = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError)


@dataclass(frozen=True)
class ModelInfo:
    """What `check_model` found out.

    Args:
        n_layers: blocks of the model.
        n_heads: query heads a layer.
        n_key_value_heads: keys and values a layer, which query heads share in groups (grouped-query attention).
        d_head: size of a head's output; not always `d_model / n_heads`.
        d_model: width of the residual stream.
        n_ctx: the longest sequence in tokens.
        attention_layers: the layers whose `hook_z` fires.
        can_resume: whether the pass can start at a stored residual with equal logits.
        can_trim_last_mlp: whether the last block's MLP can run at some positions only, with equal logits there.
        can_share_prefix: whether continuations can start from the keys and values of a prompt, answers as well as tokens that
            are generated.
        can_pack: whether, besides, several sequences can go through the model in one row, each seeing its own tokens only.
    """

    n_layers: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_model: int
    n_ctx: int
    attention_layers: tuple[int, ...]
    can_resume: bool
    can_trim_last_mlp: bool
    can_share_prefix: bool
    can_pack: bool

    @property
    def all_heads(self) -> tuple[tuple[int, int], ...]:
        return tuple((layer, index) for layer in self.attention_layers for index in range(self.n_heads))


@dataclass(frozen=True)
class PlainPass:
    """Four tokens, their logits, and the residual stream that entered block `layer` on the way."""

    tokens: Int[Tensor, "1 4"]
    mask: Int[Tensor, "1 4"]
    logits: Float[Tensor, "1 4 d_vocab"]
    layer: int
    residual: Float[Tensor, "1 4 d_model"]

    def gives(self, logits: Float[Tensor, "n d_vocab"], positions: list[int], relative_tolerance: float) -> bool:
        """Whether these are the logits of those positions."""
        expected = self.logits[0, positions]
        same_shape = logits.shape == expected.shape
        return same_shape and bool((logits - expected).abs().max() <= relative_tolerance * expected.abs().max())


@torch.no_grad()
def examine(model: LensModel) -> ModelInfo:
    """Try the model out.

    Raises:
        ValueError: it has no heads that could be edited, or logits that are not finite or not those of the full pass where
            only some positions are unembedded.
    """
    cfg = model.cfg
    plain, attention_layers = _plain_pass(model)
    if not _gives_answers_only(model, plain, trim_last_mlp=False):
        raise ValueError("logits of some positions alone differ from the full pass; this architecture cannot be used")
    shares = _works("keeping keys and values, for answers to one prompt and in generation", _shares_prefix, model, plain)
    return ModelInfo(
        n_layers=cfg.n_layers,
        n_heads=cfg.n_heads,
        n_key_value_heads=cfg.n_key_value_heads or cfg.n_heads,
        d_head=cfg.d_head,
        d_model=cfg.d_model,
        n_ctx=cfg.n_ctx,
        attention_layers=attention_layers,
        can_resume=_works("starting from a stored residual", _resumes, model, plain),
        can_trim_last_mlp=_works("running the last MLP at some positions only", _trims, model, plain),
        can_share_prefix=shares,
        can_pack=shares and _works("several sequences in one row", _packs, model, plain),
    )


def _plain_pass(model: LensModel) -> tuple[PlainPass, tuple[int, ...]]:
    """The pass that the others are held against, and the layers whose heads it went through."""
    cfg = model.cfg
    tokens = torch.arange(1, 5, device=lens.model_device(model)).reshape(1, -1) % cfg.d_vocab
    mask = torch.ones_like(tokens)
    shapes: dict[int, tuple[int, ...]] = {}
    residual: list[Tensor] = []

    def watch(layer: int) -> tuple[str, Any]:
        return lens.z_hook(layer), lambda z, hook: shapes.update({layer: tuple(z.shape)})

    watched = [watch(layer) for layer in range(cfg.n_layers) if lens.z_hook(layer) in model.hook_dict]
    half = cfg.n_layers // 2
    keep = (lens.resid_pre_hook(half), lambda value, hook: residual.append(value.clone()))
    with model.hooks(fwd_hooks=[*watched, keep]):
        logits = lens.plain_forward(model, tokens, mask)

    wanted = (1, tokens.shape[1], cfg.n_heads, cfg.d_head)
    for layer, shape in shapes.items():
        if shape != wanted:
            raise ValueError(f"{lens.z_hook(layer)} gives {shape}, wanted [batch, pos, n_heads, d_head] = {wanted}")
    if not shapes:
        raise ValueError("no attn.hook_z fired in any layer; this architecture has no heads that could be edited")
    if not logits.isfinite().all():
        raise ValueError("the model's logits are not finite on its first tokens; load it in float32, or its weights again")
    return PlainPass(tokens, mask, logits, half, residual[0]), tuple(sorted(shapes))


def _works(short_cut: str, attempt: Callable[[LensModel, PlainPass], bool], model: LensModel, plain: PlainPass) -> bool:
    try:
        works, reason = attempt(model, plain), "the logits differ"
    except UNFIT as error:
        works, reason = False, repr(error)
    if not works:
        logger.info("this model does without %s (%s): equal results, more time", short_cut, reason)
    return works


def _gives_answers_only(model: LensModel, plain: PlainPass, *, trim_last_mlp: bool) -> bool:
    columns = [1, 3]
    hooks = lens.answer_only_hooks(model, torch.tensor([0, 0]), torch.tensor(columns), trim_last_mlp=trim_last_mlp)
    with model.hooks(fwd_hooks=hooks):
        logits = lens.plain_forward(model, plain.tokens, plain.mask)
    # A matrix product over two rows and over four may be summed in another order: some units in the last place.
    return plain.gives(logits[0], columns, 32 * torch.finfo(logits.dtype).eps)


def _trims(model: LensModel, plain: PlainPass) -> bool:
    return lens.is_bridge(model) and _gives_answers_only(model, plain, trim_last_mlp=True)


def _resumes(model: LensModel, plain: PlainPass) -> bool:
    put = (lens.resid_pre_hook(plain.layer), lambda value, hook: plain.residual)
    with lens.bypassed(model, plain.layer), model.hooks(fwd_hooks=[put]):
        return torch.equal(lens.plain_forward(model, plain.tokens, plain.mask), plain.logits)


def _shares_prefix(model: LensModel, plain: PlainPass) -> bool:
    """Tokens a b c d as two prompts and what follows them, padded and put in another order: `a b` + `c d`, `a` + `b`."""
    a, b, c, d = plain.tokens[0].tolist()
    read, read_mask = padded(model, [(a, b), (a,)], side="left")
    rest, rest_mask = padded(model, [(b,), (c, d)], side="right")
    with model.hooks(fwd_hooks=[lens.no_logits(model)]):
        _, cache = caches.forward_with_cache(model, read, read_mask, None)
    swapped = caches.select_rows(cache, torch.tensor([1, 0], device=read.device))
    mask = torch.cat([read_mask.flip(0), rest_mask], dim=-1)
    logits, _ = caches.forward_with_cache(model, rest, mask, swapped)
    # Rounding through all layers stays far below the root of the precision; a wrong mask or position is far above.
    return plain.gives(logits[[0, 1, 1], [0, 0, 1]], [1, 2, 3], torch.finfo(logits.dtype).eps ** 0.5)


def _packs(model: LensModel, plain: PlainPass) -> bool:
    """Behind `a`, the sequences `b c d` and `b d a` in one row; then `d` behind the places that hold `a b c`."""
    if not lens.is_bridge(model):
        return False
    a, b, c, d = plain.tokens[0].tolist()
    (pack,) = packs(model, [(b, c, d), (b, d, a)], token_budget=8, n_before=1)
    with model.hooks(fwd_hooks=[lens.no_logits(model)]):
        _, cache = caches.forward_with_cache(model, plain.tokens[:, :1], plain.mask[:, :1], None)
    mask = torch.nn.functional.pad(pack.mask, (1, 0))
    logits, cache = caches.forward_with_cache(model, pack.tokens, mask, cache, pack.positions)
    path = pack.paths[pack.indices.index(0)]
    places = torch.tensor([[0, path[0] + 1, path[1] + 1]], device=plain.tokens.device)
    alone = caches.select_places(cache, torch.zeros_like(places[:, 0]), places)
    last, _ = caches.forward_with_cache(model, plain.tokens[:, 3:], plain.mask, alone)
    tolerance = torch.finfo(logits.dtype).eps ** 0.5
    return plain.gives(logits[0, list(path)], [1, 2, 3], tolerance) and plain.gives(last[0], [3], tolerance)
