"""The section on the factorial, against what was planted: below the change the upper half does all, from there on the lower."""

import numpy as np
import polars as pl
import pytest

from mechdiff.measures.factorial import charts as factorial_charts
from mechdiff.measures.factorial import findings as factorial_findings
from mechdiff.measures.factorial import page as factorial_page
from mechdiff.measures.factorial import words as factorial_words
from mechdiff.report import difference, drawing
from mechdiff.report.parts import Drawn, Run
from mechdiff.statistics import intervals
from mechdiff.statistics import summary as statistics_summary
from report.conftest import CHANGED
from report.test_figures import descriptions


@pytest.fixture(scope="module")
def run(full_rows: pl.DataFrame, full_summary: pl.DataFrame, full_manifest: dict) -> Run:
    return Run(rows=full_rows, summary=full_summary, manifest=full_manifest)


@pytest.mark.parametrize("unit", [None, "all_pos"])
def test_the_two_halves_sum_to_d_at_every_split_point(run: Run, unit: str | None) -> None:
    d = difference.difference(run.rows, run.summary)
    assert d
    table = factorial_findings.effects(run.rows, run.summary, unit)
    halves = table.filter(pl.col("effect") != "interaction").group_by("layer").agg(pl.col("mean").sum())
    assert halves["mean"].to_list() == pytest.approx([d.mean] * 7, rel=1e-6)
    found = factorial_findings.halves(run.rows, unit)
    assert found == factorial_findings.Halves(upper_until=CHANGED - 1, lower_from=CHANGED)


def test_p_is_the_bootstrap_t_s_of_the_mean(run: Run) -> None:
    table = factorial_findings.effects(run.rows, run.summary, None)
    late = table.filter(pl.col("effect") == "upstream", pl.col("layer") >= CHANGED)
    place = (pl.col("measure") == "factorial") & pl.col("unit").is_null() & (pl.col("metric") == "upstream_effect_nats")
    _, _, values = statistics_summary.prompt_matrix(run.rows.filter(place, pl.col("layer") >= CHANGED))
    assert late["p"].to_list() == pytest.approx(intervals.mean_p(values).tolist())
    assert late["p"].max() < 0.01


def test_what_is_said_is_what_was_planted(run: Run) -> None:
    section = factorial_page.factorial(run)
    drawn = section.parts[0]
    assert isinstance(drawn, Drawn)
    assert "the two halves sum to KL(tuned ‖ base) + KL(base ‖ tuned), and changes that merely add do not interact" in drawn.caption
    for where in ("the last prompt token", "all positions"):
        ends = f"the lower half does more from L = {CHANGED} on, the upper half does more up to L = {CHANGED - 1} (95 % band over all split points)"
        assert f"Exchanged at {where}: {ends}" in drawn.caption
    assert len(section.parts) == 3
    assert len(section.parts[1]["rows"]) == 7
    assert all(len(row) == len(section.parts[1]["columns"]) for row in section.parts[1]["rows"])


def test_a_half_is_ahead_only_where_a_band_over_all_split_points_says_so(run: Run) -> None:
    of = pl.col("metric") == "upstream_effect_linear_nats"
    noise = pl.Series(np.random.default_rng(1).normal(0, 40, len(run.rows)))
    noisy = run.rows.with_columns(value=pl.when(of).then(pl.col("value") + noise).otherwise("value"))
    found = factorial_findings.halves(noisy, None)
    assert found == factorial_findings.Halves(upper_until=None, lower_from=None)
    assert factorial_words.which_half(found) == "at no end does one half surely do more than the other"
    few = run.rows.filter(
        pl.col("prompt").is_null() | pl.col("prompt").is_in(run.rows["prompt"].drop_nulls().unique().sort().to_list()[:3])
    )
    assert factorial_findings.halves(few, None) is None


def test_the_figure_has_a_dot_for_each_effect(run: Run) -> None:
    svg = drawing.to_svg(factorial_charts.effects_by_layer(run.rows, run.summary, {}))
    assert len(descriptions(svg, "circle")) == 2 * 7 * 3


def test_a_factorial_that_was_not_run_is_a_sentence(rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    assert [part["kind"] for part in factorial_page.factorial(Run(rows=rows, summary=summary, manifest={})).parts] == ["note"]
