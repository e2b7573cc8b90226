"""Where the columns of a running pass stand in their texts, for edits that do not treat all positions alike.

A hook sees `[batch, pos, ...]` and cannot tell a prompt from its answer, nor padding from either. So whoever runs prompts and
answers says what the columns are (`laid_out`), as long as such an edit is at work (`positions_matter`); sequences then share no
row, and prompts not their beginning. In a pass that nobody has described (a model's own `generate`), several columns are taken
for a prompt without padding, and a single one for a generated token, as a KV cache has it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

#: Where an edit is made. `all`: everywhere. `generated`: the prompt's last token and all behind it, which is where answers are
#: predicted. `published`: as ITI's code does it; the same in generation, but from the second answer token on in multiple
#: choice, so that the first two answer tokens are predicted unedited (see `ITI`).
Positions = Literal["all", "generated", "published"]

_NO_PROMPT = 1 << 30


@dataclass(frozen=True)
class Layout:
    """What the columns of a pass are.

    Args:
        from_start: steps from the first token of the prompt, which has 0; negative in padding before it, very large behind it
            where the prompt is not in the pass.
        to_end: steps to the last token of the prompt, which has 0; negative behind it.
        generates: whether an answer is being generated, not one scored that is given.
    """

    from_start: Int[Tensor, "batch pos"]
    to_end: Int[Tensor, "batch pos"]
    generates: bool = True

    def edited(self, positions: Positions) -> Bool[Tensor, "batch pos"]:
        """Which columns are edited."""
        if positions == "all":
            return torch.ones_like(self.to_end, dtype=torch.bool)
        return self.to_end <= (-2 if positions == "published" and not self.generates else 0)

    def edges(self, prefix: int, suffix: int) -> Bool[Tensor, "batch pos"]:
        """The first and last tokens of each prompt."""
        in_prompt = (self.from_start >= 0) & (self.to_end >= 0)
        return in_prompt & ((self.from_start < prefix) | (self.to_end < suffix))


_LAYOUT: ContextVar[Layout | None] = ContextVar("layout", default=None)
_MATTER: ContextVar[bool] = ContextVar("positions_matter", default=False)


def positions_matter() -> bool:
    """Whether an edit is attached that does not treat all positions alike."""
    return _MATTER.get()


@contextmanager
def positions_mattering() -> Iterator[None]:
    """While such an edit is attached."""
    token = _MATTER.set(True)
    try:
        yield
    finally:
        _MATTER.reset(token)


@contextmanager
def laid_out(layout: Layout) -> Iterator[None]:
    """While the pass runs that the layout is of."""
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


def right_padded(
    prompt_lengths: Sequence[int],
    width: int,
    *,
    n_read: Sequence[int] | None = None,
    generates: bool = False,
) -> Layout:
    """Prompts with what follows them, padded on the right; `n_read` tokens of each prompt have been read before."""
    columns = torch.arange(width).expand(len(prompt_lengths), -1)
    lengths = torch.tensor(prompt_lengths).unsqueeze(-1)
    return Layout(columns + _column(n_read, lengths), lengths - 1 - columns, generates)


def left_padded(
    prompt_lengths: Sequence[int],
    width: int,
    *,
    n_read: Sequence[int] | None = None,
    n_to_come: int = 0,
) -> Layout:
    """Prompts alone, padded on the left, to generate behind.

    `n_read` tokens of each prompt have been read before, and `n_to_come` are read later.
    """
    columns = torch.arange(width).expand(len(prompt_lengths), -1)
    lengths = torch.tensor(prompt_lengths).unsqueeze(-1)
    return Layout(columns - (width - lengths) + _column(n_read, lengths), width - 1 - columns + n_to_come)


def _column(n_read: Sequence[int] | None, lengths: Int[Tensor, "batch 1"]) -> Int[Tensor, "batch 1"]:
    return torch.zeros_like(lengths) if n_read is None else lengths.new_tensor(n_read).unsqueeze(-1)


def behind_prompts(n_rows: int, width: int) -> Layout:
    """Tokens that have been generated, without their prompts."""
    columns = torch.arange(width).expand(n_rows, -1)
    return Layout(columns + _NO_PROMPT, -1 - columns)


def layout_of(value: Tensor) -> Layout:
    """The layout of the pass that an activation `[batch, pos, ...]` belongs to."""
    given, (n_rows, width) = _LAYOUT.get(), value.shape[:2]
    if given is None:
        return behind_prompts(n_rows, width) if width == 1 else left_padded([width] * n_rows, width)
    assert given.to_end.shape == (n_rows, width), "the pass is not the one that was laid out"
    return given
