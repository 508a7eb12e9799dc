"""Attribution in numbers: rank correlations against scipy, ties, completeness and churn against hand-made cases and what was planted."""

import numpy as np
import polars as pl
import pytest
from scipy.stats import spearmanr, zscore

from mechdiff.measures.attribution import churn as attribution_churn
from mechdiff.measures.attribution import findings as attribution_findings
from mechdiff.measures.attribution.findings import graded, spearman
from mechdiff.measures.catalogue import NUMBERS
from mechdiff.report.parts import Run
from mechdiff.rows import rows as make
from mechdiff.statistics import summary as statistics_summary
from report import planted_attribution as planted
from report.conftest import CHANGED

SIZE = {"n_layers": 7, "changed": CHANGED}


@pytest.fixture(scope="module")
def run(rows: pl.DataFrame) -> Run:
    both = pl.concat([rows.filter(pl.col("measure") == "divergence"), planted.planted_attribution(rows, **SIZE)])
    return Run(rows=both, summary=statistics_summary.summarise(both, NUMBERS), manifest=planted.attribution_manifest(**SIZE))


def heads_of(values: dict[str, list[list[float]]], **named: object) -> pl.DataFrame:
    """Rows of heads of layer 0: a list of values per prompt for each head."""
    at = {"measure": "attribution", "split": "report", "layer": 0, "site": "attn_proj", **named}
    return pl.concat([make(each, unit=unit, prompt=[f"p{i}" for i in range(len(each))], **at) for unit, each in values.items()])


def crossed(estimates: np.ndarray, effects: np.ndarray, *, arm: str = "grad_x_diff") -> pl.DataFrame:
    """Estimates and effects [prompt, head] as rows of one direction."""
    units = [f"head {i}" for i in range(estimates.shape[1])]
    named = {"direction": "tuned<-base"}
    return pl.concat([
        heads_of(dict(zip(units, estimates.T.tolist(), strict=True)), arm=arm, metric="attributed_logits", **named),
        heads_of(dict(zip(units, effects.T.tolist(), strict=True)), arm="contribution", metric="effect_logits", **named),
    ])  # fmt: skip


def own(base: np.ndarray, tuned: np.ndarray) -> pl.DataFrame:
    """Attributions [prompt, head] within each model as rows."""
    units = [f"head {i}" for i in range(base.shape[1])]
    sides = {"base<-base": base, "tuned<-tuned": tuned}
    return pl.concat([
        heads_of(dict(zip(units, side.T.tolist(), strict=True)), arm="grad_x_diff", metric="attributed_logits", direction=direction)
        for direction, side in sides.items()
    ])  # fmt: skip


@pytest.mark.parametrize("levels", [3, 1000])
def test_spearman_is_that_of_scipy_with_and_without_ties(levels: int) -> None:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, levels, (2, 6, 40)).astype(float)
    found = spearman(one, one + other)
    assert found.shape == (6,)
    assert found == pytest.approx([spearmanr(a, b).statistic for a, b in zip(one, one + other, strict=True)], abs=1e-12)
    assert np.isnan(spearman(one, np.zeros_like(one))).all()


def test_what_differs_by_rounding_ties() -> None:
    noise = 1e-7 * np.array([1.0, -2.0, 3.0, -4.0])
    effects, estimates = np.append(noise, [1.0, 2.0]), np.append(-noise, [1.0, 2.0])
    assert graded(effects).tolist()[:4] == [0.0] * 4
    assert float(spearman(effects, estimates)) < 0.5
    assert float(spearman(graded(effects), graded(estimates))) == pytest.approx(1.0)


def test_agreement_is_the_correlation_of_means_over_prompts() -> None:
    rng = np.random.default_rng(1)
    effects = rng.normal(0, 1, (12, 30))
    estimates = effects + rng.normal(0, 0.8, effects.shape)
    names = [f"L0.head {i}" for i in range(30)]
    manifest = {"attribution": {"validated": {"tuned<-base": {"top": names[:12], "random": names[12:]}}}}
    found = {r["group"]: r for r in attribution_findings.agreement(crossed(estimates, effects), manifest).iter_rows(named=True)}
    for group, part in (("together", slice(None)), ("top", slice(12)), ("random", slice(12, None))):
        one = found[group]
        a, b = estimates.mean(axis=0)[part], effects.mean(axis=0)[part]
        assert (one["heads"], one["n"], one["nothing"]) == (len(a), 12, 0)
        assert one["rho"] == pytest.approx(spearmanr(a, b).statistic)
        assert one["error"] == pytest.approx(np.abs(a - b).sum() / np.abs(b).sum())
        assert one["rho_low"] < one["rho"] <= one["rho_high"]
        assert one["error_low"] <= one["error"] < one["error_high"]


def test_effects_that_are_all_rounding_have_no_correlation_and_no_error() -> None:
    effects = np.tile([5.0, 1e-7, -2e-7, 3e-7], (6, 1))
    estimates = np.tile([4.0, 2e-7, 1e-7, -3e-7], (6, 1))
    manifest = {"attribution": {"validated": {"tuned<-base": {"top": ["L0.head 0"], "random": [f"L0.head {i}" for i in (1, 2, 3)]}}}}
    found = {r["group"]: r for r in attribution_findings.agreement(crossed(estimates, effects), manifest).iter_rows(named=True)}
    assert (found["random"]["nothing"], found["random"]["rho"], found["random"]["error"], found["random"]["rho_low"]) == (
        3,
        None,
        None,
        None,
    )
    assert (found["top"]["rho"], found["top"]["error"]) == (None, pytest.approx(0.2))
    assert (found["together"]["nothing"], found["together"]["rho"]) == (3, pytest.approx(1.0))


def test_one_prompt_has_no_interval() -> None:
    found = attribution_findings.agreement(crossed(np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 3.0, 2.0]])), {})
    one = found.filter(pl.col("group") == "together").row(0, named=True)
    assert (one["rho"], one["rho_low"], one["rho_high"], one["error_low"]) == (pytest.approx(0.5), None, None, None)


def test_prompts_without_m_are_left_out_and_counted() -> None:
    rng = np.random.default_rng(2)
    effects, estimates = rng.normal(0, 1, (2, 8, 10))
    blank = np.where(np.arange(8)[:, None] < 3, np.nan, 1.0)
    table = crossed(estimates * blank, effects * blank)
    assert attribution_findings.prompts(table) == attribution_findings.Prompts(defined=5, undefined=3)
    one = attribution_findings.agreement(table, {}).row(0, named=True)
    assert one["n"] == 5
    assert one["rho"] == pytest.approx(spearmanr(estimates[3:].mean(axis=0), effects[3:].mean(axis=0)).statistic)
    summary = statistics_summary.summarise(table, NUMBERS)
    assert attribution_findings.means(table, summary, "effect_logits")["n"].to_list() == [5] * 10


def test_planted_agreement_and_completeness(run: Run) -> None:
    found = attribution_findings.agreement(run.rows, run.manifest)
    fine = found.filter(pl.col("arm") == "integrated_gradients", pl.col("group") == "together")
    assert fine["rho"].to_list() == pytest.approx([1.0, 1.0])
    assert fine["error"].to_list() == pytest.approx([planted.MISSED] * 2)
    assert found.filter(pl.col("group") == "top")["heads"].to_list() == [20] * 4
    table = attribution_findings.completeness(run.rows)
    counted = table.filter(pl.col("arm") == "integrated_gradients")
    assert counted.filter("counts")["layer"].to_list() == [4, 5, 6] * 2
    assert counted.filter("counts")["error"].to_list() == pytest.approx([planted.MISSED] * 6)
    assert counted.filter(~pl.col("counts"))["error"].to_list() == [None] * 8


def test_completeness_is_the_distance_of_the_sum_from_the_whole() -> None:
    """By hand: sums 3, 3 against wholes 4, 2 on layer 0 is 2/6; layer 1 is off by 1/2; layer 2 has next to no effect."""
    at = {"measure": "attribution", "split": "report", "direction": "base<-tuned", "site": "attn_proj", "prompt": ["p0", "p1"]}
    parts = []
    for layer, heads, whole in (
        (0, [[1.0, 1.0], [2.0, 2.0]], [4.0, 2.0]),
        (1, [[1.0, 0.0], [0.0, 0.0]], [2.0, 0.0]),
        (2, [[1.0, 1.0]], [1e-5] * 2),
    ):
        parts += [
            make(each, layer=layer, unit=f"head {i}", arm="integrated_gradients", metric="attributed_logits", **at)
            for i, each in enumerate(heads)
        ]
        parts.append(make(whole, layer=layer, unit="all", arm="contribution", metric="effect_logits", **at))
    table = attribution_findings.completeness(pl.concat(parts, rechunk=True))
    assert table["error"].to_list() == [pytest.approx(1 / 3), pytest.approx(1 / 2), None]
    assert table["summed"].to_list() == [3.0, 0.5, 1.0]
    whole = attribution_findings.complete(table).row(0, named=True)
    assert (whole["layers"], whole["median"], whole["worst"], whole["worst_layer"]) == (2, pytest.approx(5 / 12), pytest.approx(1 / 2), 1)


def test_validated_heads_have_the_means_and_intervals_of_the_summary(run: Run) -> None:
    found = attribution_findings.validated(run.rows, run.summary, run.manifest)
    assert len(found) == 2 * 2 * 40
    assert found.group_by("group").len().sort("group")["len"].to_list() == [80, 80]
    best = found.filter(pl.col("name") == f"L{CHANGED}.head 3", pl.col("direction") == "tuned<-base", pl.col("arm") == "grad_x_diff").row(
        0, named=True
    )
    where = (
        (pl.col("measure") == "attribution") & (pl.col("layer") == CHANGED) & (pl.col("unit") == "head 3") & (pl.col("split") == "report")
    )
    for metric, word in (("attributed_logits", "estimate"), ("effect_logits", "effect")):
        one = run.summary.filter(
            where, pl.col("metric") == metric, pl.col("direction") == "tuned<-base", pl.col("arm") != "integrated_gradients"
        )
        ends = one.select("mean", "ci_low", "ci_high").row(0)
        assert (best[word], best[f"{word}_low"], best[f"{word}_high"]) == ends


def test_top_heads_are_ranked_on_select_and_reported_on_report(run: Run) -> None:
    found, split = attribution_findings.top_heads(run.rows, run.summary, "tuned<-base")
    assert (split, found["name"][0], len(found)) == ("select", f"L{CHANGED}.head 3", 63)
    here = attribution_findings.means(run.rows, run.summary, "attributed_logits", split="select").filter(
        pl.col("direction") == "tuned<-base", pl.col("unit").is_not_null()
    )
    assert set(found["name"][:5]) == set(here.sort(pl.col("mean").abs(), descending=True)["name"][:5])
    reported = attribution_findings.real(run.rows).filter(
        pl.col("direction") == "tuned<-base", pl.col("name") == found["name"][0], pl.col("arm") == "grad_x_diff"
    )
    assert found["estimate"][0] == pytest.approx(reported["value"].mean())
    alone = run.rows.filter(pl.col("split") == "report")
    assert attribution_findings.top_heads(alone, statistics_summary.summarise(alone, NUMBERS), "tuned<-base")[1] == "report"


def test_top_sites_leave_the_stream_out_where_there_are_others(run: Run) -> None:
    found, split = attribution_findings.top_sites(run.rows, run.summary, "base<-tuned")
    assert (split, found["name"][0]) == ("report", f"L{CHANGED}.attn_out")
    assert set(found["site"]) == {"attn_out", "mlp_out"}
    stream = run.rows.filter(pl.col("site").is_in(["resid_post", "attn_proj"]))
    assert set(attribution_findings.top_sites(stream, statistics_summary.summarise(stream, NUMBERS), "base<-tuned")[0]["site"]) == {
        "resid_post"
    }


def test_planted_churn(run: Run) -> None:
    found = attribution_churn.churn(run.rows, run.summary, run.manifest)
    assert len(found) == 63
    states = {r["name"]: r["state"] for r in found.filter(pl.col("state").is_not_null()).iter_rows(named=True)}
    assert states == {planted.name(planted.LEFT): "left", planted.name(planted.ENTERED): "entered", planted.name(planted.STAYED): "stayed"}
    assert found.filter(pl.col("state").is_not_null())["holds"].to_list() == [1.0] * 3
    for model in ("base", "tuned"):
        assert found[f"z_{model}"].to_numpy() == pytest.approx(zscore(found[model].to_numpy()))
        low, high = attribution_churn.limits(found, None)[model]
        out = (found[model] <= low) | (found[model] >= high)
        assert out.to_list() == (found[f"z_{model}"].abs() >= attribution_churn.OUTLIER).to_list()


def test_a_threshold_takes_the_place_of_z(run: Run) -> None:
    named = planted.attribution_manifest(**SIZE, threshold=0.35)
    found = attribution_churn.churn(run.rows, run.summary, named)
    states = {r["name"]: r["state"] for r in found.filter(pl.col("state").is_not_null()).iter_rows(named=True)}
    assert states == {planted.name(planted.ENTERED): "entered", planted.name(planted.STAYED): "stayed"}
    assert attribution_churn.limits(found, 0.35) == {"base": (-0.35, 0.35), "tuned": (-0.35, 0.35)}


def test_a_head_near_the_threshold_does_not_hold() -> None:
    """Head 0 is 1 or 3 with mean 2 just over the threshold: in about half of all resamples it is under it."""
    base = np.zeros((20, 3)) + np.where(np.arange(20) % 2, 1.0, 3.0)[:, None] * [1, 0, 0]
    table = own(base, np.zeros((20, 3)))
    found = attribution_churn.churn(table, statistics_summary.summarise(table, NUMBERS), {"attribution": {"threshold": 1.99}})
    assert found["state"].to_list() == ["left", None, None]
    assert found["holds"][0] == pytest.approx(0.58, abs=0.05)  # P(at least 10 of 20 draws are 3)
    assert found["holds"].to_list()[1:] == [1.0, 1.0]


def test_heads_that_do_not_differ_do_not_stand_out() -> None:
    flat = np.full((5, 6), 0.3)
    table = own(flat, flat)
    found = attribution_churn.churn(table, statistics_summary.summarise(table, NUMBERS), {})
    assert found["z_base"].to_list() == [0.0] * 6
    assert found["state"].to_list() == [None] * 6
    assert attribution_churn.between_models(table) == attribution_churn.Correlation(rho=None, low=None, high=None)


def test_overlap_beside_chance(run: Run) -> None:
    base = np.tile([*range(30, 0, -1)], (4, 1)).astype(float)
    tuned = base[:, ::-1].copy()
    tuned[:, :2] = [[50.0, -40.0]] * 4  # the first two heads are the largest in both, the sign does not matter
    table = own(base, tuned)
    found = attribution_churn.overlap(attribution_churn.churn(table, statistics_summary.summarise(table, NUMBERS), {}))
    assert found["k"].to_list() == [5, 10, 20]
    assert found["shared"].to_list() == [2, 2, 10]
    assert found["share"].to_list() == [0.4, 0.2, 0.5]
    assert found["chance"].to_list() == pytest.approx([5 / 30, 10 / 30, 20 / 30])
    few = attribution_churn.churn(run.rows, run.summary, run.manifest).head(10)
    assert attribution_churn.overlap(few)["k"].to_list() == [5]


def test_the_models_correlation_is_scipys(run: Run) -> None:
    between = attribution_churn.between_models(run.rows)
    found = attribution_churn.churn(run.rows, run.summary, run.manifest)
    assert between.rho == pytest.approx(spearmanr(found["base"], found["tuned"]).statistic, abs=0.01)  # but for ties in rounding
    assert between.low is not None
    assert between.high is not None
    assert between.low <= between.rho <= between.high
    assert between.high - between.low > 0


def test_without_rows_tables_are_empty(rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    assert attribution_findings.real(rows).is_empty()
    assert attribution_findings.prompts(rows) == attribution_findings.Prompts(defined=0, undefined=0)
    assert attribution_findings.validated(rows, summary, {}).is_empty()
    assert attribution_findings.agreement(rows, {}).is_empty()
    assert attribution_findings.complete(attribution_findings.completeness(rows)).is_empty()
    assert attribution_churn.churn(rows, summary, {}).is_empty()
    assert attribution_findings.top_heads(rows, summary, "tuned<-base")[0].is_empty()
