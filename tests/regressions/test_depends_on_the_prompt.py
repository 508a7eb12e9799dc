""" "It depends on the prompt (a constant recovers 0.267)" was read off two point estimates, by one rule in the verdict and another on the page."""

import numpy as np
import polars as pl
import pytest

from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.patching import constant as patching_constant
from mechdiff.measures.patching import words as patching_words
from mechdiff.measures.patching.constant import constant
from mechdiff.statistics import intervals
from mechdiff.statistics import summary as statistics_summary
from report.small_runs import divergence, patched
from said import verdict


def run(own: np.ndarray, shift: np.ndarray, *, mean: np.ndarray | None = None) -> pl.DataFrame:
    """One output, patched on prompts whose D is 1."""
    gained = {"identity": own, "shift": shift} | ({} if mean is None else {"mean": mean})
    d = np.ones(len(own))
    return pl.concat([divergence(d), patched(gained, d)])


def said(rows: pl.DataFrame) -> tuple[str, str]:
    """The page's sentence and the verdict's."""
    summary = statistics_summary.summarise(rows, NUMBERS)
    return " ".join(patching_words.what_it_depends_on(rows, summary)), " ".join(verdict(rows, summary, {}))


def demo() -> tuple[np.ndarray, np.ndarray]:
    """Ten prompts on which the own activation recovers 0.348 and the constant 0.267, 0.17 apart in sd: p is about 0.17."""
    apart = np.array([0.42, -0.19, 0.21, 0.04, -0.05, 0.26, 0.08, -0.11, 0.16, -0.02])
    own = np.linspace(0.1, 0.6, 10)
    own += 0.348 - own.mean()
    return own, own - apart - (0.081 - apart.mean())


def test_a_constant_with_three_quarters_of_the_patch_is_not_said_to_depend_on_the_prompt() -> None:
    rows = run(*demo())
    found = constant(rows, statistics_summary.summarise(rows, NUMBERS))
    assert found is not None
    assert found.fraction == pytest.approx(0.267 / 0.348, abs=1e-6)
    assert found.p > 0.05
    page, verdict_ = said(rows)
    for text in (page, verdict_):
        assert "77 % [" in text
        assert "depends on the prompt could not be shown" in text
        assert "the rest depends on the prompt (" not in text


def test_what_does_depend_on_the_prompt_is_said_with_its_fraction_on_page_and_in_the_verdict() -> None:
    random = np.random.default_rng(0)
    own = random.uniform(0.6, 0.9, 24)
    page, verdict_ = said(run(own, own * random.uniform(0.6, 0.8, 24)))
    for text in (page, verdict_):
        assert "the rest depends on the prompt (" in text
        assert "71 % [" in text


def test_a_constant_that_does_as_much_as_the_patch_is_said_to_be_all_of_it() -> None:
    own = np.linspace(0.5, 0.9, 16)
    page, verdict_ = said(run(own, own + np.tile([0.01, -0.01], 8)))
    for text in (page, verdict_):
        assert "1.0" in text
        assert "could not be shown" in text


def test_a_constant_that_makes_it_worse_recovers_nothing() -> None:
    random = np.random.default_rng(1)
    own = random.uniform(0.3, 0.5, 16)
    page, _ = said(run(own, -random.uniform(0.1, 0.6, 16)))
    assert "recovers nothing of what the patch does there, and the rest depends on the prompt" in page


def test_the_better_of_two_constants_is_said_to_be_chosen_here_and_both_are_tested() -> None:
    """No constant is patched on other prompts: the better of two is taken on the very prompts that it is given for."""
    random = np.random.default_rng(3)
    own = random.uniform(0.5, 0.8, 16)
    worse, better = own * random.uniform(0.2, 1.1, 16), own * random.uniform(0.6, 1.1, 16)
    table = run(own, worse, mean=better)
    found = constant(table, statistics_summary.summarise(table, NUMBERS))
    assert found is not None
    assert (found.arm, found.chosen) == ("mean", True)
    assert found.p == pytest.approx(intervals.family_p(np.stack([own - worse, own - better], axis=1))[1])
    for text in said(table):
        assert "(the better of two on these prompts, so optimistically biased)" in text
    alone = run(own, better)
    one = constant(alone, statistics_summary.summarise(alone, NUMBERS))
    assert one is not None
    assert one.p == pytest.approx(intervals.mean_p((own - better)[:, None])[0])
    assert one.p < found.p
    assert "better of two" not in " ".join(said(alone))


@pytest.mark.parametrize("studies", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_dependence_is_claimed_in_one_of_twenty_studies_where_there_is_none(studies: int) -> None:
    random = np.random.default_rng(2)
    claims = []
    for _ in range(studies):
        own = random.normal(0.5, 0.2, 10)
        rows = run(own, own + random.exponential(0.1, 10) * random.choice([-1, 1], 10))
        found = patching_constant.constant(rows, statistics_summary.summarise(rows, NUMBERS))
        claims.append(found is not None and found.depends)
    assert np.mean(claims) <= 0.05 + 2 * (0.05 * 0.95 / studies) ** 0.5
