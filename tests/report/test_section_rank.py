"""The section on rank, against what was planted: two dimensions at one site, one in the stream above it, none below."""

import polars as pl
import pytest

from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.rank import charts as rank_charts
from mechdiff.measures.rank import findings as rank_findings
from mechdiff.measures.rank import page as rank_page
from mechdiff.measures.rank import words as rank_words
from mechdiff.measures.transport.findings import CLOSENESS, TRANSPORT
from mechdiff.report import drawing, phrasing
from mechdiff.report.page import headed
from mechdiff.report.parts import Drawn, Figure, Run
from mechdiff.rows import rows as make_rows
from mechdiff.statistics import summary as statistics_summary
from report import planted_sections as planted
from report import test_figures
from report.conftest import CHANGED
from report.test_figures import descriptions

SITE = f"L{CHANGED}.attn_out"
CHARTS = [
    rank_charts.rank_by_layer, rank_charts.r2_by_rank, rank_charts.closeness_by_rank, rank_charts.transport_by_rank,
    rank_charts.drop_by_strength,
]  # fmt: skip


@pytest.fixture(scope="module")
def run(rows: pl.DataFrame, manifest: dict) -> Run:
    both = pl.concat([rows.filter(pl.col("measure") == "divergence"), planted.planted_rank(rows, n_layers=7, changed=CHANGED)])
    return Run(rows=both, summary=statistics_summary.summarise(both, NUMBERS), manifest=manifest)


def captions(section) -> dict[str, str]:
    return {part.name: part.caption for part in section.parts if isinstance(part, Drawn)}


def test_ranks_are_those_of_the_rows(run: Run) -> None:
    found = {r["name"]: r for r in rank_findings.chosen(run.summary).iter_rows(named=True)}
    assert len(found) == 7 * len(planted.MAPPED_SITES)
    assert (found[SITE]["rank_chosen"], found[SITE]["rank_uncentred"]) == (planted.RANK, planted.UNCENTRED)
    assert found["L1.attn_out"]["rank_chosen"] == 0
    assert found["L5.resid_post"]["rank_chosen"] == 1


def test_r2_curves_hold_the_three_kinds_with_the_standard_error(run: Run) -> None:
    curve = rank_findings.r2_curves(run.rows, run.summary, SITE)
    assert curve["curve"].unique().sort().to_list() == ["cross-validated", "test prompts", "training prompts"]
    assert set(curve["rank"]) == set(planted.RANKS)
    cv = curve.filter(pl.col("curve") == "cross-validated")
    assert (cv["high"] - cv["value"]).to_list() == pytest.approx([0.03] * len(planted.RANKS))
    assert curve.filter(pl.col("curve") == "test prompts")["low"].null_count() == len(planted.RANKS)


def test_causal_curves_are_ratios_of_means(run: Run) -> None:
    d = planted.d_of(run.rows, "report")[1]
    curve = rank_findings.causal(run.rows, SITE, TRANSPORT)
    assert curve["series"].unique(maintain_order=True).to_list() == list(rank_findings.SERIES)
    values = run.rows.filter(
        pl.col("measure") == "rank", pl.col("direction") == TRANSPORT, pl.col("metric") == "kl_other_nats", pl.col("layer") == CHANGED,
        pl.col("site") == "attn_out", pl.col("unit").is_null() & pl.col("strength").is_null() & pl.col("control").is_null(),
        pl.col("arm") == "rrr",
    )  # fmt: skip
    for one in curve.filter(pl.col("series") == "rrr").iter_rows(named=True):
        v = values.filter(pl.col("rank") == one["rank"]).sort("prompt")["value"].to_numpy()
        assert one["value"] == pytest.approx(1 - v.mean() / d.mean())
        assert one["low"] <= one["value"] <= one["high"]
    random = curve.filter(pl.col("series") == "random subspace")
    assert set(random["draws"]) == {3}
    assert (random["low"] <= random["value"]).all()


@pytest.mark.parametrize("direction", [CLOSENESS, TRANSPORT])
def test_half_and_nine_tenths_of_the_gain(run: Run, direction: str) -> None:
    """Planted 0.3, 0.55, 0.8, 0.82, 0.83 at rank 0, 1, 2, 4, 8: rank 1 has 47 % of the gain, rank 2 94 %."""
    assert rank_findings.needed(rank_findings.causal(run.rows, SITE, direction), direction) == {0.5: 2, 0.9: 2}
    curve = rank_findings.causal(run.rows, SITE, direction)
    assert rank_findings.needed(curve, direction, parts=(0.4, 0.96))[0.4] == 1
    flat = curve.with_columns(value=curve["value"][0], low=curve["value"][0] - 0.1, high=curve["value"][0] + 0.1)
    assert rank_findings.needed(flat, direction) is None
    worse = curve.with_columns(value=-pl.col("value"), low=-pl.col("high"), high=-pl.col("low"))
    assert rank_findings.needed(worse, direction) is None


def test_what_is_said_is_what_was_planted(run: Run) -> None:
    section = rank_page.rank(run)
    said = captions(section)
    assert list(said) == ["rank_by_layer", "rank_r2", "rank_closeness", "rank_transport", "drop_strength"]
    seen = f"Regression sees {planted.RANK} dimensions of the change at {SITE} (R² 0.50 on the test prompts; {planted.FIT_PROMPTS} training prompts"
    assert f"{seen}; {planted.UNCENTRED} with the constant counted; smaller ones may be missed)." in said["rank_by_layer"]
    assert headed(said["rank_by_layer"])[0] == "Rank of the change, site by site"
    assert "40 % of its squared length varies from prompt to prompt." in said["rank_by_layer"]
    counted = "Of 21 sites: at 1 the rank that is drawn is seen, at 3 too few prompts to tell and at 17 no dimension is seen"
    assert counted in said["rank_by_layer"]
    assert f"{SITE}: rank 2 does 90 % of the gain from rank 0 to the largest, 8" in said["rank_closeness"]
    best = rank_findings.by_strength(run.rows, SITE, TRANSPORT).sort("value", descending=True).row(0, named=True)
    assert (best["rank"], best["s"]) == (8, 1.0)
    notes = [part["text"] for part in section.parts if isinstance(part, dict) and part["kind"] == "note"]
    assert f"recovers most: rank 8 at strength 1, {phrasing.share(best['value'])} of D" in " ".join(notes)
    tables = [part for part in section.parts if isinstance(part, dict) and part["kind"] == "table"]
    assert all(len(row) == len(one["columns"]) for one in tables for row in one["rows"])
    assert tables[0]["rows"][0][2:4] == ["2", "2"]


def test_sites_whose_maps_do_the_same_at_every_rank_are_named_with_their_direction(run: Run) -> None:
    """The note itself: tests/prototype."""
    assert rank_findings.same_at_all_ranks(run.rows).is_empty()
    at = (pl.col("measure") == "rank") & (pl.col("layer") == CHANGED) & (pl.col("site") == "attn_out") & (pl.col("metric") == "kl_own_nats")
    at = at & (pl.col("direction") == CLOSENESS) & (pl.col("rank") > 0) & (pl.col("arm") == "rrr") & pl.col("strength").is_null()
    same = pl.when(at & pl.col("control").is_null() & pl.col("unit").is_null())
    rows = run.rows.with_columns(value=same.then(pl.col("prompt").str.slice(1).cast(pl.Float64, strict=False) + 1).otherwise("value"))
    assert rank_findings.same_at_all_ranks(rows).rows() == [(SITE, CLOSENESS, None, len(planted.RANKS) - 1)]


def test_a_site_without_a_causal_curve_has_its_sentence(run: Run) -> None:
    only = run.rows.filter(pl.col("measure") == "rank", pl.col("layer") == 1, pl.col("site") == "mlp_out")
    said = rank_words.how_many_dimensions(only, statistics_summary.summarise(only, NUMBERS))
    assert said == [
        "With 64 training prompts regression sees no dimension of the change at L1.mlp_out that the base's activation predicts.",
        "It is the same vector on every prompt: 1 % of its squared length varies from prompt to prompt.",
    ]


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.__name__)
def test_figures_are_valid_and_fit(chart: Figure, width: int, run: Run) -> None:
    test_figures.test_figures_are_valid_and_fit_their_width(chart, width, run.rows, run.summary, run.manifest)


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.__name__)
def test_figures_without_their_rows_are_none(chart: Figure, rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    assert chart(rows, summary, {}) is None


def test_every_rank_has_its_mark(run: Run) -> None:
    tables = (run.rows, run.summary, run.manifest)
    sites = 7 * len(planted.MAPPED_SITES)
    assert len(descriptions(drawing.to_svg(rank_charts.rank_by_layer(*tables)), "circle")) == 2 * sites
    grids = [one for one in rank_page.rank(run).parts if isinstance(one, dict) and "by rank and strength" in (one.get("folded") or "")]
    assert [sum(len(row) - 1 for row in one["rows"]) for one in grids] == [3 * len(planted.RANKS)] * 2
    shown = rank_findings.curve_sites(run.rows, run.summary)[: rank_findings.SITES]
    assert shown[0] == SITE
    assert len(descriptions(drawing.to_svg(rank_charts.closeness_by_rank(*tables)), "circle")) == len(shown) * 4 * len(planted.RANKS)


def test_without_an_effect_there_is_no_share(run: Run) -> None:
    zero = run.rows.with_columns(value=pl.when(pl.col("metric").str.starts_with("kl_")).then(0.0).otherwise("value"))
    section = rank_page.rank(Run(rows=zero, summary=statistics_summary.summarise(zero, NUMBERS), manifest={}))
    assert "rank_transport" not in captions(section)
    assert any("no effect to share" in part["text"] for part in section.parts if isinstance(part, dict) and part["kind"] == "note")


def test_a_rank_that_was_not_measured_is_a_sentence(rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    assert [part["kind"] for part in rank_page.rank(Run(rows=rows, summary=summary, manifest={})).parts] == ["note"]


def test_a_rank_s_drop_is_held_against_the_identity_of_another_measure_at_the_same_place() -> None:
    """`rank` has no identity arm of its own; the Fisher-weighted map has the whole site's; another strength has none."""
    place = {"direction": CLOSENESS, "split": "report", "layer": 1, "site": "attn_out", "metric": "kl_own_nats", "prompt": list("abcd")}
    table = pl.concat(
        [
            make_rows([4.0] * 4, measure="transport", arm="identity", rank=0, **place),
            make_rows([8.0] * 4, measure="patching", arm="identity", **place),
            make_rows([1.0] * 4, measure="transport", arm="rrr", rank=2, **place),
            make_rows([2.0] * 4, measure="rank", arm="rrr", rank=2, **place),
            make_rows([4.0] * 4, measure="rank", arm="rrr", rank=2, unit="fisher", **place),
            make_rows([1.0] * 4, measure="rank", arm="rrr", rank=2, strength=0.5, **place),
            make_rows([1.0] * 4, measure="rank", arm="rrr", rank=2, **{**place, "direction": TRANSPORT}),
            make_rows([3.0] * 4, measure="transport", arm="identity", rank=0, **{**place, "direction": TRANSPORT}),
        ]
    )
    found = statistics_summary.summarise(table, NUMBERS).filter(pl.col("arm") == "rrr")
    drops = {tuple(r[name] for name in ("measure", "direction", "unit", "strength")): r["drop"] for r in found.iter_rows(named=True)}
    assert drops == {
        ("transport", CLOSENESS, None, None): 0.75,
        ("rank", CLOSENESS, None, None): 0.75,
        ("rank", CLOSENESS, "fisher", None): 0.5,
        ("rank", CLOSENESS, None, 0.5): None,
        ("rank", TRANSPORT, None, None): None,
    }


def test_the_drop_is_held_against_the_identity_at_the_same_strength(run: Run) -> None:
    found = {(r["rank"], r["s"]): r["value"] for r in rank_findings.drop_by_strength(run.summary, SITE).iter_rows(named=True)}
    for rank in planted.RANKS:
        for s in (0.5, 1.5):
            assert found[rank, s] == pytest.approx(s * (2 - s) * planted.BY_RANK[rank], abs=1e-9)
