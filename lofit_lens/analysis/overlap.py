"""Do two tasks choose the same heads? (The paper's appendix G, Figure 6, with the nulls that it lacks.)

For sets A and B of K heads each, out of N heads in layers of n_l, with a_l and b_l of them in layer l:

    overlap           |A & B| / K                                     what the paper calls Jaccard
    jaccard           |A & B| / |A | B|
    emd               earth mover's distance between a / K and b / K, the unit being one layer
    rank_correlation  Spearman's, of the scores of all heads

Each is set against two nulls. Uniform: B is any K heads, so that |A & B| is hypergeometric (N, K, K). Layers kept: B is redrawn
within each layer, so that |A & B| is a sum of hypergeometrics (n_l, a_l, b_l), whose distribution is convolved here, exactly.
Heads that are chosen cluster by layer, and every task shares that: against the uniform null alone, tasks seem to share more
heads than they do. Scores are permuted over all heads, or within layers; their p, and that of the distance (which layers alone
decide), are counted in random draws. All p are one-sided: more alike than by chance.

A task has a set for each seed. A pair of tasks is as alike as its pairs of runs are on average, and its p is the largest of
theirs: it is called alike only if every pair of runs is. A task beside itself is its runs of different seeds. q is p after
Benjamini and Hochberg over the pairs of different tasks.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from lofit_lens.heads import Head, HeadScores

Measure = Literal["overlap", "jaccard", "emd", "rank_correlation"]
MEASURES: tuple[Measure, ...] = ("overlap", "jaccard", "emd", "rank_correlation")


@dataclass(frozen=True)
class HeadOverlap:
    """How alike the heads of several tasks are.

    Args:
        names: the tasks.
        k: heads in each set.
        cells: a row for each pair of tasks (a task beside itself if it has several runs) and measure, with columns `a`, `b`,
            `measure`, `value`, `pairs` (of runs), and, for each null, `expected_*`, `p_*` and `q_*`: `uniform`, `layers`.
    """

    names: tuple[str, ...]
    k: int
    cells: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """The cells. Overlap and jaccard are in [0, 1], rank correlation in [-1, 1], emd in layers."""
        return self.cells.copy()

    def matrix(self, measure: Measure = "overlap", column: str = "value") -> pd.DataFrame:
        """One measure, tasks by tasks; NaN on the diagonal of tasks with one run.

        Raises:
            ValueError: no such measure, or no such column.
        """
        numbers = [name for name in self.cells.columns if name not in ("a", "b", "measure")]
        if measure not in MEASURES or column not in numbers:
            raise ValueError(f"got measure {measure!r} and column {column!r}; wanted one of {MEASURES}, and one of {numbers}")
        square = pd.DataFrame(np.nan, index=list(self.names), columns=list(self.names))
        of_measure = self.cells[self.cells["measure"] == measure]
        for a, b, number in zip(of_measure["a"], of_measure["b"], of_measure[column], strict=True):
            square.loc[a, b] = square.loc[b, a] = number
        return square


def head_overlap(
    scores: Mapping[str, Sequence[HeadScores]], k: int | float, *, n_draws: int = 2_000, seed: int = 0
) -> HeadOverlap:
    """How alike the `k` best heads of several tasks are, and how alike all their scores.

    Args:
        scores: for each task, the scores of each of its runs (seeds); all of one model.
        k: a count, or a fraction of all scored heads.
        n_draws: random draws for those p that are counted, whose smallest is `1 / (1 + n_draws)`.
        seed: of these draws.

    Raises:
        ValueError: fewer than two runs, a task without any, scores of different shapes or layers, or a k that cannot be used.
    """
    runs = {name: tuple(of_task) for name, of_task in scores.items()}
    _refuse_unlike(runs)
    generator = np.random.default_rng(seed)
    cells = []
    for a, b in itertools.combinations_with_replacement(runs, 2):
        pairs = itertools.combinations(runs[a], 2) if a == b else itertools.product(runs[a], runs[b])
        compared = [_compared(left, right, k, n_draws, generator) for left, right in pairs]
        for measure in MEASURES if compared else ():
            cells.append({"a": a, "b": b, "measure": measure, "pairs": len(compared)} | _over_pairs(compared, measure))
    first = next(iter(runs.values()))[0]
    return HeadOverlap(tuple(runs), len(first.top(k)), _with_q(pd.DataFrame(cells)))


def _over_pairs(compared: Sequence[Mapping[str, Mapping[str, float]]], measure: Measure) -> dict[str, float]:
    """Means over pairs of runs, and the largest p."""
    columns = {name: [one[measure][name] for one in compared] for name in compared[0][measure]}
    return {name: float(max(values) if name.startswith("p_") else np.mean(values)) for name, values in columns.items()}


def _refuse_unlike(runs: Mapping[str, tuple[HeadScores, ...]]) -> None:
    counts = {name: len(of_task) for name, of_task in runs.items()}
    if sum(counts.values()) < 2 or not all(counts.values()):
        raise ValueError(f"got runs {counts}; wanted one or more of each task, and two or more in all")
    scored = {(tuple(run.values.shape), tuple(sorted(run.rank()))) for of_task in runs.values() for run in of_task}
    if len(scored) > 1:
        shapes = {name: [tuple(run.values.shape) for run in of_task] for name, of_task in runs.items()}
        raise ValueError(f"got scores of different heads (shapes {shapes}); wanted all of one model, over the same heads")


def _with_q(cells: pd.DataFrame) -> pd.DataFrame:
    for null in ("uniform", "layers"):
        cells[f"q_{null}"] = np.nan
        for measure in MEASURES:
            tested = ((cells["measure"] == measure) & (cells["a"] != cells["b"]) & cells[f"p_{null}"].notna()).to_numpy()
            if tested.any():
                cells.loc[tested, f"q_{null}"] = stats.false_discovery_control(cells.loc[tested, f"p_{null}"])
    return cells


def _compared(
    left: HeadScores, right: HeadScores, k: int | float, n_draws: int, generator: np.random.Generator
) -> dict[str, dict[str, float]]:
    """For each measure, its value and what the nulls say of it."""
    a, b, pool = left.top(k), right.top(k), sorted(left.rank())
    shared, count = len({*a} & {*b}), len(a)
    sizes = np.arange(count + 1)
    uniform = stats.hypergeom.pmf(sizes, len(pool), count, count)
    kept = overlap_distribution(a, b, pool)
    at_least = {"p_uniform": float(uniform[shared:].sum().clip(0, 1)), "p_layers": float(kept[shared:].sum().clip(0, 1))}

    def against(of_shared: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
        expected = {"expected_uniform": uniform @ of_shared(sizes), "expected_layers": kept @ of_shared(sizes)}
        return {"value": float(of_shared(np.array(shared))), **{name: float(v) for name, v in expected.items()}, **at_least}

    return {
        "overlap": against(lambda n: n / count),
        "jaccard": against(lambda n: n / (2 * count - n)),
        "emd": _distance_compared(a, b, pool, n_draws, generator),
        "rank_correlation": _ranks_compared(left, right, pool, n_draws, generator),
    }


def overlap_distribution(a: Iterable[Head], b: Iterable[Head], pool: Iterable[Head]) -> np.ndarray:
    """Probabilities of 0 to `len(b)` heads in common when b is redrawn from the pool within each layer."""
    in_a, in_b, in_pool = (Counter(head.layer for head in heads) for heads in (a, b, pool))
    distribution = np.ones(1)
    for layer, n_drawn in in_b.items():
        of_layer = stats.hypergeom.pmf(np.arange(n_drawn + 1), in_pool[layer], in_a[layer], n_drawn)
        distribution = np.convolve(distribution, of_layer)
    return distribution


def layer_emd(a: Iterable[tuple[int, int]], b: Iterable[tuple[int, int]]) -> float:
    """Earth mover's distance between the layers of two sets of heads, in layers.

    Raises:
        ValueError: an empty set.
    """
    layers = [[layer for layer, _ in heads] for heads in (a, b)]
    if not all(layers):
        raise ValueError("got an empty set of heads; wanted at least one in each")
    return float(stats.wasserstein_distance(*layers))


def _distance_compared(
    a: Sequence[Head], b: Sequence[Head], pool: Sequence[Head], n_draws: int, generator: np.random.Generator
) -> dict[str, float]:
    value = layer_emd(a, b)
    layers = np.array([head.layer for head in pool])
    drawn = [np.sort(generator.choice(layers, len(b), replace=False)) for _ in range(n_draws)]
    # Of sets of one size, the distance is the mean difference of their layers in order.
    distances = np.abs(np.stack(drawn) - np.sort([head.layer for head in a])).mean(1)
    p = _share_as_extreme(-distances, -value)
    return {
        "value": value,
        "expected_uniform": float(distances.mean()),
        "expected_layers": np.nan,
        "p_uniform": p,
        "p_layers": np.nan,
    }


def _ranks_compared(
    left: HeadScores, right: HeadScores, pool: Sequence[Head], n_draws: int, generator: np.random.Generator
) -> dict[str, float]:
    ours, theirs = (_standardised(stats.rankdata([scores[head] for head in pool])) for scores in (left, right))
    layers = np.array([head.layer for head in pool])
    shuffled = generator.permuted(np.tile(theirs, (n_draws, 1)), axis=1)
    within = np.empty_like(shuffled)
    for layer in np.unique(layers):
        of_layer = np.flatnonzero(layers == layer)
        within[:, of_layer] = generator.permuted(np.tile(theirs[of_layer], (n_draws, 1)), axis=1)
    value = float(ours @ theirs)
    found = {"value": value}
    for null, drawn in (("uniform", shuffled @ ours), ("layers", within @ ours)):
        found |= {f"expected_{null}": float(drawn.mean()), f"p_{null}": _share_as_extreme(drawn, value)}
    return found


def _standardised(ranks: np.ndarray) -> np.ndarray:
    """Brought to mean 0 and length 1, so that a correlation is a product; scores that are all the same give 0."""
    centred = ranks - ranks.mean()
    return centred / max(float(np.linalg.norm(centred)), np.finfo(float).tiny)


def _share_as_extreme(drawn: np.ndarray, value: float) -> float:
    # The small amount is for draws that equal the value up to rounding.
    return float((1 + (drawn >= value - 1e-12).sum()) / (1 + len(drawn)))


def intersections(sets: Mapping[str, Iterable[tuple[int, int]]]) -> pd.DataFrame:
    """Which heads are in just these sets and no other: the columns of an UpSet figure (Lex et al. 2014).

    Returns:
        A row for each combination of sets that has heads of its own, most heads first: `sets` (a tuple of names), `count`,
        `heads` (labels).
    """
    members: dict[Head, list[str]] = {}
    for name, heads in sets.items():
        for head in heads:
            members.setdefault(Head(*head), []).append(name)
    grouped: dict[tuple[str, ...], list[Head]] = {}
    for head in sorted(members):
        grouped.setdefault(tuple(members[head]), []).append(head)
    rows = sorted(grouped.items(), key=lambda row: (-len(row[1]), len(row[0])))
    columns = ["sets", "count", "heads"]
    return pd.DataFrame([(names, len(heads), [head.label for head in heads]) for names, heads in rows], columns=columns)
