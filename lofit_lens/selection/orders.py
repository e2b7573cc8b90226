"""Orders of heads: drawn at random, and layers that take turns.

Random (the paper, section 4, Table 2 and footnote 5). `random_scores(model, seed=0).top(k)` draws k heads uniformly, and
`spread_over_layers(random_scores(model, seed=0)).top(k)` as many from each layer, give or take one.
"""

import collections
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from lofit_lens.heads import Head, HeadScores, checked_heads
from lofit_lens.interventions import of_model
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model


def random_scores(model: LensModel, *, seed: int = 0, like: Iterable[tuple[int, int]] | None = None) -> HeadScores:
    """All heads in an order that is drawn; a head's score is the number of heads behind it, and itself.

    Args:
        model: a TransformerBridge or HookedTransformer with raw weights.
        seed: which order.
        like: a choice of heads. As many from each layer as it has there come first, so that `.top` of its size is a control for
            where it lies in depth.

    Raises:
        ValueError: a model that cannot be used, or heads that it does not have.
    """
    info = check_model(model)
    heads = info.all_heads
    order = [Head(*heads[i]) for i in torch.randperm(len(heads), generator=torch.Generator().manual_seed(seed)).tolist()]
    made_by: dict[str, Any] = {"method": "random", "seed": seed}
    if like is not None:
        like = checked_heads(like, info.n_layers, info.n_heads)
        places = collections.Counter(head.layer for head in like)
        first = [head for layer in sorted(places) for head in _in_layer(order, layer)[: places[layer]]]
        order = first + [head for head in order if head not in first]
        made_by["like"] = [head.label for head in like]
    values = torch.full((info.n_layers, info.n_heads), torch.nan)
    for place, head in enumerate(order):
        values[head] = len(order) - place
    return HeadScores(values, "place from the end of a random order", made_by, **of_model(model))


def _in_layer(heads: Iterable[Head], layer: int) -> list[Head]:
    return [head for head in heads if head.layer == layer]


def spread_over_layers(scores: HeadScores) -> HeadScores:
    """Let layers take turns: `.top(k)` is the best head of every layer, then the second best of every layer, and so on.

    Within a turn heads go by their score. The new score of a head is the number of heads that come behind it, and itself.
    """
    ranked = scores.rank()
    had: collections.Counter[int] = collections.Counter()
    turns: dict[Head, int] = {}
    for head in ranked:
        turns[head] = had[head.layer]
        had[head.layer] += 1
    values = torch.full_like(scores.values, torch.nan)
    for place, head in enumerate(sorted(ranked, key=lambda head: turns[head])):
        values[head] = len(ranked) - place
    made_by = {"method": "spread over layers", "of": dict(scores.made_by)}
    quantity = f"place from the end; layers take turns, by {scores.quantity}"
    return replace(scores, values=values, quantity=quantity, made_by=made_by, is_signed=False)
