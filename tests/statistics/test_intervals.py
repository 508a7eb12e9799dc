"""Intervals against scipy, against naive loops, and by their coverage in simulation."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import strategies as st

from mechdiff.statistics import bootstrap, intervals

samples = st.integers(2, 40).flatmap(
    lambda n: st.lists(st.floats(-1e6, 1e6, allow_nan=False, allow_subnormal=False), min_size=n, max_size=n)
)


def test_the_interval_of_a_mean_is_a_naive_bootstrap_t_s() -> None:
    """One resample at a time, each with its own mean and error, and the quantiles of their ratio turned round."""
    values = np.random.default_rng(3).lognormal(0, 1, 12)
    mean, error, ts = values.mean(), values.std() / np.sqrt(12), []
    for count in bootstrap.resample_counts(12).astype(int):
        drawn = np.repeat(values, count)
        ts.append((drawn.mean() - mean) / (max(drawn.std(), 0.2 * values.std()) / np.sqrt(12)))
    low, high = np.quantile(ts, [0.025, 0.975])
    np.testing.assert_allclose(np.array(intervals.mean_intervals(values[:, None])).T, [[mean - high * error, mean - low * error]])


def test_the_interval_of_a_share_is_a_naive_bootstrap_t_s() -> None:
    rng = np.random.default_rng(4)
    total = rng.lognormal(0, 0.7, 10)
    effect = 0.6 * total * rng.lognormal(0, 0.4, 10)

    def share_and_error(v: np.ndarray, d: np.ndarray) -> tuple[float, float]:
        share = v.mean() / d.mean()
        return share, float(np.sqrt((((v - share * d) / d.mean()) ** 2).mean() / len(v)))

    share, error = share_and_error(effect, total)
    ts = []
    for count in bootstrap.resample_counts(10).astype(int):
        of, its = share_and_error(np.repeat(effect, count), np.repeat(total, count))
        ts.append((of - share) / max(its, 0.2 * error))
    low, high = np.quantile(ts, [0.025, 0.975])
    found = intervals.share_intervals(effect[:, None], total)
    np.testing.assert_allclose(np.array(found).T, [[share, share - high * error, share - low * error]])
    np.testing.assert_allclose(found, intervals.share_intervals(effect[:, None], total[:, None]), err_msg="each column's own total")


def test_with_many_prompts_without_skew_it_is_the_t_interval() -> None:
    values = np.random.default_rng(5).normal(3, 2, (400, 3))
    low, high = intervals.mean_intervals(values)
    reference = scipy.stats.ttest_1samp(values, 0).confidence_interval()
    width = reference.high - reference.low
    np.testing.assert_allclose((low, high), (reference.low, reference.high), atol=0.08 * float(width.max()))


def test_the_expansion_for_many_prompts_is_the_bootstrap_s(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).lognormal(0, 1, size=(1100, 3))
    drawn = np.array(intervals.mean_intervals(values))
    monkeypatch.setattr(bootstrap, "MANY_PROMPTS", 1000)
    expanded = np.array(intervals.mean_intervals(values))
    np.testing.assert_allclose(expanded, drawn, atol=0.08 * float((drawn[1] - drawn[0]).max()))


def test_constant_values_have_an_interval_of_no_width_and_fewer_than_five_prompts_have_none() -> None:
    low, high = intervals.mean_intervals(np.full((9, 2), 0.3))
    np.testing.assert_allclose(high - low, 0, atol=1e-15)
    for n in (1, 4):
        assert np.isnan(intervals.mean_intervals(np.ones((n, 2)))).all()
        share, low, high = intervals.share_intervals(np.ones((n, 2)), np.full(n, 2.0))
        assert share.tolist() == [0.5, 0.5]
        assert np.isnan([low, high]).all()
        assert np.isnan(intervals.mean_p(np.ones((n, 2)))).all()
    assert np.isfinite(intervals.mean_intervals(np.random.default_rng(0).normal(size=(5, 2)))).all()


def test_one_prompt_that_has_nearly_all_gives_a_finite_interval_that_holds_the_mean() -> None:
    """Most resamples of such values hardly vary: their t would be nearly infinite."""
    for values in ([100.0, 1, 1, 1, 1], [1e9, 0, 0, 0, 0, 0, 0, 0], [1e-300, 0, 0, 0, 0]):
        column = np.array(values)[:, None]
        (low,), (high,) = intervals.mean_intervals(column)
        assert low <= column.mean() <= high
        assert high - low <= 2 * column.mean() * 4 / bootstrap.LEAST


def test_coverage_is_near_nominal() -> None:
    rng = np.random.default_rng(0)
    values = rng.lognormal(0, 0.5, size=(80, 2000))
    low, high = intervals.mean_intervals(values)
    covered = ((low <= np.exp(0.125)) & (np.exp(0.125) <= high)).mean()
    assert 0.93 < covered < 0.97


def test_blocks_of_columns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=(20, 11))
    total = np.abs(values) + 1

    def found() -> list[np.ndarray]:
        ends = intervals.mean_intervals(values)
        shares, own = intervals.share_intervals(values, total[:, 0]), intervals.share_intervals(values, total)
        return [*ends, *shares, *own, intervals.mean_p(values), intervals.family_p(values)]

    whole = found()
    monkeypatch.setattr(bootstrap, "BLOCK", 4)
    np.testing.assert_allclose(found(), whole, rtol=1e-9)


def test_the_jackknife_of_a_mean_is_its_t_interval() -> None:
    values = np.random.default_rng(0).normal(2, 3, 25)
    without = (values.sum() - values) / 24
    low, high = intervals.jackknife(values.mean(), without.std(ddof=1), np.array(25))
    np.testing.assert_allclose((low, high), scipy.stats.ttest_1samp(values, 0).confidence_interval())


def test_no_interval_of_a_similarity_passes_1() -> None:
    """Far from 1 it is the jackknife's own; near it, one-sided; a value of 1 itself, which debiasing can pass, is its own end."""
    value, spread, n = np.array([0.1, 0.9, 0.9999, 1.002, 1.0]), np.array([0.002, 0.1, 0.05, 0.01, 0.0]), np.array(12)
    low, high = intervals.jackknife_below_1(value, spread, n)
    plain = intervals.jackknife(value, spread, n)
    assert (low[0], high[0]) == (pytest.approx(plain[0][0], abs=1e-3), pytest.approx(plain[1][0], abs=1e-3))
    assert (high <= np.maximum(value, 1)).all()
    assert ((low <= value) & (value <= high)).all()
    assert low[4] == high[4] == 1
    assert np.isnan(intervals.jackknife_below_1(value, spread, np.array(4))).all()


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
