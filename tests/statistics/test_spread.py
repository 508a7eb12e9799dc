"""Numbers of parts and their differences, against naive formulas and scipy."""

import numpy as np
import pytest
from numpy import ndarray
from scipy import stats

from mechdiff.statistics import intervals, spread
from mechdiff.statistics.spread import Estimate, contrast, effective, effective_rank, estimate

NAMES = [f"p{i}" for i in range(40)]


def drawn(rng: np.random.Generator, n: int, truth: ndarray, *, noise: float = 0.5) -> ndarray:
    """Effects per prompt: prompts differ in size, parts scatter, and some lead the other way."""
    size = rng.lognormal(0, 0.5, (n, 1))
    return size * (truth * rng.lognormal(0, noise, (n, len(truth))) + rng.normal(0, 0.01, (n, len(truth))))


def test_one_part_is_one_and_like_parts_are_as_many_as_there_are() -> None:
    assert effective(np.array([0.0, 3.0, 0.0])) == 1
    assert effective(np.full(7, 0.2)) == pytest.approx(7)
    assert effective(np.array([2.0, 1.0, 1.0])) == pytest.approx(16 / 6)
    assert effective(np.array([2.0, 1.0, 1.0]) * 1e-9) == pytest.approx(16 / 6), "only proportions count"
    assert effective(np.array([1.0, -5.0])) == 1, "what leads the other way is no part of it"
    assert np.isnan(effective(np.array([-1.0, 0.0])))


def test_a_rank_is_that_of_directions_that_gain_alike() -> None:
    ranks = [0, 1, 2, 4, 8]
    for true in (1, 2, 4, 8):
        assert effective_rank(np.minimum(np.array(ranks) / true, 1), ranks) == pytest.approx(true)
    assert effective_rank(np.array([0.9, 0.9, 0.9]), [0, 1, 2], shift=True) == pytest.approx(1), "a shift is one direction"
    assert effective_rank(np.array([0.5, 1.0, 1.0]), [0, 1, 2], shift=True) == pytest.approx(2)
    assert effective_rank(np.array([0.0, 1.0, 0.4, 1.0]), [0, 1, 2, 4]) == 1, "a fall and its recovery are no gain"


def test_pseudo_values_are_those_of_leaving_out_one_prompt_at_a_time() -> None:
    values = drawn(np.random.default_rng(0), 9, np.linspace(0.1, 1, 5))
    naive = [9 * effective(values.mean(0)) - 8 * effective(np.delete(values, i, 0).mean(0)) for i in range(9)]
    np.testing.assert_allclose(spread.pseudo_values(values, effective), naive, rtol=1e-12)


def test_a_mean_gets_the_t_interval() -> None:
    values = np.random.default_rng(1).lognormal(size=(12, 1))
    found = estimate(values, lambda means: means[..., 0], NAMES[:12])
    low, high = stats.t.interval(0.95, 11, values.mean(), stats.sem(values[:, 0]))
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), low, high))
    alone = estimate(values[:1], lambda means: means[..., 0], NAMES[:1])
    assert alone.value == values[0, 0]
    assert np.isnan(alone.low)


def test_contributions_are_pseudo_values_of_the_number_without_its_bias() -> None:
    values = drawn(np.random.default_rng(1), 7, np.linspace(0.1, 1, 5))

    def corrected(sample: np.ndarray) -> float:
        n = len(sample)
        return float(n * effective(sample.mean(0)) - (n - 1) * np.mean([effective(np.delete(sample, i, 0).mean(0)) for i in range(n)]))

    naive = np.array([7 * corrected(values) - 6 * corrected(np.delete(values, i, 0)) for i in range(7)])
    found = spread.contributions(values, effective)
    assert found.mean() == pytest.approx(corrected(values), rel=1e-12)
    np.testing.assert_allclose(found - found.mean(), naive - naive.mean(), rtol=1e-9)


def test_other_prompts_give_a_t_test_and_the_same_ones_the_paired_one() -> None:
    rng = np.random.default_rng(2)
    one, other = (estimate(drawn(rng, n, np.linspace(0.1, 1, 6)), effective, names) for n, names in ((9, NAMES[:9]), (14, NAMES[9:23])))
    found, welch = contrast(one, other), stats.ttest_ind(one.contributions, other.contributions, equal_var=False)
    assert found is not None
    assert not found.paired
    error, smaller = (one.value - other.value) / welch.statistic, stats.t(8)  # Welch's error, the smaller run's degrees of freedom
    reach = smaller.ppf(0.975) * error
    expected = (2 * smaller.sf(abs(welch.statistic)), found.value - reach, found.value + reach)
    assert (found.p, found.low, found.high) == pytest.approx(expected)

    turned = rng.permutation(9)
    alike = Estimate(value=0, low=0, high=0, prompts=tuple(NAMES[i] for i in turned), contributions=rng.normal(size=9))
    found = contrast(one, alike)
    expected = stats.ttest_rel(one.contributions, alike.contributions[np.argsort(turned)])
    assert found is not None
    assert found.paired
    assert (found.p, found.low, found.high) == pytest.approx((expected.pvalue, *expected.confidence_interval()))


def test_pairing_finds_what_two_samples_do_not() -> None:
    rng = np.random.default_rng(3)
    shared = rng.lognormal(0, 1.0, 20)
    mean = [estimate((shared + shift)[:, None], lambda means: means[..., 0], NAMES[:20]) for shift in (0, 0.1 + rng.normal(0, 0.02, 20))]
    other = Estimate(value=mean[1].value, low=0, high=0, prompts=tuple(NAMES[20:]), contributions=mean[1].contributions)
    paired, unpaired = contrast(mean[0], mean[1]), contrast(mean[0], other)
    assert paired is not None
    assert unpaired is not None
    assert paired.p < 1e-6
    assert unpaired.p > 0.2
    assert paired.smallest < unpaired.smallest


def test_what_is_the_same_on_every_prompt_is_no_difference_and_too_few_prompts_give_none() -> None:
    one = estimate(np.ones((5, 1)), effective, NAMES[:5])
    found = contrast(one, estimate(np.full((6, 1), 2.0), effective, NAMES[5:11]))
    assert found is not None
    assert (found.value, found.p) == (0, 1)
    assert contrast(one, estimate(np.ones((1, 1)), effective, NAMES[:1])) is None
    assert contrast(one, Estimate(value=3, low=3, high=3)) is None, "an exact number has no scatter"


@pytest.mark.parametrize(("n", "m"), [(6, 6), (6, 24), (20, 20)])
def test_two_runs_of_one_truth_are_told_apart_no_more_often_than_said(n: int, m: int) -> None:
    rng = np.random.default_rng([n, m])
    truth, repeats = np.concatenate([np.full(4, 0.4), np.full(26, 0.05)]), 600
    wrong = 0
    for _ in range(repeats):
        sides = [estimate(drawn(rng, k, truth), effective, NAMES[:k] if k == n else NAMES[:k][::-1]) for k in (n, m)]
        other = Estimate(value=0, low=0, high=0, prompts=tuple(f"q{i}" for i in range(m)), contributions=sides[1].contributions)
        found = contrast(sides[0], other)
        assert found is not None
        wrong += found.p < 0.05
    assert wrong / repeats <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / repeats)


def test_the_jackknife_takes_the_bias_of_few_prompts_out() -> None:
    rng = np.random.default_rng(4)
    truth = rng.uniform(0.05, 0.3, 40)
    true = float(effective(drawn(rng, 200_000, truth).mean(0)))
    samples = [drawn(rng, 6, truth) for _ in range(300)]
    plain = np.mean([effective(sample.mean(0)) for sample in samples])
    found = np.mean([estimate(sample, effective, NAMES[:6]).value for sample in samples])
    assert abs(found - true) < 0.35 * abs(plain - true)
    assert abs(found / true - 1) < 0.02


def test_the_smallest_difference_seen_is_found_in_four_of_five_studies() -> None:
    rng = np.random.default_rng(5)
    one = estimate(rng.normal(size=(15, 1)), lambda means: means[..., 0], NAMES[:15])
    other = estimate(rng.normal(size=(15, 1)), lambda means: means[..., 0], NAMES[15:30])
    found = contrast(one, other)
    assert found is not None
    error = np.sqrt(one.contributions.var(ddof=1) / 15 + other.contributions.var(ddof=1) / 15)
    reach = found.value - found.low
    freedom = 28
    power = 1 - stats.nct.cdf(reach / error, freedom, found.smallest / error)
    assert power == pytest.approx(0.8, abs=0.02)


def test_the_null_of_spreading_is_near_the_parts_there_are() -> None:
    values = drawn(np.random.default_rng(6), 30, np.concatenate([[1.0], np.full(19, 0.02)]), noise=0.1)
    mean, low, high = spread.evened(values)
    assert effective(values.mean(0)) < 2.5
    assert 12 < low < mean < high <= 20


def test_bands_of_a_difference_cover_all_layers_at_once() -> None:
    rng = np.random.default_rng(7)
    missed, repeats = 0, 200
    for _ in range(repeats):
        one, other = rng.normal(size=(14, 8)) @ np.tri(8), rng.normal(size=(20, 8)) @ np.tri(8) * 2
        low, high = spread.difference_bands(one, other)
        missed += bool(((low > 0) | (high < 0)).any())
    assert missed / repeats <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / repeats)
    low, high = spread.difference_bands(one, other + 100)
    assert (high < 0).all()


def test_crossings_are_those_of_a_single_run() -> None:
    rng = np.random.default_rng(8)
    total = rng.lognormal(size=12)
    effect = total[:, None] * np.linspace(0.1, 1, 9) * rng.lognormal(0, 0.3, (12, 9))
    point, draws = spread.crossings(effect, total)
    expected = intervals.first_past(effect, total)
    assert expected is not None
    low, high = np.quantile(draws, 0.025, method="lower"), np.quantile(draws, 0.975, method="higher")
    assert (point, min(low, point), max(high, point)) == expected
    assert spread.crossings(effect * 0.1, total)[0] == 9, "behind the last where none passes"


def test_draws_of_the_same_prompts_pair() -> None:
    draws = np.random.default_rng(9).integers(3, 9, 500).astype(float)
    paired = spread.contrast_of_draws(draws + 1, draws, (6, 5), (10, 10), paired=True)
    assert (paired.low, paired.high) == (1, 1)
    assert paired.p == 1 / 500
    unpaired = spread.contrast_of_draws(draws + 1, draws, (6, 5), (10, 10), paired=False)
    assert unpaired.low < 0 < unpaired.high
    assert unpaired.p > 0.3
