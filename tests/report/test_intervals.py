"""Intervals against scipy, against naive loops, and by their coverage in simulation."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import strategies as st

from mechdiff.report import intervals

samples = st.integers(2, 40).flatmap(
    lambda n: st.lists(st.floats(-1e6, 1e6, allow_nan=False, allow_subnormal=False), min_size=n, max_size=n)
)


def test_bca_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).lognormal(0, 1, 60)
    reference = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    low, high = intervals.bca_means(values[:, None], resamples=20_000)
    width = reference.high - reference.low
    np.testing.assert_allclose([low[0], high[0]], [reference.low, reference.high], atol=0.03 * width)


def test_a_share_agrees_with_scipy_s_bootstrap_of_the_ratio() -> None:
    rng = np.random.default_rng(4)
    total = rng.lognormal(0, 0.7, 80)
    effect = 0.6 * total * rng.lognormal(0, 0.4, 80)
    reference = scipy.stats.bootstrap(
        (effect, total), lambda x, y, axis: x.mean(axis) / y.mean(axis), paired=True, n_resamples=10_000, rng=np.random.default_rng(0)
    ).confidence_interval  # fmt: skip
    share, low, high = intervals.bca_shares(effect[:, None], total)
    width = reference.high - reference.low
    np.testing.assert_allclose(share[0], effect.sum() / total.sum())
    np.testing.assert_allclose([low[0], high[0]], [reference.low, reference.high], atol=0.06 * width)


def test_the_expansion_for_many_prompts_is_the_bootstrap_s(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).lognormal(0, 1, size=(1100, 3))
    bootstrap = np.array(intervals.bca_means(values, resamples=8000))
    monkeypatch.setattr(intervals, "MANY_PROMPTS", 1000)
    expansion = np.array(intervals.bca_means(values))
    np.testing.assert_allclose(expansion, bootstrap, atol=0.08 * float((bootstrap[1] - bootstrap[0]).max()))


def test_constant_values_have_an_interval_of_no_width_and_one_prompt_has_none() -> None:
    low, high = intervals.bca_means(np.full((9, 2), 0.3))
    np.testing.assert_allclose(high - low, 0, atol=1e-15)
    assert np.isnan(intervals.bca_means(np.ones((1, 2)))).all()


def test_coverage_is_near_nominal() -> None:
    rng = np.random.default_rng(0)
    values = rng.lognormal(0, 0.5, size=(80, 2000))
    low, high = intervals.bca_means(values)
    covered = ((low <= np.exp(0.125)) & (np.exp(0.125) <= high)).mean()
    assert 0.92 < covered < 0.97


def test_blocks_of_columns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=(20, 11))
    whole = intervals.bca_means(values)
    monkeypatch.setattr(intervals, "BLOCK", 4)
    np.testing.assert_allclose(intervals.bca_means(values), whole, rtol=1e-12)


def test_the_jackknife_of_a_mean_is_its_t_interval() -> None:
    values = np.random.default_rng(0).normal(2, 3, 25)
    without = (values.sum() - values) / 24
    low, high = intervals.jackknife(values.mean(), without.std(ddof=1), np.array(25))
    np.testing.assert_allclose((low, high), scipy.stats.ttest_1samp(values, 0).confidence_interval())


def test_pseudo_values_of_a_mean_are_its_values() -> None:
    values = np.random.default_rng(0).normal(size=(12, 3))
    without = (values.sum(axis=0) - values) / 11
    np.testing.assert_allclose(intervals.pseudo_values(values.mean(axis=0), without), values, atol=1e-12)


def test_simultaneous_bands_hold_the_whole_profile() -> None:
    rng = np.random.default_rng(0)
    inside = pointwise = 0
    for repeat in range(200):
        values = rng.normal(size=(30, 12)) + rng.normal(size=(30, 1))
        low, high = intervals.simultaneous_bands(values, seed=repeat)
        inside += bool(((low <= 0) & (high >= 0)).all())
        reach = 1.96 * values.std(axis=0, ddof=1) / np.sqrt(30)
        pointwise += bool((np.abs(values.mean(axis=0)) <= reach).all())
    assert inside / 200 > 0.90
    assert pointwise < inside


def test_a_layer_without_spread_has_a_band_of_no_width() -> None:
    values = np.random.default_rng(0).normal(size=(10, 3))
    values[:, 1] = 0.5
    low, high = intervals.simultaneous_bands(values)
    assert low[1] == high[1] == 0.5
    assert (low[[0, 2]] < high[[0, 2]]).all()


def test_the_first_layer_past_half_and_its_set() -> None:
    rng = np.random.default_rng(0)
    total = rng.lognormal(0, 0.3, 40)
    sure = np.stack([0 * total, 0.1 * total, 0.9 * total, total], axis=1)
    assert intervals.first_past(sure, total) == (2, 2, 2)
    close = np.stack([0 * total, total * rng.normal(0.5, 0.3, 40), total], axis=1)
    point, low, high = intervals.first_past(close, total) or (0, 0, 0)
    assert (low, high) == (1, 2)
    assert low <= point <= high
    assert intervals.first_past(0.2 * sure, total) is None


@pytest.mark.parametrize(("hits", "n"), [(0, 32), (3, 10), (16, 16)])
def test_wilson_is_scipy_s(hits: int, n: int) -> None:
    low, high = intervals.wilson(np.array(hits / n), n)
    reference = scipy.stats.binomtest(hits, n).proportion_ci(method="wilson")
    np.testing.assert_allclose((low, high), reference, atol=1e-12)


def test_q_is_benjamini_and_hochberg_s() -> None:
    p = np.random.default_rng(0).uniform(size=50) ** 2
    np.testing.assert_allclose(intervals.false_discovery_q(p), scipy.stats.false_discovery_control(p))
