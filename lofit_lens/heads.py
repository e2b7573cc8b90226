"""Attention heads, and scores over all heads of a model."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd
from jaxtyping import Float
from torch import Tensor


class Head(NamedTuple):
    """One query head: `blocks.{layer}.attn.hook_z[:, :, index, :]`."""

    layer: int
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  # hides tuple.index, which nobody needs here

    @property
    def label(self) -> str:
        return f"L{self.layer}H{self.index}"

    @classmethod
    def from_label(cls, label: str) -> "Head":
        """`L12H5` -> `Head(12, 5)`.

        Raises:
            ValueError: the label is of another form.
        """
        layer, separator, index = label.removeprefix("L").partition("H")
        if not (label.startswith("L") and separator and layer.isdecimal() and index.isdecimal()):
            raise ValueError(f"{label!r} is not a head label; wanted the form 'L12H5' (layer 12, head 5)")
        return cls(int(layer), int(index))


def head_count(k: int | float, n_heads: int) -> int:
    """How many heads `k` means out of `n_heads`: an int is a count, a float in (0, 1] a fraction, rounded half up.

    Raises:
        ValueError: k is not a positive number, or asks for more heads than there are.
    """
    if isinstance(k, bool) or not isinstance(k, int | float):
        raise ValueError(f"k = {k!r}; wanted a count of heads (an int) or a fraction of them (a float in (0, 1])")
    if isinstance(k, float):
        if not 0 < k <= 1:
            raise ValueError(f"k = {k} is a fraction of the heads and must lie in (0, 1]; for a count, pass an int")
        return max(1, math.floor(k * n_heads + 0.5))
    if not 1 <= k <= n_heads:
        raise ValueError(f"k = {k} heads asked for; wanted 1 to {n_heads}, the number of heads scored")
    return k


def checked_heads(heads: Iterable[tuple[int, int]], n_layers: int, n_heads: int) -> tuple[Head, ...]:
    """The heads as `Head`s, in the given order.

    Raises:
        ValueError: none given, one given twice, or one that a model of this size does not have.
    """
    checked = tuple(Head(*head) for head in heads)
    if not checked:
        raise ValueError("no heads given; wanted at least one (layer, index) pair")
    for head in checked:
        if not (0 <= head.layer < n_layers and 0 <= head.index < n_heads):
            raise ValueError(
                f"head {head.label} is out of range; the model has layers 0-{n_layers - 1} and heads 0-{n_heads - 1}"
            )
    if len(set(checked)) != len(checked):
        twice = sorted({head.label for head in checked if checked.count(head) > 1})
        raise ValueError(f"heads given twice: {', '.join(twice)}; each head can be edited once")
    return checked


@dataclass(frozen=True, eq=False)
class HeadScores:
    """A score for every head of a model; the larger, the more the head matters.

    Args:
        values: one score per head. Layers without attention are NaN.
        made_by: how the scores came about (method, task, model, seed), for tables and figures.
        quantity: what the numbers are, with their unit; the label of a colour bar.
        is_signed: whether a score below 0 would mean the opposite of one above, so that colours are centred at 0 even where no
            score is negative.
        base_model: which model that is, as `base_of` says it; None where nobody has said.
        n_key_value_heads: keys and values a layer, which query heads share in groups; None where nobody has said.
    """

    values: Float[Tensor, "layer head"]
    quantity: str = "score"
    made_by: Mapping[str, Any] = field(default_factory=dict)
    is_signed: bool = False
    base_model: Mapping[str, Any] | None = None
    n_key_value_heads: int | None = None

    @property
    def heads_per_kv(self) -> int | None:
        """Query heads that read the same keys and values, if it is known."""
        n_heads, n_groups = self.values.shape[1], self.n_key_value_heads
        return n_heads // n_groups if n_groups and n_heads % n_groups == 0 else None

    def rank(self) -> tuple[Head, ...]:
        """All scored heads, best first; ties in the order of (layer, index)."""
        scored = [Head(*divmod(i, self.values.shape[1])) for i in range(self.values.numel())]
        scored = [head for head in scored if not math.isnan(self[head])]
        return tuple(sorted(scored, key=lambda head: (-self[head], head)))

    def top(self, k: int | float) -> tuple[Head, ...]:
        """The best `k` heads, best first: a count, or a fraction of all scored heads.

        Raises:
            ValueError: k is not positive, or more than there are.
        """
        ranked = self.rank()
        return ranked[: head_count(k, len(ranked))]

    def __getitem__(self, head: tuple[int, int]) -> float:
        return self.values[head[0], head[1]].item()

    def to_frame(self) -> pd.DataFrame:
        """One row per head, best first: `layer`, `head`, `label`, `score`."""
        ranked = self.rank()
        return pd.DataFrame(
            {
                "layer": [head.layer for head in ranked],
                "head": [head.index for head in ranked],
                "label": [head.label for head in ranked],
                "score": [self[head] for head in ranked],
            }
        )
