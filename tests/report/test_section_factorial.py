"""The section on the factorial, against what was planted: below the change the upper half does all, from there on the lower."""

import polars as pl
import pytest

from mechdiff.report import drawing, findings, findings_factorial, phrasing, section_factorial, statistics, wording
from mechdiff.report.parts import Drawn, Run
from report.conftest import CHANGED
from report.test_figures import descriptions


@pytest.fixture(scope="module")
def run(full_rows: pl.DataFrame, full_summary: pl.DataFrame, full_manifest: dict) -> Run:
    return Run(rows=full_rows, summary=full_summary, manifest=full_manifest)


@pytest.mark.parametrize("unit", [None, "all_pos"])
def test_the_two_halves_sum_to_d_at_every_split_point(run: Run, unit: str | None) -> None:
    d = findings.difference(run.rows, run.summary)
    assert d
    table = findings_factorial.effects(run.rows, run.summary, unit)
    halves = table.filter(pl.col("effect") != "interaction").group_by("layer").agg(pl.col("mean").sum())
    assert halves["mean"].to_list() == pytest.approx([d.mean] * 7, rel=1e-6)
    assert findings_factorial.crossing(table) == CHANGED


def test_p_is_over_the_label_swaps(run: Run) -> None:
    table = findings_factorial.effects(run.rows, run.summary, None)
    late = table.filter(pl.col("effect") == "upstream", pl.col("layer") >= CHANGED)
    assert late["p"].to_list() == pytest.approx([1 / 41] * len(late))
    band = findings_factorial.swap_band(run.rows, None)
    assert set(band["draws"]) == {40}
    assert set(band["of"]) == {"halves", "interaction"}
    assert len(band) == 2 * 7
    assert statistics.summarise(run.rows.filter(pl.col("measure") == "factorial"))["control"].null_count() == 2 * 7 * (8 + 6)


def test_what_is_said_is_what_was_planted(run: Run) -> None:
    section = section_factorial.factorial(run)
    drawn = section.parts[0]
    assert isinstance(drawn, Drawn)
    d = findings.difference(run.rows, run.summary)
    assert d
    assert f"the two halves sum to D = {phrasing.nats(d.mean)}" in drawn.caption
    for where in ("the decision position", "all positions"):
        assert f"Exchanged at {where}: the lower half does more from L = {CHANGED} on" in drawn.caption
    assert len(section.parts) == 3
    assert len(section.parts[1]["rows"]) == 7
    assert all(len(row) == len(section.parts[1]["columns"]) for row in section.parts[1]["rows"])


def test_the_verdict_speaks_of_an_interaction_only_where_there_is_one(run: Run) -> None:
    found = findings.difference(run.rows, run.summary)
    at = (pl.col("metric") == "interaction_nats") & (pl.col("layer") == 2) & pl.col("control").is_null()
    for size, words in ((4.0, "need each other"), (-4.0, "do the same job")):
        others = (pl.col("metric") == "interaction_nats") & (pl.col("layer") != 2)
        rows = run.rows.filter(~others).with_columns(value=pl.when(at).then(size).otherwise("value"))
        said = wording.early_or_late(rows, statistics.summarise(rows), found)
        assert len(said) == 1
        assert f"The tuned blocks up to 2 and those above {words}: together they bring the base 4.00" in said[0]
    small = run.rows.filter(pl.col("metric") != "interaction_nats")
    assert wording.early_or_late(small, statistics.summarise(small), found) == []


def test_the_figure_has_a_dot_for_each_effect(run: Run) -> None:
    svg = drawing.to_svg(section_factorial.effects_by_layer(run.rows, run.summary, {}))
    assert len(descriptions(svg, "circle")) == 2 * 7 * 3


def test_a_factorial_that_was_not_run_is_a_sentence(rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    assert [part["kind"] for part in section_factorial.factorial(Run(rows=rows, summary=summary, manifest={})).parts] == ["note"]
