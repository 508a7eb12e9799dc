"""Family-wise tests, sets of peaks, power and measured coverage, against exact counts, scipy and simulation."""

import json
from importlib.resources import files
from itertools import product

import numpy as np
import pytest
from scipy.stats import gmean, ttest_1samp
from scipy.stats import t as student

from mechdiff.report import intervals


def test_one_column_is_the_exact_sign_flip_test() -> None:
    values = np.random.default_rng(0).normal(0.6, 1, 9)
    means = [abs(np.dot(signs, values)) for signs in product((1, -1), repeat=9)]
    expected = np.mean(np.array(means) >= abs(values.sum()) * (1 - 1e-9))
    assert intervals.sign_flip_max_t(values[:, None])[0] == pytest.approx(expected)


def test_the_family_error_is_nominal_under_a_null_with_dependence() -> None:
    """300 studies of 20 correlated columns without an effect: any p <= 0.05 in at most 5 % + 2 standard errors."""
    rng, hits, studies = np.random.default_rng(1), 0, 300
    for study in range(studies):
        values = rng.normal(0, 1, (12, 1)) + rng.normal(0, 1, (12, 20))
        hits += bool((intervals.sign_flip_max_t(values, seed=study) <= 0.05).any())
    assert hits / studies <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / studies)


def test_an_effect_in_one_of_many_columns_is_found_there_alone() -> None:
    values = np.random.default_rng(2).normal(0, 1, (40, 15))
    values[:, 6] += 1.5
    p = intervals.sign_flip_max_t(values)
    assert p[6] < 0.001
    assert (np.delete(p, 6) > 0.05).all()
    assert intervals.sign_flip_max_t(np.zeros((1, 3))).tolist() == [1, 1, 1]


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


def test_what_is_detectable_is_detected_in_four_of_five_studies() -> None:
    n, rng = 30, np.random.default_rng(6)
    size = float(intervals.detectable(np.array(1.0), n))
    assert size == pytest.approx((student.ppf(0.975, n - 1) + student.ppf(0.8, n - 1)) / np.sqrt(n))
    found = ttest_1samp(rng.normal(size, 1, (n, 4000)), 0).pvalue <= 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.03)
    assert intervals.detectable(np.array(0.57), 150) == pytest.approx(0.13, abs=0.005), "as METHOD's table of power has it"


def test_coverage_is_as_the_shipped_table_says() -> None:
    """CV 3.5 and 150 prompts, 2,000 studies anew: log-t 93-97 %, BCa as in the table."""
    spread = np.sqrt(np.log1p(3.5**2))
    values = np.random.default_rng(99).lognormal(-(spread**2) / 2, spread, (150, 2000))
    low, high = intervals.bca_means(values)
    _, log_low, log_high = intervals.geometric(values)
    truth = np.exp(-(spread**2) / 2)
    assert 0.93 <= ((log_low <= truth) & (log_high >= truth)).mean() <= 0.97
    measured = ((low <= 1) & (high >= 1)).mean()
    assert intervals.measured_coverage(3.5, 150) == pytest.approx(measured, abs=0.02)
    assert 0.86 <= measured <= 0.92


def test_coverage_between_the_simulated_ones_lies_between() -> None:
    table = {(one["cv"], one["n"]): one["mean"] for one in json.loads((files("mechdiff") / "data" / "coverage.json").read_text())["table"]}
    found = intervals.measured_coverage(1.4, 24)
    assert found
    assert min(table[2.0, 16], table[1.0, 16]) <= found <= max(table[1.0, 32], table[2.0, 32])
    assert intervals.measured_coverage(1.0, 4) is None
    assert intervals.measured_coverage(9.0, 50) is None
