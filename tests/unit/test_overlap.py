"""Overlap of head sets: by hand, against scipy, and the paper's own figures."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from lofit_lens.analysis import head_overlap, intersections, layer_emd
from lofit_lens.analysis.overlap import overlap_distribution
from lofit_lens.heads import Head, HeadScores

POOL = [Head(layer, index) for layer in range(4) for index in range(3)]


def scores_of(*best: tuple[int, int], shape: tuple[int, int] = (4, 3)) -> HeadScores:
    """Scores whose best heads are these, in this order; the others follow in theirs."""
    values = -torch.arange(shape[0] * shape[1], dtype=torch.float32).reshape(shape)
    for place, head in enumerate(best):
        values[head] = 100.0 - place
    return HeadScores(values)


A = scores_of((0, 0), (1, 0), (1, 1), (2, 0))
B = scores_of((0, 0), (1, 0), (1, 2), (3, 0))


def row(overlap, measure: str, a: str = "a", b: str = "b") -> pd.Series:
    frame = overlap.to_frame()
    (found,) = [line for _, line in frame.iterrows() if (line["a"], line["b"], line["measure"]) == (a, b, measure)]
    return found


def test_overlap_and_jaccard_by_hand():
    """Two of four heads in common: 2/4, and 2 of 6. Of 12 heads, four of which are drawn, 4/12 of 4 are met by chance.

    Layers kept: layer 0 has one head of A among 3, and B draws one; layer 1 has two, and B draws two; layers 2 and 3 never
    meet. Of the two drawn in layer 1 one is A's at least. Two or more in common: layer 0 meets (1/3), or it does not (2/3) and
    layer 1 meets twice (1/3): 1/3 + 2/9 = 5/9.
    """
    overlap = head_overlap({"a": [A], "b": [B]}, 4)
    assert overlap.k == 4
    found = row(overlap, "overlap")
    assert (found["value"], found["pairs"]) == (0.5, 1)
    assert found["expected_uniform"] == pytest.approx(4 / 12)
    # P(X >= 2): all but C(8,4) and 4 C(8,3) of the C(12,4) draws.
    assert found["p_uniform"] == pytest.approx(1 - (70 + 4 * 56) / 495)
    assert found["expected_layers"] == pytest.approx((1 / 3 + 4 / 3) / 4)
    assert found["p_layers"] == pytest.approx(5 / 9)
    jaccard = row(overlap, "jaccard")
    assert jaccard["value"] == pytest.approx(2 / 6)
    assert (jaccard["p_uniform"], jaccard["p_layers"]) == (found["p_uniform"], found["p_layers"])


def test_the_null_that_keeps_layers_is_that_of_redrawing_within_layers():
    a, b = A.top(4), B.top(4)
    exact = overlap_distribution(a, b, POOL)
    counts = np.zeros(5)
    by_layer = [[head for head in POOL if head.layer == layer] for layer in range(4)]
    wanted = [sum(head.layer == layer for head in b) for layer in range(4)]
    # Every way to redraw, once.
    for parts in itertools.product(*(itertools.combinations(heads, n) for heads, n in zip(by_layer, wanted, strict=True))):
        counts[len(set(a) & set(itertools.chain(*parts)))] += 1
    np.testing.assert_allclose(exact, counts / counts.sum(), atol=1e-12)


def test_heads_that_cluster_by_layer_are_no_surprise_once_layers_are_kept():
    """Both tasks choose six of the twelve heads of layers 3 and 4: half in common by chance."""
    generator = torch.Generator().manual_seed(0)
    runs = []
    for _ in range(2):
        values = torch.rand(12, 6, generator=generator)
        values[3:5] += 10
        runs.append(HeadScores(values))
    found = row(head_overlap({"a": [runs[0]], "b": [runs[1]]}, 6), "overlap")
    assert found["expected_uniform"] == pytest.approx(6 / 72)
    assert found["p_uniform"] < 0.05 < found["p_layers"]
    assert found["expected_layers"] == pytest.approx(0.5, abs=0.1)


def test_the_distance_by_hand_and_by_scipy():
    """Layers 0, 1, 1, 2 against 0, 1, 1, 3: a quarter of the heads moves by one layer."""
    assert layer_emd(A.top(4), B.top(4)) == pytest.approx(0.25)
    assert layer_emd([(0, 0)], [(5, 1), (7, 0)]) == pytest.approx(6.0)
    found = row(head_overlap({"a": [A], "b": [B]}, 4), "emd")
    assert found["value"] == pytest.approx(0.25)
    assert math.isnan(found["p_layers"])
    # All 495 sets of four heads, once.
    drawn = [[head.layer for head in heads] for heads in itertools.combinations(POOL, 4)]
    distances = [stats.wasserstein_distance([0, 1, 1, 2], layers) for layers in drawn]
    # 2,000 draws: shares are known to a hundredth, distances of spread 0.3 to as much; four of each.
    assert found["p_uniform"] == pytest.approx(np.mean(np.array(distances) <= 0.25 + 1e-9), abs=0.04)
    assert found["expected_uniform"] == pytest.approx(np.mean(distances), abs=0.03)
    with pytest.raises(ValueError, match="got an empty set of heads"):
        layer_emd([], [(0, 0)])


def test_rank_correlation_is_scipys_and_its_nulls_permute_scores():
    generator = torch.Generator().manual_seed(1)
    # Layers decide most of the scores, which are rounded, so that some tie; within layers there is nothing in common.
    level = torch.arange(8.0).unsqueeze(1)
    left, right = (HeadScores((3 * level + 6 * torch.rand(8, 5, generator=generator)).round()) for _ in range(2))
    found = row(head_overlap({"a": [left], "b": [right]}, 5, n_draws=4000), "rank_correlation")
    wanted = stats.spearmanr(left.values.flatten(), right.values.flatten())
    assert found["value"] == pytest.approx(wanted.statistic)
    assert wanted.statistic > 0.6
    assert found["p_uniform"] == pytest.approx(1 / 4001)
    # Of 40 heads a correlation by chance has standard deviation 1 / sqrt 39, known to 1 / sqrt 4000 of it.
    assert found["expected_uniform"] == pytest.approx(0.0, abs=4 * 39**-0.5 / 4000**0.5)
    assert found["expected_layers"] > 0.6
    assert found["p_layers"] > 0.05
    itself = row(head_overlap({"a": [left], "b": [left]}, 5), "rank_correlation")
    assert itself["value"] == pytest.approx(1.0)
    assert itself["p_layers"] < 0.01


def test_scores_that_are_all_the_same_correlate_with_nothing():
    same = HeadScores(torch.ones(4, 3))
    found = row(head_overlap({"a": [same], "b": [A]}, 4), "rank_correlation")
    assert (found["value"], found["p_uniform"], found["p_layers"]) == (0.0, 1.0, 1.0)


def test_seeds_are_averaged_and_the_largest_p_is_kept():
    other = scores_of((3, 0), (3, 1), (3, 2), (2, 2))
    apart, together = (row(head_overlap({"a": [A], "b": [run]}, 4), "overlap") for run in (other, B))
    found = head_overlap({"a": [A], "b": [B, other]}, 4)
    both = row(found, "overlap")
    assert both["pairs"] == 2
    assert both["value"] == (apart["value"] + together["value"]) / 2 == 0.25
    assert both["p_uniform"] == max(apart["p_uniform"], together["p_uniform"])
    # A task beside itself: its own runs. One with a single run has nothing to be put beside.
    assert row(found, "overlap", "b", "b")["value"] == len(set(B.top(4)) & set(other.top(4))) / 4 == 0.25
    matrix = found.matrix()
    assert list(matrix.index) == list(matrix.columns) == ["a", "b"]
    assert math.isnan(matrix.loc["a", "a"])
    assert (matrix.loc["a", "b"], matrix.loc["b", "a"], matrix.loc["b", "b"]) == (0.25, 0.25, 0.25)
    assert found.matrix("emd", "p_uniform").loc["a", "b"] == row(found, "emd")["p_uniform"]


def test_false_discoveries_are_controlled_over_pairs_of_different_tasks():
    runs = {"a": [A, B], "b": [B], "c": [scores_of((3, 0), (3, 1), (2, 1), (2, 2))]}
    frame = head_overlap(runs, 4).to_frame()
    for measure in ("overlap", "emd", "rank_correlation"):
        of_measure = frame[frame["measure"] == measure]
        pairs = of_measure[of_measure["a"] != of_measure["b"]]
        assert len(pairs) == 3
        assert pairs["q_uniform"].tolist() == pytest.approx(stats.false_discovery_control(pairs["p_uniform"]).tolist())
        (diagonal,) = of_measure[of_measure["a"] == of_measure["b"]]["q_uniform"]
        assert math.isnan(diagonal)


def test_layers_without_attention_are_no_heads_to_meet():
    values = A.values.clone()
    values[3] = math.nan
    found = row(head_overlap({"a": [HeadScores(values)], "b": [HeadScores(values)]}, 3), "overlap")
    assert found["expected_uniform"] == pytest.approx(3 / 9)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ({"a": [A]}, r"got runs \{'a': 1\}; wanted one or more of each task, and two or more in all"),
        ({"a": [A, B], "b": []}, "wanted one or more of each task"),
        ({"a": [A], "b": [scores_of((0, 0), shape=(4, 4))]}, "got scores of different heads"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(runs, message):
    with pytest.raises(ValueError, match=message):
        head_overlap(runs, 2)


def test_what_the_matrix_does_not_have_is_refused():
    overlap = head_overlap({"a": [A], "b": [B]}, 2)
    with pytest.raises(ValueError, match="got measure 'dice' and column 'value'; wanted one of"):
        overlap.matrix("dice")
    with pytest.raises(ValueError, match="got measure 'emd' and column 'a'"):
        overlap.matrix("emd", "a")


#: Heads per layer in the paper's Figure 3, read off its bars.
FIGURE_3 = {
    "gemma": (
        "0:1 2:3 13:2 15:1 16:1 17:3 18:2 19:1 25:1 26:1",
        "0:1 3:1 5:1 6:1 9:6 10:1 13:1 16:1 17:1 19:1 25:1",
        "0:1 2:2 3:1 5:1 7:1 9:1 10:1 13:1 16:1 17:3 18:2 19:1",
    ),
    "llama2-7b": (
        "2:1 3:1 4:1 8:1 9:1 10:1 11:5 12:3 13:6 14:3 15:2 16:5 18:1 27:1",
        "0:1 1:1 2:4 3:2 4:1 5:2 6:2 7:3 8:1 9:2 10:2 11:4 14:1 17:2 18:1 21:2 27:1",
        "0:1 1:2 2:2 3:1 4:5 5:4 6:1 7:1 8:1 9:1 11:1 13:1 14:1 15:1 18:2 20:2 22:1 23:1 24:1 25:1 27:1",
    ),
    "llama2-13b": (
        "0:6 1:1 2:1 4:1 5:1 6:1 8:1 9:1 10:2 11:5 12:2 13:3 14:4 15:5 16:3 17:3 18:1 21:1 25:1 26:1 27:1 39:3",
        "2:3 4:3 5:1 6:2 7:1 8:3 9:1 10:2 11:3 12:4 14:3 16:4 17:2 18:1 19:1 22:1 25:1 26:1 27:1 29:1 30:1 31:1 34:1 36:4 39:2",
        "4:1 5:1 6:2 7:2 8:1 10:4 11:6 12:2 13:3 14:4 15:3 16:3 17:1 18:1 22:1 24:2 26:1 27:1 28:1 "
        "31:1 34:1 36:3 37:1 38:1 39:1",
    ),
}
#: Off the diagonal of its Figure 6: TruthfulQA - MQuAKE, TruthfulQA - CLUTRR, MQuAKE - CLUTRR.
FIGURE_6 = {"gemma": (4.25, 3.06, 2.81), "llama2-7b": (4.34, 4.97, 2.06), "llama2-13b": (3.67, 4.23, 1.40)}


@pytest.mark.parametrize("model", FIGURE_3)
def test_the_papers_layers_give_the_papers_distances(model):
    sets = [
        [(int(layer), index) for layer, count in (bar.split(":") for bar in bars.split()) for index in range(int(count))]
        for bars in FIGURE_3[model]
    ]
    assert [round(layer_emd(a, b), 2) for a, b in itertools.combinations(sets, 2)] == list(FIGURE_6[model])


def test_intersections_are_heads_of_just_these_sets():
    frame = intersections({"a": [(0, 0), (1, 1), (2, 0)], "b": [(1, 1), (2, 0)], "c": [(2, 0), (3, 2)]})
    assert list(frame.columns) == ["sets", "count", "heads"]
    assert set(zip(frame["sets"], frame["count"], map(tuple, frame["heads"]), strict=True)) == {
        (("a",), 1, ("L0H0",)),
        (("c",), 1, ("L3H2",)),
        (("a", "b"), 1, ("L1H1",)),
        (("a", "b", "c"), 1, ("L2H0",)),
    }
    assert intersections({"a": [(0, 0), (0, 1)], "b": [(0, 2)]})["count"].tolist() == [2, 1]
