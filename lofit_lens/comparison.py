"""Whether one cell of a study does better than another, and by how much: paired over examples and over seeds.

A cell gives an outcome for every seed and every test example, and two cells share both. What is looked at is their difference

    D[s, e] = ours[s, e] - theirs[s, e],

whose mean should hold for new examples and, where there are several seeds, for new seeds: `crossed` has the formulas, and how
often its intervals cover the truth (two seeds: mostly too often, so that differences are missed). With one seed, or where new
seeds are not asked for, examples are drawn, each with its outcomes under all seeds: this is the paired bootstrap of the LoFiT
paper (arXiv 2406.01563). It is about these fits, and says nothing of what another seed would give.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from lofit_lens.crossed import ROUNDING, CrossedMean
from lofit_lens.statistics import bootstrapped_mean

Alternative = Literal["two-sided", "less", "greater"]
ALTERNATIVES = get_args(Alternative)
N_RESAMPLES = 10_000


@dataclass(frozen=True)
class PairedDifference:
    """Of the means of two cells: ours - theirs.

    Args:
        mean: the difference, in the outcomes' unit.
        low: of the 95 % interval, which is two-sided whatever the alternative is.
        high: of that interval.
        p: that of no difference, against the alternative.
        alternative: "greater" is that ours is.
        n_examples: that both share.
        n_seeds: that both share; if 1, all of this is about one pair of fits.
        new_seeds: whether this is about new seeds too, not about these fits alone.
        standard_error: of the mean.
        detectable: the smallest true difference that a study like this finds with power 0.8 at two-sided alpha 0.05.
    """

    mean: float
    low: float
    high: float
    p: float
    alternative: Alternative
    n_examples: int
    n_seeds: int
    new_seeds: bool
    standard_error: float
    detectable: float


def paired_difference(
    ours: ArrayLike,
    theirs: ArrayLike,
    *,
    alternative: Alternative = "two-sided",
    new_seeds: bool = True,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """How much better one cell is than another, for new examples, and for new seeds if there are several (formulas above).

    p-values. For new seeds: the tail at which the interval would end at 0. For these fits: the paired bootstrap of the LoFiT
    paper; the resampled means are moved to a true difference of 0, one counts towards "greater" where it reaches the observed
    difference or more, towards "less" where it reaches it or less, and p = (1 + count) / (1 + n_resamples) (Efron and
    Tibshirani, section 16.4). Two-sided is twice the smaller of both, at most 1.

    The interval is `crossed`'s for new seeds, where its coverage stands; BCa over examples for these fits (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, section 14.3).

    Args:
        ours: [seed, example], 0 or 1, or any real outcome.
        theirs: [seed, example], of the same seeds and examples. A cell without seeds, such as the base model, is repeated.
        alternative: "two-sided", or that ours is "greater" or "less".
        new_seeds: whether to say what new seeds would give; without, or with one seed, it is about these fits.
        n_resamples: of the examples, where it is about these fits.
        seed: of the resampling.

    Raises:
        ValueError: the shapes differ or are not [seed, example], there are fewer than two examples, an outcome is not finite,
            or the alternative is another word.
    """
    if alternative not in ALTERNATIVES:
        raise ValueError(f"got the alternative {alternative!r}, wanted one of {', '.join(ALTERNATIVES)}")
    differences = np.subtract(*_checked(ours, theirs))
    n_seeds = len(differences)
    differences = _drawn_together(differences, new_seeds)
    crossed = CrossedMean.of(differences)
    low, high, less, greater = _inferred(differences, n_resamples, seed)
    p = {"two-sided": min(1.0, 2 * min(less, greater)), "less": less, "greater": greater}[alternative]
    return PairedDifference(
        float(crossed.mean),
        low,
        high,
        p,
        alternative,
        crossed.n_examples,
        n_seeds,
        len(differences) > 1,
        float(crossed.standard_error),
        detectable_difference(differences),
    )


def relative_effect(
    ours: ArrayLike, reference: ArrayLike, *, new_seeds: bool = True, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """Ratio of two cells' means and its 95 % interval, such as what other heads reach of what a task's own heads do.

    Figure 2 of the LoFiT paper (arXiv 2406.01563, section 6) shows such ratios. The interval is that of the mean of

        ratio + (ours - ratio reference) / mean(reference),

    the ratio's linear approximation (Cochran, Sampling Techniques, 1977, chapter 6), paired and with seeds as in
    `paired_difference`. Where the reference's own 95 % interval holds 0, any ratio is possible: the interval is (-inf, inf).

    Args:
        ours: [seed, example], real outcomes; for gains over the base model, the base model's are subtracted before.
        reference: [seed, example], of the same seeds and examples.
        new_seeds: as in `paired_difference`.
        n_resamples: as there.
        seed: of the resampling.

    Returns:
        Ratio, low and high; all NaN where the reference's mean is 0.

    Raises:
        ValueError: the shapes differ or are not [seed, example], there are fewer than two examples, or one is not finite.
    """
    outcomes, references = (_drawn_together(one, new_seeds) for one in _checked(ours, reference))
    of_reference = float(references.mean())
    if abs(of_reference) < ROUNDING:
        return np.nan, np.nan, np.nan
    ratio = float(outcomes.mean()) / of_reference
    low, high, *_ = _inferred(references, n_resamples, seed)
    if low <= 0 <= high:
        return ratio, -np.inf, np.inf
    low, high, *_ = _inferred(ratio + (outcomes - ratio * references) / of_reference, n_resamples, seed)
    return ratio, low, high


def detectable_difference(differences: ArrayLike, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest true mean difference that a study like this one finds with that power, at that two-sided alpha.

    That is where the interval of 1 - alpha leaves out 0 with that power, if seeds and examples vary as much as they do here
    (Cohen, Statistical Power Analysis, 1988, chapter 2, with the intervals of `crossed`). The differences' mean plays no part.

    Args:
        differences: [seed, example], ours - theirs: of this study, or of a pilot.
        power: probability of finding it, in [0.5, 1).
        alpha: of the two-sided test, in (0, 1).

    Raises:
        ValueError: the power or alpha is outside its range, or the differences are no such array of finite numbers.
    """
    if not (0.5 <= power < 1 and 0 < alpha < 1):
        raise ValueError(f"got power {power} and alpha {alpha}; wanted power in [0.5, 1), such as 0.8, and alpha in (0, 1)")
    (checked,) = _checked(differences)
    return CrossedMean.of(checked).detectable(power, alpha)


def false_discovery_rates(p: ArrayLike) -> NDArray[Any]:
    """Benjamini and Hochberg's q of every p-value: the expected share of false ones where all with a q as small
    are called differences (Journal of the Royal Statistical Society B 57, 1995).

    It is as good as the p-values are: `crossed` says how far those of several seeds can be trusted below 0.01.

    Args:
        p: [...], NaN where nothing was tested, such as a diagonal; such cells do not count as tests.

    Returns:
        [...], q in [0, 1], NaN where p is.

    Raises:
        ValueError: a p-value is outside [0, 1].
    """
    rates = np.array(p, dtype=float)
    tested = ~np.isnan(rates)
    if not ((rates[tested] >= 0) & (rates[tested] <= 1)).all():
        raise ValueError(
            f"got p-values from {np.nanmin(rates)} to {np.nanmax(rates)}, wanted them in [0, 1], NaN where untested"
        )
    if tested.any():
        rates[tested] = stats.false_discovery_control(rates[tested], method="bh")
    return rates


def _inferred(values: NDArray[Any], n_resamples: int, seed: int) -> tuple[float, float, float, float]:
    """Of the mean of values [seed, example]: its 95 % interval, and the p-values of 0 against "less" and against "greater"."""
    crossed = CrossedMean.of(values)
    if crossed.n_seeds > 1:
        low, high = crossed.interval()
        return float(low), float(high), *crossed.tails()
    low, high, resampled = bootstrapped_mean(values[0].tolist(), n_resamples=n_resamples, seed=seed)
    deviations = resampled - crossed.mean
    n_less = np.count_nonzero(deviations <= crossed.mean + ROUNDING)
    n_greater = np.count_nonzero(deviations >= crossed.mean - ROUNDING)
    return low, high, (1 + n_less) / (1 + n_resamples), (1 + n_greater) / (1 + n_resamples)


def _drawn_together(values: NDArray[Any], new_seeds: bool) -> NDArray[Any]:
    """Values [seed, example], the seeds of an example as one where new ones are not asked for."""
    return values if new_seeds else values.mean(0, keepdims=True)


def _checked(*outcomes: ArrayLike) -> list[NDArray[Any]]:
    """As arrays [seed, example] of one shape.

    Raises:
        ValueError: says which is not.
    """
    arrays = [np.asarray(one, dtype=float) for one in outcomes]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1 or any(len(shape) != 2 or shape[0] < 1 or shape[1] < 2 for shape in shapes):
        raise ValueError(
            f"got outcomes of shape {' and '.join(str(array.shape) for array in arrays)}; wanted [seed, example] with at least "
            "one seed and two examples, the same throughout: one seed is [[...]], and what has no seeds is repeated for each"
        )
    n_missing = sum(int((~np.isfinite(array)).sum()) for array in arrays)
    if n_missing:
        raise ValueError(f"got {n_missing} outcomes that are NaN or infinite, wanted finite numbers; leave out those examples")
    return arrays
