"""A prompt is read once, however many answers are scored or generated behind it.

All of a prompt but its last token goes through the model, and the keys and values of every layer are kept; the last token
belongs to the pass over an answer, because its logits predict the answer's first token. Prompts of several lengths are
padded on the left, answers on the right; masks and positions follow, so that the logits are those of one plain pass over
prompt and answer, up to rounding. A model that cannot do this exactly (`ModelInfo.can_share_prefix`) reads nothing in
advance, and each pass runs the whole prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lofit_lens import lens
from lofit_lens.batches import padded
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model


@dataclass(frozen=True)
class Prefix:
    """Prompts, as far as they have been read.

    Args:
        unread: the tokens of each prompt that the next pass must start with.
        mask: over what has been read; `read` is 0 where nothing was.
        cache: keys and values of what has been read. A pass that uses it adds to it: hand over a `select`ed one.
    """

    unread: tuple[tuple[int, ...], ...]
    mask: Int[Tensor, "prompt read"]
    cache: Any = None

    def select(self, rows: Sequence[int]) -> "Prefix":
        """Some of the prompts, a prompt as often as it is named, with keys and values of their own."""
        unread = tuple(self.unread[row] for row in rows)
        index = torch.tensor(rows, device=self.mask.device)
        cache = None if self.cache is None else lens.cache_rows(self.cache, index)
        return Prefix(unread, self.mask[index], cache)


def unread_prefix(model: LensModel, prompts: Sequence[tuple[int, ...]]) -> Prefix:
    """Prompts of which nothing has been read."""
    return Prefix(tuple(prompts), torch.zeros(len(prompts), 0, dtype=torch.long, device=lens.model_device(model)))


@torch.no_grad()
def read_prefix(model: LensModel, prompts: Sequence[tuple[int, ...]]) -> Prefix:
    """Read prompts up to their last token, under whatever is attached."""
    if not check_model(model).can_share_prefix or min(map(len, prompts)) == 1:
        return unread_prefix(model, prompts)
    tokens, mask = padded(model, [prompt[:-1] for prompt in prompts], side="left")
    with model.hooks(fwd_hooks=[lens.last_position_only(model)]):
        _, cache = lens.forward_with_cache(model, tokens, mask, None)
    return Prefix(tuple(prompt[-1:] for prompt in prompts), mask, cache)
