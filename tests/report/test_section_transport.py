"""The section on maps, against what was planted: a learned map carries a little more than a shift at one site, and knows its layer there."""

import numpy as np
import polars as pl
import pytest
from scipy.stats import spearmanr

from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.transport import charts as transport_charts
from mechdiff.measures.transport import closer_findings as transport_closer_findings
from mechdiff.measures.transport import findings as transport_findings
from mechdiff.measures.transport import page as transport_page
from mechdiff.measures.transport import words as transport_words
from mechdiff.measures.transport.findings import CEILING, CLOSENESS, LEARNED, REMOVAL, TRANSPORT
from mechdiff.report import drawing, effect_shares, phrasing
from mechdiff.report.parts import Drawn, Figure, Run
from mechdiff.rows import rows as make_rows
from mechdiff.statistics import intervals
from mechdiff.statistics import summary as statistics_summary
from report import planted_sections as planted
from report.conftest import CHANGED
from report.test_figures import descriptions

SITE = f"L{CHANGED}.attn_out"
CHARTS = [
    transport_charts.recovery_by_layer, transport_charts.removal_by_layer, transport_charts.closeness_by_layer, transport_charts.fit_by_layer,
    transport_charts.recovery_by_strength,
]  # fmt: skip


@pytest.fixture(scope="module")
def run(rows: pl.DataFrame, manifest: dict) -> Run:
    both = pl.concat([rows.filter(pl.col("measure") == "divergence"), planted.planted_transport(rows, n_layers=7, changed=CHANGED)])
    return Run(rows=both, summary=statistics_summary.summarise(both, NUMBERS), manifest=manifest)


def captions(section) -> dict[str, str]:
    return {part.name: part.caption for part in section.parts if isinstance(part, Drawn)}


def test_recovery_is_a_share_of_d_with_its_interval(run: Run) -> None:
    found = transport_findings.recovered(run.rows)
    d = planted.d_of(run.rows, "report")[1]
    for arm, carries in planted.CARRIES.items():
        if arm == "identity":
            continue
        one = found.filter(pl.col("name") == SITE, pl.col("arm") == arm).row(0, named=True)
        values = effect_shares.plain(effect_shares.written(run.rows, TRANSPORT, "kl_other_nats", measure="transport"))
        v = values.filter(pl.col("layer") == CHANGED, pl.col("site") == "attn_out", pl.col("arm") == arm).sort("prompt")["value"].to_numpy()
        assert one["share"] == pytest.approx(1 - v.mean() / d.mean())
        assert one["share"] == pytest.approx(carries, abs=0.04)
        assert one["low"] <= one["share"] <= one["high"]
        of_summary = run.summary.filter(
            pl.col("measure") == "transport", pl.col("direction") == TRANSPORT, pl.col("metric") == "kl_other_nats", pl.col("arm") == arm,
            pl.col("split") == "report", pl.col("layer") == CHANGED, pl.col("site") == "attn_out",
            pl.col("control").is_null() & pl.col("strength").is_null(),
        )  # fmt: skip
        assert of_summary["share"].to_list() == pytest.approx([one["share"]])
    top = transport_findings.ceiling(run.rows).filter(pl.col("name") == SITE)
    assert top["share"].to_list() == pytest.approx([planted.CEILING], abs=0.03)


def test_removal_is_held_against_the_other_divergence(run: Run) -> None:
    """The tuned model is to become the base: what is removed is a share of KL(p_base || p_tuned)."""
    back = transport_findings.recovered(run.rows, REMOVAL).filter(pl.col("name") == SITE, pl.col("arm") == "rrr")
    assert back["share"].to_list() == pytest.approx([0.9 * planted.CARRIES["rrr"]], abs=0.03)


def test_drop_and_gain_are_ratios_of_means_over_the_same_prompts(run: Run) -> None:
    close = transport_findings.closeness(run.rows).filter(pl.col("name") == SITE)
    kl = dict(close.select("arm", "kl").iter_rows())
    for one in close.filter(pl.col("arm") != "identity").iter_rows(named=True):
        assert one["drop"] == pytest.approx(1 - kl[one["arm"]] / kl["identity"])
        assert one["low"] < one["drop"] < one["high"]
        of_summary = run.summary.filter(
            pl.col("measure") == "transport", pl.col("direction") == CLOSENESS, pl.col("metric") == "kl_own_nats", pl.col("arm") == one["arm"],
            pl.col("split") == "report", pl.col("layer") == CHANGED, pl.col("site") == "attn_out",
            pl.col("control").is_null() & pl.col("strength").is_null(),
        )  # fmt: skip
        assert of_summary["drop"].to_list() == pytest.approx([one["drop"]])
    learned = close.filter(pl.col("arm").is_in(LEARNED))
    assert set(learned["trivial"]) == {"shift"}
    for one in learned.iter_rows(named=True):
        assert one["gain"] == pytest.approx(1 - one["kl"] / kl["shift"])
        assert (one["gain_low"] > 0) == (one["arm"] != "diag_affine")


def test_a_weaker_patch_is_no_drop(run: Run) -> None:
    """KL falls with strength for any map; only the identity of the same strength would tell a drop from doing less (METHOD A8)."""
    weak = run.summary.filter(pl.col("measure") == "transport", pl.col("strength").is_not_null(), pl.col("direction") == CLOSENESS)
    assert len(weak) > 20
    assert weak["drop"].null_count() == len(weak)


def test_p_is_over_refits_on_permuted_pairs(run: Run) -> None:
    found = transport_findings.fit_quality(run.rows, run.summary, ("r2_change",)).filter(
        pl.col("split") == "report", pl.col("arm").is_in(LEARNED)
    )
    at, elsewhere = found.filter(pl.col("name") == SITE), found.filter(pl.col("name") == "L1.attn_out")
    assert at["p"].to_list() == pytest.approx([1 / (1 + planted.REFITS)] * 4)
    assert elsewhere["p"].null_count() == 0
    real = -0.02
    for arm, p in elsewhere.select("arm", "p").iter_rows():
        draws = run.rows.filter(
            pl.col("metric") == "r2_change", pl.col("control").str.starts_with("permuted#"), pl.col("arm") == arm, pl.col("layer") == 1,
            pl.col("site") == "attn_out",
        )["value"]  # fmt: skip
        assert p == pytest.approx((1 + (draws >= real).sum()) / (1 + planted.REFITS))
    assert transport_findings.n_refits(run.rows) == planted.REFITS
    draws = run.summary.filter(pl.col("control").str.starts_with("permuted#").fill_null(False))
    assert draws.is_empty()


def test_the_arm_is_chosen_on_select_and_reported_on_report(run: Run) -> None:
    best = transport_findings.carried(run.rows, run.summary)
    assert best
    assert (best.name, best.arm, best.chosen_on) == (SITE, "anchored_ridge", "select")  # on report rrr is higher
    assert best.best.share == pytest.approx(planted.CARRIES["anchored_ridge"], abs=0.03)
    assert best.trivial
    assert best.trivial.arm == "shift"
    assert best.ceiling
    assert best.ceiling.share == pytest.approx(planted.CEILING, abs=0.03)
    assert best.gain
    assert best.gain.share == pytest.approx(best.best.share - best.trivial.share)
    only = run.rows.filter(~((pl.col("measure") == "transport") & (pl.col("split") == "select")))
    again = transport_findings.carried(only, run.summary)
    assert again
    assert (again.arm, again.chosen_on) == ("rrr", "report")


def test_maps_are_counted_against_the_best_of_shift_and_mean(run: Run) -> None:
    found = transport_findings.beaten(run.rows)
    assert found
    assert found.sites == 4  # the changed output, and the stream from there on
    assert found.best
    assert (found.best["name"], found.best["arm"]) == (SITE, "rrr")
    assert found.best["gain"] == pytest.approx(planted.CARRIES["rrr"] - planted.CARRIES["shift"], abs=0.05)
    d = planted.d_of(run.rows, "report")[1]
    values = effect_shares.plain(effect_shares.written(run.rows, TRANSPORT, "kl_other_nats", measure="transport"))
    at = values.filter(pl.col("layer") == CHANGED, pl.col("site") == "attn_out").sort("prompt")
    shift, rrr = (at.filter(pl.col("arm") == arm)["value"].to_numpy() for arm in ("shift", "rrr"))
    gain, low, high = (float(end[0]) for end in intervals.share_intervals((shift - rrr)[:, None], d))
    assert found.best["gain"] == pytest.approx(gain)
    assert found.best["low"] < low < high < found.best["high"], "a band over all maps at all sites is wider than one interval"
    assert found.maps == 4 * 4
    learned = (pl.col("measure") == "transport") & pl.col("arm").is_in(LEARNED) & (pl.col("direction") == TRANSPORT)
    worse = run.rows.with_columns(value=pl.when(learned).then(pl.col("value") + 20).otherwise("value"))
    said = " ".join(transport_words.carried(worse, statistics_summary.summarise(worse, NUMBERS)))
    assert "No linear map recovers significantly more than the best fixed vector at any of the 4 sites" in said


def test_the_square_law_is_read_off_the_smallest_strength(run: Run) -> None:
    law = transport_closer_findings.quadratic(run.rows).filter(pl.col("name") == SITE)
    assert law["ratio"].to_list() == pytest.approx([1.0] * 5, abs=0.12)  # planted: KL = s^2 KL(1), with noise
    curve = transport_closer_findings.rows_of_strength(run.rows, CLOSENESS, "kl_own_nats").filter(
        pl.col("name") == SITE, pl.col("arm") == "rrr"
    )
    assert curve["s"].to_list() == [0, 0.25, 0.5, 0.75, 1, 1.25]


def test_the_diagonal_wins_where_a_map_knows_its_layer(run: Run) -> None:
    square = transport_closer_findings.bogus_square(run.rows, "rrr", "attn_out")
    assert len(square) == len(planted.CLOSER) ** 2
    assert transport_closer_findings.diagonal_wins(run.rows, "rrr", "attn_out", [CHANGED]) == ([CHANGED], [])
    at = (pl.col("measure") == "transport") & (pl.col("direction") == CLOSENESS) & (pl.col("layer") == CHANGED) & (pl.col("arm") == "rrr")
    swapped = run.rows.with_columns(value=pl.when(at).then(-pl.col("value")).otherwise("value"))
    assert transport_closer_findings.diagonal_wins(swapped, "rrr", "attn_out", [CHANGED]) == ([], [CHANGED])
    noise = pl.Series(np.random.default_rng(1).normal(0, 60, len(run.rows)))
    noisy = run.rows.with_columns(value=pl.when(at).then(pl.col("value") + noise).otherwise("value"))
    assert transport_closer_findings.diagonal_wins(noisy, "rrr", "attn_out", [CHANGED]) == ([], [])
    assert set(transport_charts.squares(run.rows, run.summary)) == {"attn_out", "resid_post"}  # elsewhere there is nothing to map


def test_bogus_maps_stand_as_drops_beside_their_layer_s_own(run: Run) -> None:
    arm = transport_charts.arm_of_squares(run.rows, run.summary)
    found = transport_closer_findings.bogus_drops(run.rows, arm, "attn_out").filter(pl.col("patched") == CHANGED)
    own = found.filter("own").row(0, named=True)
    close = transport_findings.closeness(run.rows).filter(pl.col("name") == SITE, pl.col("arm") == arm).row(0, named=True)
    for name, other in (("raw", "raw"), ("nats", "kl"), ("drop", "drop"), ("low", "low"), ("high", "high")):
        assert own[name] == pytest.approx(close[other]), name
    bogus = found.filter(~pl.col("own"))
    assert len(bogus) == len(planted.CLOSER) - 1
    for one in bogus.iter_rows(named=True):
        assert one["raw"] == pytest.approx(own["raw"])
        assert one["drop"] == pytest.approx(1 - one["nats"] / one["raw"])
        assert one["low"] < one["drop"] < one["high"] < own["low"], "another layer's map takes off less"
    parts = (part for part in transport_page.transport(run).parts if isinstance(part, dict))
    [table] = [part for part in parts if part.get("folded", "").startswith("Bogus maps")]
    assert [SITE, f"L{CHANGED}, its own", phrasing.nats(own["raw"]), phrasing.nats(own["nats"])] in [line[:4] for line in table["rows"]]
    assert {line[1].partition(", ")[2] for line in table["rows"]} == {"its own", "bogus"}


def test_what_is_said_is_what_was_planted(run: Run) -> None:
    section = transport_page.transport(run)
    said = captions(section)
    assert list(said) == ["transport_recovery", "transport_removal", "transport_closeness", "transport_fit",
                          "transport_strength_recovery"]  # fmt: skip
    best = transport_findings.carried(run.rows, run.summary)
    assert best
    assert best.trivial
    assert best.ceiling
    value = phrasing.with_interval(best.trivial.share, best.trivial.low, best.trivial.high, digits=2)
    first = f"At {SITE} adding one fixed vector (the training prompts' mean activation difference) to the base recovers {value} of D"
    there = phrasing.with_interval(best.ceiling.share, best.ceiling.low, best.ceiling.high, digits=2)
    assert f"{first}, and patching in the tuned activation itself {there}" in said["transport_recovery"]
    assert "(site and conditions selected on the validation prompts)" in said["transport_recovery"]
    assert "The best linear map there, anchored_ridge, recovers" in said["transport_recovery"]
    assert (
        "At 4 of 21 sites a fitted map comes closer than the best of identity, mean difference and mean activation"
        in said["transport_closeness"]
    )
    close = dict(transport_findings.closeness(run.rows).filter(pl.col("name") == SITE).select("arm", "kl").iter_rows())
    assert f"identity {phrasing.nats(close['identity'])}, shift {phrasing.nats(close['shift'])}" in said["transport_closeness"]
    assert f"on the test prompts (selected on them, so optimistically biased): {SITE}, rrr" in said["transport_fit"]
    assert f"up to {planted.REFITS} refits" in said["transport_fit"]
    notes = " ".join(part["text"] for part in section.parts if isinstance(part, dict) and part["kind"] == "note")
    assert f"attn_out: its own map comes closer than every other layer's at 1 of 1 layers (L{CHANGED})" in notes
    tables = [part for part in section.parts if isinstance(part, dict) and part["kind"] == "table"]
    assert all(len(row) == len(one["columns"]) for one in tables for row in one["rows"])
    assert len(tables[0]["rows"]) == transport_page.TOP
    assert tables[0]["rows"][0][0].endswith(", rrr")


def test_over_fitting_shows(run: Run) -> None:
    drops = {(arm, split): drop for _, arm, split, drop in transport_closer_findings.drop_by_split(run.rows, run.summary).iter_rows()}
    assert drops["rrr", "fit"] == pytest.approx(0.95)
    assert drops["rrr", "report"] == pytest.approx(planted.CARRIES["rrr"], abs=0.05)
    rho = transport_closer_findings.correlation_with_cosine(run.rows)
    assert set(rho["n"]) == {24}
    closeness = run.rows.filter(pl.col("measure") == "transport", pl.col("direction") == CLOSENESS, pl.col("split") == "report")
    closeness = closeness.filter(pl.all_horizontal(pl.col("control", "strength", "unit").is_null())).sort("prompt")
    for row in rho.iter_rows(named=True):
        here = closeness.filter(pl.format("L{}.{}", "layer", "site") == row["name"], pl.col("arm") == row["arm"])
        kl, cosine = (here.filter(pl.col("metric") == metric)["value"].to_numpy() for metric in ("kl_own_nats", "cosine"))
        assert row["rho"] == pytest.approx(spearmanr(kl, cosine).statistic, abs=1e-12)


def test_correlation_with_cosine_against_a_monotone_relation() -> None:
    place = {
        "measure": "transport",
        "direction": CLOSENESS,
        "split": "report",
        "layer": 0,
        "site": "attn_out",
        "arm": "rrr",
        "prompt": list("abcd"),
    }
    table = pl.concat(
        [make_rows([4.0, 3.0, 2.0, 1.0], metric="kl_own_nats", **place), make_rows([0.1, 0.2, 0.5, 0.9], metric="cosine", **place)]
    )
    assert transport_closer_findings.correlation_with_cosine(table)["rho"].to_list() == pytest.approx([-1.0])


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.__name__)
def test_figures_are_valid_and_fit(chart: Figure, width: int, run: Run) -> None:
    from report.test_figures import test_figures_are_valid_and_fit_their_width

    test_figures_are_valid_and_fit_their_width(chart, width, run.rows, run.summary, run.manifest)


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.__name__)
def test_figures_without_their_rows_are_none(chart: Figure, rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    assert chart(rows, summary, {}) is None


def test_lines_have_a_dot_for_each_cell(run: Run) -> None:
    tables = (run.rows, run.summary, run.manifest)
    sites = 7 * len(planted.MAPPED_SITES)
    assert len(descriptions(drawing.to_svg(transport_charts.recovery_by_layer(*tables)), "circle")) == sites * (7 + 1)  # and the ceiling
    assert len(descriptions(drawing.to_svg(transport_charts.fit_by_layer(*tables)), "circle")) == sites * 4


def test_without_an_effect_there_is_no_share(run: Run) -> None:
    zero = run.rows.with_columns(value=pl.when(pl.col("metric").str.starts_with("kl_")).then(0.0).otherwise("value"))
    section = transport_page.transport(Run(rows=zero, summary=statistics_summary.summarise(zero, NUMBERS), manifest={}))
    assert section.parts[0]["text"].startswith("There is no effect to share")
    assert not {"transport_recovery", "transport_removal"} & set(captions(section))
    assert not transport_findings.closeness(zero)["counts"].any()


def test_maps_that_were_not_fitted_are_a_sentence(rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    section = transport_page.transport(Run(rows=rows, summary=summary, manifest={}))
    assert [part["kind"] for part in section.parts] == ["note"]


def test_a_ceiling_alone_says_nothing_of_maps(run: Run) -> None:
    rows = run.rows.filter((pl.col("measure") != "transport") | (pl.col("direction") == CEILING))
    summary = statistics_summary.summarise(rows, NUMBERS)
    section = transport_page.transport(Run(rows=rows, summary=summary, manifest={}))
    assert transport_words.carried(rows, summary) == []
    assert captions(section) == {}


def test_a_value_that_is_not_finite_leaves_out_its_cell(run: Run) -> None:
    at = (pl.col("measure") == "transport") & (pl.col("arm") == "rrr") & (pl.col("prompt") == "r003") & (pl.col("direction") == TRANSPORT)
    rows = run.rows.with_columns(value=pl.when(at).then(float("inf")).otherwise("value"))
    found = transport_findings.recovered(rows)
    assert "rrr" not in found["arm"].to_list()
    assert np.isfinite(found["share"].to_numpy()).all()
