"""What prompts share is read once, however many prompts begin with it and however many answers follow.

A pass over tokens can start from the keys and values that every layer kept of what came before. So a few-shot preset is read
once for all questions behind it, and a question once for all its answers; only a prompt's last token belongs to the pass
over an answer, because its logits predict the answer's first token. Attention masks and positions follow, and the logits
are those of one plain pass over prompt and answer, up to rounding. Prompts of several lengths are padded on the left, before
their first token; behind a shared beginning they cannot be, so there only prompts of one length go together (padding in the
middle would push the beginning out of a sliding window too early). A model that cannot do this exactly
(`ModelInfo.can_share_prefix`) reads nothing in advance, and each pass runs the whole prompt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lofit_lens import lens
from lofit_lens.batches import by_length, padded
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model

#: A shared beginning of fewer tokens is not worth a pass of its own.
WORTH_SHARING = 16


@dataclass(frozen=True)
class Prefix:
    """Prompts, as far as they have been read.

    Args:
        unread: the tokens of each prompt that the next pass must start with; at least one.
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

    @torch.no_grad()
    def read_on(self, model: LensModel) -> "Prefix":
        """Read all but the last token of each prompt, under whatever is attached; uses this prefix up."""
        if not check_model(model).can_share_prefix or min(map(len, self.unread)) == 1:
            return self
        tokens, new_mask = padded(model, [ids[:-1] for ids in self.unread], side="left")
        mask = torch.cat([self.mask, new_mask], dim=-1)
        with model.hooks(fwd_hooks=[lens.no_logits(model)]):
            _, cache = lens.forward_with_cache(model, tokens, mask, self.cache)
        return Prefix(tuple(ids[-1:] for ids in self.unread), mask, cache)


def unread_prefix(model: LensModel, prompts: Sequence[tuple[int, ...]]) -> Prefix:
    """Prompts of which nothing has been read."""
    return Prefix(tuple(prompts), torch.zeros(len(prompts), 0, dtype=torch.long, device=lens.model_device(model)))


def begun(
    model: LensModel, prompts: Sequence[tuple[int, ...]], lengths: Sequence[int], token_budget: int
) -> Iterator[tuple[list[int], Prefix]]:
    """Prompts in groups that go through the model together, what all of them begin with read already.

    Args:
        model: with the edit, if any, already attached.
        prompts: token ids.
        lengths: what each prompt will grow to, answer included; a group's rows have at most `token_budget` tokens.
        token_budget: padded tokens that go through the model at once.

    Yields:
        Indices into `prompts`, and the prefix whose rows they are.
    """
    shared = _shared_beginning(prompts) if check_model(model).can_share_prefix else ()
    if len(shared) < WORTH_SHARING:
        for group in by_length(lengths, token_budget):
            yield group, unread_prefix(model, [prompts[i] for i in group])
        return
    root = unread_prefix(model, [prompts[0][: len(shared) + 1]]).read_on(model)
    for length in sorted({len(prompt) for prompt in prompts}, reverse=True):
        alike = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        for group in by_length([room_taken(len(shared), lengths[i] - len(shared)) for i in alike], token_budget):
            indices = [alike[place] for place in group]
            rest = tuple(prompts[i][len(shared) :] for i in indices)
            yield indices, Prefix(rest, *_same(root, len(indices)))


def room_taken(read: int, new: int) -> int:
    """Tokens that a row counts for under a token budget: one that is only kept takes about half the memory of a new one."""
    return read // 2 + new


def _same(root: Prefix, times: int) -> tuple[Tensor, Any]:
    copies = root.select([0] * times)
    return copies.mask, copies.cache


def _shared_beginning(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The tokens that all prompts start with, one fewer than the shortest has at most."""
    if len(prompts) < 2:
        return ()
    shortest, first, last = min(map(len, prompts)), min(prompts), max(prompts)
    # In dictionary order, what the first and the last share, all between them share too.
    differing = (i for i in range(shortest - 1) if first[i] != last[i])
    return first[: next(differing, shortest - 1)]
