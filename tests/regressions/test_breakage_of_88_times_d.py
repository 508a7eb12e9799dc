"""A tuned model with tokens of its own: "the strongest output is L3.mlp_out, breakage 88.82 of D", because only D was cut to the shared tokens."""

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from grown import CAUSAL, HEADS, LAST, OTHER, a_pair, studied

from mechdiff import labels, shares
from mechdiff.api import Run, compare, verify
from mechdiff.comparison import effects
from mechdiff.comparison.comparable import load
from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.heads import findings as heads_findings
from mechdiff.measures.heads import sets as heads_sets
from mechdiff.measures.patching import compare as patching_compare
from mechdiff.measures.patching import findings as patching_findings
from mechdiff.measures.steering import findings as steering_findings
from mechdiff.measures.transport import findings as transport_findings
from mechdiff.report import difference, effect_shares
from mechdiff.statistics import summary as statistics_summary
from said import leads, verdict

pytestmark = pytest.mark.ci

PAIRS: dict[str, dict[str, Any]] = {
    "4 %": {"read": -2.4, "written": 0.6},
    "26 %": {"read": 4, "written": 0.6, "attention": 0.01},
    "overlapping": {"read": 4, "written": 0.6, "attention": 0.01, "base_has": 8},
}
NOTHING_BUT_ROUNDING = 1e-4


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The study of each pair: the second with every measure that two vocabularies allow, and with its page."""
    more = {"4 %": [], "26 %": [HEADS, *OTHER], "overlapping": [HEADS]}
    return {
        name: studied(a_pair(tmp_path_factory.mktemp("grown"), **PAIRS[name]), [*CAUSAL, *more[name]], page=name == "26 %")
        for name in PAIRS
    }


def shares_of(run: Run, *where: pl.Expr) -> pl.DataFrame:
    return run.summary().filter(pl.col("share").is_not_null(), pl.col("control").is_null(), *where)


@pytest.mark.parametrize(("name", "least", "most"), [("4 %", 0.03, 0.06), ("26 %", 0.2, 0.32), ("overlapping", 0.2, 0.32)])
def test_writing_all_of_the_base_s_state_broke_95_times_d(runs: dict[str, Run], name: str, least: float, most: float) -> None:
    run = runs[name]
    means = dict(run.summary().filter(measure="divergence", split="report").select("metric", "mean").iter_rows())
    assert least < means["mass_outside"] < most
    assert ("mass_outside_base" in means) == (name == "overlapping")
    last = pl.col("site") == "resid_post", pl.col("layer") == LAST, pl.col("arm") == "identity", ~labels.is_position()
    everything = shares_of(run, pl.col("measure") == "patching", *last)
    assert set(everything["direction"]) == {"tuned<-base", "base<-tuned"}
    assert everything["share"].to_list() == pytest.approx([1.0] * len(everything), abs=NOTHING_BUT_ROUNDING)
    whole = run.summary().filter(*last, pl.col("control").is_null(), measure="patching", direction="tuned<-base", split="report")
    whole = whole.filter(metric="kl_own_nats")
    assert whole["mean"][0] > 4 * means["kl_shared_nats"], "over all tokens it is another number, and is no share of D"
    assert whole["share"].is_null().all()


@pytest.mark.parametrize("name", PAIRS)
def test_no_share_of_d_is_far_above_1(runs: dict[str, Run], name: str) -> None:
    """Where the last MLP carries everything it has all of D; what else was changed a little may take a few hundredths off it."""
    run, limit = runs[name], 1 + NOTHING_BUT_ROUNDING if name == "4 %" else 1.1
    rows, summary, manifest = run.rows(), run.summary(), run.manifest()
    given = shares_of(run, pl.col("measure") != "steering", pl.col("direction") != "tuned<-tuned")
    assert len(given)
    assert given.filter(pl.col("share") > limit).is_empty(), given.filter(pl.col("share") > limit).to_dicts()
    assert set(given.filter(pl.col("direction") == "tuned<-base", ~labels.is_over_answer())["metric"]) == {"kl_own_shared_nats"}
    seen = [patching_findings.site_shares(rows, summary)]
    if name != "4 %":
        seen += [heads_findings.map_of_heads(rows, summary), heads_findings.arms_of_all(rows)]
        games = [heads_sets.game(rows, summary, direction, LAST) for direction in difference.BOTH]
        assert all(games)
    if name == "26 %":
        seen += [transport_findings.recovered(rows, which) for which in ("base<-base", "tuned<-tuned", "base<-tuned")]
        plain = steering_findings.effects(rows).filter(pl.col("arm") == "interchange", pl.col("control").is_null())
        assert len(plain)
        seen.append(plain)
    for table in seen:
        assert table["share"].drop_nulls().max() <= limit  # type: ignore[operator]
    said = " ".join([*verdict(rows, summary, manifest), *(text for texts in leads(rows, summary, manifest).values() for text in texts)])
    pattern = r"(?:KL increase|recovery|recovers?|has|moves the tuned model by) (-?[\d.]+) %"
    named = [float(number) / 100 for number in re.findall(pattern, said)]
    assert named
    assert max(named) <= limit
    assert "of its probability mass to tokens that the base lacks" in said


def test_shapley_values_of_two_vocabularies_added_up_to_another_whole(runs: dict[str, Run]) -> None:
    """They, their whole, and the D that a comparison divides them by are on the same tokens."""
    for name in ("26 %", "overlapping"):
        rows, summary = runs[name].rows(), runs[name].summary()
        assert "kl_own_nats" not in rows.filter(pl.col("control").str.starts_with("random_set").fill_null(False))["metric"]
        game = heads_sets.game(rows, summary, "tuned<-base", LAST)
        assert game
        found = heads_sets.head_shares(rows, game)
        assert found
        whole = heads_findings.map_of_heads(rows, summary).filter(
            pl.col("unit") == "all", pl.col("layer") == LAST, pl.col("arm") == "contribution"
        )
        nats = whole.filter(pl.col("direction") == "tuned<-base")["nats"][0]
        assert game.whole.mean == pytest.approx(nats, rel=1e-6)
        phi = rows.filter(pl.col("metric") == "shapley_nats", pl.col("direction") == "tuned<-base", pl.col("layer") == LAST)
        assert phi.group_by("prompt").agg(pl.col("value").sum())["value"].mean() == pytest.approx(nats, rel=1e-4)


def test_a_comparison_of_two_such_runs_said_breakage_of_88(runs: dict[str, Run], tmp_path: Path) -> None:
    found = load([runs["4 %"].path, runs["26 %"].path])
    for one in found:
        of = patching_compare.patched(one, "tuned<-base", ["resid_post"])
        assert of is not None
        assert of.values[:, -1] == pytest.approx(of.total, rel=1e-4), "writing the last activation breaks D on every prompt"
    for direction in difference.BOTH:
        of = patching_compare.patched(found[0], direction, patching_compare.WRITES)
        assert of is not None
        assert (of.values.mean(0) <= (1 + NOTHING_BUT_ROUNDING) * of.total.mean()).all()
    assert compare(runs["4 %"].path, runs["26 %"].path, out=tmp_path / "compared")


def test_verify_recomputes_what_is_on_the_shared_tokens(runs: dict[str, Run], tmp_path: Path) -> None:
    found = verify(runs["overlapping"].path, rows=120)
    assert [one.said for one in found.differing] == []
    checked = {one.row["metric"] for one in found.compared}
    assert {"kl_own_shared_nats", "js_own_shared_nats", "kl_other_nats"} <= checked


def test_a_share_of_two_supports_cannot_be_made(runs: dict[str, Run]) -> None:
    """What is on all tokens is refused by every function that divides by a D on shared ones."""
    rows = runs["26 %"].rows()
    whole = effect_shares.written(rows, "tuned<-base", "kl_own_nats", measure="patching").filter(pl.col("arm") == "identity")
    with pytest.raises(AssertionError, match="not of the same tokens"):
        effect_shares.shares(whole, effect_shares.totals(rows, "report"), recovered=False)
    one = load([runs["26 %"].path, runs["4 %"].path])[0]
    with pytest.raises(AssertionError, match="not of the same tokens"):
        effects.table(one, whole.with_columns(name=pl.col("site")), recovered=False)
    shares.refuse_two_supports(["kl_own_nats", "kl_other_nats"], ["kl_tuned_base_nats"])
    with pytest.raises(AssertionError, match="not of the same tokens"):
        shares.refuse_two_supports(["kl_own_shared_nats"], ["kl_tuned_base_nats"])


def test_a_run_without_the_cut_numbers_gives_no_breakage(runs: dict[str, Run]) -> None:
    """Rows as they were written before: D on shared tokens, nothing above the line to go with it."""
    run = runs["26 %"]
    rows = run.rows().filter(
        ~pl.col("metric").is_in(["kl_own_shared_nats", "js_own_shared_nats", "shapley_nats"]), ~labels.is_over_answer()
    )
    summary = statistics_summary.summarise(rows, NUMBERS)
    assert summary.filter(pl.col("share").is_not_null(), pl.col("direction").str.starts_with("tuned").fill_null(False)).is_empty()
    assert not re.search("[Bb]reakage|KL increase [0-9]", " ".join(verdict(rows, summary, run.manifest())))
    found = difference.difference(rows, summary)
    assert found
    assert found.divides
