"""What prompts share is read once, however many prompts begin with it and however many answers follow.

A pass over tokens can start from the keys and values that every layer kept of what came before. So a few-shot preset is read
once for all questions behind it, and a question once for all its answers; only a prompt's last token belongs to the pass
over an answer, because its logits predict the answer's first token. Attention masks and positions follow, and the logits
are those of one plain pass over prompt and answer, up to rounding. Prompts of several lengths are padded on the left, before
their first token; behind a shared beginning they cannot be, so there only prompts of one length go together (padding in the
middle would push the beginning out of a sliding window too early). A model that cannot do this exactly
(`ModelInfo.can_share_prefix`) reads nothing in advance, and each pass runs the whole prompt.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lofit_lens import caches, lens
from lofit_lens.batches import by_length, padded
from lofit_lens.layout import laid_out, left_padded, positions_matter
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model
from lofit_lens.packing import Pack, packs, shared_length, widest_row

logger = logging.getLogger(__name__)

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
        cache = None if self.cache is None else caches.select_rows(self.cache, index)
        return Prefix(unread, self.mask[index], cache)

    @property
    def n_read(self) -> int:
        """Tokens that have been read of each prompt, padding included."""
        return self.mask.shape[1]

    @property
    def lengths_read(self) -> list[int]:
        """Tokens that have been read of each prompt, without padding."""
        return self.mask.sum(-1).tolist()

    def joined(self, other: "Prefix") -> "Prefix":
        """The prompts of both, padded on the left to one length."""
        width = max(self.n_read, other.n_read)
        masks = [torch.nn.functional.pad(part.mask, (width - part.n_read, 0)) for part in (self, other)]
        joined = Prefix(self.unread + other.unread, torch.cat(masks), caches.join(self.cache, other.cache))
        return joined._without_shared_padding()

    def _without_shared_padding(self) -> "Prefix":
        """The same, less the places on the left that are padding in every row: prompts that come and go would pile them up."""
        start = int(self.mask.any(0).int().argmax())
        return Prefix(self.unread, self.mask[:, start:], caches.drop_first(self.cache, start)) if start else self

    @torch.no_grad()
    def read_on(self, model: LensModel) -> "Prefix":
        """Read all but the last token of each prompt, under whatever is attached; uses this prefix up."""
        if not check_model(model).can_share_prefix or min(map(len, self.unread)) == 1:
            return self
        tokens, new_mask = padded(model, [ids[:-1] for ids in self.unread], side="left")
        mask = torch.cat([self.mask, new_mask], dim=-1)
        lengths = [len(ids) - 1 for ids in self.unread]
        layout = left_padded(lengths, tokens.shape[1], n_read=self.lengths_read, n_to_come=1)
        with laid_out(layout), model.hooks(fwd_hooks=[lens.no_logits(model)]):
            _, cache = caches.forward_with_cache(model, tokens, mask, self.cache)
        return Prefix(tuple(ids[-1:] for ids in self.unread), mask, cache)


def unread_prefix(model: LensModel, prompts: Sequence[tuple[int, ...]]) -> Prefix:
    """Prompts of which nothing has been read."""
    return Prefix(tuple(prompts), torch.zeros(len(prompts), 0, dtype=torch.long, device=lens.model_device(model)))


def shared_root(model: LensModel, prompts: Sequence[tuple[int, ...]]) -> Prefix:
    """One row in which all has been read that the prompts begin with, if that is worth a pass; nothing of it is unread."""
    if positions_matter():
        logger.info("this edit depends on positions, so every prompt is read by itself: equal results, more time")
        return unread_prefix(model, [()])
    shared = _shared_beginning(prompts) if check_model(model).can_share_prefix else ()
    if not shared:
        return unread_prefix(model, [()])
    # `read_on` leaves one token unread; here it is one that nobody asked for.
    return replace(unread_prefix(model, [(*shared, 0)]).read_on(model), unread=((),))


def can_pack(model: LensModel, root: Prefix, sequences: Sequence[tuple[int, ...]]) -> bool:
    """Whether sequences behind a root may share rows: the model allows it, and no attention window is shorter than a row."""
    if not check_model(model).can_pack or positions_matter():
        return False
    window, width = lens.attention_window(model), root.n_read + widest_row(sequences)
    if window is not None and width >= window:
        logger.info("rows of %d tokens do not fit this model's attention window of %d: batches are padded", width, window)
        return False
    return True


def begun(
    model: LensModel, root: Prefix, prompts: Sequence[tuple[int, ...]], lengths: Sequence[int], token_budget: int
) -> Iterator[tuple[list[int], Prefix]]:
    """Prompts in groups that go through the model together, as far read as can be shared.

    Args:
        model: with the edit, if any, already attached.
        root: what has been read of all prompts.
        prompts: token ids, root included.
        lengths: what each prompt will grow to, answer included; a group's rows have at most `token_budget` tokens.
        token_budget: padded tokens that go through the model at once.

    Yields:
        Indices into `prompts`, and the prefix whose rows they are.
    """
    rest = [prompt[root.n_read :] for prompt in prompts]
    if can_pack(model, root, rest):
        for pack in packs(model, rest, token_budget=token_budget, n_before=root.n_read):
            with model.hooks(fwd_hooks=[lens.no_logits(model)]):
                _, cache = read_pack(model, root, pack)
            rooms = [room_taken(len(prompts[i]), lengths[i] - len(prompts[i])) for i in pack.indices]
            for members in by_length(rooms, token_budget):
                indices = [pack.indices[m] for m in members]
                unread = [prompts[i][-1:] for i in indices]
                yield indices, unpack(root, pack, cache, members, [len(prompts[i]) - 1 for i in indices], unread)
    elif root.n_read:
        for length in sorted({len(prompt) for prompt in prompts}, reverse=True):
            alike = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
            for group in by_length([room_taken(root.n_read, lengths[i] - root.n_read) for i in alike], token_budget):
                indices = [alike[place] for place in group]
                copies = root.select([0] * len(indices))
                yield indices, replace(copies, unread=tuple(rest[i] for i in indices))
    else:
        for group in by_length(lengths, token_budget):
            yield group, unread_prefix(model, [prompts[i] for i in group])


def read_pack(model: LensModel, root: Prefix, pack: Pack) -> tuple[Tensor, Any]:
    """The logits of a pack behind a root, and the KV cache of both, under whatever is attached."""
    n_rows = pack.tokens.shape[0]
    mask = torch.nn.functional.pad(pack.mask, (root.n_read, 0))
    return caches.forward_with_cache(model, pack.tokens, mask, root.select([0] * n_rows).cache, pack.positions)


def unpack(
    root: Prefix,
    pack: Pack,
    cache: Any,
    members: Sequence[int],
    n_read: Sequence[int],
    unread: Sequence[Sequence[int]],
) -> Prefix:
    """Some sequences of a pack, each in a row of its own again.

    Args:
        root: what the pack was read behind.
        pack: what was read.
        cache: what `read_pack` gave.
        members: places in `pack.indices`.
        n_read: how many of each one's tokens are taken over, the root's included.
        unread: what comes next.
    """
    device = root.mask.device
    if max(n_read) == 0:
        empty = torch.zeros(len(members), 0, dtype=torch.long, device=device)
        return Prefix(tuple(map(tuple, unread)), empty)
    places = torch.zeros(len(members), max(n_read), dtype=torch.long)
    mask = torch.zeros_like(places)
    for row, (member, n) in enumerate(zip(members, n_read, strict=True)):
        own = pack.paths[member][: n - root.n_read]
        start = max(n_read) - n  # not -n, which is the whole row where nothing is taken over
        places[row, start:] = torch.tensor([*range(root.n_read), *(root.n_read + step for step in own)], dtype=torch.long)
        mask[row, start:] = 1
    rows = torch.tensor([pack.rows[member] for member in members])
    chosen = caches.select_places(cache, rows.to(device), places.to(device))
    return Prefix(tuple(map(tuple, unread)), mask.to(device), chosen)


def room_taken(read: int, new: int) -> int:
    """Tokens that a row counts for under a token budget: one that is only kept takes about half the memory of a new one."""
    return read // 2 + new


def _shared_beginning(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The tokens that all prompts start with, one fewer than the shortest has at most; none if not worth a pass."""
    if len(prompts) < 2:
        return ()
    # In dictionary order, what the first and the last share, all between them share too.
    first, last = min(prompts), max(prompts)
    shared = min(shared_length(first, last), min(map(len, prompts)) - 1)
    return first[:shared] if shared >= WORTH_SHARING else ()
