"""Simulated studies catch a test that finds too much and an interval that is too short (all of them as they are: P20 of test_truths.py)."""

import numpy as np
import pytest
from scipy import stats

from mechdiff.statistics import intervals, spread
from mechdiff.validate import nulls, spreads


def failed(simulation: nulls.Simulation) -> set[str]:
    return {rate.kind for rate in simulation(100, np.random.default_rng(0)) if not rate.holds}


def test_many_tests_without_a_correction_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "family_p", lambda values, seed: stats.ttest_1samp(values, 0).pvalue)
    assert failed(nulls.paired) == {"false alarms"}


def test_an_interval_that_is_too_short_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = spread.contributions
    monkeypatch.setattr(spread, "contributions", lambda *of: (pseudo := whole(*of)).mean() + (pseudo - pseudo.mean()) / 2)
    assert failed(spreads.spreads) == {"false alarms", "coverage"}


def test_the_same_seed_gives_the_same_studies() -> None:
    one, other = (list(nulls.halves(20, np.random.default_rng(1))) for _ in range(2))
    assert one == other


def test_six_scores_each_at_five_per_cent_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "holm", lambda p: p)
    assert not all(rate.holds for rate in nulls.behaviour_of_twins(400, np.random.default_rng(0)))
