"""All charts of this project look alike: widths, colours, axes, legends, and how they are saved.

Colours are told apart by colour-blind readers (Okabe and Ito 2008; one hue from light to dark in the map), and line
patterns and shapes repeat what colour says.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import vl_convert
from altair.utils.schemapi import SchemaBase

Chart = Any
"""An altair chart of any composition."""

WIDE, NARROW = 700, 350
"""Outer widths in pixels: a page column, and a phone."""

INK, QUIET, FAINT = "#24292f", "#6a737d", "#e3e6ea"
BLUE, VERMILLION, GREEN, SKY, PURPLE, ORANGE, BLACK = "#0072b2", "#d55e00", "#009e73", "#56b4e9", "#b5579a", "#c98500", "#24292f"
SITE_COLOURS = {
    "resid_pre": SKY,
    "resid_mid": BLUE,
    "resid_post": BLACK,
    "attn_out": VERMILLION,
    "mlp_out": GREEN,
    "attn_proj": PURPLE,
    "z": ORANGE,
}
SITE_DASHES = {"resid_pre": [2, 3], "resid_mid": [7, 3], "mlp_out": [7, 3], "attn_proj": [2, 3], "z": [5, 2, 1, 2]}
SITE_SHAPES = {"resid_pre": "triangle-up", "resid_mid": "diamond", "resid_post": "square", "attn_out": "circle", "mlp_out": "cross"}
ARM_COLOURS = {"identity": BLACK, "shift": BLUE, "mean": GREEN, "resample": VERMILLION}
ARM_DASHES = {"shift": [7, 3], "mean": [2, 3], "resample": [7, 3, 2, 3]}
SHARE_RANGE = ["#eef3f8", "#bcd2e8", "#7fadd4", "#3a7dbb", "#17508f", "#08264d"]

LEFT = 76
"""Pixels before the first layer, the same in all charts whose x axis is the layer, so that columns line up on the page."""


def to_svg(chart: Chart) -> str:
    """The chart as an SVG document; the same chart gives the same bytes."""
    return drawn(specification(chart))


def drawn(vega_lite: dict[str, Any]) -> str:
    """A specification as an SVG document, whose ids are numbered anew (Vega numbers them through the life of the process)."""
    svg = str(vl_convert.vegalite_to_svg(vega_lite))
    numbers = {name: f"id{number}" for number, name in enumerate(dict.fromkeys(re.findall(r'\bid="([^"]+)"', svg)))}
    return re.sub(r'(\bid="|url\(#)([^")]+)', lambda found: found[1] + numbers.get(found[2], found[2]), svg)


def specification(chart: Chart) -> dict[str, Any]:
    """The chart in Vega-Lite: what its `to_dict` gives, read where it stands. altair copies every part of a composed chart, anew at every level."""
    how = next((name for name, kind in COMPOSED.items() if isinstance(chart, kind)), None)
    if how is None:
        return SchemaBase.to_dict(chart, validate=False)
    made = SchemaBase.to_dict(chart, validate=False, ignore=[how])
    return made | {how: [specification(part) for part in chart[how]]}


def _together(how: str, *charts: Chart, **properties: Any) -> Chart:
    """Charts of one panel, or panels of one figure, as they stand: altair copies every part of each, anew at every level, which takes as long as
    all else on a page."""
    made = COMPOSED[how](**properties)
    made[how] = list(charts)
    return made


COMPOSED = {"layer": alt.LayerChart, "vconcat": alt.VConcatChart, "hconcat": alt.HConcatChart, "concat": alt.ConcatChart}
layer, vconcat, hconcat, concat = (partial(_together, how) for how in COMPOSED)


def scales(**channels: str) -> alt.Resolve:
    """Which scales the panels of a figure share and which are their own, for `vconcat` and the like: `resolve_scale` copies every panel."""
    return alt.Resolve(scale=alt.ScaleResolveMap(**channels))


def save(svg: str, folder: Path, name: str) -> None:
    """Writes NAME.svg to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.svg").write_text(svg, encoding="utf-8")


def records(chart: Chart) -> list[list[dict]]:
    """The tables behind a chart, as its layers have them, without what is said of each mark; single rows (rules, words) left out."""
    found: dict[str, list[dict]] = {}

    def walk(part: Any) -> None:
        if isinstance(part, alt.Data):
            text = part.values
            if isinstance(text, str) and text not in found:
                found[text] = [{name: value for name, value in one.items() if name != "says"} for one in json.loads(text)]
        for inner in (getattr(part, name, alt.Undefined) for name in ("data", "layer", "vconcat", "hconcat")):
            for one in inner if isinstance(inner, list) else [inner]:
                if one is not alt.Undefined and not isinstance(one, str):
                    walk(one)

    walk(chart)
    return [table for table in found.values() if len(table) > 1]


def inline(records: Iterable[dict]) -> alt.Data:
    """Records as the data of a chart: as JSON text, which altair hands on unread (it walks through lists again for every copy of a chart)."""
    known = ({key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in record.items()} for record in records)
    return alt.Data(values=json.dumps(list(known), allow_nan=False), format={"type": "json"})


def layer_axis(layers: tuple[int, int], width: int, *, field: str = "layer", title: bool = True) -> alt.X:
    """Layers from left to right, half a layer of room at both ends, so that curves and map columns share their places."""
    first, last = layers
    step = next(step for step in (1, 2, 5, 10, 20, 50) if (last - first) / step <= (16 if width >= WIDE else 8))
    ticks = list(range(-(-first // step) * step, last + 1, step))
    axis = alt.Axis(values=ticks, format="d", grid=False, labelOverlap=False)
    return alt.X(
        f"{field}:Q", title="layer" if title else None, axis=axis, scale=alt.Scale(domain=[first - 0.5, last + 0.5], nice=False, zero=False)
    )


def log_scale(values: pl.Series, highs: pl.Series, *, decades: float = 5) -> tuple[alt.Scale, float]:
    """A log scale for nats, and its bottom: the power of ten under the least value, at most `decades` under the largest."""
    least, most = ends(values)
    bottom = 10.0 ** math.floor(math.log10(max(least, most * 10**-decades)))
    top = 1.6 * max(most, ends(highs.fill_nan(None).fill_null(0))[1])
    return alt.Scale(type="log", domain=[bottom, top], nice=False, clamp=True), bottom


def powers(scale: alt.Scale) -> list[float]:
    """The powers of ten inside a log scale, for its axis: a line at each, none between."""
    low, high = (float(end) for end in scale.domain)
    return [10.0**power for power in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high)) + 1)]


def pinned(values: pl.Series, bottom: float) -> str:
    """What a title adds where values under the scale's bottom are drawn at it; empty where none is."""
    return f" (bottom: 1e{round(math.log10(bottom))} or less)" if ends(values)[0] < bottom else ""


def left_axis(**options: Any) -> alt.Axis:
    """A y axis without a title that takes LEFT pixels, whatever its labels."""
    return alt.Axis(minExtent=LEFT - 8, maxExtent=LEFT - 8, title=None, **options)


def legend_of(names: Sequence[str] = (), width: int = WIDE, symbol: Any = alt.Undefined) -> alt.Legend:
    """A legend above the chart, in up to three columns on a phone; `symbol` "stroke" shows lines."""
    columns = 3 if len(names) != 4 else 2
    return alt.Legend(
        orient="top",
        direction="horizontal",
        symbolType=symbol,
        symbolSize=300 if symbol == "stroke" else 80,
        symbolStrokeWidth=2,
        symbolOpacity=1,
        columns=columns if width < WIDE and len(names) > 3 else 0,
        offset=4,
        padding=0,
    )


def title_of(text: str) -> alt.TitleParams:
    """A panel's title, flush left with the panel."""
    return alt.TitleParams(text, anchor="start", frame="group", fontSize=12.5, fontWeight=600, color=INK, offset=6)


def line_channels(
    names: Sequence[str], column: str, colours: dict, dashes: dict, width: int, legend: bool = True
) -> tuple[alt.Stroke, alt.StrokeDash, alt.Fill]:
    """Stroke and dash of the lines, fill of bands and dots: one legend, which Vega-Lite merges from the three."""
    shown = legend_of(names, width, "stroke") if legend else None
    scale = {"domain": list(names), "range": [colours[name] for name in names]}
    stroke = alt.Stroke(f"{column}:N", title=None, scale=alt.Scale(**scale), legend=shown)
    patterns = alt.Scale(domain=list(names), range=[dashes.get(name, [1, 0]) for name in names])
    return (
        stroke,
        alt.StrokeDash(f"{column}:N", title=None, scale=patterns, legend=shown),
        alt.Fill(f"{column}:N", title=None, scale=alt.Scale(**scale), legend=shown),
    )


def styled(chart: Chart) -> Chart:
    """The chart with the fonts, greys and background of all figures: the last step of each."""
    font = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"
    axis = {"labelFontSize": 11.5, "titleFontSize": 12, "titleFontWeight": "normal", "labelColor": INK, "titleColor": INK}
    lines = {"gridColor": FAINT, "domainColor": "#9aa4ae", "tickColor": "#9aa4ae", "tickSize": 4, "labelPadding": 4}
    config = {
        "font": font,
        "background": "white",
        "padding": 4,
        "view": {"stroke": None},
        "axis": {**axis, **lines},
        "axisQuantitative": {"labelLimit": 0},  # no number is as long as the limit, and every label is measured against one
        "legend": {"labelFontSize": 11.5, "titleFontSize": 11.5, "titleFontWeight": "normal", "labelColor": INK, "titleColor": INK},
        "text": {"font": font, "fontSize": 11.5},
    }
    chart.config = alt.Config(**config)  # in place: `configure` would copy every layer
    return chart


def layer_range(table: pl.DataFrame) -> tuple[int, int]:
    """First and last layer of a table."""
    first, last = ends(table["layer"])
    return int(first), int(last)


def ends(values: pl.Series) -> tuple[float, float]:
    """Least and greatest, as numbers."""
    numbers = values.to_numpy()
    return float(numbers.min()), float(numbers.max())
