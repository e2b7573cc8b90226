"""A mean over seeds and examples, and how far it may be off: for new examples and, where there are several, for new seeds.

The same examples come under every seed, so that seeds and examples are crossed random factors:

    value[s, e] = mu + seed_s + example_e + residual_se.

With S seeds and n examples, B the variance over examples of the mean over seeds, A the variance over seeds of the mean over
examples, and W the mean over seeds of the variance over examples, the two-way analysis of variance gives the variance of the
mean (Searle, Casella and McCulloch, Variance Components, 1992, chapter 4):

    v_examples = B / n,    v_seeds = A / S,    v_residual = (W - B) / (n (S - 1)),
    SE^2 = v_examples + max(v_seeds - v_residual, 0).

v_examples and v_residual are known well, but v_seeds from S numbers only, and that part needs the t distribution of S - 1
degrees of freedom. Hence the 95 % interval is mean +- c SE with the weighted mean of quantiles that Cochran and Cox propose for
two variances of different degrees of freedom (Experimental Designs, 1950):

    c = (1 - w) t[n - 1] + w t[S - 1],    w = min(v_seeds / SE^2, 1).

Where v_seeds <= v_residual, seeds differ no more than the residual explains, and w = 0. But with two seeds w is kept, because
one degree of freedom shows too little. With one seed, v_seeds and v_residual are 0: what is found is about that fit only.

Measured coverage of the 95 % interval, in %: normal values by their exact moments (100,000 draws each), 50 to 800 examples, the
residual's share of v_examples from 0 to 1, and seeds that add so many times v_examples to the variance of the mean. Differences
of binary (probit) outcomes, down to 4 % successes among 50 examples, agree within a point; a true null hypothesis is
rejected in 100 % minus these.

    seeds   0          0.3        1          3          10         30         100
    2       95.0-99.3  97.8-98.9  97.2-98.0  95.8-96.4  94.4-94.8  93.8-94.4  94.1-94.6
    3       95.0-96.9  95.4-97.1  93.4-97.1  92.6-96.3  93.7-95.4  94.5-95.1  94.8-95.0
    5       95.0-97.0  95.9-96.4  94.8-96.4  94.6-96.0  94.8-95.5  95.0-95.2  94.9-95.1

So two seeds give wide intervals, conservative unless seeds dominate; with three or more they are right within 2.5 points. Far
tails are less right, because w = 0 is a decision: p < 0.01 comes up to true null hypotheses in up to 2 % with two seeds (which
dominate), 4 % with three and 1.7 % with five (seeds add 3 to 10 times v_examples, which is nearly all residual), and p < 0.001
in up to 0.5, 2.5 and 0.8 %. So corrections over many tests fail with few seeds: among 48 true null hypotheses of 200 examples,
Benjamini and Hochberg's q < 0.05 comes up somewhere in 5 % of families with three seeds where seeds add nothing, in 22 % where
they add 0.9 times v_examples and in 39 to 46 % where they add 3 times as much; with five seeds in 1, 10 and 11 to 22 %.

Of the other ways tried, drawing seeds and examples with replacement (Owen, The pigeonhole bootstrap, 2007) covers, by its
variance, 62, 76 and 85 % where 2, 3 and 5 seeds dominate; Satterthwaite's degrees of freedom cover 87 and 92 % with two and
three seeds that add 10 times v_examples.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from lofit_lens.statistics import CONFIDENCE

ROUNDING = 1e-9  # means of the same numbers in another order differ by less
SMALLEST_TAIL = 1e-100  # SciPy's quantiles of t are -inf farther out, from 1e-200 for some degrees of freedom


@dataclass(frozen=True)
class CrossedMean:
    """A mean and what its variance is made of (formulas above); every index of the arrays is a study of its own.

    Args:
        mean: [...], over seeds and examples.
        v_examples: [...], what examples add to the mean's variance, under these seeds.
        v_seeds: [...], what seeds add, with these examples.
        v_residual: [...], how much the residual adds to either.
        n_seeds: S.
        n_examples: n.
    """

    mean: NDArray[Any]
    v_examples: NDArray[Any]
    v_seeds: NDArray[Any]
    v_residual: NDArray[Any]
    n_seeds: int
    n_examples: int

    @classmethod
    def of(cls, values: NDArray[Any]) -> "CrossedMean":
        """Of values [..., seed, example]."""
        n_seeds, n_examples = values.shape[-2:]
        means = values.mean(-2)
        v_examples = means.var(-1, ddof=1) / n_examples
        v_seeds = v_residual = np.zeros_like(v_examples)
        if n_seeds > 1:
            v_seeds = values.mean(-1).var(-1, ddof=1) / n_seeds
            v_residual = (values.var(-1, ddof=1).mean(-1) / n_examples - v_examples) / (n_seeds - 1)
        return cls(means.mean(-1), v_examples, v_seeds, v_residual, n_seeds, n_examples)

    @property
    def standard_error(self) -> NDArray[Any]:
        """[...], SE above."""
        return np.sqrt(self.v_examples + np.maximum(self.v_seeds - self.v_residual, 0))

    @property
    def seed_weight(self) -> NDArray[Any]:
        """[...], w above."""
        variance = self.standard_error**2
        counted = ((self.v_seeds > self.v_residual) | (self.n_seeds == 2)) & (variance > 0)
        return np.minimum(np.divide(self.v_seeds, variance, out=np.zeros_like(variance), where=counted), 1)

    def critical(self, tail: float) -> NDArray[Any]:
        """[...], c above for that probability above it."""
        of_seeds = stats.t.isf(tail, max(self.n_seeds - 1, 1))  # which has no weight with one seed
        return (1 - self.seed_weight) * stats.t.isf(tail, self.n_examples - 1) + self.seed_weight * of_seeds

    def interval(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """95 % interval: low [...] and high [...]."""
        half = self.critical((1 - CONFIDENCE) / 2) * self.standard_error
        return self.mean - half, self.mean + half

    def tails(self) -> tuple[float, float]:
        """Of one study: how probably a mean whose expectation is 0 is at most, and at least, as large as this one."""
        if abs(self.mean) < ROUNDING:
            return 0.5, 0.5
        reached = abs(self.mean) / self.standard_error if self.standard_error > 0 else np.inf
        tail = SMALLEST_TAIL
        if reached < self.critical(SMALLEST_TAIL):
            bracket = (np.log(SMALLEST_TAIL), np.log(0.5))
            tail = float(np.exp(_root(lambda log_tail: self.critical(np.exp(log_tail)) - reached, *bracket)))
        return (1 - tail, tail) if self.mean > 0 else (tail, 1 - tail)

    def detectable(self, power: float, alpha: float) -> float:
        """Of one study: the expectation at which such studies find a mean other than 0 with that power, at two-sided alpha.

        v_seeds differs from study to study as a chi-squared variable of S - 1 degrees of freedom does, here at 1000 of its
        quantiles; the other two are as good as known.
        """
        spread = float(self.standard_error)
        if spread == 0:
            return 0.0
        studies = self
        if self.n_seeds > 1:
            factors = stats.chi2.ppf((np.arange(1000) + 0.5) / 1000, self.n_seeds - 1) / (self.n_seeds - 1)
            studies = replace(self, v_seeds=np.maximum(self.v_seeds, self.v_residual) * factors)
        needed = studies.critical(alpha / 2) * studies.standard_error
        return _root(lambda true: stats.norm.sf((needed - true) / spread).mean() - power, 0, needed.max() + 40 * spread)


def _root(function: Callable[[float], Any], low: float, high: float) -> float:
    return float(optimize.root_scalar(function, bracket=(low, high)).root)
