"""The section on attribution says what was planted, and its figures show every head, with names that do not cover one another."""

import re
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mechdiff.measures.attribution import charts as attribution_charts
from mechdiff.measures.attribution import churn as attribution_churn
from mechdiff.measures.attribution import page as attribution_page
from mechdiff.measures.attribution import words as attribution_words
from mechdiff.measures.attribution.charts import Stretched, name_box, place_names
from mechdiff.measures.catalogue import CHAPTERS, NUMBERS
from mechdiff.report import drawing, phrasing, sections
from mechdiff.report.page import build_report, in_the_open
from mechdiff.report.parts import Drawn, Figure, Run
from mechdiff.statistics import summary as statistics_summary
from report import planted_attribution as planted
from report import test_figures
from report.conftest import CHANGED
from report.planted_run import write_run
from said import leads

SIZE = {"n_layers": 7, "changed": CHANGED}
CHARTS = [attribution_charts.attributed_against_true, attribution_charts.churn_of_heads]


@pytest.fixture(scope="module")
def run(rows: pl.DataFrame, manifest: dict) -> Run:
    both = pl.concat([rows.filter(pl.col("measure") == "divergence"), planted.planted_attribution(rows, **SIZE)])
    return Run(
        rows=both, summary=statistics_summary.summarise(both, NUMBERS), manifest={**manifest, **planted.attribution_manifest(**SIZE)}
    )


def captions(section) -> dict[str, str]:
    return {part.name: part.caption for part in section.parts if isinstance(part, Drawn)}


def tables(section) -> list[dict]:
    return [part for part in section.parts if isinstance(part, dict) and part["kind"] == "table"]


def test_what_is_said_is_what_was_planted(run: Run) -> None:
    section = attribution_page.attribution(run)
    assert (section.id, section.title) == ("attribution", "What do gradients say of the heads?")
    said = captions(section)
    assert list(said) == ["attribution_validation", "attribution_churn"]
    assert (
        "40 heads in each direction (20 of the largest estimates on the validation prompts; 20 of the others at random)"
        in said["attribution_validation"]
    )
    assert "integrated gradients, tuned into base: 1.00" in said["attribution_validation"]
    counted = "Standing out (|z| ≥ 2 over all heads): 1 in both models, 1 in the tuned model alone, 1 in the base alone"
    tested = "; of these last 2, 2 differ between the models by a paired test of all heads together"
    assert counted + tested + ". What is said of 3 of these 3 holds in at least 95 % of resamples" in said["attribution_churn"]
    assert "Of the heads with the largest attribution the models share" in said["attribution_churn"]
    found = attribution_churn.between_models(run.rows)
    value = phrasing.with_interval(found.rho, found.low, found.high, decimals=2)
    assert f"Rank correlation over all heads {value}." in said["attribution_churn"]
    assert section.parts[0]["text"].startswith("What is attributed is a change of m, in logits; m weighs")


def test_tables_name_the_planted_heads(run: Run) -> None:
    found = tables(attribution_page.attribution(run))
    assert all(len(row) == len(table["columns"]) for table in found for row in table["rows"])
    correlations, errors, broken, recovered, sites, churned, overlap = found
    assert [row[0] for row in correlations["rows"]] == [row[0] for row in errors["rows"]] == [
        "attribution patching, base into tuned", "attribution patching, tuned into base",
        "integrated gradients, base into tuned", "integrated gradients, tuned into base",
    ]  # fmt: skip
    assert [(row[2], row[4]) for row in errors["rows"][2:]] == [("0.0200", "3")] * 2
    assert [row[1] for row in correlations["rows"][2:]] == ["1.00"] * 2
    assert broken["rows"][0][0] == recovered["rows"][0][0] == f"L{CHANGED}H3"
    assert broken["rows"][0][1].startswith("−")
    assert not recovered["rows"][0][1].startswith("−")
    assert broken["title"].endswith("(ranked on the validation prompts)")
    assert [row[0] for row in sites["rows"]][:2] == [f"L{CHANGED}.attn_out", f"L{CHANGED + 1}.attn_out"]
    assert sites["title"].endswith("of 6 (ranked on the prompts reported, so optimistically biased)")
    assert {row[0].partition(".")[0] for row in sites["rows"]} == {"L4", "L5", "L6"}  # below the change there is nothing to name
    assert [(row[0], row[1]) for row in churned["rows"]] == [
        (phrasing.bare(planted.name(planted.ENTERED)), "tuned alone (100 %)"), (phrasing.bare(planted.name(planted.LEFT)), "base alone (100 %)"),
        (phrasing.bare(planted.name(planted.STAYED)), "both (100 %)"),
    ]  # fmt: skip
    assert [row[0] for row in overlap["rows"]] == ["top 5", "top 10", "top 20"]


def test_what_gradients_say_is_one_sentence(run: Run) -> None:
    (sentence,) = attribution_words.what_gradients_say(run.rows, run.summary, run.manifest)
    assert sentence.startswith(
        "Gradients rank heads as patching does: over the 40 heads that were patched, attribution patching has a rank corr"
    )
    assert "the lower of both directions), integrated gradients 1.00; 1 head stands out in both models, 1 in the tuned one" in sentence
    assert leads(run.rows, run.summary, run.manifest)["attribution"] == [sentence]


def test_the_verdict_says_when_gradients_are_no_guide(run: Run) -> None:
    rng = np.random.default_rng(3)
    of_effect = pl.col("metric") == "effect_logits"
    factors = run.rows.filter(of_effect).select("layer", "unit").unique().sort("layer", "unit")
    factors = factors.with_columns(factor=pl.Series(rng.choice([-1.0, 1.0], len(factors))))
    shuffled = run.rows.join(factors, on=["layer", "unit"], how="left", maintain_order="left")
    rows = shuffled.with_columns(value=pl.when(of_effect).then(pl.col("value") * pl.col("factor")).otherwise("value")).drop("factor")
    (sentence,) = attribution_words.what_gradients_say(rows, statistics_summary.summarise(rows, NUMBERS), run.manifest)
    assert sentence.startswith("Gradients are no guide to heads here: over the 40 heads")
    only = rows.filter(pl.col("direction").is_in(["base<-base", "tuned<-tuned"]))
    (sentence,) = attribution_words.what_gradients_say(only, statistics_summary.summarise(only, NUMBERS), run.manifest)
    assert sentence.startswith(
        "1 head stands out in both models, 1 in the tuned one alone and 1 in the base alone (tuned − base, p ≤ 0.05, "
    )


def test_prompts_on_which_m_is_not_defined_are_said(rows: pl.DataFrame) -> None:
    table = pl.concat([rows.filter(pl.col("measure") == "divergence"), planted.planted_attribution(rows, undefined=4, **SIZE)])
    named = planted.attribution_manifest(undefined=4, **SIZE)
    section = attribution_page.attribution(Run(rows=table, summary=statistics_summary.summarise(table, NUMBERS), manifest=named))
    assert "m is not defined on 4 of 24 prompts, where both models choose the same token: they are left out." in section.parts[0]["text"]
    assert "means over 20 prompts" in captions(section)["attribution_validation"]


def test_without_patched_heads_estimates_are_guesses(run: Run) -> None:
    rows = run.rows.filter((pl.col("metric") != "effect_logits") | (pl.col("unit") == "all"))
    section = attribution_page.attribution(Run(rows=rows, summary=statistics_summary.summarise(rows, NUMBERS), manifest=run.manifest))
    assert list(captions(section)) == ["attribution_churn"]
    assert any(part["kind"] == "note" and "read them as guesses" in part["text"] for part in section.parts if isinstance(part, dict))
    errors, broken, *_ = tables(section)
    assert [row[1:3] for row in errors["rows"][2:]] == [["–", "0.0200"]] * 2  # completeness needs no patched head
    assert {row[3] for row in broken["rows"]} == {"–"}


def test_without_an_effect_only_churn_is_left(run: Run) -> None:
    zero = run.rows.with_columns(value=pl.when(pl.col("metric").str.starts_with("kl_")).then(0.0).otherwise("value"))
    section = attribution_page.attribution(Run(rows=zero, summary=statistics_summary.summarise(zero, NUMBERS), manifest=run.manifest))
    assert list(captions(section)) == ["attribution_churn"]
    assert "D is not above three times the numerical noise" in section.parts[1]["text"]


def test_attribution_that_was_not_taken_is_a_sentence(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> None:
    run = Run(rows=rows, summary=summary, manifest=manifest)
    section = attribution_page.attribution(run)
    assert [part["kind"] for part in section.parts] == ["note"]
    assert attribution_words.what_gradients_say(rows, summary, manifest) == []
    assert "attribution" in [one.id for one in sections.all_sections(run, CHAPTERS)]


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.__name__)
def test_figures_are_valid_and_fit(chart: Figure, width: int, run: Run) -> None:
    test_figures.test_figures_are_valid_and_fit_their_width(chart, width, run.rows, run.summary, run.manifest)


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.__name__)
def test_figures_without_their_rows_are_none(chart: Figure, rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    assert chart(rows, summary, {}) is None


def test_every_head_has_its_mark_and_its_place(run: Run) -> None:
    of_run = (run.rows, run.summary, run.manifest)
    assert len(test_figures.descriptions(drawing.to_svg(attribution_charts.attributed_against_true(*of_run)), "point")) == 4 * 40
    marks = test_figures.descriptions(drawing.to_svg(attribution_charts.churn_of_heads(*of_run)), "point")
    assert len(marks) == 63
    assert [text.rpartition(", ")[2] for text in marks if text.startswith(f"{phrasing.bare(planted.name(planted.ENTERED))}:")] == [
        "entered"
    ]


def test_names_stand_in_the_figure_with_the_study_s_threshold(run: Run) -> None:
    named = planted.attribution_manifest(threshold=0.35, **SIZE)
    svg = drawing.to_svg(attribution_charts.churn_of_heads(run.rows, run.summary, named))
    words = re.findall(r">([^<>]+)</text>", svg)
    assert {*map(phrasing.bare, map(planted.name, (planted.ENTERED, planted.STAYED))), "0.350", "−0.350"} <= set(words)
    assert phrasing.bare(planted.name(planted.LEFT)) not in words


def test_names_cover_neither_each_other_nor_points() -> None:
    rng = np.random.default_rng(4)
    points = [(float(x), float(y), f"L{i}.head {i}") for i, (x, y) in enumerate(rng.uniform(20, 280, (60, 2)))]
    chosen = place_names(points, range(60), (300.0, 300.0))
    assert 5 < len(chosen) < 60
    boxes = [name_box(points[i], side) for i, side in chosen.items()]
    for one, other in combinations(boxes, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 300
        assert 0 <= top < bottom <= 300
        assert not any(left < x < right and top < y < bottom for x, y, _ in points)


def test_a_stretched_axis_keeps_order_symmetry_and_room() -> None:
    axis = Stretched.over([-4.0, -0.02, 0.0, 0.01, 0.03, 2.0], 400.0)
    assert 0 < axis.place(-4.0) < axis.place(-0.02) < axis.place(0.0) < axis.place(0.03) < axis.place(2.0) < 400
    assert axis.place(0.0) - axis.place(-1.0) == pytest.approx(axis.place(1.0) - axis.place(0.0))
    assert (axis.place(axis.low), axis.place(axis.high)) == pytest.approx((0.0, 400.0))
    ticks = axis.ticks(30.0)
    assert 0.0 in ticks
    assert ticks == sorted(ticks)
    assert len(ticks) >= 5
    assert all(axis.place(b) - axis.place(a) >= 30.0 for a, b in pairwise(ticks))
    flat = Stretched.over([0.0, 0.0], 100.0)
    assert flat.place(0.0) == pytest.approx(50.0)


def test_the_page_shows_both_figures_with_their_readings(run: Run, tmp_path: Path) -> None:
    page = build_report(write_run(tmp_path / "run", run.rows, run.manifest), CHAPTERS).read_text(encoding="utf-8")
    section = page.partition('<section id="attribution"')[2].partition("</section>")[0]
    assert re.findall(r'<figure id="(\w+)"', section) == ["attribution_validation", "attribution_churn"]
    assert section.count("<summary>How to read this, and when it misleads</summary>") == section.count("<b>It misleads</b>") == 2
    (sentence,) = attribution_words.what_gradients_say(run.rows, run.summary, run.manifest)
    (shown,), (rest,) = in_the_open([sentence])
    said = re.sub(r"</?(dfn|span)\b[^>]*>", "", page)
    assert f'<p class="lead">{shown}</p>' in said
    assert f"<p>{rest}</p>" in said
    assert f"{shown[:-1]}; {rest[0].lower()}{rest[1:]}" == sentence
