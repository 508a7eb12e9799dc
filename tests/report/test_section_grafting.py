"""The section on grafting, against what was planted: one module recovers most of D, two recover it all."""

import numpy as np
import polars as pl
import pytest

from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.grafting import charts as grafting_charts
from mechdiff.measures.grafting import findings as grafting_findings
from mechdiff.measures.grafting import page as grafting_page
from mechdiff.measures.grafting import words as grafting_words
from mechdiff.report import drawing, phrasing
from mechdiff.report.parts import Drawn, Run
from mechdiff.statistics import summary
from report.conftest import CHANGED
from report.planted_sections import ALONE, d_of, planted_grafting
from report.test_figures import descriptions

FIRST, SECOND = f"L{CHANGED}.attn", f"L{CHANGED + 1}.mlp"


@pytest.fixture(scope="module")
def run(full_rows: pl.DataFrame, full_summary: pl.DataFrame, full_manifest: dict) -> Run:
    return Run(rows=full_rows, summary=full_summary, manifest=full_manifest)


def test_shares_are_ratios_of_means_with_their_intervals(run: Run) -> None:
    alone, ranking = grafting_findings.ranked(run.rows)
    assert ranking == "report"
    assert alone["name"].to_list() == [FIRST, SECOND, "final_norm"]
    assert alone["share"].to_list() == pytest.approx([ALONE["attn"], ALONE["mlp"], 0], abs=0.06)
    for row in alone.iter_rows(named=True):
        v = run.rows.filter(pl.col("arm") == "alone", pl.col("site") == row["site"])["value"].to_numpy()
        d = d_of(run.rows, "report")[1]
        assert row["share"] == pytest.approx(1 - v.mean() / d.mean())
        assert row["low"] <= row["share"] <= row["high"]
        cell = run.summary.filter(pl.col("arm") == "alone", pl.col("site") == row["site"]).row(0, named=True)
        assert cell["share"] == pytest.approx(row["share"])


def test_the_strongest_module_is_chosen_on_select(run: Run) -> None:
    select = planted_grafting(run.rows, changed=CHANGED, split="select")
    swapped = select.with_columns(  # there, the other module wins
        site=pl.when(pl.col("arm") == "alone").then(pl.col("site").replace({"attn": "mlp", "mlp": "attn"})).otherwise("site"),
        layer=pl.when(pl.col("arm") == "alone", pl.col("site") == "attn").then(CHANGED + 1)
        .when(pl.col("arm") == "alone", pl.col("site") == "mlp").then(CHANGED).otherwise("layer"),
    )  # fmt: skip
    both = pl.concat([run.rows, swapped])
    alone, ranking = grafting_findings.ranked(both)
    assert (ranking, alone["name"][0]) == ("select", SECOND)
    assert alone["share"][0] == pytest.approx(ALONE["mlp"], abs=0.06)
    assert f"{SECOND} (chosen on 24 validation prompts; two halves of them choose the same in " in grafting_words.which_module(both)[0]


def test_what_is_said_is_what_was_planted(run: Run) -> None:
    section = grafting_page.grafting(run)
    drawn = {part.name: part.caption for part in section.parts if isinstance(part, Drawn)}
    assert list(drawn) == ["grafts_alone", "grafts_in_order", "grafts_greedy", "grafts_by_rank"]
    best = grafting_findings.ranked(run.rows)[0].row(0, named=True)
    assert f"{FIRST} (chosen on these prompts" in drawn["grafts_alone"]
    assert f") recovers {phrasing.with_interval(best['share'], best['low'], best['high'], digits=2)}" in drawn["grafts_alone"]
    assert f"half of D is recovered once {FIRST} is in, from the output down once {FIRST} is" in drawn["grafts_in_order"]
    greedy = f"2 modules, the smallest greedy set with 90 % of D on these prompts ({FIRST} + {SECOND}), recover 99"
    assert greedy in drawn["grafts_greedy"]
    assert " % [95 % CI: 98" in drawn["grafts_greedy"].partition(greedy)[2]
    assert "For all modules, k = " in drawn["grafts_by_rank"]
    notes = [part["text"] for part in section.parts if isinstance(part, dict) and part["kind"] == "note"]
    assert notes == [
        "Checks passed: copying nothing gives the base (off D by 0 nats on the worst prompt) "
        "and copying everything gives the tuned model (off by at most 0 nats)."
    ]


def test_ends_that_do_not_hold_are_said(run: Run) -> None:
    off = run.rows.with_columns(value=pl.when(pl.col("arm") == "all").then(3.0).otherwise("value"))
    section = grafting_page.grafting(Run(rows=off, summary=run.summary, manifest={}))
    assert any("A check FAILED" in part["text"] for part in section.parts if isinstance(part, dict) and part["kind"] == "note")


def test_network_order_is_embedding_blocks_output() -> None:
    units = [(None, "head"), (1, "attn"), (0, "norm"), (0, "mlp"), (None, "embed"), (0, "attn"), (None, "final_norm")]
    ordered = sorted(units, key=lambda unit: grafting_findings.place(*unit))
    assert ordered == [(None, "embed"), (0, "attn"), (0, "mlp"), (0, "norm"), (1, "attn"), (None, "final_norm"), (None, "head")]


def test_bars_and_curves_have_a_mark_for_each_set(run: Run) -> None:
    tables = (run.rows, run.summary, run.manifest)
    assert len(descriptions(drawing.to_svg(grafting_charts.grafts_alone(*tables)), "bar")) == 3
    svg = drawing.to_svg(grafting_charts.grafts_greedy(*tables))
    assert len(descriptions(svg, "bar")) == 2
    assert f">2: + {SECOND}<" in svg
    assert len(descriptions(drawing.to_svg(grafting_charts.grafts_in_order(*tables)), "circle")) == 6
    assert len(descriptions(drawing.to_svg(grafting_charts.grafts_by_rank(*tables)), "circle")) == 3 + 5 + 5


def test_an_unchanged_network_says_so(run: Run) -> None:
    graft = pl.col("measure") == "grafting"
    rows = run.rows.filter(~graft | pl.col("arm").is_in(["none", "all"]))
    section = grafting_page.grafting(Run(rows=rows, summary=summary.summarise(rows, NUMBERS), manifest={}))
    assert section.parts[0]["text"] == "No module of the network changed, so there is nothing to graft."
    zero = run.rows.with_columns(value=pl.when(pl.col("metric").str.starts_with("kl_")).then(0.0).otherwise("value"))
    section = grafting_page.grafting(Run(rows=zero, summary=summary.summarise(zero, NUMBERS), manifest={}))
    assert section.parts[0]["text"].startswith("No share of D can be given")
    assert grafting_words.which_module(zero) == []


def test_grafting_alone_has_its_own_d(run: Run) -> None:
    """Without divergence the arm `none` is what shares are of."""
    rows = run.rows.filter(pl.col("measure") == "grafting")
    section = grafting_page.grafting(Run(rows=rows, summary=summary.summarise(rows, NUMBERS), manifest={}))
    assert isinstance(section.parts[0], Drawn)
    assert np.isfinite(grafting_findings.shares(rows, "alone")["share"].to_numpy()).all()
