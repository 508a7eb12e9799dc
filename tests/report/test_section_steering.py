"""The section on steering, against what was planted: two directions do most, and only small edits leave neutral prompts alone."""

import math

import polars as pl
import pytest

from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.steering import charts as steering_charts
from mechdiff.measures.steering import findings as steering_findings
from mechdiff.measures.steering import page as steering_page
from mechdiff.measures.steering import words as steering_words
from mechdiff.report import drawing, phrasing
from mechdiff.report.headlines import admit
from mechdiff.report.parts import Drawn, Figure, Run
from mechdiff.statistics import summary as statistics_summary
from report import planted_sections as planted
from report import test_figures
from report.conftest import CHANGED
from report.test_figures import descriptions

SITE = f"L{CHANGED}.attn_out"
CHARTS = [steering_charts.effect_by_rank, steering_charts.added_by_strength, steering_charts.frontier_of_edits]


@pytest.fixture(scope="module")
def run(rows: pl.DataFrame, manifest: dict) -> Run:
    both = pl.concat([rows.filter(pl.col("measure") == "divergence"), planted.planted_steering(rows, changed=CHANGED)])
    return Run(rows=both, summary=statistics_summary.summarise(both, NUMBERS), manifest={**manifest, **planted.steering_manifest(rows)})


def captions(section) -> dict[str, str]:
    return {part.name: part.caption for part in section.parts if isinstance(part, Drawn)}


def test_effects_are_shares_of_the_way_to_the_other_model(run: Run) -> None:
    found = steering_findings.effects(run.rows).filter(pl.col("name") == SITE, pl.col("control").is_null(), ~pl.col("everywhere"))
    by = {(r["edit"], r["rank"], r["strength"]): r["share"] for r in found.iter_rows(named=True)}
    for k, share in planted.STEERED.items():
        assert by["interchange into base", k, None] == pytest.approx(share, abs=0.03)
        assert by["interchange into tuned", k, None] == pytest.approx(share, abs=0.03)
        assert by["ablate", k, None] == pytest.approx(0.8 * share, abs=0.03)
        assert by["amplify", k, None] == pytest.approx(-0.5 * share, abs=0.05), "damage is no way to the base"
    for strength, share in planted.ADDED.items():
        assert by["add", 1, strength] == pytest.approx(share, abs=0.03)
    of_summary = run.summary.filter(
        pl.col("measure") == "steering", pl.col("site") == "attn_out", pl.col("control").is_null() & pl.col("unit").is_null(),
        pl.col("metric") == "kl_other_nats", pl.col("direction").str.starts_with("base"),
    )  # fmt: skip
    key = ["direction", "layer", "site", "arm", "rank", "strength"]
    both = found.join(of_summary.select(*key, summarised="share"), on=key, nulls_equal=True)
    assert (len(both), len(found)) == (3 + 3, 3 + 4 * 3)
    assert both["share"].to_list() == pytest.approx(both["summarised"].to_list())


def test_side_effects_are_means_over_neutral_prompts(run: Run) -> None:
    sides = steering_findings.sides(run.summary).filter(pl.col("site") == "attn_out", pl.col("arm") == "add", pl.col("control").is_null())
    one = sides.filter(pl.col("strength").is_null()).row(0, named=True)
    assert one["side_kl"] == pytest.approx(0.05, rel=0.03)
    assert one["side_ratio"] == pytest.approx(math.exp(0.04), rel=0.01)
    assert one["side_top1"] == pytest.approx(0.95, rel=0.03)


def test_limits_are_those_of_the_study_or_the_defaults(run: Run) -> None:
    assert steering_findings.limits({}) == steering_findings.Limits(kl_nats=0.05, perplexity_ratio=1.05)
    assert steering_findings.limits(run.manifest) == steering_findings.Limits(kl_nats=0.04, perplexity_ratio=1.1)


def test_limits_that_no_dose_keeps_are_said_once_in_words_and_once_in_the_figure(run: Run) -> None:
    strict = run.manifest | {"steering": {**run.manifest["steering"], "limits": {"max_side_kl_nats": 1e-9, "max_perplexity_ratio": 1.0}}}
    said = steering_words.does_it_obey(run.rows, run.summary, strict)
    assert [one.count("beyond the limits") for one in said] == [1, 1, 0]
    assert [one.count("limits: KL ") for one in said] == [1, 0, 0]
    svg = drawing.to_svg(steering_charts.frontier_of_edits(run.rows, run.summary, strict))
    assert svg.count(">limit<") == 1


def test_the_largest_dose_that_neutral_prompts_allow_is_tested(run: Run) -> None:
    (one,) = steering_findings.tested(run.rows, steering_findings.limits(run.manifest))
    assert (one.name, one.edit, one.strength, one.direction) == (SITE, "add", 0.5, "base<-base")
    assert (one.draws, one.n, one.neutral) == (planted.DRAWS, 24, 12)
    assert one.share == pytest.approx(planted.ADDED[0.5], abs=0.02)
    assert one.p == pytest.approx(1 / 40)
    assert one.obeys
    wide = steering_findings.Limits(kl_nats=0.06, perplexity_ratio=1.1)
    assert steering_findings.tested(run.rows, wide) == [], "at strength 1, and of one direction ablated, no draws were run"


def test_a_dose_without_draws_enough_says_nothing(run: Run) -> None:
    few = run.rows.filter(pl.col("control").is_null() | ~pl.col("control").is_in([f"random_vector#{i}" for i in range(1, 39)]))
    assert steering_findings.tested(few, steering_findings.limits(run.manifest)) == []
    summary = statistics_summary.summarise(few, NUMBERS)
    said = steering_words.does_it_obey(few, summary, run.manifest)
    assert (
        said[0]
        == f"Whether the mean difference added to the base at {SITE} and L{CHANGED}.resid_post does more than random directions was not tested."
    )
    assert steering_words.headline(few, summary, run.manifest) == []


def test_what_is_no_better_than_random_directions_is_said_to_be_so(run: Run) -> None:
    at = (pl.col("control").str.starts_with("random_vector#3")) & (pl.col("unit") == "all_pos") & (pl.col("metric") == "kl_other_nats")
    better = run.rows.with_columns(value=pl.when(at).then(pl.col("value") * 0.5).otherwise("value"))
    summary = statistics_summary.summarise(better, NUMBERS)
    said = steering_words.does_it_obey(better, summary, run.manifest)
    assert ", no more than random directions of this size do (39 random ones: mean " in said[0]
    (candidate,) = steering_words.headline(better, summary, run.manifest)
    assert admit(candidate) is not None


def test_the_effect_beside_side_effects_is_that_at_all_positions(run: Run) -> None:
    """Side effects are those of an edit at all positions, so its effect is taken there too."""
    everywhere = (pl.col("measure") == "steering") & (pl.col("unit") == "all_pos") & (pl.col("split") == "report")
    rows = run.rows.with_columns(value=pl.when(everywhere).then(pl.col("value") * 0.5).otherwise("value"))
    edits = steering_findings.frontier(rows, statistics_summary.summarise(rows, NUMBERS), steering_findings.Limits())
    ablated = edits.filter(pl.col("name") == SITE, pl.col("edit") == "ablate", pl.col("rank") == 2, pl.col("control").is_null())
    assert ablated["share"].to_list() == pytest.approx([1 - 0.5 * (1 - 0.8 * planted.STEERED[2])], abs=0.02)
    assert ablated["everywhere"].to_list() == [True]


def test_what_is_said_is_what_was_planted(run: Run) -> None:
    section = steering_page.steering(run)
    said = captions(section)
    assert list(said) == ["steering_effect", "steering_strength", "steering_frontier"]
    found = steering_findings.effects(run.rows)
    add = steering_findings.added(found).filter(pl.col("name") == SITE, pl.col("s") == 1).row(0, named=True)
    value = phrasing.with_interval(add["share"], add["low"], add["high"], digits=2)
    assert f"At {SITE}: add {value} with one direction (mean of 3 random draws: " in said["steering_effect"]
    assert f", {phrasing.with_interval(add['share'], add['low'], add['high'], digits=2)} at s = 1" in said["steering_strength"]
    (one,) = steering_findings.tested(run.rows, steering_findings.limits(run.manifest))
    goes = phrasing.with_interval(one.share, one.low, one.high, digits=2)
    first = f"Adding the mean difference at {SITE}, at all positions, at strength 0.5, recovers {goes} of D"
    assert (
        f"{first} (39 random ones: mean 4 %, highest 6 %; p = 0.0250); on 12 unrelated prompts it has a KL of 0.01"
        in said["steering_frontier"]
    )
    every = "Unrelated prompts change beyond the limits under every dose tried of"
    none = f"{every} the change's directions ablated in the tuned model at {SITE} and L{CHANGED}.resid_post"
    assert (
        f"{none} (numbers of directions 1, 2 and 4; limits: KL 0.0400 nats per token, perplexity ratio 1.10)." in said["steering_frontier"]
    )
    assert f"Side effects on unrelated prompts were measured at {SITE} and L{CHANGED}.resid_post only" in said["steering_frontier"]
    table = next(part for part in section.parts if isinstance(part, dict) and part["kind"] == "table")
    assert all(len(row) == len(table["columns"]) for row in table["rows"])
    assert {row[-1] for row in table["rows"]} == {"yes", "no"}
    answers = [part for part in section.parts if isinstance(part, dict) and part["kind"] == "list"]
    assert [entry["what"] for entry in answers[0]["entries"]] == ["Prompt", "base", "tuned", "base, steered"]
    assert answers[0]["entries"][3]["why"] == "Thank you.↵\nArt is work."


def test_side_effects_that_were_not_measured_are_said(run: Run) -> None:
    rows = run.rows.filter(~pl.col("metric").str.starts_with("side_"))
    summary = statistics_summary.summarise(rows, NUMBERS)
    section = steering_page.steering(Run(rows=rows, summary=summary, manifest={}))
    assert "steering_frontier" not in captions(section)
    assert section.parts[-1]["text"].startswith("Side effects on unrelated prompts were not measured")
    assert steering_words.does_it_obey(rows, summary, {}) == []


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.__name__)
def test_figures_are_valid_and_fit(chart: Figure, width: int, run: Run) -> None:
    test_figures.test_figures_are_valid_and_fit_their_width(chart, width, run.rows, run.summary, run.manifest)


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.__name__)
def test_figures_without_their_rows_are_none(chart: Figure, rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    assert chart(rows, summary, {}) is None


def test_every_edit_has_its_mark(run: Run) -> None:
    tables = (run.rows, run.summary, run.manifest)
    assert len(descriptions(drawing.to_svg(steering_charts.effect_by_rank(*tables)), "circle")) == 2 * (1 + 4 * 3)
    edits = steering_findings.frontier(run.rows, run.summary, steering_findings.limits(run.manifest))
    assert len(descriptions(drawing.to_svg(steering_charts.frontier_of_edits(*tables)), "point")) == len(edits)
    assert len(edits) == 2 * (3 + 2 * 3), "those whose side effects were measured"


def test_without_an_effect_there_is_no_share(run: Run) -> None:
    zero = run.rows.with_columns(value=pl.when(pl.col("metric").str.starts_with("kl_")).then(0.0).otherwise("value"))
    section = steering_page.steering(Run(rows=zero, summary=statistics_summary.summarise(zero, NUMBERS), manifest={}))
    assert section.parts[0]["text"].startswith("There is no effect to share")
    assert captions(section) == {}


def test_steering_that_was_not_tried_is_a_sentence(rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    assert [part["kind"] for part in steering_page.steering(Run(rows=rows, summary=summary, manifest={})).parts] == ["note"]
