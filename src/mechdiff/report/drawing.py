"""All charts of this project look alike: widths, colours, axes, legends, and how they travel to a browser or become an SVG.

Colours are told apart by colour-blind readers (Okabe and Ito 2008; one hue from light to dark in the map), and line
patterns and shapes repeat what colour says.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import altair as alt
import numpy as np
import polars as pl
import vl_convert
from altair.utils import parse_shorthand
from altair.utils.schemapi import SchemaBase

from mechdiff.report.phrasing import HEAD

Chart = Any
"""An altair chart of any composition."""

WIDE, NARROW = 700, 350
"""Outer widths in pixels: a page column, and a phone."""

INK, QUIET, FAINT = "#24292f", "#6a737d", "#e3e6ea"
BLUE, VERMILLION, GREEN, SKY, PURPLE, ORANGE, BLACK = "#0072b2", "#d55e00", "#009e73", "#56b4e9", "#b5579a", "#c98500", "#24292f"
WINE, OLIVE, TEAL, PINK, BROWN, BASE = "#7b1e3a", "#6b7a1e", "#17808f", "#c2488b", "#8c6d31", "#6e7781"
THINGS = {"base": BASE, "tuned": BLUE, "resid": BLACK, "attn": VERMILLION, "mlp": GREEN}
"""One colour for one thing, on the whole page: in no legend does one of these colours stand for anything else."""
FREE = (ORANGE, PURPLE, SKY, WINE, OLIVE, TEAL, PINK, BROWN)
"""What the legends of other things choose from."""
SITE_COLOURS = {
    "resid_pre": "#a7adb4",
    "resid_mid": "#5f6973",
    "resid_post": THINGS["resid"],
    "attn_out": THINGS["attn"],
    "mlp_out": THINGS["mlp"],
    "attn_proj": "#ef9a63",
    "z": "#8f3d00",
}
"""Places of the residual stream are shades of its colour, those of attention of attention's."""
SITE_DASHES = {"resid_pre": [2, 3], "resid_mid": [7, 3], "mlp_out": [7, 3], "attn_proj": [2, 3], "z": [5, 2, 1, 2]}
SITE_SHAPES = {"resid_pre": "triangle-up", "resid_mid": "diamond", "resid_post": "square", "attn_out": "circle", "mlp_out": "cross"}
ARM_COLOURS = {"identity": WINE, "shift": ORANGE, "mean": SKY, "resample": PURPLE}
ARM_DASHES = {"shift": [7, 3], "mean": [2, 3], "resample": [7, 3, 2, 3]}
SHARE_RANGE = ["#eef3f8", "#bcd2e8", "#7fadd4", "#3a7dbb", "#17508f", "#08264d"]

DARK = {
    "#ffffff": "#14171b", "#fafbfc": "#1a1f25", INK: "#e4e7eb", QUIET: "#a0a9b4", FAINT: "#2b323a",
    "#9aa4ae": "#7d8792", "#c3ccd6": "#46505b", "#d9dee4": "#3a424c",
    BLUE: "#5aa9e6", VERMILLION: "#f0844c", GREEN: "#2fc79a", PURPLE: "#d68bbf", ORANGE: "#e8ae3c",
    WINE: "#e0728f", OLIVE: "#b7c95a", TEAL: "#4fc0d0", PINK: "#ea85b8", BROWN: "#c9a45c", BASE: "#b3bcc6",
    "#a7adb4": "#848d97", "#5f6973": "#b9c1ca", "#ef9a63": "#ffb98f", "#8f3d00": "#d9722e",
    "#a24a0c": "#ff9b57", "#f6c99b": "#7d4a24", "#9cc3e4": "#2a567d",
    "#8a5c00": "#e0b45c", "#b03a00": "#ff9b57", "#8fb8d8": "#3f6f96",
    **dict(zip(SHARE_RANGE, ["#1c242d", "#24425f", "#2f669a", "#5095cf", "#8fc0e8", "#d9ecfb"], strict=True)),
}  # fmt: skip
"""By colour on a light page: the same thing's colour on a dark one, for charts in a browser."""

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
    """The chart in Vega-Lite: what its `to_dict` gives, read where it stands. altair copies every part of a composed chart, anew at every level, and
    asks of every value whether it is a table, a date or a map."""
    made: dict[str, Any] = _plain(chart)
    return made


def _plain(part: Any) -> Any:
    """A part of a chart as JSON has it."""
    if isinstance(part, SchemaBase):
        if part._args:
            return _plain(part._args[0])
        said = {key: _plain(one) for key, one in part._kwds.items() if one is not alt.Undefined and key not in NOT_SAID}
        if isinstance(short := part._kwds.get("shorthand", alt.Undefined), str):
            said = {**_read(short), **said} if "type" in part._kwds else {"field": _read(short)["field"], **said}
        if isinstance(said.get("mark"), str):
            said["mark"] = {"type": said["mark"]}
        return said
    if isinstance(part, dict):
        return {key: _plain(one) for key, one in part.items() if one is not alt.Undefined}
    if isinstance(part, list | tuple):
        return [_plain(one) for one in part]
    if isinstance(part, str):
        return HEAD.sub(r"L\1H\2", part)
    return part.item() if isinstance(part, np.generic) else part


NOT_SAID = ("shorthand", "_cached_hash")


@cache
def _read(shorthand: str) -> dict[str, Any]:
    """ "layer:Q" as field and type."""
    found: dict[str, Any] = parse_shorthand(shorthand)
    return found


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


def for_browsers(chart: Chart) -> dict[str, Any]:
    """What a page needs to draw a chart: `spec`, in Vega-Lite, and `tables`, the records that it names as its data, column by column.

    Records that several layers share are there once; a number keeps four digits, or nine where four would
    move it by more than an eye sees (`_short`); tables and rows keep theirs.
    """
    tables: dict[str, dict[str, list]] = {}

    def named(part: Any) -> Any:
        if isinstance(part, list):
            return [named(one) for one in part]
        if not isinstance(part, dict):
            return part
        if isinstance(text := part.get("values"), str):
            if text not in tables:
                tables[text] = _columns(json.loads(text))
            return {"name": f"t{list(tables).index(text)}"}
        return {key: named(one) for key, one in part.items()}

    return {"spec": named(specification(chart)), "tables": list(tables.values())}


def _columns(records: list[dict]) -> dict[str, list]:
    """Records column by column. A name that a record lacks is null in it, as a null is."""
    names = dict.fromkeys(name for record in records for name in record)
    return {name: _short([record.get(name) for record in records]) for name in names}


UNSEEN = 1e-4
"""Of the span of a column: how far a number may be moved."""


def _short(column: list[Any]) -> list[Any]:
    numbers = [one for one in column if isinstance(one, float)]
    if not numbers:
        return column
    unseen = UNSEEN * (max(numbers) - min(numbers))

    def short(number: Any) -> Any:
        few = float(f"{number:.4g}") if isinstance(number, float) else number
        return few if few == number or abs(few - number) <= unseen else float(f"{number:.9g}")

    return [None if one is None else short(one) for one in column]


def height_of(spec: Mapping[str, Any]) -> float:
    """About how many pixels a specification is high when drawn: its panels, their titles, axes and legend. A page keeps so much room for it."""
    return _panels_height(spec) + 45


def _panels_height(spec: Mapping[str, Any]) -> float:
    if "vconcat" in spec:
        return sum(_panels_height(part) for part in spec["vconcat"])
    if "hconcat" in spec:
        return max(_panels_height(part) for part in spec["hconcat"])
    height = spec.get("height", 0)
    return (height if isinstance(height, int | float) else 200) + 56


def inline(records: Iterable[dict]) -> alt.Data:
    """Records as the data of a chart: as JSON text, which altair hands on unread (it walks through lists again for every copy of a chart)."""
    known = ({key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in record.items()} for record in records)
    return alt.Data(values=json.dumps(list(known), allow_nan=False), format={"type": "json"})


def layer_axis(layers: tuple[int, int], width: int, *, field: str = "layer", title: bool = True) -> alt.X:
    """Layers from left to right, half a layer of room at both ends, so that curves and map columns share their places."""
    first, last = layers
    axis = alt.Axis(values=layer_ticks(layers, width), format="d", grid=False, labelOverlap=False)
    return alt.X(
        f"{field}:Q", title="layer" if title else None, axis=axis, scale=alt.Scale(domain=[first - 0.5, last + 0.5], nice=False, zero=False)
    )


def layer_ticks(layers: tuple[int, int], width: int) -> list[int]:
    """The layers that an axis of that width names."""
    first, last = layers
    step = next(step for step in (1, 2, 5, 10, 20, 50) if (last - first) / step <= (16 if width >= WIDE else 8))
    return list(range(-(-first // step) * step, last + 1, step))


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
        "background": "#ffffff",
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
