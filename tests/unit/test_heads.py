"""Heads, how many of them k means, and scores over all of them."""

import math

import pytest
import torch
from jaxtyping import TypeCheckError

from lofit_lens.heads import Head, HeadScores, checked_heads, head_count


def test_shapes_are_checked_at_run_time_in_these_tests():
    with pytest.raises(TypeCheckError):
        HeadScores(torch.zeros(3))


@pytest.mark.parametrize(("head", "label"), [(Head(0, 0), "L0H0"), (Head(12, 5), "L12H5"), (Head(5, 12), "L5H12")])
def test_labels_go_there_and_back(head, label):
    assert head.label == label
    assert Head.from_label(label) == head


@pytest.mark.parametrize(
    "label",
    ["", "L", "H5", "L12", "LH5", "L1H", "L-1H2", "L1H-2", "12H5", "l1h2", " L1H2", "L1H2 ", "L1.0H2", "L1H2H3", "LL1H2"],
)
def test_a_bad_label_is_refused_with_the_wanted_form(label):
    with pytest.raises(ValueError, match="wanted the form 'L12H5'"):
        Head.from_label(label)


@pytest.mark.parametrize(
    ("k", "n_heads", "count"),
    [
        (1, 270, 1),
        (270, 270, 270),
        (0.1, 270, 27),
        (0.1, 1024, 102),
        (0.03, 1024, 31),
        (0.03, 72, 2),
        (0.5, 5, 3),
        (0.5, 3, 2),
        (0.001, 100, 1),
        (1.0, 7, 7),
    ],
)
def test_k_is_a_count_or_a_fraction_rounded_half_up(k, n_heads, count):
    assert head_count(k, n_heads) == count


@pytest.mark.parametrize("k", [0, -1, 271, True, False, 0.0, -0.1, 1.0001, 27.0, math.nan, math.inf])
def test_a_bad_k_is_refused(k):
    with pytest.raises(ValueError, match=f"k = {k}"):
        head_count(k, 270)


def test_checked_heads_keeps_the_order_and_gives_heads():
    checked = checked_heads(((layer, 1) for layer in (2, 0)), n_layers=3, n_heads=2)
    assert checked == (Head(2, 1), Head(0, 1))
    assert [head.label for head in checked] == ["L2H1", "L0H1"]


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([], "no heads given"),
        ([(3, 0)], "L3H0 is out of range; the model has layers 0-2 and heads 0-1"),
        ([(0, 2)], "L0H2 is out of range"),
        ([(-1, 0)], "L-1H0 is out of range"),
        ([(0, -1)], "L0H-1 is out of range"),
        ([(0, 1), (1, 0), (0, 1)], "given twice: L0H1"),
    ],
)
def test_heads_that_a_model_does_not_have_are_refused(heads, message):
    with pytest.raises(ValueError, match=message):
        checked_heads(heads, n_layers=3, n_heads=2)


NAN = math.nan
SCORES = HeadScores(torch.tensor([[1.0, 3.0, 3.0], [NAN, NAN, NAN], [3.0, -2.0, 0.5]]))
RANKED = (Head(0, 1), Head(0, 2), Head(2, 0), Head(0, 0), Head(2, 2), Head(2, 1))


def test_rank_breaks_ties_by_layer_and_index_and_leaves_out_layers_without_attention():
    assert SCORES.rank() == RANKED


def test_top_takes_a_count_or_a_fraction_of_the_scored_heads():
    assert SCORES.top(4) == RANKED[:4]
    assert SCORES.top(0.5) == RANKED[:3]  # half of the 6 heads that have a score, not of 9
    with pytest.raises(ValueError, match="wanted 1 to 6"):
        SCORES.top(7)


def test_a_score_is_looked_up_by_its_head():
    assert SCORES[Head(2, 1)] == -2.0
    assert math.isnan(SCORES[1, 0])


def test_the_frame_has_a_row_for_each_scored_head_best_first():
    frame = SCORES.to_frame()
    assert list(frame.columns) == ["layer", "head", "label", "score"]
    assert list(frame["label"]) == ["L0H1", "L0H2", "L2H0", "L0H0", "L2H2", "L2H1"]
    assert list(zip(frame["layer"], frame["head"], strict=True)) == list(RANKED)
    assert list(frame["score"]) == [3.0, 3.0, 3.0, 1.0, 0.5, -2.0]
