"""Charts on maps, ranks and steering share these panels of lines with bands.

A table for these charts has the columns `panel line value says`, the x that it is drawn along, `low high` where there are bands, and
`sure` where dots are to be hollow if it is False.
"""

from collections.abc import Callable, Mapping, Sequence

import altair as alt
import polars as pl

from mechdiff.report import drawing
from mechdiff.report.drawing import BLACK, BLUE, GREEN, LEFT, ORANGE, PURPLE, QUIET, SKY, VERMILLION, WIDE, Chart

GREY, WINE, OLIVE = "#9aa4ae", "#7b1e3a", "#6b7a1e"
COLOURS = {
    "identity": BLACK, "shift": BLUE, "mean": GREEN, "resample": VERMILLION, "diag_affine": SKY, "anchored_ridge": PURPLE,
    "anchored_procrustes": ORANGE, "rrr": WINE,
}  # fmt: skip
DASHES: dict[str, list[int]] = {"shift": [7, 3], "mean": [2, 3], "resample": [7, 3, 2, 3]}
"""As in the charts of patching; maps that learn more than a mean are solid."""
OTHERS = (OLIVE, GREY, BLACK, BLUE, GREEN, VERMILLION, SKY, PURPLE, ORANGE, WINE)
OTHER_DASHES: tuple[list[int], ...] = ([5, 2, 1, 2], [10, 4], [3, 1], [1, 3])


def looks(names: Sequence[str]) -> tuple[dict[str, str], dict[str, list[int]]]:
    """Colour and dash of each name: those of the default arms, and others for arms that run by name only."""
    spare = [name for name in names if name not in COLOURS]
    colours = COLOURS | {name: OTHERS[place % len(OTHERS)] for place, name in enumerate(spare)}
    return colours, DASHES | {name: OTHER_DASHES[place % len(OTHER_DASHES)] for place, name in enumerate(spare)}


def channels(
    names: Sequence[str], colours: Mapping[str, str], dashes: Mapping[str, list[int]], width: int, *, legend: bool, columns: int = 5
) -> tuple[alt.Stroke, alt.StrokeDash, alt.Fill]:
    """As `drawing.line_channels`, with the legend in rows of `columns`, or two on a phone: names of maps are long."""
    shown = drawing.legend_of(names, width, "stroke") if legend else None
    if shown is not None:
        shown.columns = 2 if width < WIDE else columns if len(names) > columns else 0
    scale = {"domain": list(names), "range": [colours[name] for name in names]}
    patterns = alt.Scale(domain=list(names), range=[dashes.get(name, [1, 0]) for name in names])
    return (
        alt.Stroke("line:N", title=None, scale=alt.Scale(**scale), legend=shown),
        alt.StrokeDash("line:N", title=None, scale=patterns, legend=shown),
        alt.Fill("line:N", title=None, scale=alt.Scale(**scale), legend=shown),
    )


def panels(
    table: pl.DataFrame,
    x: Callable[[bool], alt.X],
    titles: Mapping[str, str],
    names: Sequence[str],
    scale: alt.Scale,
    axis: alt.Axis,
    width: int,
    *,
    looks_of: tuple[Mapping[str, str], Mapping[str, list[int]]] | None = None,
    height: int = 150,
    opacity: float = 0.12,
    faint: pl.DataFrame | None = None,
    bands: pl.DataFrame | None = None,
    marks: Callable[[str], list[alt.Chart]] | None = None,
    columns: int = 5,
) -> Chart:
    """One panel above the other, in the order of `titles`; `x(last)` is the x axis.

    `faint` are lines without dots (such as values on the fit split, or a law), `bands` grey areas (`low`, `high`), `marks` whatever else.
    """
    colours, dashes = looks_of or looks(names)
    shown = [panel for panel in titles if panel in table["panel"].unique().to_list()]
    parts = []
    for place, panel in enumerate(shown):
        drawn = channels(names, colours, dashes, width, legend=place == 0, columns=columns)
        layers = [*(marks(panel) if marks else [])]
        y = alt.Y("value:Q", scale=scale, axis=axis)
        if bands is not None and not (grey := bands.filter(pl.col("panel") == panel)).is_empty():
            area = alt.Chart(drawing.inline(grey.to_dicts())).mark_area(aria=False, color=GREY, opacity=0.3)
            layers.append(area.encode(x=x(place == len(shown) - 1), y=alt.Y("low:Q", scale=scale, axis=axis), y2=alt.Y2("high:Q")))
        if faint is not None and not (thin := faint.filter(pl.col("panel") == panel)).is_empty():
            line = alt.Chart(drawing.inline(thin.to_dicts())).mark_line(aria=False, strokeWidth=1, opacity=0.75)
            layers.append(line.encode(x=x(place == len(shown) - 1), y=y, stroke=drawn[0], detail="line:N").properties())
            layers[-1].mark.strokeDash = [2, 2]
        layers += _lines(table.filter(pl.col("panel") == panel), x(place == len(shown) - 1), y, scale, axis, drawn, opacity)
        parts.append(alt.layer(*layers, width=width - LEFT - 12, height=height, title=drawing.title_of(titles[panel])))
    return drawing.styled(alt.vconcat(*parts, spacing=12))


def _lines(
    table: pl.DataFrame,
    x: alt.X,
    y: alt.Y,
    scale: alt.Scale,
    axis: alt.Axis,
    drawn: tuple[alt.Stroke, alt.StrokeDash, alt.Fill],
    opacity: float,
) -> list[alt.Chart]:
    stroke, dash, fill = drawn
    layers = []
    if "low" in table.columns and opacity:
        banded = alt.Chart(drawing.inline(table.drop("says").filter(pl.col("low").is_not_null(), pl.col("high").is_not_null()).to_dicts()))
        area = banded.mark_area(aria=False, opacity=opacity)
        layers.append(area.encode(x=x, y=alt.Y("low:Q", scale=scale, axis=axis), y2=alt.Y2("high:Q"), fill=fill))
    base = alt.Chart(drawing.inline(table.to_dicts()))
    layers.append(base.mark_line(aria=False, strokeWidth=1.8).encode(x=x, y=y, stroke=stroke, strokeDash=dash))
    says = alt.Description("says:N")
    if "sure" in table.columns and not (unsure := table.filter(~pl.col("sure"))).is_empty():
        hollow = alt.Chart(drawing.inline(unsure.to_dicts())).mark_circle(size=18, opacity=1, color="white", strokeWidth=1.2)
        layers.append(hollow.encode(x=x, y=y, stroke=stroke, description=says))
        base = alt.Chart(drawing.inline(table.filter("sure").to_dicts()))
    layers.append(base.mark_circle(size=20, opacity=1).encode(x=x, y=y, fill=fill, description=says))
    return layers


def rule(value: float, text: str, scale: alt.Scale, axis: alt.Axis, *, colour: str = QUIET) -> list[alt.Chart]:
    """A dashed horizontal line with a word at its left end."""
    line = alt.Chart(drawing.inline([{"value": value}]))
    y = alt.Y("value:Q", scale=scale, axis=axis)
    drawn = [line.mark_rule(aria=False, color=colour, strokeDash=[3, 3]).encode(y=y)]
    if text:
        words = line.mark_text(aria=False, align="left", baseline="bottom", dx=3, dy=-2, color=colour)
        drawn.append(words.encode(x=alt.value(0), y=y, text=alt.value(text)))
    return drawn


def zero(scale: alt.Scale, axis: alt.Axis) -> alt.Chart:
    line = alt.Chart(drawing.inline([{"value": 0}])).mark_rule(aria=False, color=GREY)
    return line.encode(y=alt.Y("value:Q", scale=scale, axis=axis))


def share_scale(table: pl.DataFrame, *, least: float = -0.5, most: float = 1.5) -> alt.Scale:
    """At least from 0 to 1, wider where values lie outside, to `least` and `most` at most: what lies beyond is drawn at the end."""
    values = pl.concat([table["value"], *(table[name].drop_nulls() for name in ("low", "high") if name in table.columns)])
    low, high = drawing.ends(values)
    return alt.Scale(domain=[max(min(0.0, low), least), min(max(1.0, high), most)], nice=False, clamp=True)


def ordered(names: Sequence[str], order: Sequence[str]) -> list[str]:
    """The names, those of `order` first and in that order, then the others by the alphabet."""
    return [name for name in order if name in names] + sorted(name for name in set(names) if name not in order)


def rank_axis(ranks: Sequence[int], width: int, title: str) -> Callable[[bool], alt.X]:
    """Ranks side by side at equal distances: 0, 1, 2, 4, 8, ..."""
    ordered_ranks = sorted(set(ranks))
    step = -(-len(ordered_ranks) // (16 if width >= WIDE else 8))
    axis = alt.Axis(values=ordered_ranks[::step], labelAngle=0, grid=False, labelOverlap=False)

    def x(last: bool) -> alt.X:
        return alt.X("rank:O", sort=ordered_ranks, title=title if last else None, axis=axis, scale=alt.Scale(type="point", padding=0.5))

    return x


def strength_axis(most: float) -> Callable[[bool], alt.X]:
    """Strength from 0, with 0 and 1 as the lines to look at."""
    ticks = [value for value in (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4, 6, 8) if value <= most]
    axis = alt.Axis(values=ticks if most <= 1.5 else [t for t in ticks if t == int(t)], grid=False, format=".2~f", labelOverlap=True)

    def x(last: bool) -> alt.X:
        scale = alt.Scale(domain=[-0.04 * most, 1.04 * most], nice=False)
        return alt.X("s:Q", title="strength s (0: nothing, 1: the map)" if last else None, axis=axis, scale=scale)

    return x


def full_strength(x: Callable[[bool], alt.X]) -> list[alt.Chart]:
    """Upright lines at strength 0 and 1."""
    ends = alt.Chart(drawing.inline([{"s": 0}, {"s": 1}]))
    return [ends.mark_rule(aria=False, color="#c3ccd6", strokeWidth=1).encode(x=x(False))]
