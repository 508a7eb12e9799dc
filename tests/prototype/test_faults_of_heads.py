"""Faults of head maps, shares and directions (docs/FAULTS.md): A3, A4, A19, A24 to A27."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import mechdiff
from mechdiff.measures.catalogue import NUMBERS, load_study
from mechdiff.measures.heads import both_formulas
from mechdiff.measures.heads import page as heads_page
from mechdiff.measures.heads import sets as heads_sets
from mechdiff.measures.heads.coverage import Whole, coverage
from mechdiff.measures.heads.plan import HeadsOptions
from mechdiff.measures.heads.words import which_heads
from mechdiff.measures.patching import asymmetry as patching_asymmetry
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import share
from mechdiff.rows import rows as make_rows
from mechdiff.statistics import summary as statistics_summary
from mechdiff.study import run
from mechdiff.validate import edits, planted
from mechdiff.validate.made import tiny_net
from prototype.conftest import CLOSER
from prototype.tiny_runs import PLAIN, Finished, finish, notes, save_pair, study
from report.planted_heads import planted_heads

BREAKAGE, RECOVERY = "tuned<-base", "base<-tuned"
PUBLISHED_ALL = 0.192799
PUBLISHED = {
    (24,): (1.45e-5, "0.0075"), (24, 26): (4.12e-5, "0.02"), (8,): (2.65e-4, "0.14"), (0,): (2.80e-3, "1.45"), (3,): (1.384e-2, "7.18"),
    (2, 16, 24, 26): (2.61e-3, "1.35"), (2, 3, 8, 18, 24, 25, 27, 31): (1.93e-2, "10.0"), tuple(range(8)): (0.1237, "64.2"),
}  # fmt: skip
"""Heads of L26, the KL of the set alone in nats, and the per cent of the whole that it is."""


# ---- A3: coverage was 1 - the ratio on one pair, and the ratio on the other -----------------------------------------------------------


def published(direction: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The published sets as rows of one direction, and their summary: the same effects, whichever model runs."""
    d, prompts = np.full(4, 1.5), list("abcd")
    parts = [make_rows(d, measure="divergence", split="report", prompt=prompts, metric="kl_tuned_base_nats")]
    units = {f"head{'s' * (len(heads) > 1)} {','.join(map(str, heads))}": nats for heads, (nats, _) in PUBLISHED.items()}
    units |= {f"head {head}": 0.0 for head in range(32) if (head,) not in PUBLISHED}
    for unit, nats in (units | {"all": PUBLISHED_ALL}).items():
        value, metric = (np.full(4, nats), "kl_own_nats") if direction == BREAKAGE else (d - nats, "kl_other_nats")
        place = {"measure": "heads", "split": "report", "layer": 26, "site": "attn_proj", "arm": "contribution", "prompt": prompts}
        parts.append(make_rows(value, direction=direction, unit=unit, metric=metric, **place))
    table = pl.concat(parts, rechunk=True)
    return table, statistics_summary.summarise(table, NUMBERS)


@pytest.mark.parametrize("direction", [BREAKAGE, RECOVERY])
def test_a03_the_published_sets_cover_what_they_cover(direction: str) -> None:
    """The head that was published with 100 % has 0.0075 %, and one formula serves both directions."""
    game = heads_sets.game(*published(direction), direction, 26)
    assert game is not None
    assert game.n == 32
    sets = [game.value(list(heads)) for heads in PUBLISHED]
    assert all(one is not None for one in sets)
    found = coverage(np.column_stack([*sets, game.value([]), game.value(range(32))]), game.whole)
    for one, (_, said) in zip(found.share, PUBLISHED.values(), strict=False):
        assert f"{100 * one:.{len(said.partition('.')[2])}f}" == said
    assert found.share[-2:].tolist() == [0, 1]
    assert share(found.share[0]) == "0.0075 %"


def test_a03_the_sentence_does_not_say_that_one_head_carries_it() -> None:
    table, summary = published(BREAKAGE)
    said = which_heads(table, summary, {"heads": {"closer_layers": [26], "greedy": {BREAKAGE: {"26": [24]}}}})
    (sentence,) = said
    assert sentence.endswith(", the first head of the greedy order does not reach half.")


def test_a03_both_formulas_stand_side_by_side() -> None:
    """What was printed on this pair is 100 less what the same heads cover; the formulas differ in nothing else."""
    printed = {(24,): 100, (8,): 99.9, (0,): 98.5, (3,): 92.8, (2, 16, 24, 26): 98.6, (2, 3, 8, 18, 24, 25, 27, 31): 90.0}
    table, summary = published(BREAKAGE)
    game = heads_sets.game(table, summary, BREAKAGE, 26)
    assert game is not None
    found = both_formulas.figures(game, list(PUBLISHED)).iter_rows(named=True)
    for one, (heads, (nats, said)) in zip(found, PUBLISHED.items(), strict=True):
        assert one["nats"] == pytest.approx(nats)
        assert f"{100 * one['share']:.{len(said.partition('.')[2])}f}" == said
        if heads in printed:
            assert 100 * one["inverted"] == pytest.approx(printed[heads], abs=0.06)
    [shown] = both_formulas.side_by_side(game, [24, 26])
    assert shown["rows"][-1] == ["all", "0.193", "100 %", "0 %"], "of four prompts there is no interval"
    assert [line[0] for line in shown["rows"][:2]] == ["L26H3", "L26H0"]
    assert ["L26H24,26", "4.1 × 10⁻⁵", "0.021 %", "100 %"] in shown["rows"]


# ---- A4: results found again by the newest file name: the "top heads" were the random controls -----------------------------------------


def test_a04_a_newer_file_is_never_taken_for_the_result(edited: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Path(shutil.copytree(edited.path, tmp_path / "run"))
    decoy = edited.rows.with_columns(value=pl.lit(9.0))
    for name in ("rows_newest.parquet", "heads_random.parquet", "cells/zzz.parquet"):
        decoy.write_parquet(copy / name)
    later = time.time() + 1000
    for number, cell in enumerate(sorted((copy / "cells").glob("*/cell.json"), reverse=True)):
        os.utime(cell, (later + number, later + number))
    assert mechdiff.open_run(copy).rows().equals(edited.rows, null_equal=True)

    def refuse(*args: object) -> None:
        raise AssertionError("a finished cell was not found by its content")

    monkeypatch.setattr(run, "compute_cell", refuse)
    again = finish(load_study(edited.path / "study.yaml")[0], copy)
    assert again.rows.equals(edited.rows, null_equal=True)


def test_a04_random_sets_are_controls_and_top_heads_are_chosen_by_their_own_effect(edited: Finished) -> None:
    drawn = edited.of("heads", "kl_own_nats", layer=CLOSER).filter(pl.col("control").str.starts_with("random_set#").fill_null(False))
    assert len(drawn)
    game = heads_sets.game(edited.rows, edited.summary, BREAKAGE, CLOSER)
    assert game is not None
    real = edited.of("heads", "kl_own_nats", layer=CLOSER, direction=BREAKAGE, arm="contribution", control=None, site="attn_proj")
    for head in range(game.n):
        mine = real.filter(pl.col("unit") == f"head {head}").sort("prompt")["value"].to_numpy()
        np.testing.assert_array_equal(game.value([head]), mine)
    on_select = edited.of("heads", "kl_own_nats", split="select", layer=CLOSER, direction=BREAKAGE, arm="contribution", control=None)
    singles = on_select.filter(pl.col("unit").str.starts_with("head ")).group_by("unit").agg(pl.col("value").mean()).sort("value")
    assert heads_sets.orders(edited.manifest, BREAKAGE, CLOSER)["single"][0] == int(singles["unit"][-1].removeprefix("head "))


# ---- A19: directions with different references were compared --------------------------------------------------------------------------


def test_a19_directions_are_compared_by_one_symmetric_measure() -> None:
    """Both writes move the law alike (JS), but KL from the running model is three times as large in one direction."""
    prompts = [f"p{i}" for i in range(20)]
    moved = np.random.default_rng(0).gamma(4, 0.05, 20)
    place = {"measure": "patching", "split": "report", "layer": 2, "site": "attn_out", "arm": "identity", "prompt": prompts}
    parts = [make_rows(8 * moved, measure="divergence", split="report", prompt=prompts, metric="kl_tuned_base_nats")]
    for direction, size in ((BREAKAGE, 3.0), (RECOVERY, 1.0)):
        parts.append(make_rows(size * moved, direction=direction, metric="kl_own_nats", **place))
        parts.append(make_rows(moved / 8, direction=direction, metric="js_own_nats", **place))
        parts.append(make_rows(7 * moved, direction=direction, metric="kl_other_nats", **place))
    table = pl.concat(parts, rechunk=True)
    summary = statistics_summary.summarise(table, NUMBERS)
    assert patching_asymmetry.by_site(table, summary)["index"].to_list() == pytest.approx([0.0])
    without = table.filter(pl.col("metric") != "js_own_nats")
    assert patching_asymmetry.by_site(without, statistics_summary.summarise(without, NUMBERS)).is_empty(), "of KLs there is no index"
    shared = summary.filter(pl.col("share").is_not_null()).select("direction", "metric", "share")
    assert set(shared.select("direction", "metric").iter_rows()) == {(BREAKAGE, "kl_own_nats"), (RECOVERY, "kl_other_nats")}
    assert dict(shared.select("direction", "share").iter_rows()) == {BREAKAGE: pytest.approx(3 / 8), RECOVERY: pytest.approx(1 / 8)}


# ---- A24: inputs of the output projection were swapped ---------------------------------------------------------------------------------


def test_a24_swapping_z_misses_an_edit_of_w_o_and_is_never_the_default(edited: Finished) -> None:
    def all_heads(arm: str, strength: float | None = None) -> float:
        where = {"layer": CLOSER, "unit": "all", "site": "attn_proj", "direction": BREAKAGE, "control": None}
        return float(edited.one("heads", "kl_own_nats", arm=arm, strength=strength, **where)["mean"])

    z = edited.summary.filter(pl.col("arm") == "z_swap", pl.col("unit") == "all", pl.col("metric") == "kl_own_nats")
    assert z["mean"].max() < 1e-11  # type: ignore[operator]
    assert all_heads("contribution") > 1e-3
    assert all_heads("contribution") == pytest.approx(all_heads("write"), rel=1e-5)
    assert all_heads("routing") < 1e-11
    assert study(edited.path, "heads").asked(HeadsOptions).z_swap == ()


def test_a24_a_change_of_gauge_has_no_effect_unless_z_is_swapped(tmp_path: Path) -> None:
    base = tiny_net()
    turned = planted.plant(edits.turn_head_values, n_prompts=1).tuned.net
    save_pair(tmp_path, base, turned, n_prompts=20)
    asked = {"layers": [1], "closer": [1], "z_swap": [1.0], "null_edits": 0, "network_draws": 0, "attention_prompts": 0, "draws": 2,
             "permutations": 2, "exact_up_to": 1, "picks": 1, "top": 2}  # fmt: skip
    found = finish(study(tmp_path, PLAIN, {"heads": asked}), tmp_path / "run")
    own = found.of("heads", "kl_own_nats", layer=1, unit="all", control=None)
    assert own.filter(pl.col("arm") == "contribution")["value"].max() < 1e-10  # type: ignore[operator]
    assert own.filter(pl.col("arm") == "z_swap")["value"].mean() > 0.05  # type: ignore[operator]
    assert "no_effect" in found.one("divergence", "kl_tuned_base_nats", unit=None)["flag"]
    assert notes(heads_page.heads(found.content)).startswith("No effect to explain")


# ---- A25 to A27: one position, coverages above 1, ratios of next to nothing --------------------------------------------------------------


def test_a25_positions_are_an_axis(edited: Finished) -> None:
    own = {"layer": 0, "site": "resid_post", "arm": "identity", "direction": RECOVERY, "control": None}
    assert {None, "last_4"} <= set(edited.of("patching", "kl_other_nats")["unit"])
    upstream = {unit: edited.one("patching", "kl_other_nats", **{**own, "layer": CLOSER}, unit=unit)["share"] for unit in (None, "last_4")}
    assert upstream["last_4"] > upstream[None], "the change of earlier positions counts too: one position is not all of it"


def test_a26_coverage_ends_at_1_and_fisher_shares_add_up(edited: Finished) -> None:
    """Shares of single heads by ratios of KL need not add up (102 to 110 % were published); those by Fisher projection do."""
    game = heads_sets.game(edited.rows, edited.summary, BREAKAGE, CLOSER)
    assert game is not None
    shares = heads_sets.head_shares(edited.rows, game)
    assert shares is not None
    assert shares.fisher_sum == pytest.approx(1, abs=0.05)
    assert shares.shapley.share.sum() == pytest.approx(1, abs=1e-6)
    assert heads_sets.curve(game, range(game.n))["share"][-1] == pytest.approx(1, abs=1e-12)
    alone = coverage(np.column_stack([game.value([head]) for head in range(game.n)]), game.whole).share  # type: ignore[list-item]
    assert abs(alone.sum() - 1) > 5 * abs(shares.fisher_sum - 1), "ratios of KL alone do not add up"
    cancelled = Whole(values=np.full(5, 1e-12), floor=1e-10)
    assert np.isnan(coverage(np.full((5, 2), 0.139), cancelled).share).all(), "two heads that cancel: no ratio of any size"


def test_a27_there_is_no_share_of_what_is_under_three_floors(rows: pl.DataFrame) -> None:
    """All heads of a layer together do 0.0061 nats, in bfloat16, where an unedited run strays by 0.004."""
    d_and_floor = rows.filter((pl.col("measure") == "divergence") | (pl.col("control") == "no_op"))
    table = pl.concat([d_and_floor, planted_heads(rows, n_layers=7, changed=4)])
    manifest = {"heads": {"closer_layers": [4], "greedy": {BREAKAGE: {"4": [3, 0]}}}}
    of_heads = (pl.col("measure") == "heads") & (pl.col("direction") == BREAKAGE) & pl.col("metric").is_in(["kl_own_nats", "fisher_nats"])
    small = table.with_columns(value=pl.when(of_heads).then(pl.col("value") * 0.0061 / 6.4).otherwise("value"))
    no_op = pl.col("control").eq_missing(pl.lit("no_op"))
    for floor, counts in ((1e-9, True), (0.004, False)):
        shown = small.with_columns(
            value=pl.when(no_op & pl.col("metric").is_in(["kl_own_nats", "fisher_nats"])).then(floor).otherwise("value")
        )
        summary = statistics_summary.summarise(shown, NUMBERS)
        game = heads_sets.game(shown, summary, BREAKAGE, 4)
        assert game is not None
        assert game.whole.mean == pytest.approx(0.0061, rel=0.2)
        assert game.whole.counts is counts
        assert bool(heads_sets.curve(game, [3, 0])["share"].is_nan().all()) is not counts
        page = notes(heads_page.heads(Run(rows=shown, summary=summary, manifest=manifest)))
        assert ("KL increase at L4: no effect to explain" in page) is not counts
