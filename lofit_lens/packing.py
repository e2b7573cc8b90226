"""Many sequences in one row: what they share is read once, and nothing is filled up.

Sequences that begin alike form a tree. All its tokens go through the model side by side; each sees its own ancestors and
itself, at the place that it has in its own sequence, so that the logits at a token are those of the plain pass over its
sequence, up to rounding. A question's answers share the question, questions share their preset, and answers their first
words. A model that cannot do this exactly (`ModelInfo.can_pack`), or whose attention window is shorter than a row, reads
padded batches instead; see `prefixes`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lofit_lens.batches import Answers, TokenSequence, answers_at, pad_id
from lofit_lens.lens import LensModel, model_device

#: Tokens of a row, if no sequence is longer: attention costs their square, and narrow rows share less.
ROW = 256


@dataclass(frozen=True)
class Pack:
    """Sequences packed into rows.

    Args:
        indices: which sequences these are.
        rows: the row that each is in.
        paths: for each sequence, the places of its tokens in its row.
        tokens: of all rows.
        positions: the place of every token in its own sequence.
        mask: what is added to attention scores: 0 where a token sees another, elsewhere the lowest number.
    """

    indices: tuple[int, ...]
    rows: tuple[int, ...]
    paths: tuple[tuple[int, ...], ...]
    tokens: Int[Tensor, "row pos"]
    positions: Int[Tensor, "row pos"]
    mask: Float[Tensor, "row 1 pos pos"]


@dataclass(frozen=True)
class _Row:
    """Sequences in dictionary order; of each, only what it does not share with the one before is in `tokens`."""

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    shared: list[int] = field(default_factory=list)
    paths: list[tuple[int, ...]] = field(default_factory=list)
    predicting: set[int] = field(default_factory=set)

    def path(self, sequence: tuple[int, ...], shared: int) -> tuple[int, ...]:
        """Where the tokens of a sequence would be."""
        beginning = self.paths[-1][:shared] if shared else ()
        return beginning + tuple(range(len(self.tokens), len(self.tokens) + len(sequence) - shared))

    def add(self, index: int, sequence: tuple[int, ...], shared: int, n_answer: int) -> None:
        path = self.path(sequence, shared)
        self.tokens.extend(sequence[shared:])
        self.depths.extend(range(shared, len(sequence)))
        self.paths.append(path)
        self.predicting.update(path[len(path) - n_answer :])
        self.indices.append(index)
        self.shared.append(shared)

    def is_full(self, sequence: tuple[int, ...], shared: int, n_answer: int, width: int, answer_budget: int) -> bool:
        """Whether a sequence takes the row beyond its tokens, or beyond the places that are unembedded."""
        path = self.path(sequence, shared)
        new_places = set(path[len(path) - n_answer :]) - self.predicting
        n_tokens = len(self.tokens) + len(sequence) - shared
        return n_tokens > width or len(self.predicting) + len(new_places) > answer_budget


def widest_row(sequences: Sequence[tuple[int, ...]]) -> int:
    """Tokens that a row of packed sequences may have."""
    return max(ROW, *map(len, sequences)) if sequences else ROW


def packs(
    model: LensModel,
    sequences: Sequence[tuple[int, ...]],
    *,
    token_budget: int,
    n_before: int = 0,
    answer_lengths: Sequence[int] = (),
    answer_budget: int = 0,
) -> Iterator[Pack]:
    """Pack sequences, those that begin alike next to each other.

    Args:
        model: whose device and precision count.
        sequences: token ids, at least one each.
        token_budget: tokens that go through the model at once; one sequence at least.
        n_before: tokens that come before all sequences and are not in them.
        answer_lengths: the last tokens of each sequence that are unembedded, at places that sequences may share; none
            where it is not given.
        answer_budget: places that are unembedded at once; one sequence's at least.
    """
    answer_lengths = answer_lengths or [0] * len(sequences)

    def is_too_much(rows: list[_Row]) -> bool:
        n_places = sum(len(row.predicting) for row in rows)
        return len(rows) * max(len(row.tokens) for row in rows) > token_budget or n_places > answer_budget

    rows: list[_Row] = []
    for row in _rows(sequences, min(widest_row(sequences), token_budget), answer_lengths, answer_budget):
        if rows and is_too_much([*rows, row]):
            yield _pack(model, rows, n_before)
            rows = []
        rows.append(row)
    if rows:
        yield _pack(model, rows, n_before)


def _rows(
    sequences: Sequence[tuple[int, ...]], width: int, answer_lengths: Sequence[int], answer_budget: int
) -> Iterator[_Row]:
    row, last = _Row(), ()
    # In dictionary order, no sequence before shares more with the next one than the one just before it.
    for i in sorted(range(len(sequences)), key=lambda i: sequences[i]):
        shared = shared_length(last, sequences[i])
        if row.tokens and row.is_full(sequences[i], shared, answer_lengths[i], width, answer_budget):
            yield row
            row, shared = _Row(), 0
        row.add(i, sequences[i], shared, answer_lengths[i])
        last = sequences[i]
    if row.indices:
        yield row


def shared_length(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """How many tokens both begin with."""
    shortest = min(len(first), len(second))
    return next((i for i in range(shortest) if first[i] != second[i]), shortest)


def _pack(model: LensModel, rows: Sequence[_Row], n_before: int) -> Pack:
    width = max(len(row.tokens) for row in rows)
    tokens = torch.full((len(rows), width), pad_id(model))
    positions = torch.zeros_like(tokens)
    sees = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1)
    for r, row in enumerate(rows):
        tokens[r, : len(row.tokens)] = torch.tensor(row.tokens)
        positions[r, : len(row.tokens)] = torch.tensor(row.depths) + n_before
        for path, shared in zip(row.paths, row.shared, strict=True):
            if shared < len(path):
                own = slice(path[shared], path[-1] + 1)
                sees[r, own, list(path[:shared])] = True
                sees[r, own, own] = torch.ones(len(path) - shared, len(path) - shared, dtype=torch.bool).tril()
    dtype, device = model.cfg.dtype, model_device(model)
    mask = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min).unsqueeze(1)
    return Pack(
        indices=tuple(i for row in rows for i in row.indices),
        rows=tuple(r for r, row in enumerate(rows) for _ in row.indices),
        paths=tuple(path for row in rows for path in row.paths),
        tokens=tokens.to(device),
        positions=positions.to(device),
        mask=mask.to(device),
    )


def packed_answers(model: LensModel, pack: Pack, sequences: Sequence[TokenSequence], n_before: int = 0) -> Answers:
    """Where a pack of `sequences[i].read`, without the `n_before` first tokens, predicts the answers of its members."""
    members = [sequences[i] for i in pack.indices]
    columns = [path[len(s.prompt) - 1 - n_before :] for path, s in zip(pack.paths, members, strict=True)]
    return answers_at(model, [s.answer for s in members], pack.rows, columns)
