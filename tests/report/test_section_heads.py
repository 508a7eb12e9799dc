"""The section on heads says what was planted, makes no ratio of nothing, and its figures hold every head at both widths."""

import numpy as np
import polars as pl
import pytest

from mechdiff.report import charts_heads, drawing, findings_heads, section_heads, statistics, wording
from mechdiff.report.parts import Drawn, Run
from mechdiff.report.wording_heads import per_cent, which_heads
from report import planted_heads as planted
from report.conftest import CHANGED

SIZE = {"n_layers": 7, "changed": CHANGED}


def made(rows: pl.DataFrame, manifest: dict, **how: float) -> Run:
    floors = rows.filter(pl.col("control") == "no_op")
    both = pl.concat([rows.filter(pl.col("measure") == "divergence"), floors, planted.planted_heads(rows, **SIZE, **how)])
    return Run(rows=both, summary=statistics.summarise(both), manifest={**manifest, **planted.heads_manifest(**SIZE)})


@pytest.fixture(scope="module")
def run(rows: pl.DataFrame, manifest: dict) -> Run:
    return made(rows, manifest)


@pytest.mark.parametrize("direction", planted.METRICS)
def test_coverage_and_necessity_are_those_of_the_game(run: Run, direction: str) -> None:
    one = findings_heads.game(run.rows, run.summary, direction, CHANGED)
    assert one is not None
    assert one.n == planted.N_HEADS
    order = findings_heads.orders(run.manifest, direction, CHANGED)["greedy"]
    curve = findings_heads.curve(one, order)
    assert curve["k"].to_list() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(curve["share"], [planted.v(order[:k]) for k in range(1, 7)], atol=1e-9)
    np.testing.assert_allclose(curve["necessity"], [1 - planted.v(order[k:]) for k in range(1, 7)], atol=1e-9)
    band = findings_heads.band(one)
    assert band["draws"].to_list() == [6, 15, 20, 15, 6]
    assert (band["low"] <= band["mean"]).all()
    assert band.filter(pl.col("k") == 1)["mean"][0] == pytest.approx(np.mean([planted.v([h]) for h in range(6)]))


def test_shares_of_heads(run: Run) -> None:
    one = findings_heads.game(run.rows, run.summary, "tuned<-base", CHANGED)
    assert one is not None
    shares = findings_heads.head_shares(run.rows, one)
    assert shares is not None
    np.testing.assert_allclose(shares.shapley.share, planted.shapley(), atol=1e-9)
    np.testing.assert_allclose(shares.fisher, planted.shapley(), atol=1e-9)
    assert shares.fisher_sum == pytest.approx(1)
    size = np.abs(planted.shapley())
    assert shares.effective[0] == pytest.approx(size.sum() ** 2 / (size**2).sum())
    assert shares.null == (pytest.approx(6), pytest.approx(6), 3), "noise spread over all heads alike"
    found = findings_heads.interactions(one, [1, 2, 3])
    assert (found["i"][0], found["j"][0]) == (1, 2)
    assert found["value"][0] == pytest.approx(-found["alone"][0]), "the two cancel, so together they have nothing of what each has"


def test_the_map_and_the_network(run: Run) -> None:
    found = findings_heads.map_of_heads(run.rows, run.summary)
    top = findings_heads.strongest(found, 3)
    assert top["name"][0] == f"L{CHANGED}.head 3"
    assert top["breakage"][0] == pytest.approx(top["recovery"][0]) == pytest.approx(planted.WHOLE * planted.v([3]), rel=0.1)
    quiet = found.filter(~pl.col("counts"), pl.col("head").is_not_null(), pl.col("arm") == "contribution")
    assert set(quiet["layer"].unique()) >= {layer for layer in range(SIZE["n_layers"]) if layer != CHANGED}
    network = findings_heads.game(run.rows, run.summary, "base<-tuned", None, site=None)
    assert network is not None
    orders = findings_heads.network_orders(run.manifest, "base<-tuned", only_heads=False)
    assert findings_heads.network_curve(network, orders["single"])["share"].to_list() == pytest.approx([0.6, 0.9, 1.0])
    assert findings_heads.network_orders(run.manifest, "base<-tuned", only_heads=True)["single"] == [
        f"L{CHANGED}.head 3",
        f"L{CHANGED}.head 0",
    ]


def test_what_is_said_is_what_was_planted(run: Run) -> None:
    section = section_heads.heads(run)
    said = {part.name: part.caption for part in section.parts if isinstance(part, Drawn)}
    assert [*said] == [
        "head_effects", "head_coverage_breakage", "head_bars_breakage", "head_coverage_recovery", "head_bars_recovery", "head_network_breakage",
        "head_network_recovery",
    ]  # fmt: skip
    alone = round(100 * planted.v([3]))
    assert f"L{CHANGED}: head 3 alone has {alone} %" in said["head_coverage_breakage"]
    assert "(3 random edits of this size: 6.0 to 6.0)" in said["head_bars_breakage"]
    assert "Fisher-projected coverages add up to 1.000" in said["head_bars_breakage"]
    assert "by single effect the first reaches half (1 random: 1 % to 1 %)" in said["head_network_breakage"]
    texts = str([part for part in section.parts if isinstance(part, dict)])
    assert "<b>The</b>" in texts, "escaped by the page, not here"
    assert "\u202e" not in texts, "what turns the direction of reading is made visible"
    (sentence,) = which_heads(run.rows, run.summary, run.manifest)
    assert sentence.startswith(f"Of the breakage by all 6 heads of L{CHANGED}, head 3 alone has {alone} % (chosen on the select prompts")
    assert sentence in wording.verdict(run.rows, run.summary, run.manifest)


def test_no_effect_has_no_ratio(rows: pl.DataFrame, manifest: dict) -> None:
    """P14: nothing to explain at the layer, however large its heads are alone."""
    run = made(rows, manifest, whole=0.0)
    section = section_heads.heads(run)
    said = str(section.parts)
    assert "no effect to explain" in said
    assert "inf" not in said
    assert not any(part.name.startswith(("head_coverage", "head_bars")) for part in section.parts if isinstance(part, Drawn))
    assert "no effect to explain" in which_heads(run.rows, run.summary, run.manifest)[0]


def test_not_taken_is_a_note(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> None:
    section = section_heads.heads(Run(rows=rows, summary=summary, manifest=manifest))
    assert "not swapped" in section.parts[0]["text"]
    assert which_heads(rows, summary, manifest) == []


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
def test_figures_hold_every_head(run: Run, width: int) -> None:
    arguments = (run.rows, run.summary, run.manifest)
    svg = drawing.to_svg(charts_heads.head_map(*arguments, width=width))
    for head in range(planted.N_HEADS):
        assert f">head {head}<" in svg
        assert f"L{CHANGED}.head {head}: " in svg
    assert ">MLP<" in svg
    options = {"direction": "tuned<-base", "layers": [CHANGED], "width": width}
    assert "all heads" in drawing.to_svg(charts_heads.coverage_by_heads(*arguments, **options))
    assert f"L{CHANGED}.head 3: Shapley" in drawing.to_svg(charts_heads.single_heads(*arguments, **options))
    assert "players swapped together" in drawing.to_svg(charts_heads.network_coverage(*arguments, width=width))


def test_per_cents() -> None:
    assert [per_cent(value) for value in (0.64, 0.0014, 0.0, 1e-9, -0.2)] == ["64 %", "0.14 %", "0 %", "under 0.001 %", "-20 %"]


def test_a_greedy_order_that_ends_before_half_is_said_to_end(run: Run) -> None:
    short = {"tuned<-base": {str(CHANGED): [1, 2]}}
    (said,) = which_heads(run.rows, run.summary, {"heads": {**run.manifest["heads"], "greedy": short}})
    assert "the first 2 heads of the greedy order do not reach half" in said


def test_one_prompt_has_no_intervals_and_can_be_drawn(run: Run) -> None:
    first = run.rows["prompt"].drop_nulls().min()
    rows = run.rows.filter(pl.col("prompt").eq_missing(pl.lit(first)) | pl.col("prompt").is_null())
    one = Run(rows=rows, summary=statistics.summarise(rows), manifest=run.manifest)
    parts = [part for part in section_heads.heads(one).parts if isinstance(part, Drawn)]
    assert len(parts) == 7
    for part in parts:
        chart = part.chart(one.rows, one.summary, one.manifest, **part.options)
        assert "NaN" not in str(drawing.to_svg(chart))
        assert "nan" not in part.caption
