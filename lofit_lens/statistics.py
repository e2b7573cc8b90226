"""Intervals of means over examples: of success rates, and of any other quantity."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
BOOTSTRAP_RESAMPLES = 2000


def success_interval(outcomes: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a success rate: Wilson's; `mean_interval` where some outcomes are neither 0 nor 1 (a judge's, say)."""
    if not set(outcomes) <= {0.0, 1.0}:
        return mean_interval(outcomes)
    successes = stats.binomtest(int(sum(outcomes)), len(outcomes))
    low, high = successes.proportion_ci(CONFIDENCE, method="wilson")
    return float(low), float(high)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a mean: a BCa bootstrap over the values (seeded).

    With one value, or where all are the same, there is no spread to resample: the interval is that value.
    """
    low, high, _ = bootstrapped_mean(values)
    return low, high


def bootstrapped_mean(
    values: Sequence[float], *, n_resamples: int = BOOTSTRAP_RESAMPLES, seed: int = 0
) -> tuple[float, float, NDArray[Any]]:
    """`mean_interval`, and the mean of every resample [n_resamples]."""
    if max(values) - min(values) < 1e-9:  # BCa divides by the spread
        return min(values), max(values), np.full(n_resamples, values[0])
    resampled = stats.bootstrap((values,), _mean, confidence_level=CONFIDENCE, n_resamples=n_resamples, rng=seed, method="BCa")
    low, high = resampled.confidence_interval
    return float(low), float(high), resampled.bootstrap_distribution


def _mean(values: Any, axis: int = -1) -> Any:
    return values.mean(axis=axis)
