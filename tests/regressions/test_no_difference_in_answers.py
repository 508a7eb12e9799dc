""" "Their answers show no difference": of 8 prompts, 5 of them right against none, McNemar can never say otherwise."""

import numpy as np
import polars as pl
import pytest

from mechdiff.measures.behaviour import findings as behaviour_findings
from mechdiff.measures.behaviour.findings import Compared, Group, to_the_point
from mechdiff.measures.behaviour.words import headlines, what_they_do
from mechdiff.measures.catalogue import NUMBERS
from mechdiff.statistics import intervals, summary
from report.small_runs import answered, asked, divergence
from said import verdict


def right(of_base: int, of_tuned: int, n: int) -> pl.DataFrame:
    """The tuned model is right on its first prompts, the base on its last."""
    base, tuned = np.arange(n) >= n - of_base, np.arange(n) < of_tuned
    return answered({"exact_match": base}, {"exact_match": tuned})


def spoken(rows: pl.DataFrame) -> list[Compared]:
    return to_the_point(Group(name="report", language=None, rows=rows), behaviour_findings.compared(rows), "refusal_soft_nats")


def test_five_of_eight_right_against_none_is_undecided_with_the_smallest_that_would_have_been_seen() -> None:
    rows = right(0, 5, 8)
    (said,) = headlines(rows, asked(8))
    assert said.text == ("in their answers no difference in right final answers could be shown (6 of 8 prompts would have to differ)")
    (section,) = what_they_do(rows, asked(8))
    assert (
        "right final answers (5 against 0, McNemar p = 0.062; only 6 or more of 8 prompts, all one way, could have been detected)"
        in section
    )
    whole = pl.concat([rows, divergence(np.linspace(1, 2, 8))])
    (text,) = verdict(whole, summary.summarise(whole, NUMBERS), asked(8))
    assert "show no difference" not in text
    assert text.startswith("On 8 test prompts")
    assert "6 of 8 prompts" in text


def test_six_of_eight_are_seen() -> None:
    (said,) = headlines(right(0, 6, 8), asked(8))
    assert "6 right final answers where the base has 0 (McNemar p = 0.031)" in said.text


@pytest.mark.parametrize("n", [5, 6, 8, 10, 24, 60])
@pytest.mark.parametrize("family", [1, 2, 3, 6])
def test_the_smallest_that_is_named_is_the_smallest_that_is_seen(n: int, family: int) -> None:
    (one,) = (Compared(**{**found.__dict__, "family": family, "holm": None}) for found in spoken(right(0, n, n)))
    for k in range(1, n + 1):
        seen = family * intervals.mcnemar(0, k) <= 0.05
        assert seen == (one.smallest is not None and k >= one.smallest)


def test_five_prompts_are_said_to_be_too_few_to_show_any() -> None:
    (said,) = headlines(right(0, 4, 5), asked(5))
    assert said.text == "in their answers no difference in right final answers could be shown (5 prompts are too few to show any)"


def test_of_four_prompts_nothing_is_said_but_that_they_are_few() -> None:
    assert what_they_do(right(0, 4, 4), asked(4)) == ["Of test prompts 4 were asked: too few to compare the two models' answers."]
    whole = pl.concat([right(0, 4, 4), divergence(np.linspace(1, 2, 4))])
    (text,) = verdict(whole, summary.summarise(whole, NUMBERS), asked(4))
    assert "answers" not in text
