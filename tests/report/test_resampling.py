"""Statistics as functions of counts, against the closed forms, and how often differences that are not there are found."""

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from mechdiff.report import intervals, resampling
from mechdiff.report.compare import holm
from mechdiff.report.findings_compare import effective_number

RNG = np.random.default_rng(0)


def shares(n: int, columns: int, spread: float, seed: int) -> np.ndarray:
    """Effects of `columns` places on n prompts, geometric in the place."""
    rng = np.random.default_rng(seed)
    return rng.lognormal(0, 0.4, (n, columns)) * np.exp(-np.arange(columns) / spread)


def test_a_mean_has_the_interval_of_the_closed_form() -> None:
    values = RNG.lognormal(0, 1, 40)
    found = resampling.estimate(lambda counts: counts @ values / counts.sum(axis=1), 40, seed=3)
    level = 2 * norm.cdf(np.sqrt(40 / 39) * student.ppf(0.975, 39)) - 1
    low, high = intervals.bca_means(values[:, None], seed=3, level=level)
    assert found.value == pytest.approx(values.mean())
    assert found.interval == pytest.approx((low[0], high[0]), rel=1e-9)


def test_a_paired_difference_is_the_estimate_of_the_differences() -> None:
    one, other = RNG.normal(1, 1, 30), RNG.normal(0, 1, 30)
    parts = [resampling.estimate(lambda counts, v=v: counts @ v / 30, 30, seed=1) for v in (one, other)]
    apart = resampling.difference(*parts, paired=True)
    whole = resampling.estimate(lambda counts: counts @ (one - other) / 30, 30, seed=1)
    assert apart.interval == pytest.approx(whole.interval, rel=1e-9)
    assert apart.p == whole.p


def test_effective_numbers_at_their_ends() -> None:
    assert effective_number(np.array([[0.0, 3.0, 0.0]]))[0] == 1
    assert effective_number(np.full((1, 7), 0.2))[0] == pytest.approx(7)
    assert effective_number(np.array([[1.0, -5.0]]))[0] == 1, "what goes the other way carries nothing"
    assert np.isnan(effective_number(np.zeros((1, 3)))[0])


def test_runs_of_one_truth_are_seldom_told_apart() -> None:
    """Type I error of the difference of effective numbers, 16 prompts a run: at most nominal + 2 standard errors."""
    repeats, found = 200, 0
    for repeat in range(repeats):
        parts = []
        for seed in (2 * repeat, 2 * repeat + 1):
            effect = shares(16, 20, 4.0, seed)
            parts.append(resampling.estimate(lambda counts, effect=effect: effective_number(counts @ effect), 16, seed=seed))
        low, high = resampling.difference(*parts, paired=False).interval
        found += low > 0 or high < 0
    assert found / repeats <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / repeats)


def test_runs_of_two_truths_are_told_apart() -> None:
    sizes = (2.0, 8.0)
    parts = []
    for seed, spread in enumerate(sizes):
        effect = shares(16, 20, spread, seed)
        parts.append(resampling.estimate(lambda counts, effect=effect: effective_number(counts @ effect), 16, seed=seed))
    apart = resampling.difference(*parts, paired=False)
    assert apart.interval[1] < 0
    assert apart.p < 0.01
    assert apart.detectable < abs(apart.value)


def test_bands_of_two_samples_hold_the_whole_line() -> None:
    """Joint coverage of unpaired difference bands over 30 columns, 200 repeats: 95 % less 2 standard errors at most."""
    rng, held, repeats = np.random.default_rng(5), 0, 200
    for repeat in range(repeats):
        common = rng.normal(0, 1, (24, 1)), rng.normal(0, 1, (20, 1))
        one, other = (part + rng.normal(0, 1, (len(part), 30)) for part in common)
        _, low, high = resampling.bands(one, other, seed=repeat)
        held += bool(((low <= 0) & (high >= 0)).all())
    assert held / repeats >= 0.95 - 2 * np.sqrt(0.95 * 0.05 / repeats)


def test_linearised_shares_have_the_ratio_as_their_mean() -> None:
    values, total = RNG.gamma(2, 1, (25, 3)), RNG.gamma(4, 1, 25)
    assert resampling.share_values(values, total).mean(axis=0) == pytest.approx(values.mean(axis=0) / total.mean())


def test_holm_is_the_step_down() -> None:
    assert holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([0.5, 0.9])) == pytest.approx([1.0, 1.0])
