"""Intervals, paired comparisons over seeds and examples, and what they are worth: by hand, against SciPy, and simulated."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lofit_lens.comparison import detectable_difference, false_discovery_rates, paired_difference, relative_effect
from lofit_lens.crossed import CrossedMean
from lofit_lens.statistics import bootstrapped_mean, mean_interval, success_interval

N_STUDIES = 3000  # per regime: a coverage of 95 % has a standard error of 0.4 %
SIMULATION = 0.008  # two of these


def outcomes(n_seeds, n_examples, *, rate=0.5, seed=0):
    """Binary outcomes of two cells, whose examples differ in difficulty."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(size=n_examples)
    chances = [stats.norm.cdf(stats.norm.ppf(one) + difficulty) for one in (rate, 0.5)]
    return [(rng.random((n_seeds, n_examples)) < chance).astype(float) for chance in chances]


def normal_studies(rng, n_seeds, n_examples, *, seeds_add, residual_share=0.5):
    """Studies [study, seed, example] without a true mean. Examples and residual add 1 / n to the mean's variance; seeds add
    that many times as much.
    """
    effects = {
        (N_STUDIES, n_seeds, 1): seeds_add * n_seeds / n_examples,
        (N_STUDIES, 1, n_examples): 1 - residual_share,
        (N_STUDIES, n_seeds, n_examples): residual_share * n_seeds,
    }
    return sum(np.sqrt(variance) * rng.standard_normal(shape, dtype=np.float32) for shape, variance in effects.items())


def binary_studies(rng, n_seeds, n_examples, *, seed_spread):
    """Differences [study, seed, example] of two cells that succeed where a normal variable is positive; equal in truth."""
    shared = rng.standard_normal((N_STUDIES, 1, n_examples), dtype=np.float32)
    cells = []
    for _ in range(2):
        own = 0.7 * rng.standard_normal((N_STUDIES, 1, n_examples), dtype=np.float32)
        of_seeds = seed_spread * rng.standard_normal((N_STUDIES, n_seeds, 1), dtype=np.float32)
        noise = rng.standard_normal((N_STUDIES, n_seeds, n_examples), dtype=np.float32)
        cells.append((shared + own + of_seeds + noise > 0).astype(float))
    return cells[0] - cells[1]


def coverage(studies, truth=0.0):
    low, high = CrossedMean.of(studies).interval()
    return float(((low <= truth) & (truth <= high)).mean())


# Intervals of one cell.


def test_the_interval_of_a_success_rate_is_wilsons():
    # (k + z^2 / 2 +- z sqrt(k (n - k) / n + z^2 / 4)) / (n + z^2), k = 2, n = 4.
    z = stats.norm.isf(0.025)
    half = z * np.sqrt(1 + z**2 / 4) / (4 + z**2)
    assert success_interval([1.0, 0.0, 1.0, 0.0]) == pytest.approx((0.5 - half, 0.5 + half))
    assert success_interval([1.0, 0.5, 0.0, 0.0]) == mean_interval([1.0, 0.5, 0.0, 0.0])


def test_the_interval_of_a_mean_is_scipys_bca():
    values = np.random.default_rng(0).exponential(size=40).tolist()
    theirs = stats.bootstrap((values,), np.mean, n_resamples=500, rng=3, method="BCa")
    low, high, resampled = bootstrapped_mean(values, n_resamples=500, seed=3)
    assert (low, high) == pytest.approx(tuple(theirs.confidence_interval), abs=1e-12)
    assert resampled == pytest.approx(theirs.bootstrap_distribution)
    assert mean_interval(values) == bootstrapped_mean(values)[:2]


def test_equal_values_leave_nothing_to_resample():
    low, high, resampled = bootstrapped_mean([0.25, 0.25], n_resamples=5)
    assert (low, high, resampled.tolist()) == (0.25, 0.25, [0.25] * 5)


# The mean over seeds and examples.


def test_parts_of_the_variance_by_hand():
    # Means over seeds 2, 1, 1.5 (variance 0.25), over examples 1, 2 (variance 0.5); variance within each seed 1.
    found = CrossedMean.of(np.array([[1.0, 0.0, 2.0], [3.0, 2.0, 1.0]]))
    assert found.mean == pytest.approx(1.5)
    assert found.v_examples == pytest.approx(0.25 / 3)
    assert found.v_seeds == pytest.approx(0.5 / 2)
    assert found.v_residual == pytest.approx((1 - 0.25) / 3)
    assert found.standard_error == pytest.approx(np.sqrt(0.25 / 3))
    assert found.seed_weight == 1  # 0.25 / (0.25 / 3), at most 1
    assert found.critical(0.025) == pytest.approx(stats.t.isf(0.025, 1))


def test_the_critical_value_weighs_both_quantiles():
    found = CrossedMean(np.array(0.0), np.array(3.0), np.array(2.0), np.array(1.0), n_seeds=3, n_examples=10)
    assert (found.standard_error, found.seed_weight) == (2, 0.5)
    assert found.critical(0.025) == pytest.approx((stats.t.isf(0.025, 9) + stats.t.isf(0.025, 2)) / 2)


@pytest.mark.parametrize(("n_seeds", "weight"), [(2, 0.25), (3, 0.0)])
def test_seeds_that_differ_no_more_than_the_residual_have_weight_only_if_they_are_two(n_seeds, weight):
    found = CrossedMean(np.array(0.0), np.array(4.0), np.array(1.0), np.array(1.5), n_seeds, n_examples=10)
    assert (found.standard_error, found.seed_weight) == (2, weight)


def test_many_studies_at_once_are_those_studies_one_by_one():
    studies = np.random.default_rng(0).normal(size=(5, 3, 20))
    together = np.transpose(CrossedMean.of(studies).interval())
    np.testing.assert_allclose(together, [CrossedMean.of(study).interval() for study in studies])


@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
@pytest.mark.parametrize("sign", [1, -1])
def test_seeds_that_agree_leave_a_t_test_over_examples(alternative, sign):
    ours, theirs = (sign * np.repeat(one, 3, axis=0) for one in outcomes(1, 80, rate=0.6))
    found = paired_difference(ours, theirs, alternative=alternative)
    scipys = stats.ttest_rel(ours[0], theirs[0], alternative=alternative)
    assert found.p == pytest.approx(scipys.pvalue)
    assert found.standard_error == pytest.approx(stats.sem(ours[0] - theirs[0]))
    if alternative == "two-sided":
        assert (found.low, found.high) == pytest.approx(tuple(scipys.confidence_interval()))


@pytest.mark.parametrize("n_examples", range(3, 16))
def test_and_of_few_examples(n_examples):
    differences = np.array([-1.0, *[0.0] * (n_examples - 1)])
    found = paired_difference(np.tile(differences, (2, 1)), np.zeros((2, n_examples)), alternative="less")
    assert found.p == pytest.approx(stats.ttest_1samp(differences, 0, alternative="less").pvalue)


@pytest.mark.parametrize("n_seeds", range(2, 15))
def test_examples_that_agree_leave_a_t_test_over_seeds(n_seeds):
    per_seed = np.random.default_rng(1).normal(0.5, size=n_seeds)
    found = paired_difference(np.repeat(per_seed[:, None], 50, axis=1), np.zeros((n_seeds, 50)))
    scipys = stats.ttest_1samp(per_seed, 0)
    assert found.p == pytest.approx(scipys.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(scipys.confidence_interval()))


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
def test_p_is_where_the_interval_would_end_at_0(n_seeds):
    ours, theirs = outcomes(n_seeds, 60, rate=0.65, seed=n_seeds)
    p = paired_difference(ours, theirs).p
    crossed = CrossedMean.of(ours - theirs)
    assert crossed.critical(p / 2) * crossed.standard_error == pytest.approx(crossed.mean)


# Paired differences.


def test_one_seed_is_the_paired_bootstrap_over_examples():
    ours, theirs = outcomes(1, 120, rate=0.65)
    found = paired_difference(ours, theirs, n_resamples=2000, seed=4)
    differences = ours[0] - theirs[0]
    scipys = stats.bootstrap((differences,), np.mean, n_resamples=2000, rng=4, method="BCa")
    assert (found.mean, found.n_examples, found.n_seeds) == (pytest.approx(differences.mean()), 120, 1)
    assert (found.low, found.high) == pytest.approx(tuple(scipys.confidence_interval), abs=1e-12)
    assert found.standard_error == pytest.approx(stats.sem(differences))


@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
def test_one_seed_agrees_with_scipys_tests(alternative):
    ours, theirs = np.random.default_rng(0).normal([[[0.2]], [[0.05]]], size=(2, 1, 200))
    p = paired_difference(ours, theirs, alternative=alternative).p
    # Monte Carlo errors are at most 0.005 each, and twice that in a two-sided p: two of these.
    assert p == pytest.approx(stats.ttest_rel(ours[0], theirs[0], alternative=alternative).pvalue, abs=0.02)
    permuted = stats.permutation_test(
        (ours[0], theirs[0]),
        lambda a, b, axis: (a - b).mean(axis),
        permutation_type="samples",
        vectorized=True,
        alternative=alternative,
        rng=0,
    )
    assert p == pytest.approx(permuted.pvalue, abs=0.02)


def test_p_values_of_one_seed_count_resamples():
    differences = np.array([[1.0, 1.0, 1.0, 0.0]])
    _, _, resampled = bootstrapped_mean(differences[0].tolist(), n_resamples=100, seed=0)
    n_greater = sum(mean - 0.75 > 0.75 - 1e-9 for mean in resampled)  # none: a mean is 1 at most
    n_less = sum(mean - 0.75 < 0.75 + 1e-9 for mean in resampled)  # all
    assert (n_greater, n_less) == (0, 100)
    found = {
        which: paired_difference(differences, np.zeros((1, 4)), alternative=which, n_resamples=100).p
        for which in ("greater", "less", "two-sided")
    }
    assert found == {"greater": 1 / 101, "less": 1.0, "two-sided": 2 / 101}


@pytest.mark.parametrize("n_seeds", [1, 2, 3])
def test_cells_without_a_difference(n_seeds):
    ours, _ = outcomes(n_seeds, 30)
    found = paired_difference(ours, ours)
    assert (found.mean, found.low, found.high, found.p, found.standard_error, found.detectable) == (0, 0, 0, 1, 0, 0)


@pytest.mark.parametrize(("n_seeds", "most"), [(1, 2 / 10_001), (2, 1e-99), (3, 1e-99)])
def test_cells_that_always_differ(n_seeds, most):
    found = paired_difference(np.ones((n_seeds, 30)), np.zeros((n_seeds, 30)))
    assert (found.mean, found.low, found.high) == (1, 1, 1)
    assert 0 < found.p <= most


def test_about_these_fits_an_examples_seeds_are_one_outcome():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(1.0, size=(2, 3, 60))
    of_means = paired_difference(ours.mean(0, keepdims=True), theirs.mean(0, keepdims=True))
    found = paired_difference(ours, theirs, new_seeds=False)
    for field in ("mean", "low", "high", "p", "standard_error", "detectable"):
        assert getattr(found, field) == pytest.approx(getattr(of_means, field), abs=1e-9)
    assert (found.n_seeds, found.new_seeds, of_means.new_seeds) == (3, False, False)
    assert paired_difference(ours, theirs).new_seeds
    of_mean_ratio = relative_effect(ours.mean(0, keepdims=True), theirs.mean(0, keepdims=True))
    assert relative_effect(ours, theirs, new_seeds=False) == pytest.approx(of_mean_ratio, abs=1e-9)


def test_two_seeds_of_equal_means_still_vary_over_examples():
    differences = np.array([[1.0, 0.0] * 20, [0.0, 1.0] * 20])
    differences[:, :4] = 1.0
    found = paired_difference(differences, np.zeros((2, 40)))
    half = stats.t.isf(0.025, 39) * stats.sem(differences.mean(0))
    assert (found.low, found.high) == pytest.approx((0.55 - half, 0.55 + half))


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_swapping_sides_swaps_everything(n_seeds):
    ours, theirs = outcomes(n_seeds, 60, rate=0.6)
    one, other = paired_difference(ours, theirs), paired_difference(theirs, ours)
    assert (one.mean, one.low, one.high) == pytest.approx((-other.mean, -other.high, -other.low))
    assert one.p == pytest.approx(other.p)


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_the_same_call_gives_the_same_result(n_seeds):
    ours, theirs = outcomes(n_seeds, 50)
    assert paired_difference(ours, theirs) == paired_difference(ours.tolist(), theirs.tolist())
    assert relative_effect(ours, theirs) == relative_effect(ours, theirs)


def test_another_seed_of_the_bootstrap_gives_other_resamples():
    ours, theirs = outcomes(1, 50, rate=0.6)
    assert paired_difference(ours, theirs, seed=0) != paired_difference(ours, theirs, seed=1)
    assert relative_effect(ours, theirs, n_resamples=200, seed=0) != relative_effect(ours, theirs, n_resamples=200, seed=1)


# What intervals are worth.


@pytest.mark.parametrize("n_examples", [100, 200, 800])
@pytest.mark.parametrize("seeds_add", [0, 1, 3, 10, 30])
@pytest.mark.parametrize("n_seeds", [2, 3, 5])
def test_95_of_100_intervals_hold_the_truth_of_normal_outcomes(n_seeds, seeds_add, n_examples):
    rng = np.random.default_rng(n_seeds + n_examples)
    found = coverage(normal_studies(rng, n_seeds, n_examples, seeds_add=seeds_add))
    # Two seeds are conservative unless they dominate.
    assert 0.93 - SIMULATION <= found <= (0.97 + SIMULATION if n_seeds > 2 or seeds_add > 1 else 1)


@pytest.mark.parametrize(("n_seeds", "n_examples"), [(2, 200), (3, 100), (3, 800), (5, 200)])
@pytest.mark.parametrize("seed_spread", [0, 0.1, 1])
def test_and_of_binary_outcomes(n_seeds, n_examples, seed_spread):
    rng = np.random.default_rng(n_seeds)
    found = coverage(binary_studies(rng, n_seeds, n_examples, seed_spread=seed_spread))
    assert 0.93 - SIMULATION <= found <= (0.97 + SIMULATION if n_seeds > 2 or seed_spread == 1 else 1)


def test_and_of_one_seed_for_new_examples():
    rng = np.random.default_rng(0)
    found = []
    for seed in range(1200):
        ours, theirs = (rng.normal(size=(2, 1, 100)) + rng.normal(size=100) > 0).astype(float)
        found.append(paired_difference(ours, theirs, n_resamples=500, seed=seed))
    # 1,200 studies: a standard error of 0.6 %.
    assert np.mean([one.low <= 0 <= one.high for one in found]) == pytest.approx(0.95, abs=0.02)
    assert np.mean([one.p <= 0.05 for one in found]) == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize(
    ("n_seeds", "seeds_add", "residual_share", "as_documented"),
    [(3, 0, 0.6, 0.05), (3, 0.9, 0.6, 0.22), (3, 3, 1.0, 0.46), (5, 0.9, 0.6, 0.10)],
)
def test_how_often_many_tests_with_few_seeds_find_what_is_not_there(n_seeds, seeds_add, residual_share, as_documented):
    rng = np.random.default_rng(0)
    tails = 0.05 * np.arange(1, 4) / 48  # what the smallest p, the second and the third must be below
    n_families = n_found = 0
    while n_families < 200:
        studies = normal_studies(rng, n_seeds, 200, seeds_add=seeds_add, residual_share=residual_share)
        families = CrossedMean.of(studies[: len(studies) // 48 * 48].reshape(-1, 48, *studies.shape[1:]))
        reached = -families.mean / families.standard_error
        counts = np.array([(reached > families.critical(tail)).sum(-1) for tail in tails])
        n_found += int((counts >= np.arange(1, 4)[:, None]).any(0).sum())
        n_families += counts.shape[1]
    # 200 families and more: two standard errors are 7 %.
    assert n_found / n_families == pytest.approx(as_documented, abs=0.07)


def test_seeds_that_are_resampled_would_not_do():
    """Why this is no bootstrap over seeds: where two of them dominate, half of their intervals miss."""
    rng = np.random.default_rng(0)
    studies = normal_studies(rng, 2, 100, seeds_add=30)[:300]
    covered = []
    for study in studies:
        seeds, examples = rng.integers(2, size=(500, 2)), rng.integers(100, size=(500, 100))
        low, high = np.quantile(study[seeds[:, :, None], examples[:, None]].mean((1, 2)), (0.025, 0.975))
        covered.append(low <= 0 <= high)
    assert np.mean(covered) < 0.7
    assert coverage(studies) > 0.9


# Detectable differences.


def test_one_seed_detects_what_cohen_says():
    differences = np.random.default_rng(0).normal(size=(1, 100))
    expected = (stats.t.isf(0.025, 99) + stats.norm.isf(0.2)) * stats.sem(differences[0])
    assert detectable_difference(differences) == pytest.approx(expected)
    assert paired_difference(differences, np.zeros((1, 100))).detectable == pytest.approx(expected)


@pytest.mark.parametrize(("power", "alpha"), [(0.9, 0.05), (0.8, 0.01)])
def test_more_power_and_a_smaller_alpha_need_more(power, alpha):
    differences = np.random.default_rng(0).normal(size=(3, 100))
    assert detectable_difference(differences, power=power, alpha=alpha) > detectable_difference(differences)
    assert detectable_difference(differences + 5) == pytest.approx(detectable_difference(differences))


@pytest.mark.parametrize("seeds_add", [0, 1, 10])
@pytest.mark.parametrize("n_seeds", [1, 2, 3, 5])
def test_a_difference_that_is_detectable_is_found_in_four_of_five_studies(n_seeds, seeds_add):
    rng, n_examples = np.random.default_rng(n_seeds), 200
    studies = normal_studies(rng, n_seeds, n_examples, seeds_add=seeds_add if n_seeds > 1 else 0)
    of_studies = CrossedMean.of(studies)
    truly = replace(
        of_studies,
        **{part: getattr(of_studies, part).mean(dtype=float) for part in ("mean", "v_examples", "v_seeds", "v_residual")},
    )
    low, high = CrossedMean.of(studies + truly.detectable(0.8, 0.05)).interval()
    # A power of 80 % has a standard error of 0.7 %.
    assert ((low > 0) | (high < 0)).mean() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(("power", "alpha"), [(1.0, 0.05), (0.3, 0.05), (0.8, 0.0), (0.8, 1.0)])
def test_impossible_power_is_refused(power, alpha):
    with pytest.raises(ValueError, match=rf"got power {power} and alpha {alpha}; wanted power in \[0.5, 1\)"):
        detectable_difference([[0.0, 1.0]], power=power, alpha=alpha)


# Ratios.


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_a_cell_relative_to_itself_and_to_twice_itself(n_seeds):
    ours, _ = outcomes(n_seeds, 40)
    assert relative_effect(ours, ours) == pytest.approx((1, 1, 1))
    assert relative_effect(ours, 2 * ours) == pytest.approx((0.5, 0.5, 0.5))


def test_the_interval_of_a_ratio_by_hand():
    # Ratio 0.5, reference's mean 2: values 0.5 + (ours - reference / 2) / 2, of every seed the same.
    ours, reference = np.array([[0.5, 1.5, 1.0]] * 3), np.array([[2.0, 2.0, 2.0]] * 3)
    half = stats.t.isf(0.025, 2) * stats.sem([0.25, 0.75, 0.5])
    assert relative_effect(ours, reference) == pytest.approx((0.5, 0.5 - half, 0.5 + half))


def test_one_seeds_ratio_is_near_scipys_bootstrap_of_the_ratio():
    ours, reference = outcomes(1, 600, rate=0.4)
    scipys = stats.bootstrap(
        (ours[0], reference[0]),
        lambda a, b, axis: a.mean(axis) / b.mean(axis),
        paired=True,
        vectorized=True,
        n_resamples=2000,
        rng=0,
    ).confidence_interval
    # The reference's mean is known within 4 %, which is what the linear approximation leaves out of a half-width of 0.08.
    assert relative_effect(ours, reference)[1:] == pytest.approx(tuple(scipys), abs=0.01)


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_a_ratio_to_nothing_is_undefined(n_seeds):
    ours, _ = outcomes(n_seeds, 40)
    assert np.isnan(relative_effect(ours, np.zeros_like(ours))).all()
    nearly = np.zeros_like(ours)
    nearly[:, 0] = 1.0
    assert relative_effect(ours, nearly) == (pytest.approx(40 * ours.mean()), -np.inf, np.inf)


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_intervals_of_ratios_hold_the_truth(n_seeds):
    rng = np.random.default_rng(n_seeds)
    shared = rng.normal(size=(300, 1, 200))
    ours, reference = (
        (shift + 0.1 * rng.normal(size=(300, n_seeds, 1)) + shared + rng.normal(size=(300, n_seeds, 200)) > 0).astype(float)
        for shift in (0.3, 0.9)
    )
    truth = stats.norm.cdf(0.3 / np.sqrt(2.01)) / stats.norm.cdf(0.9 / np.sqrt(2.01))
    found = [relative_effect(*pair) for pair in zip(ours, reference, strict=True)]
    # 300 studies: a standard error of 1.3 %.
    assert np.mean([low <= truth <= high for _, low, high in found]) == pytest.approx(0.955, abs=0.03)


# Many comparisons.


def test_false_discovery_rates_by_hand():
    # p n / rank = 0.04, 0.02, 0.04, 0.5; the smallest of it and of those of larger p.
    found = false_discovery_rates([[0.01, np.nan, 0.005], [0.03, 0.5, np.nan]])
    assert found == pytest.approx(np.array([[0.02, np.nan, 0.02], [0.04, 0.5, np.nan]]), nan_ok=True)


def test_nothing_tested_finds_nothing():
    assert np.isnan(false_discovery_rates([[np.nan, np.nan]])).all()


@pytest.mark.parametrize("p", [[0.5, 1.5], [-0.1, np.nan]])
def test_p_values_outside_0_and_1_are_refused(p):
    with pytest.raises(ValueError, match=r"got p-values from .*, wanted them in \[0, 1\], NaN where untested"):
        false_discovery_rates(p)


# Refusals.


@pytest.mark.parametrize("compared", [paired_difference, relative_effect])
@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ([1.0, 0.0], [1.0, 0.0], r"got outcomes of shape \(2,\) and \(2,\); wanted \[seed, example\].*one seed is \[\[...\]\]"),
        ([[1.0, 0.0]], [[1.0, 0.0, 1.0]], r"shape \(1, 2\) and \(1, 3\)"),
        ([[1.0, 0.0]], [[1.0, 0.0]] * 2, r"what has no seeds is repeated for each"),
        ([[]], [[]], r"shape \(1, 0\) and \(1, 0\); wanted \[seed, example\] with at least one seed and two examples"),
        ([[1.0]], [[0.0]], r"shape \(1, 1\)"),
        ([[1.0, np.nan]], [[np.inf, 0.0]], "got 2 outcomes that are NaN or infinite, wanted finite numbers; leave out"),
    ],
)
def test_outcomes_that_cannot_be_compared_are_refused(compared, ours, theirs, message):
    with pytest.raises(ValueError, match=message):
        compared(ours, theirs)


def test_another_alternative_is_refused():
    with pytest.raises(ValueError, match="got the alternative 'more', wanted one of two-sided, less, greater"):
        paired_difference([[1.0, 0.0]], [[1.0, 0.0]], alternative="more")
