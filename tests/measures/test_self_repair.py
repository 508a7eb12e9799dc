"""Direct effects: a later block that undoes half of what is written, the naive way to the logits, and blocks that nothing is behind."""

from collections.abc import Iterator

import polars as pl
import pytest
import torch

from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import capture
from mechdiff.engine.replay import replay
from mechdiff.labels import CROSSED
from mechdiff.measures.catalogue import CHAPTERS
from mechdiff.measures.self_repair import findings, formula
from mechdiff.measures.self_repair.page import self_repair
from mechdiff.report.parts import Run
from mechdiff.report.sections import lead
from mechdiff.rows import OVERLAP
from mechdiff.validate import edits, made
from mechdiff.validate.planted import edited
from mechdiff.validate.studies import TEXTS, p26_of, study
from pico import pico, prompts, twin


def test_a_block_that_undoes_half_of_what_is_written_is_seen_to() -> None:
    """The planted truth of `mechdiff validate`, and that the page's family holds what is written alone."""
    base = made.halving_net()
    with study(base, edited(base, made.write_for_halving), measures=["divergence", {"self_repair": {"closer": [0, 2]}}]) as found:
        run = Run(rows=found.rows, summary=found.summary, manifest=found.record)
    checks = list(p26_of(run.rows))
    assert len(checks) == 8
    assert [one for one in checks if not one.passed] == []
    lines = {(row["direction"], row["name"]): row for row in findings.sites(run.rows).iter_rows(named=True)}
    assert len(lines) == 8
    assert {key for key, row in lines.items() if row["written"]} == {(direction, "L0.mlp_out") for direction in CROSSED}
    assert all((row["p"] is not None) == row["written"] for row in lines.values())
    table = self_repair(run).parts[0]
    assert sum("both write the same" in line for line in table["rows"]) == 6


@pytest.mark.parametrize("direction", CROSSED)
def test_a_direct_effect_is_what_the_patch_adds_to_the_last_state(direction: str) -> None:
    """Of a network whose residual stream is a plain sum: the difference of the outputs, added to the stream behind the last block."""
    base = pico("llama")
    pair = {"base": base, "tuned": twin(base, edits.add_noise(0.2))}
    runs, source = direction.split("<-")
    n = base.shape.n_layers
    sites = [Site(layer, kind) for layer in range(n) for kind in ("attn_out", "mlp_out", "resid_post")]
    for ids in prompts(3, shortest=6, longest=9):
        cleans = {side: capture(model, ids, sites, [len(ids) - 1], keep_cache=True) for side, model in pair.items()}
        own, other = (
            {kind: torch.stack([cleans[side].states[Site(layer, kind)][None] for layer in range(n)]) for kind in ("attn_out", "mlp_out")}
            for side in (runs, source)
        )
        for layer, kind in ((0, "attn_out"), (1, "mlp_out"), (n - 1, "attn_out"), (n - 1, "mlp_out")):
            both = formula.variants(layer, kind, own, other)
            found = replay(pair[runs], [cleans[runs]], [both["direct"], both["total"]])[0, 1:]
            last = cleans[runs].states[Site(n - 1, "resid_post")][-1] + other[kind][layer, 0, -1] - own[kind][layer, 0, -1]
            with torch.no_grad():
                net = pair[runs].net
                expected = net.lm_head(net.model.norm(last[None]))[0]
            torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)
            if (layer, kind) == (n - 1, "mlp_out"):
                torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
            else:
                assert (found[1] - found[0]).abs().max() > 1e-3


@pytest.fixture(scope="module")
def ordinary() -> Iterator[Run]:
    base = made.tiny_net()
    measures = ["divergence", {"self_repair": {"closer": [1]}}]
    with study(base, edited(base, edits.edit_mlp), measures=measures, texts=TEXTS * 2) as found:
        yield Run(rows=found.rows, summary=found.summary, manifest=found.record)


def test_the_page_says_what_later_blocks_do_where_an_interval_carries_it(ordinary: Run) -> None:
    table = findings.sites(ordinary.rows)
    assert set(table["name"]) == {"L1.attn_out", "L1.mlp_out"}
    for row in table.iter_rows(named=True):
        assert row["repaired"] == pytest.approx(row["direct"] - row["total"])
        assert row["repaired_low"] <= row["repaired"] <= row["repaired_high"]
    (said,) = lead(ordinary, CHAPTERS["self_repair"])
    sure = table.filter("sure")
    if sure.is_empty():
        assert "could not be shown" in said
    else:
        most = sure.sort(sure["repaired"].abs(), descending=True).row(0, named=True)
        undo = most["repaired"] * most["direct"] > 0
        assert f"{most['name']} moves the" in said
        assert f"they {'undo' if undo else 'add'} " in said
    both = (pl.col("measure") == "self_repair") & pl.col("arm").is_not_null()
    for value, sentences in ((0.5, 1), (0.0, 0)):  # nothing undone, and nothing written
        flat = ordinary.rows.with_columns(value=pl.when(both).then(value).otherwise("value"))
        said_now = lead(Run(rows=flat, summary=ordinary.summary, manifest=ordinary.manifest), CHAPTERS["self_repair"])
        assert len(said_now) == sentences
        assert all("could not be shown" in one for one in said_now)
    (shown, _how) = self_repair(ordinary).parts
    assert len(shown["rows"]) == 4


def test_what_is_not_finite_is_not_defined_and_takes_no_other_site_with_it(ordinary: Run) -> None:
    attention = (pl.col("measure") == "self_repair") & (pl.col("site") == "attn_out") & (pl.col("arm") == "total")
    broken = ordinary.rows.with_columns(value=pl.when(attention).then(float("nan")).otherwise("value"))
    table = findings.sites(broken)
    assert {row["name"]: row["written"] for row in table.iter_rows(named=True)} == {"L1.attn_out": None, "L1.mlp_out": True}
    before = findings.sites(ordinary.rows).filter(pl.col("name") == "L1.mlp_out")["direct"].to_list()
    assert table.filter(pl.col("name") == "L1.mlp_out")["direct"].to_list() == before
    shown = self_repair(Run(rows=broken, summary=ordinary.summary, manifest=ordinary.manifest)).parts[0]
    assert [line[-2] for line in shown["rows"] if line[0] == "L1.attn_out"] == ["not defined"] * 2


def test_what_an_unedited_run_moves_too_is_nothing_written(ordinary: Run) -> None:
    """An unedited run of the base strays by as much as the largest effect there: with three such floors nothing is left to test."""
    written = findings.sites(ordinary.rows).filter(pl.col("direction") == CROSSED[1])["written"]
    assert written.any()
    overlaps = ordinary.rows.filter(pl.col("measure") == "self_repair", pl.col("metric") == OVERLAP, pl.col("direction") == CROSSED[1])
    stray = overlaps.sort(pl.col("value").abs()).tail(1).with_columns(control=pl.lit("no_op"), arm=pl.lit(None, pl.String))
    table = findings.sites(pl.concat([ordinary.rows, stray.select(ordinary.rows.columns)]))
    assert {row["direction"] for row in table.iter_rows(named=True) if row["written"]} == {CROSSED[0]}
