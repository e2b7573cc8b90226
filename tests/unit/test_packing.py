"""Packing, against trees drawn by hand, and against the plain pass in any order and at any width."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lofit_lens import caches, packing
from lofit_lens.packing import packs, shared_length, widest_row


def seen(pack, row: int) -> list[list[int]]:
    """The places that each token of a row sees."""
    return [(line == 0).nonzero().flatten().tolist() for line in pack.mask[row, 0]]


def test_a_tree_by_hand(llama):
    """`5 6 7`, `5 6 8 9` and `4`, in one row behind two tokens that were read before."""
    (pack,) = packs(llama, [(5, 6, 7), (5, 6, 8, 9), (4,)], token_budget=100, n_before=2)
    assert pack.indices == (2, 0, 1)
    assert pack.rows == (0, 0, 0)
    assert pack.tokens.tolist() == [[4, 5, 6, 7, 8, 9]]
    assert pack.positions.tolist() == [[2, 2, 3, 4, 4, 5]]
    assert pack.paths == ((0,), (1, 2, 3), (1, 2, 4, 5))
    assert seen(pack, 0) == [[0], [1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 5]]


def test_a_sequence_within_another_and_one_twice_cost_nothing(llama):
    (pack,) = packs(llama, [(5, 6, 7), (5, 6), (5, 6, 7)], token_budget=100)
    assert pack.tokens.tolist() == [[5, 6, 7]]
    assert dict(zip(pack.indices, pack.paths, strict=True)) == {0: (0, 1, 2), 1: (0, 1), 2: (0, 1, 2)}
    assert seen(pack, 0) == [[0], [0, 1], [0, 1, 2]]


def test_rows_are_filled_and_the_budget_is_kept(llama, monkeypatch):
    monkeypatch.setattr(packing, "ROW", 4)
    sequences = [(5, i) for i in range(20, 30)]
    parts = list(packs(llama, sequences, token_budget=8))
    assert [part.tokens.shape for part in parts] == [(2, 4), (2, 4)]
    assert parts[0].tokens.tolist() == [[5, 20, 21, 22], [5, 23, 24, 25]]
    # A filled-up row: what fills it sees itself only, so that no softmax is over nothing.
    assert seen(parts[1], 1) == [[0], [0, 1], [2], [3]]
    assert [len(part.indices) for part in packs(llama, sequences, token_budget=1)] == [1] * 10


def test_rows_go_together_while_there_is_room_for_their_answers(llama, monkeypatch):
    monkeypatch.setattr(packing, "ROW", 4)
    sequences = [(5, i) for i in range(20, 30)]
    lengths = [1] * 10
    parts = packs(llama, sequences, token_budget=16, answer_lengths=lengths, answer_budget=6)
    assert [sum(lengths[i] for i in part.indices) for part in parts] == [6, 4]
    parts = packs(llama, sequences, token_budget=16, answer_lengths=lengths, answer_budget=2)
    assert [len(part.rows) for part in parts] == [2] * 5
    # A sequence alone may have more, and what several have at one place counts once.
    parts = packs(llama, [(5, 6, 7)] * 40, token_budget=16, answer_lengths=[2] * 40, answer_budget=1)
    assert [len(part.rows) for part in parts] == [1] * 40
    parts = packs(llama, [(5, 6, 7)] * 40, token_budget=16, answer_lengths=[2] * 40, answer_budget=2)
    assert [len(part.rows) for part in parts] == [40]


def test_a_long_sequence_makes_rows_wide(monkeypatch):
    monkeypatch.setattr(packing, "ROW", 4)
    assert widest_row([(1,) * 3]) == 4
    assert widest_row([(1,) * 9, (2,)]) == 9
    assert widest_row([]) == 4


def test_shared_length_by_hand():
    assert shared_length((1, 2, 3), (1, 2, 4)) == 2
    assert shared_length((1, 2), (1, 2, 4)) == 2
    assert shared_length((), (1,)) == 0


@given(
    sequences=st.lists(st.lists(st.integers(3, 6), min_size=1, max_size=6).map(tuple), min_size=1, max_size=8),
    token_budget=st.integers(1, 40),
)
def test_every_sequence_sees_itself_and_nothing_else(llama, sequences, token_budget):
    found = {}
    for pack in packs(llama, sequences, token_budget=token_budget):
        assert pack.tokens.numel() <= max(token_budget, max(map(len, sequences)))
        for i, row, path in zip(pack.indices, pack.rows, pack.paths, strict=True):
            found[i] = tuple(pack.tokens[row, list(path)].tolist())
            assert pack.positions[row, list(path)].tolist() == list(range(len(path)))
            assert [seen(pack, row)[place] for place in path] == [list(path[: n + 1]) for n in range(len(path))]
    assert found == dict(enumerate(sequences))


@pytest.mark.parametrize("token_budget", [7, 16, 1000])
def test_packed_logits_are_those_of_each_sequence_alone(llama, token_budget):
    generator = torch.Generator().manual_seed(0)
    sequences = [tuple(torch.randint(3, 6, (n,), generator=generator).tolist()) for n in (1, 2, 3, 4, 5, 6, 7) * 3]
    done = 0
    with torch.no_grad():
        for pack in packs(llama, sequences, token_budget=token_budget):
            logits, _ = caches.forward_with_cache(llama, pack.tokens, pack.mask, None, pack.positions)
            for i, row, path in zip(pack.indices, pack.rows, pack.paths, strict=True):
                alone = llama(torch.tensor([sequences[i]]))[0]
                torch.testing.assert_close(logits[row, list(path)], alone, atol=2e-5, rtol=0)
                done += 1
    assert done == len(sequences)
