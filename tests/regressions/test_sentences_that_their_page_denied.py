"""Sentences of a finished page that another number of the same page denied."""

import numpy as np
import polars as pl
import pytest

from mechdiff.comparison import contrasts
from mechdiff.comparison.effects import Table
from mechdiff.comparison.quantity import crossing
from mechdiff.measures.behaviour.words import headlines
from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.grafting import words as grafting_words
from mechdiff.measures.patching import words as patching_words
from mechdiff.statistics import summary as statistics_summary
from report.small_runs import answered, asked, divergence, grafted, patched
from said import refused, verdict


def test_no_fraction_is_given_of_a_recovery_that_may_be_nothing() -> None:
    """0.34 (-0.06 to 0.60) of D stood beside "0.66 of that recovery is one constant vector"."""
    own = np.array([0.9, -0.5, 0.8, -0.4, 0.9, -0.3, 0.7, 0.1])
    d = np.linspace(0.9, 1.1, 8)
    rows = pl.concat([divergence(d), patched({"identity": own, "shift": 0.7 * own + np.linspace(-0.02, 0.02, 8)}, d)])
    summary = statistics_summary.summarise(rows, NUMBERS)
    assert "one constant vector" not in " ".join(verdict(rows, summary, {}))
    (said,) = patching_words.what_it_depends_on(rows, summary)
    assert said.endswith(": what the patch recovers there does not differ significantly from 0, so that no fraction of it is given.")
    assert any("one constant vector" in one and "its interval holds 0" in one for one in refused(rows, summary, {}))


def test_answers_that_differ_in_words_are_not_said_to_show_no_difference_but_in_what_was_scored() -> None:
    """All answers began with a dash in one model and in none of the other's, above "no difference between their answers"."""
    none = np.zeros(10)
    (said,) = headlines(answered({"refusal": none}, {"refusal": none}), asked(10))
    assert said.text.startswith("in their answers no difference in refusals could be shown (6 of 10 prompts would have to differ)")


@pytest.mark.parametrize(("share", "said"), [(1.0, True), (0.5, False)])
def test_answers_that_were_all_cut_off_are_said_to_be(share: float, said: bool) -> None:
    """That neither model has a right final answer says nothing where every answer was cut off before it."""
    none, cut = np.zeros(10), np.arange(10) < 10 * share
    (found,) = headlines(answered({"exact_match": none, "cut_off": cut}, {"exact_match": none, "cut_off": cut}), asked(10))
    assert (", all cut off, no difference in right final answers" in found.text) == said


def test_the_module_that_other_prompts_chose_is_not_called_the_best() -> None:
    """L15.mlp was "the best single module", with 0.143; a line below it L19.mlp had 0.145."""
    d = np.linspace(0.8, 1.2, 10)
    rows = pl.concat([
        divergence(d),
        grafted({"alone": {"L1.mlp": 0.14, "L2.mlp": 0.3}}, d),
        grafted({"alone": {"L1.mlp": 0.3, "L2.mlp": 0.14}}, d[:3], split="select"),
    ])  # fmt: skip
    text = " ".join(one.text for one in grafting_words.modules(rows))
    assert "of single modules, the tuned weights of L1.mlp (selected on 3 other prompts) recover 14.1 %" in text
    assert "best" not in text


def test_more_than_two_less_more_than_two_is_no_difference_of_nothing() -> None:
    """Two searches that stopped at two modules differed by "0 (0 to 0), p = 1"."""
    values = np.full((6, 2), [0.1, 0.2])
    names = tuple(f"p{i}" for i in range(6))
    made = {
        run: [crossing("weights", "modules", Table(values=values * size, total=np.ones(6), names=[1, 2], prompts=names), [1.0, 2.0, 3.0],
                       "modules", threshold=0.9)]
        for run, size in (("one", 1.0), ("other", 1.2))
    }  # fmt: skip
    assert all(one.beyond for ones in made.values() for one in ones)
    assert contrasts.pairs(made) == []
