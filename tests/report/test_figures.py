"""Each figure draws at both widths, shows every value it should, and is absent where its rows are."""

import json
import re
from pathlib import Path

import altair as alt
import numpy as np
import polars as pl
import pytest
import vl_convert

from mechdiff.measures.attribution import charts as attribution_charts
from mechdiff.measures.behaviour import page as behaviour_page
from mechdiff.measures.divergence import charts as divergence_charts
from mechdiff.measures.divergence import texts_page as divergence_texts_page
from mechdiff.measures.factorial import charts as factorial_charts
from mechdiff.measures.grafting import charts as grafting_charts
from mechdiff.measures.heads import charts as heads_charts
from mechdiff.measures.interpolation import charts as interpolation_charts
from mechdiff.measures.patching import charts as patching_charts
from mechdiff.measures.patching import findings as patching_findings
from mechdiff.measures.rank import charts as rank_charts
from mechdiff.measures.routing import charts as routing_charts
from mechdiff.measures.similarity import charts as similarity_charts
from mechdiff.measures.steering import charts as steering_charts
from mechdiff.measures.weights import charts as weights_charts
from mechdiff.report import curves, difference, drawing, phrasing
from mechdiff.report.page import RENDERER
from mechdiff.report.parts import Figure
from report.conftest import CHANGED

ALL = [
    divergence_charts.d_by_prompt, similarity_charts.cka_by_layer, patching_charts.causal_map, patching_charts.arms_by_layer,
    patching_charts.cka_against_effect, patching_charts.kl_by_layer,
]  # fmt: skip


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
@pytest.mark.parametrize("figure", ALL, ids=lambda figure: figure.__name__)
def test_figures_are_valid_and_fit_their_width(
    figure: Figure, width: int, rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict
) -> None:
    chart = figure(rows, summary, manifest, width=width)
    svg = drawing.to_svg(chart)
    drawn = int(re.search(r'<svg[^>]* width="(\d+)"', svg)[1])  # type: ignore[index]
    assert 0.85 * width < drawn <= width + 15
    assert "NaN" not in svg
    assert "undefined" not in svg
    if width == drawing.WIDE:
        altairs = figure(rows, summary, manifest, width=width).to_dict()  # altair checks the specification
        assert svg == drawing.drawn(json.loads(phrasing.HEAD.sub(r"L\1H\2", json.dumps(altairs, ensure_ascii=False))))


@pytest.mark.parametrize("figure", ALL, ids=lambda figure: figure.__name__)
def test_a_figure_without_its_rows_is_none(figure: Figure, rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    only = rows.filter(pl.col("measure") == "weights")
    assert figure(only, summary.filter(pl.col("measure") == "weights"), {}) is None


@pytest.mark.parametrize("how", list(drawing.COMPOSED))
def test_charts_are_put_together_as_altair_does(how: str) -> None:
    """Data that all layers share altair moves up to their panel; where each has its own, the specification is the very same."""
    one, other = (alt.Chart(drawing.inline([{"x": x}, {"x": 2}])).mark_point().encode(x=alt.X("x:Q")) for x in (1, 3))
    given = {} if how == "layer" else {"spacing": 7}
    made, altairs = (getattr(module, how)(one, other, title="panels", **given).to_dict() for module in (drawing, alt))
    assert made == altairs


SECTIONS = [
    divergence_texts_page.kl_by_position,
    weights_charts.weight_map,
    weights_charts.spectra_of,
    weights_charts.head_map,
    grafting_charts.grafts_alone,
    grafting_charts.grafts_in_order,
    grafting_charts.grafts_greedy,
    grafting_charts.grafts_by_rank,
    factorial_charts.effects_by_layer,
]


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
@pytest.mark.parametrize("figure", SECTIONS, ids=lambda figure: figure.__name__)
def test_figures_of_the_other_sections_are_valid_and_fit(
    figure: Figure, width: int, full_rows: pl.DataFrame, full_summary: pl.DataFrame, full_manifest: dict
) -> None:
    test_figures_are_valid_and_fit_their_width(figure, width, full_rows, full_summary, full_manifest)


@pytest.mark.parametrize("figure", SECTIONS, ids=lambda figure: figure.__name__)
def test_they_are_none_without_their_rows(figure: Figure, rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    assert figure(rows, summary, {}) is None


def descriptions(svg: str, kind: str) -> list[str]:
    return re.findall(rf'aria-label="([^"]*)" role="graphics-symbol" aria-roledescription="{kind}"', svg)


def test_the_map_has_one_cell_for_each_site_and_tells_noise_from_effect(rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    svg = drawing.to_svg(patching_charts.causal_map(rows, summary, {}))
    shares = patching_findings.site_shares(rows, summary)
    cells, dots = descriptions(svg, "rect mark"), descriptions(svg, "circle")
    assert len(cells) == shares["counts"].sum()
    assert len(cells) + len(dots) == len(shares) == 2 * 7 * 5
    assert any(re.match(rf"L{CHANGED}.attn_out: share 9\d", cell) for cell in cells)
    assert all(dot.endswith("below 3 × numerical noise") for dot in dots)


def test_every_prompt_has_its_dot(rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    svg = drawing.to_svg(divergence_charts.d_by_prompt(rows, summary, {}))
    assert len(descriptions(svg, "circle")) == 24


def test_infinite_d_is_left_out_of_the_figure(rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    d = (pl.col("metric") == "kl_tuned_base_nats") & (pl.col("split") == "report")
    some = rows.with_columns(value=pl.when(d, pl.col("prompt") == "r003").then(float("inf")).otherwise("value"))
    svg = drawing.to_svg(divergence_charts.d_by_prompt(some, summary, {}))
    assert len(descriptions(svg, "circle")) == 23


def test_lines_have_a_legend(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> None:
    for figure, names in ((similarity_charts.cka_by_layer, difference.STREAM), (patching_charts.arms_by_layer, drawing.ARM_COLOURS)):
        svg = drawing.to_svg(figure(rows, summary, manifest))
        legend = svg[svg.index("role-legend") :]
        assert all(f">{name}<" in legend for name in names)


NUMBER = r"-?\d+\.?\d*"


def unpacked(found: dict) -> list[list[dict]]:
    return [[dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)] for table in found["tables"]]


def test_a_browser_gets_the_chart_that_altair_makes(rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    """The same specification, its records named and column by column: put back, it draws the same picture."""
    chart = patching_charts.causal_map(rows, summary, {})
    found = json.loads(json.dumps(drawing.for_browsers(chart)))
    assert found["spec"] == drawing.for_browsers(chart)["spec"], "it is JSON"
    sets = {f"t{place}": records for place, records in enumerate(unpacked(found))}
    pictures = drawing.drawn({**found["spec"], "datasets": sets}), drawing.to_svg(chart)
    again, svg = (re.split(NUMBER, picture) for picture in pictures)
    assert again == svg, "all but its numbers"
    moved = [abs(float(one) - float(other)) for one, other in zip(*(re.findall(NUMBER, picture) for picture in pictures), strict=True)]
    assert max(moved) <= 1, "a pixel, or one of 255 steps of a colour"
    shares = patching_findings.site_shares(rows, summary)
    cells = [one for records in unpacked(found) for one in records if "share" in one and one.get("counts")]
    told = {(one["direction"], one["site"], one["layer"]): one["share"] for one in cells}
    for row in shares.filter("counts", pl.col("share").is_not_null()).iter_rows(named=True):
        assert told[row["direction"], row["site"], row["layer"]] == pytest.approx(row["share"], abs=2e-4)


def test_records_that_layers_share_travel_once_and_floats_stay_told_apart() -> None:
    near = [1.0, float(np.nextafter(np.float32(1), np.float32(2)))]
    data = drawing.inline([{"x": near[0], "says": "one"}, {"x": near[1]}, {"x": float("nan"), "says": "</script>"}])
    base = alt.Chart(data)
    found = drawing.for_browsers(drawing.vconcat(drawing.layer(base.mark_line(), base.mark_point()), base.mark_bar()))
    assert found["tables"] == [{"x": [1.0, pytest.approx(near[1], rel=1e-8), None], "says": ["one", None, "</script>"]}]
    far = drawing.for_browsers(alt.Chart(drawing.inline({"x": x} for x in (0.123456789, 1234.56789, 1.0, -0.00098765432))).mark_line())
    assert far["tables"] == [{"x": [0.1235, 1235.0, 1.0, -0.0009877]}] or far["tables"][0]["x"][1] == 1234.56789
    assert np.float32(found["tables"][0]["x"][1]) == np.float32(near[1])
    assert re.findall(r"'name': '(\w+)'", str(found["spec"])) == ["t0"] * 3


def test_each_dark_colour_can_be_read_on_a_dark_page() -> None:
    """Lines and letters have a contrast of 3 at least with what they stand on, on a light page and on a dark one."""
    for light in (drawing.INK, drawing.QUIET, drawing.BLUE, drawing.VERMILLION, drawing.GREEN, drawing.PURPLE, drawing.ORANGE):
        assert contrast(light, "#ffffff") >= 2.9, light
        assert contrast(drawing.DARK[light], drawing.DARK["#ffffff"]) >= 3, light
    ramp = [drawing.DARK[colour] for colour in drawing.SHARE_RANGE]
    brightness = [contrast(colour, "#000000") for colour in ramp]
    assert brightness == sorted(brightness), "more is brighter on a dark page, as it is darker on a light one"


def legends() -> dict[str, dict[str, str]]:
    """What each figure's table of colours gives a colour to."""
    return {
        "conditions": curves.COLOURS, "factorial": factorial_charts.COLOURS, "routing": routing_charts.COLOURS, "heads": heads_charts.COLOURS,
        "ranks": rank_charts.LOOKS, "fit": rank_charts.R2_LOOKS, "edits": steering_charts.LOOKS, "ways": interpolation_charts.COLOURS,
        "orders": grafting_charts.RAMP_COLOURS, "cuts": dict(enumerate(grafting_charts.LINES)), "answers": behaviour_page.LOOKS,
        "gradients": {name: colour for name, (colour, _) in attribution_charts.GROUP_LOOKS.items()},
    }  # fmt: skip


def test_one_colour_stands_for_one_thing() -> None:
    """Base, tuned, residual stream, attention and MLP keep their colours to themselves; a legend has no colour twice."""
    sites = drawing.SITE_COLOURS
    assert {sites["resid_post"], sites["attn_out"], sites["mlp_out"]} == {drawing.THINGS[name] for name in ("resid", "attn", "mlp")}
    assert len(set(sites.values())) == len(sites)
    assert not set(drawing.FREE) & set(drawing.THINGS.values())
    for name, table in legends().items():
        assert not set(table.values()) & set(drawing.THINGS.values()), name
        assert not set(table.values()) & set(sites.values()), name
        assert len(set(table.values())) == len(table), name
    assert attribution_charts.STATE_LOOKS["entered"][0] == drawing.THINGS["tuned"], "in the tuned model only"
    assert attribution_charts.STATE_LOOKS["left"][0] == drawing.THINGS["base"]
    every = {*drawing.THINGS.values(), *drawing.FREE, *sites.values()}
    assert every - {drawing.SKY} <= set(drawing.DARK), "each has its colour on a dark page"


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2."""

    def light(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_pages_draw_with_the_versions_of_vega_that_exports_draw_with() -> None:
    head = RENDERER.read_text(encoding="utf-8").partition("*/")[0]
    assert "BSD-3-Clause: Copyright (c) 2015-2023, University of Washington Interactive Data Lab" in head
    wanted = json.loads((Path(__file__).parents[2] / "tools" / "renderer" / "package.json").read_text())["dependencies"]
    assert wanted["vega"] == vl_convert.get_vega_version()
    assert re.search(r"vega-lite (\d+\.\d+)\.", head)[1] == vl_convert.get_vegalite_versions()[-1]  # type: ignore[index]
    assert f"vega-lite {wanted['vega-lite']}," in head
