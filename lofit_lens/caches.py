"""KV caches of the two model classes: kept, taken apart and put together. A cache that goes in is left as it was."""

import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lofit_lens.lens import LensModel, is_bridge


def forward_with_cache(
    model: LensModel,
    tokens: Int[Tensor, "batch new"],
    attention_mask: Int[Tensor, "batch pos"] | Float[Tensor, "batch 1 new pos"],
    cache: Any,
    positions: Int[Tensor, "batch new"] | None = None,
) -> tuple[Float[Tensor, "_ _ d_vocab"], Any]:
    """The logits of new tokens behind cached ones, and the KV cache that now holds both.

    Args:
        model: a TransformerBridge or HookedTransformer.
        tokens: the tokens that the cache does not hold yet; prompts padded on the left, what follows them on the right.
        attention_mask: over everything so far, cached tokens included; or, with positions and for a Bridge only, what is
            added to the attention scores of every pair.
        cache: what the previous step returned, or None.
        positions: of the new tokens, where the mask does not tell.
    """
    if is_bridge(model):
        placed = {} if positions is None else {"position_ids": positions}
        return model(
            tokens,
            attention_mask=attention_mask,
            past_key_values=cache,
            return_type="logits_and_cache",
            use_cache=True,
            **placed,
        )
    if cache is None:
        # Only TransformerLens 3 gets here, and only it has this.
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

        cache = TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, tokens.shape[0])
    new_mask = attention_mask[:, -tokens.shape[1] :]
    logits = model(tokens, attention_mask=new_mask, past_kv_cache=cache, padding_side="left")
    return logits, cache


def select_rows(cache: Any, rows: Int[Tensor, "batch"]) -> Any:
    """A new KV cache of some rows of another, a row as often as it is named."""
    chosen = copy.copy(cache)
    if hasattr(chosen, "layers"):
        # Each layer's copy gets tensors of its own from reorder_cache, so nothing large is copied twice.
        chosen.layers = [copy.copy(layer) for layer in cache.layers]
        chosen.reorder_cache(rows)
        return chosen
    chosen.entries = [copy.copy(entry) for entry in cache.entries]
    for entry in chosen.entries:
        entry.past_keys, entry.past_values = entry.past_keys[rows], entry.past_values[rows]
    chosen.previous_attention_mask = cache.previous_attention_mask[rows]
    return chosen


def select_places(cache: Any, rows: Int[Tensor, "batch"], places: Int[Tensor, "batch pos"]) -> Any:
    """A new KV cache of some places of some rows of another (a Bridge's), in a new order."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in chosen.layers:
        for name in ("keys", "values"):
            by_place = getattr(layer, name).transpose(1, 2)
            setattr(layer, name, by_place[rows.unsqueeze(1), places].transpose(1, 2))
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length = places.shape[1]
    return chosen


def join(first: Any, second: Any) -> Any:
    """A new KV cache with the rows of two, the shorter one padded on the left."""
    joined = copy.copy(first)
    if hasattr(first, "layers"):
        joined.layers = [copy.copy(layer) for layer in first.layers]
        for layer, other in zip(joined.layers, second.layers, strict=True):
            layer.keys = _rows_of_both(layer.keys, other.keys, dim=-2)
            layer.values = _rows_of_both(layer.values, other.values, dim=-2)
            if hasattr(layer, "cumulative_length"):
                layer.cumulative_length = max(layer.cumulative_length, other.cumulative_length)
        return joined
    joined.entries = [copy.copy(entry) for entry in first.entries]
    for entry, other in zip(joined.entries, second.entries, strict=True):
        entry.past_keys = _rows_of_both(entry.past_keys, other.past_keys, dim=1)
        entry.past_values = _rows_of_both(entry.past_values, other.past_values, dim=1)
    joined.previous_attention_mask = _rows_of_both(first.previous_attention_mask, second.previous_attention_mask, dim=1)
    return joined


def drop_first(cache: Any, start: int) -> Any:
    """A new KV cache without the first `start` places of every row."""
    chosen = copy.copy(cache)
    if hasattr(cache, "layers"):
        chosen.layers = [copy.copy(layer) for layer in cache.layers]
        for layer in chosen.layers:
            # A sliding layer has dropped some places itself.
            still_there = max(start - (layer.get_seq_length() - layer.keys.shape[-2]), 0)
            layer.keys, layer.values = layer.keys[..., still_there:, :], layer.values[..., still_there:, :]
            if hasattr(layer, "cumulative_length"):
                layer.cumulative_length -= start
        return chosen
    chosen.entries = [copy.copy(entry) for entry in cache.entries]
    for entry in chosen.entries:
        entry.past_keys, entry.past_values = entry.past_keys[:, start:], entry.past_values[:, start:]
    chosen.previous_attention_mask = cache.previous_attention_mask[:, start:]
    return chosen


def _rows_of_both(first: Tensor, second: Tensor, dim: int) -> Tensor:
    width = max(first.shape[dim], second.shape[dim])
    shape = [list(part.shape) for part in (first, second)]
    for part in shape:
        part[dim] = width - part[dim]
    padded = [torch.cat([part.new_zeros(missing), part], dim) for part, missing in zip((first, second), shape, strict=True)]
    return torch.cat(padded)
