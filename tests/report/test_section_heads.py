"""The section on heads says what was planted, makes no ratio of nothing, and its figures hold every head at both widths."""

import re

import numpy as np
import polars as pl
import pytest

from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.heads import charts as heads_charts
from mechdiff.measures.heads import findings as heads_findings
from mechdiff.measures.heads import page as heads_page
from mechdiff.measures.heads import patterns
from mechdiff.measures.heads import sets as heads_sets
from mechdiff.measures.heads.words import which_heads
from mechdiff.report import drawing, phrasing
from mechdiff.report.parts import Drawn, Run
from mechdiff.statistics import summary as statistics_summary
from report import planted_heads as planted
from report.conftest import CHANGED
from report.test_figures import descriptions
from said import leads, verdict

SIZE = {"n_layers": 7, "changed": CHANGED}


def made(rows: pl.DataFrame, manifest: dict, **how: float) -> Run:
    floors = rows.filter(pl.col("control") == "no_op")
    both = pl.concat([rows.filter(pl.col("measure") == "divergence"), floors, planted.planted_heads(rows, **SIZE, **how)])
    return Run(rows=both, summary=statistics_summary.summarise(both, NUMBERS), manifest={**manifest, **planted.heads_manifest(**SIZE)})


@pytest.fixture(scope="module")
def run(rows: pl.DataFrame, manifest: dict) -> Run:
    return made(rows, manifest)


@pytest.mark.parametrize("direction", planted.METRICS)
def test_coverage_and_necessity_are_those_of_the_game(run: Run, direction: str) -> None:
    one = heads_sets.game(run.rows, run.summary, direction, CHANGED)
    assert one is not None
    assert one.n == planted.N_HEADS
    order = heads_sets.orders(run.manifest, direction, CHANGED)["greedy"]
    curve = heads_sets.curve(one, order)
    assert curve["k"].to_list() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(curve["share"], [planted.v(order[:k]) for k in range(1, 7)], atol=1e-9)
    np.testing.assert_allclose(curve["necessity"], [1 - planted.v(order[k:]) for k in range(1, 7)], atol=1e-9)
    band = heads_sets.band(one)
    assert band["draws"].to_list() == [6, 15, 20, 15, 6]
    assert (band["low"] <= band["mean"]).all()
    assert band.filter(pl.col("k") == 1)["mean"][0] == pytest.approx(np.mean([planted.v([h]) for h in range(6)]))


def test_shares_of_heads(run: Run) -> None:
    one = heads_sets.game(run.rows, run.summary, "tuned<-base", CHANGED)
    assert one is not None
    shares = heads_sets.head_shares(run.rows, one)
    assert shares is not None
    np.testing.assert_allclose(shares.shapley.share, planted.shapley(), atol=1e-9)
    np.testing.assert_allclose(shares.fisher.share, planted.shapley(), atol=1e-9)
    assert shares.fisher_sum == pytest.approx(1)
    size = np.abs(planted.shapley())
    assert shares.effective[0] == pytest.approx(size.sum() ** 2 / (size**2).sum())
    assert shares.null == (pytest.approx(6), pytest.approx(6), 3), "noise spread over all heads alike"
    found = heads_sets.interactions(one, [1, 2, 3])
    assert (found["i"][0], found["j"][0]) == (1, 2)
    assert found["value"][0] == pytest.approx(-found["v_i"][0] - found["v_j"][0]), (
        "the two cancel, so together they have nothing of what each has"
    )


def test_the_map_and_the_network(run: Run) -> None:
    found = heads_findings.map_of_heads(run.rows, run.summary)
    top = heads_findings.strongest(found, 3)
    assert top["name"][0] == f"L{CHANGED}.head 3"
    assert top["breakage"][0] == pytest.approx(top["recovery"][0]) == pytest.approx(planted.WHOLE * planted.v([3]), rel=0.1)
    quiet = found.filter(~pl.col("counts"), pl.col("head").is_not_null(), pl.col("arm") == "contribution")
    assert set(quiet["layer"].unique()) >= {layer for layer in range(SIZE["n_layers"]) if layer != CHANGED}
    network = heads_sets.game(run.rows, run.summary, "base<-tuned", None, site=None)
    assert network is not None
    orders = heads_sets.network_orders(run.manifest, "base<-tuned", only_heads=False)
    assert heads_sets.network_curve(network, orders["single"])["share"].to_list() == pytest.approx([0.6, 0.9, 1.0])
    assert heads_sets.network_orders(run.manifest, "base<-tuned", only_heads=True)["single"] == [
        f"L{CHANGED}.head 3",
        f"L{CHANGED}.head 0",
    ]


def test_tables_say_what_a_head_has_alone_in_its_group_and_when_it_is_missing(run: Run) -> None:
    tables = [part for part in heads_page.heads(run).parts if isinstance(part, dict) and part["kind"] == "table"]
    first = dict(zip(tables[0]["columns"], tables[0]["rows"][0], strict=True))
    assert first["head"] == f"L{CHANGED}H3"
    group = phrasing.share(planted.WHOLE * planted.v([2, 3]))
    of_group = heads_findings.groups(heads_findings.map_of_heads(run.rows, run.summary))
    assert of_group["tuned<-base", CHANGED, 1] == pytest.approx(planted.WHOLE * planted.v([2, 3]), rel=0.1)
    assert re.fullmatch(r"1: (\d+ %) / \1", first["its group"]), f"group 1, about {group} in both directions"
    inside = [one for one in tables if "by the heads of" in one["folded"]]
    assert [one["folded"].partition(" by")[0] for one in inside] == ["KL increase", "Recovery"]
    for one in inside:
        first = dict(zip(one["columns"], one["rows"][0], strict=True))
        assert first["head"] == f"L{CHANGED}H3"
        assert first["effect / D"] == first["write / D"]
        assert first["needed (KL)"] == phrasing.share(1 - planted.v([0, 1, 2, 4, 5]))
        assert first["Fisher"] == first["Shapley (KL)"] == phrasing.share(planted.shapley()[3])


def test_pairs_chosen_by_size_are_said_to_be_overstated(run: Run) -> None:
    (one,) = (part for part in heads_page.heads(run).parts if isinstance(part, dict) and part.get("folded", "").startswith("Interactions"))
    shown = len(one["rows"])
    many = re.search(r"; the largest of each layer and direction, (\d+) of (\d+), so somewhat overstated", one["folded"])
    assert many
    assert int(many[1]) == shown < int(many[2])


def test_other_arms_are_said_mapped_heads_among_them(run: Run) -> None:
    (arms,) = (part for part in heads_page.heads(run).parts if isinstance(part, dict) and part.get("folded", "").startswith("All heads"))
    said = {(row[1], row[2]): row[3] for row in arms["rows"]}
    assert said["rrr, rank 4", "recovery with the base's own, mapped"].startswith(phrasing.share(0.5 * planted.WHOLE))
    for word in ("KL increase", "recovery"):
        assert said["write", word] == said["contribution", word]


def test_where_heads_look_in_one_model_stands_under_the_other(run: Run) -> None:
    (looked,) = (part for part in heads_page.heads(run).parts if isinstance(part, dict) and part.get("folded", "").startswith("Where"))
    assert [row[2] for row in looked["rows"]] == ["base", "tuned"]
    assert "Thank" in looked["rows"][1][3]


def test_what_is_said_is_what_was_planted(run: Run) -> None:
    section = heads_page.heads(run)
    said = {part.name: part.caption for part in section.parts if isinstance(part, Drawn)}
    assert [*said] == [
        "head_effects", "head_coverage_breakage", "head_bars_breakage", "head_coverage_recovery", "head_bars_recovery", "head_network_breakage",
        "head_network_recovery",
    ]  # fmt: skip
    alone, of_kl = (round(100 * one([3])) for one in (planted.way, planted.v))
    assert alone > of_kl
    assert f"; in KL {of_kl} %)" in said["head_coverage_breakage"]
    chosen = r"(?:\[95 % CI: .*?\] )?\(of the move of the logits by all, wherever it leads; order and number chosen"
    number = re.search(rf"L{CHANGED}: L{CHANGED}H3 alone has ([\d.]+) % {chosen}", said["head_coverage_breakage"])
    assert number is not None
    assert float(number[1]) == pytest.approx(alone, abs=0.5)
    assert "(3 random edits of this size: 6.0 to 6.0; by Shapley values of KL " in said["head_bars_breakage"]
    assert "Fisher-projected coverages add up to 1.000" in said["head_bars_breakage"]
    assert "by single effect the first alone reaches half (1 random: 1 % to 1 %)" in said["head_network_breakage"]
    texts = str([part for part in section.parts if isinstance(part, dict)])
    assert "<b>The</b>" in texts, "escaped by the page, not here"
    assert "\u202e" not in texts, "what turns the direction of reading is made visible"
    (sentence,) = which_heads(run.rows, run.summary, run.manifest)
    whole = f"Of what all 6 heads of L{CHANGED} do together (the base's, patched into the tuned model, raise KL by "
    assert sentence.startswith(whole)
    number = re.search(rf"\] of D\), L{CHANGED}H3 alone has ([\d.]+) % {chosen.replace('95 % CI: ', '')}", sentence)
    assert number is not None
    assert float(number[1]) == pytest.approx(alone, abs=0.5)
    assert leads(run.rows, run.summary, run.manifest)["heads"] == [sentence]
    (headline,) = verdict(run.rows, run.summary, run.manifest)[-1:]
    assert headline.startswith(whole)
    assert "effective number" not in headline


def test_no_effect_has_no_ratio(rows: pl.DataFrame, manifest: dict) -> None:
    """P14: nothing to explain at the layer, however large its heads are alone."""
    run = made(rows, manifest, whole=0.0)
    section = heads_page.heads(run)
    said = str(section.parts)
    assert "no effect to explain" in said
    assert "inf" not in said
    assert not any(part.name.startswith(("head_coverage", "head_bars")) for part in section.parts if isinstance(part, Drawn))
    assert "no effect to explain" in which_heads(run.rows, run.summary, run.manifest)[0]


def test_not_taken_is_a_note(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> None:
    section = heads_page.heads(Run(rows=rows, summary=summary, manifest=manifest))
    assert "not swapped" in section.parts[0]["text"]
    assert which_heads(rows, summary, manifest) == []


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
def test_figures_hold_every_head(run: Run, width: int) -> None:
    arguments = (run.rows, run.summary, run.manifest)
    svg = drawing.to_svg(heads_charts.head_map(*arguments, width=width))
    for head in range(planted.N_HEADS):
        assert f">H{head}<" in svg
        assert f"L{CHANGED}H{head}: " in svg
    assert ">MLP<" in svg
    options = {"direction": "tuned<-base", "layers": [CHANGED], "width": width}
    assert "all heads" in drawing.to_svg(heads_charts.coverage_by_heads(*arguments, **options))
    assert f"L{CHANGED}H3: Fisher-projected" in drawing.to_svg(heads_charts.single_heads(*arguments, **options))
    assert "players swapped together" in drawing.to_svg(heads_charts.network_coverage(*arguments, width=width))


@pytest.fixture(scope="module")
def large(rows: pl.DataFrame) -> Run:
    """32 layers of 32 heads."""
    heads, said = planted.many_heads(rows)
    both = pl.concat([rows.filter(pl.col("measure") == "divergence"), heads])
    return Run(rows=both, summary=statistics_summary.summarise(both, NUMBERS), manifest=said)


def words_on_axes(svg: str) -> list[str]:
    """The labels under the axes, panel by panel."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
def test_figures_of_a_large_model_fit(large: Run, width: int) -> None:
    """Labels that touch, or a title that is longer than its panel, widen a figure: it is then shrunk until nothing can be read."""
    section = heads_page.heads(large)
    drawn = [part for part in section.parts if isinstance(part, Drawn)]
    assert len(drawn) == 7
    for part in drawn:
        svg = drawing.to_svg(part.chart(large.rows, large.summary, large.manifest, width=width, **part.options))
        assert 0.85 * width < int(re.search(r'<svg[^>]* width="(\d+)"', svg)[1]) <= width + 15, part.name  # type: ignore[index]
        assert "NaN" not in svg


def test_labels_of_many_heads_do_not_touch(large: Run) -> None:
    at = {"direction": "tuned<-base", "layers": [28]}
    for width, step in ((drawing.WIDE, 1), (drawing.NARROW, 4)):
        svg = drawing.to_svg(heads_charts.single_heads(large.rows, large.summary, large.manifest, width=width, **at))
        numbers = [word for word in words_on_axes(svg) if re.fullmatch(r"\d+", word)]
        assert [word for word in numbers if int(word) > 1] == [str(head) for head in range(0, 32, step) if head > 1]
        assert len(re.findall(r"L28H\d+: ", svg)) == 32, "what has no label still says its name"
    svg = drawing.to_svg(heads_charts.network_coverage(large.rows, large.summary, large.manifest, width=drawing.NARROW))
    numbers = [int(word) for word in words_on_axes(svg) if re.fullmatch(r"\d+", word)]
    assert numbers == [1, 3, 8, 20, 50, 120, 320, 1024, 1, 3, 8, 20, 50, 120, 320, 1056]


def test_more_bars_than_fit_are_said_to_be_left_out(rows: pl.DataFrame) -> None:
    heads, said = planted.many_heads(rows, n_layers=5, n_heads=64)
    both = pl.concat([rows.filter(pl.col("measure") == "divergence"), heads])
    tables = (both, statistics_summary.summarise(both, NUMBERS), said)
    for width, shown in ((drawing.WIDE, 40), (drawing.NARROW, 20)):
        svg = drawing.to_svg(heads_charts.single_heads(*tables, width=width, direction="tuned<-base", layers=[1]))
        assert f"({shown} of 64)" in svg
        assert len(re.findall(r"L1H\d+: ", svg)) == shown


def test_random_sets_are_drawn_with_their_mean(run: Run) -> None:
    options = {"direction": "tuned<-base", "layers": [CHANGED]}
    svg = drawing.to_svg(heads_charts.coverage_by_heads(run.rows, run.summary, run.manifest, **options))
    mean = phrasing.share(np.mean([planted.way([head]) for head in range(planted.N_HEADS)]))
    assert f"L{CHANGED}, mean of random sets, 1 heads: {mean}" in svg
    assert ">random<" in svg
    without = run.rows.filter(~pl.col("control").str.starts_with("random_set").fill_null(False))
    assert ">random<" not in drawing.to_svg(heads_charts.coverage_by_heads(without, run.summary, run.manifest, **options))


def test_the_layer_of_the_verdict_is_chosen_on_select(run: Run) -> None:
    """What is larger on the report prompts alone is not what the sentence is of."""
    heads = run.rows.filter(pl.col("measure") == "heads", pl.col("layer") == CHANGED)
    above = pl.lit(CHANGED + 1, dtype=pl.Int64).alias("layer")
    nats = pl.col("metric").str.ends_with("_nats") & (pl.col("direction") == "tuned<-base")
    larger = heads.with_columns(above, pl.when(nats).then(1.1 * pl.col("value")).otherwise("value").alias("value"))
    rest = run.rows.filter(pl.col("measure") != "heads")
    whole = heads.filter(
        pl.col("unit") == "all", pl.col("control").is_null(), pl.col("metric") == "kl_own_nats", pl.col("split") == "report"
    )
    whole = whole.with_columns(pl.lit("select").alias("split"))
    select = [whole, whole.with_columns(above, pl.col("value") / 2)]
    manifest = {"heads": {**run.manifest["heads"], "closer_layers": [CHANGED, CHANGED + 1]}}
    heads, larger = (one.filter(pl.col("split") == "report") for one in (heads, larger))
    for parts, layer, how in (
        (select, CHANGED, "chosen on the validation prompts"),
        ([], CHANGED + 1, "chosen on these prompts, so optimistically biased"),
    ):
        both = pl.concat([rest, heads, larger, *parts])
        (sentence,) = which_heads(both, statistics_summary.summarise(both, NUMBERS), manifest)
        assert sentence.startswith(
            f"Of what all 6 heads of L{layer}, the strongest of 2 layers ({how}; two halves of them choose the same in "
        )


def test_per_cents() -> None:
    assert [phrasing.share(value) for value in (0.64, 0.0014, 0.0, 1e-9, -0.2)] == ["64 %", "0.14 %", "0 %", "<0.001 %", "−20 %"]


def test_a_greedy_order_that_ends_before_half_is_said_to_end(run: Run) -> None:
    short = {"tuned<-base": {str(CHANGED): [1, 2]}}
    (said,) = which_heads(run.rows, run.summary, {"heads": {**run.manifest["heads"], "greedy": short}})
    assert "the first 2 of the greedy order do not reach half" in said


def test_one_prompt_has_no_intervals_and_can_be_drawn(run: Run) -> None:
    first = run.rows["prompt"].drop_nulls().min()
    rows = run.rows.filter(pl.col("prompt").eq_missing(pl.lit(first)) | pl.col("prompt").is_null())
    one = Run(rows=rows, summary=statistics_summary.summarise(rows, NUMBERS), manifest=run.manifest)
    parts = [part for part in heads_page.heads(one).parts if isinstance(part, Drawn)]
    assert len(parts) == 7
    for part in parts:
        chart = part.chart(one.rows, one.summary, one.manifest, **part.options)
        assert "NaN" not in str(drawing.to_svg(chart))
        assert "nan" not in part.caption


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
def test_a_head_under_0_takes_no_label_from_the_map(run: Run, width: int) -> None:
    """The minus of one cell is a layer of its own, whose axes must be those of the map."""
    worse = (
        (pl.col("layer") == CHANGED) & (pl.col("unit") == "head 1") & (pl.col("metric") == "kl_other_nats") & pl.col("control").is_null()
    )
    rows = run.rows.with_columns(value=pl.when(worse).then(2 * pl.col("value")).otherwise("value"))
    svg = drawing.to_svg(heads_charts.head_map(rows, statistics_summary.summarise(rows, NUMBERS), run.manifest, width=width))
    words = words_on_axes(svg)
    assert words.count("−") == 1
    plain = words_on_axes(drawing.to_svg(heads_charts.head_map(run.rows, run.summary, run.manifest, width=width)))
    for word in (*(f"H{head}" for head in range(planted.N_HEADS)), "MLP", "layer", *map(str, range(SIZE["n_layers"]))):
        assert words.count(word) == plain.count(word) > 0, word


PATTERNS = {
    "prompt": "r001", "tokens": ["<s>", "a", "b"],
    "heads": [
        {"head": "L4.head 1", "base": [[1.0], [0.7, 0.3], [0.2, 0.3, 0.5]], "tuned": [[1.0], [0.7, 0.3], [0.8, 0.1, 0.1]]},
        {"head": "L2.head 0", "base": [[1.0], [0.5, 0.5], [0.4, 0.3, 0.3]], "tuned": [[1.0], [0.4, 0.6], [0.4, 0.3, 0.3]]},
    ],
}  # fmt: skip


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
def test_attention_patterns_have_a_cell_for_each_pair_of_tokens(width: int, rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    manifest = {"heads": {"attention_patterns": PATTERNS}}
    (part,) = patterns.parts(Run(rows=rows, summary=summary, manifest=manifest))
    assert (
        "the last 3 tokens of r001. Largest changes: L4.head 1 +0.60 from “b” to “<s>” and L2.head 0 −0.10 from “a” to “<s>”."
        in part.caption
    )
    svg = drawing.to_svg(part.chart(rows, summary, manifest, width=width))
    cells = descriptions(svg, "rect mark")
    assert len(cells) == 2 * 3 * 6
    assert "L4H1, base: 2 b attends to 0 &lt;s&gt;: 0.200" in cells
    assert "L4H1, tuned: 2 b attends to 0 &lt;s&gt;: 0.800" in cells
    assert "L4H1, tuned − base: 2 b attends to 0 &lt;s&gt;: 0.600" in cells
    assert 0.8 * width < int(re.search(r'<svg[^>]* width="(\d+)"', svg)[1]) <= width + 15  # type: ignore[index]
    assert patterns.attention_patterns(rows, summary, {}) is None
    assert patterns.parts(Run(rows=rows, summary=summary, manifest={})) == []
