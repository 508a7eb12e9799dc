"""p values that sentences rest on are silent where their test finds too often what is not there."""

import numpy as np
import polars as pl
import pytest

from mechdiff.report import spoken
from mechdiff.report.phrasing import with_interval
from mechdiff.rows import rows
from mechdiff.statistics import intervals
from mechdiff.validate import skewed


def run_of(n: int, cv: float) -> pl.DataFrame:
    """D of n prompts, whose logarithms spread as log-normal values of this CV do."""
    logs = np.linspace(-1, 1, n)
    logs *= np.sqrt(np.log1p(cv**2)) / logs.std(ddof=1)
    names = [f"p{i:03}" for i in range(n)]
    return rows(np.exp(logs), measure="divergence", split="report", metric="kl_tuned_base_nats", prompt=names)


def test_the_skew_of_a_run_is_that_of_d() -> None:
    assert spoken.skew(run_of(24, 1.0)) == pytest.approx(1.0, abs=0.01)
    assert spoken.skew(run_of(24, 1.0).clear()) == 0


@pytest.mark.parametrize(
    ("n", "cv", "single", "family"), [(32, 0.5, True, True), (10, 1.0, True, False), (10, 2.0, False, False), (4, 0.5, False, False)]
)
def test_a_p_is_given_only_where_its_test_holds_its_level(n: int, cv: float, single: bool, family: bool) -> None:
    run, values = run_of(n, cv), 1 + np.random.default_rng(0).normal(scale=0.01, size=(n, 3))
    assert (spoken.mean_p(run, values[:, 0]) < 0.05) == single
    assert (spoken.family_p(run, values) < 0.05).all() == family
    assert (spoken.in_words(spoken.mean_p(run, values[:, 0])) == "no test: too few prompts for this skew") != single
    said = spoken.silent(run)
    assert (said is None) == (single and family)
    assert said is None or f"With {n} prompts" in said


def test_where_nothing_is_there_fewer_than_one_study_in_twenty_speaks() -> None:
    n, studies, random = 10, 400, np.random.default_rng(3)
    found = {"with the gate": 0, "without": 0}
    for _ in range(studies):
        d = skewed.lognormal(random, 2.0, (n,))
        run = run_of(n, 1.0).with_columns(value=pl.Series(d))
        effects = skewed.null("a mean of log-normal values, apart from the true one", random, 2.0, (n, 8))
        found["without"] += (intervals.family_p(effects) <= 0.05).any()
        found["with the gate"] += (spoken.family_p(run, effects) <= 0.05).any()
    assert found["without"] > 0.09 * studies
    assert found["with the gate"] <= skewed.most(studies) * studies


def test_sentences_call_an_interval_what_such_intervals_held() -> None:
    with spoken.in_measured_words(run_of(32, 0.5)):
        assert with_interval(7.69, 6.77, 9.16) == "7.69 [95 % CI: 6.77, 9.16]"
    with spoken.in_measured_words(run_of(10, 2.0)):
        assert with_interval(7.69, 6.77, 9.16) == "7.69 [88 % CI: 6.77, 9.16]"
        assert with_interval(0.64, 0.39, 0.84, digits=2) == "64 % [88 % CI: 39, 84]"
        assert with_interval(0.98, 0.91, 0.99, digits=2, coverage=1.0) == "98 % [95 % CI: 91, 99]"
    assert with_interval(7.69, 6.77, 9.16) == "7.69 [95 % CI: 6.77, 9.16]"
