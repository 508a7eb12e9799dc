"""Family-wise tests, sets of peaks, power and measured coverage, against exact counts, scipy and simulation."""

import json
from importlib.resources import files

import numpy as np
import pytest
from scipy.stats import gmean, ttest_1samp

from mechdiff.statistics import bootstrap, intervals, simulated


def test_p_is_the_larger_of_the_symmetric_and_twice_the_equal_tailed_share_of_resamples() -> None:
    values = np.random.default_rng(0).lognormal(0, 1, 9) - 0.4
    ts = []
    for count in bootstrap.resample_counts(9).astype(int):
        drawn = np.repeat(values, count)
        ts.append((drawn.mean() - values.mean()) / max(drawn.std(), 0.2 * values.std()))
    real, t = values.mean() / values.std(), np.array(ts)
    beyond = min((t >= real).sum(), (t <= real).sum())
    expected = max(4 * (1 + beyond), 1 + (np.abs(t) >= abs(real)).sum()) / 2001
    assert intervals.mean_p(values[:, None])[0] == pytest.approx(expected)
    assert intervals.mean_p(-values[:, None])[0] == pytest.approx(expected), "either name of a difference gives the same p"
    assert intervals.family_p(values[:, None])[0] == pytest.approx(expected), "a family of one"


def test_no_p_finds_what_the_interval_does_not() -> None:
    rng = np.random.default_rng(8)
    values = np.concatenate([rng.lognormal(0, 1, (12, 500)) - rng.uniform(0, 3, 500), rng.normal(0.5, 1, (12, 500))], axis=1)
    low, high = intervals.mean_intervals(values)
    found = intervals.mean_p(values) <= 0.05
    assert found.any()
    assert ((low > 0) | (high < 0))[found].all()


def test_the_family_error_is_nominal_under_a_null_with_dependence() -> None:
    """300 studies of 20 correlated columns without an effect: any p <= 0.05 in at most 5 % + 2 standard errors; skewed ones too."""
    rng, studies = np.random.default_rng(1), 300
    for skewed in (False, True):
        hits = 0
        for study in range(studies):
            values = rng.normal(0, 1, (16, 1)) + rng.normal(0, 1, (16, 20))
            values = np.exp(0.4 * values) - np.exp(0.16) if skewed else values
            hits += bool((intervals.family_p(values, seed=study) <= 0.05).any())
        assert hits / studies <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / studies)


def test_an_effect_in_one_of_many_columns_is_found_there_alone() -> None:
    values = np.random.default_rng(2).normal(0, 1, (40, 15))
    values[:, 6] += 1.5
    p = intervals.family_p(values)
    assert p[6] < 0.003
    assert (np.delete(p, 6) > 0.05).all()
    assert np.isnan(intervals.family_p(np.zeros((4, 3)))).all(), "four prompts test nothing"
    assert intervals.family_p(np.zeros((9, 3))).tolist() == [1, 1, 1]


def test_holm_is_the_closed_test_s_and_leaves_out_what_is_no_test() -> None:
    p = np.array([0.01, 0.04, 0.03, np.nan, 0.5])
    np.testing.assert_allclose(intervals.holm(p), [0.04, 0.09, 0.09, np.nan, 0.5])
    assert intervals.holm(np.array([0.9, 0.8])).tolist() == [1, 1]


def test_the_set_of_peaks_holds_the_peak_and_grows_with_doubt() -> None:
    rng = np.random.default_rng(3)
    clear = rng.normal(0, 0.1, (30, 5)) + np.array([0, 0, 2, 0, 0])
    assert intervals.peak_set(clear) == (2, [2])
    _, doubtful = intervals.peak_set(rng.normal(0, 1, (30, 5)))
    assert len(doubtful) > 1


def test_a_peak_is_in_its_set_as_often_as_said() -> None:
    rng, held, studies = np.random.default_rng(4), 0, 200
    truth = np.array([0.0, 0.5, 1.0, 0.8, 0.2])
    for study in range(studies):
        held += 2 in intervals.peak_set(rng.normal(truth, 1, (40, 5)), seed=study)[1]
    assert held / studies >= 0.95 - 2 * np.sqrt(0.95 * 0.05 / studies)


def test_the_geometric_mean_is_scipy_s_with_the_t_interval_of_logs() -> None:
    values = np.random.default_rng(5).lognormal(0, 1, (25, 3))
    middle, low, high = intervals.geometric(values)
    assert middle == pytest.approx(gmean(values, axis=0))
    expected = ttest_1samp(np.log(values[:, 0]), 0).confidence_interval()
    assert np.log([low[0], high[0]]) == pytest.approx([expected.low, expected.high])


def test_coverage_is_as_the_shipped_table_says() -> None:
    """CV 3.5 and 150 prompts, 2,000 studies anew: log-t 93-97 %, bootstrap-t as in the table."""
    spread = np.sqrt(np.log1p(3.5**2))
    values = np.random.default_rng(99).lognormal(-(spread**2) / 2, spread, (150, 2000))
    low, high = intervals.mean_intervals(values)
    _, log_low, log_high = intervals.geometric(values)
    truth = np.exp(-(spread**2) / 2)
    assert 0.93 <= ((log_low <= truth) & (log_high >= truth)).mean() <= 0.97
    measured = ((low <= 1) & (high >= 1)).mean()
    assert simulated.coverage(3.5, 150) == pytest.approx(measured, abs=0.02)
    assert 0.88 <= measured <= 0.94


def test_coverage_between_the_simulated_ones_lies_between() -> None:
    table = {(one["cv"], one["n"]): one["mean"] for one in json.loads((files("mechdiff") / "data" / "coverage.json").read_text())["table"]}
    found = simulated.coverage(1.4, 24)
    assert found
    assert min(table[2.0, 16], table[1.0, 16]) <= found <= max(table[1.0, 32], table[2.0, 32])
    assert simulated.coverage(1.0, 4) is None
    assert simulated.coverage(9.0, 50) is None


def test_a_test_speaks_where_its_simulated_false_alarms_are_few_all_around() -> None:
    told = json.loads((files("mechdiff") / "data" / "coverage.json").read_text())
    rates = {(one["cv"], one["n"]): one["mean_p"] for one in told["table"]}
    for (cv, n), rate in rates.items():
        assert simulated.speaks("mean_p", n, cv) == (rate <= told["most"]["mean_p"])
    assert told["most"]["mean_p"] == pytest.approx(0.05 + 2 * np.sqrt(0.05 * 0.95 / told["repeats"]), abs=1e-4)
    assert simulated.speaks("mean_p", 12, 0.7)
    assert simulated.speaks("mean_p", 12, 0.2), "less skew than was simulated"
    assert simulated.speaks("mean_p", 5000, 0.7), "more prompts than were simulated"
    assert not simulated.speaks("mean_p", 20, 1.9), "what lies between a sound and an unsound place is unsound"
    assert not simulated.speaks("mean_p", 4, 0.5)
    assert not simulated.speaks("mean_p", 500, 4.0), "more skew than was simulated"
