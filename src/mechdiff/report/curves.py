"""Charts on maps, ranks and steering share these panels of lines with bands.

A table for these charts has the columns `panel line value says`, the x that it is drawn along, `low high` where there are bands, and
`sure` where dots are to be hollow if it is False.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import altair as alt
import polars as pl

from mechdiff.report import drawing
from mechdiff.report.drawing import BROWN, LEFT, OLIVE, PINK, QUIET, TEAL, WIDE, Chart

GREY = "#9aa4ae"
COLOURS = {
    **drawing.ARM_COLOURS, "diag_affine": OLIVE, "anchored_ridge": BROWN, "anchored_procrustes": PINK, "rrr": TEAL,
}  # fmt: skip
DASHES: dict[str, list[int]] = {"shift": [7, 3], "mean": [2, 3], "resample": [7, 3, 2, 3]}
"""As in the charts of patching; maps that learn more than a mean are solid."""
OTHERS = (GREY, *drawing.FREE)
OTHER_DASHES: tuple[list[int], ...] = ([5, 2, 1, 2], [10, 4], [3, 1], [1, 3])


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The axes of a panel: `x` of all panels, values on `scale` with the marks of `ticks`, and how tall it is."""

    x: Callable[[bool], alt.X]
    """The x axis of the last panel, or of one above it."""
    scale: alt.Scale
    ticks: alt.Axis
    height: int = 150
    """Pixels."""

    def y(self, column: str = "value") -> alt.Y:
        return alt.Y(f"{column}:Q", scale=self.scale, axis=self.ticks)


@dataclass(frozen=True, kw_only=True)
class Look:
    """The look of lines: their order in the legend, colours and dashes by name, and how dark their bands are."""

    names: Sequence[str]
    colours: Mapping[str, str]
    dashes: Mapping[str, list[int]]
    """Names without one are solid."""
    opacity: float = 0.12
    """0: no bands."""
    columns: int = 5
    """Names in a row of the legend on a wide page."""


@dataclass(frozen=True, kw_only=True)
class Behind:
    """What is drawn behind the lines of panels."""

    marks: Callable[[str], list[alt.Chart]] | None = None
    """Whatever else, by panel."""
    bands: pl.DataFrame | None = None
    """Grey areas: `panel low high` and the x."""
    faint: pl.DataFrame | None = None
    """Lines without dots, such as values on the fit split, or a law: `panel line value` and the x."""


NOTHING = Behind()


def look_of(names: Sequence[str]) -> Look:
    """Colour and dash of each name: those of the default arms, and others for arms that run by name only."""
    spare = [name for name in names if name not in COLOURS]
    colours = COLOURS | {name: OTHERS[place % len(OTHERS)] for place, name in enumerate(spare)}
    dashes = DASHES | {name: OTHER_DASHES[place % len(OTHER_DASHES)] for place, name in enumerate(spare)}
    return Look(names=names, colours=colours, dashes=dashes)


def channels(look: Look, width: int, *, legend: bool) -> tuple[alt.Stroke, alt.StrokeDash, alt.Fill]:
    """As `drawing.line_channels`, with the legend in rows of `look.columns`, or two on a phone: names of maps are long."""
    names = look.names
    shown = drawing.legend_of(names, width, "stroke") if legend else None
    if shown is not None:
        shown.columns = 2 if width < WIDE else look.columns if len(names) > look.columns else 0
    scale = {"domain": list(names), "range": [look.colours[name] for name in names]}
    patterns = alt.Scale(domain=list(names), range=[look.dashes.get(name, [1, 0]) for name in names])
    return (
        alt.Stroke("line:N", title=None, scale=alt.Scale(**scale), legend=shown),
        alt.StrokeDash("line:N", title=None, scale=patterns, legend=shown),
        alt.Fill("line:N", title=None, scale=alt.Scale(**scale), legend=shown),
    )


def panels(table: pl.DataFrame, titles: Mapping[str, str], axes: Axes, look: Look, width: int, behind: Behind = NOTHING) -> Chart:
    """One panel above the other, in the order of `titles`."""
    shown = [panel for panel in titles if panel in table["panel"].unique().to_list()]
    parts = []
    for place, panel in enumerate(shown):
        last = place == len(shown) - 1
        drawn = channels(look, width, legend=place == 0)
        layers = [*(behind.marks(panel) if behind.marks else [])]
        if behind.bands is not None and not (grey := behind.bands.filter(pl.col("panel") == panel)).is_empty():
            area = alt.Chart(drawing.inline(grey.to_dicts())).mark_area(aria=False, color=GREY, opacity=0.3)
            layers.append(area.encode(x=axes.x(last), y=axes.y("low"), y2=alt.Y2("high:Q")))
        if behind.faint is not None and not (thin := behind.faint.filter(pl.col("panel") == panel)).is_empty():
            line = alt.Chart(drawing.inline(thin.to_dicts())).mark_line(aria=False, strokeWidth=1, opacity=0.75)
            layers.append(line.encode(x=axes.x(last), y=axes.y(), stroke=drawn[0], detail=alt.Detail("line:N")).properties())
            layers[-1].mark.strokeDash = [2, 2]
        layers += _lines(table.filter(pl.col("panel") == panel), axes.x(last), axes, drawn, look.opacity)
        parts.append(drawing.layer(*layers, width=width - LEFT - 12, height=axes.height, title=drawing.title_of(titles[panel])))
    return drawing.styled(drawing.vconcat(*parts, spacing=12))


def _lines(
    table: pl.DataFrame, x: alt.X, axes: Axes, drawn: tuple[alt.Stroke, alt.StrokeDash, alt.Fill], opacity: float
) -> list[alt.Chart]:
    (stroke, dash, fill), y = drawn, axes.y()
    layers = []
    if "low" in table.columns and opacity:
        banded = alt.Chart(drawing.inline(table.drop("says").filter(pl.col("low").is_not_null(), pl.col("high").is_not_null()).to_dicts()))
        area = banded.mark_area(aria=False, opacity=opacity)
        layers.append(area.encode(x=x, y=axes.y("low"), y2=alt.Y2("high:Q"), fill=fill))
    base = alt.Chart(drawing.inline(table.to_dicts()))
    layers.append(base.mark_line(aria=False, strokeWidth=1.8).encode(x=x, y=y, stroke=stroke, strokeDash=dash))
    says = alt.Description("says:N")
    if "sure" in table.columns and not (unsure := table.filter(~pl.col("sure"))).is_empty():
        hollow = alt.Chart(drawing.inline(unsure.to_dicts())).mark_circle(size=18, opacity=1, color="#ffffff", strokeWidth=1.2)
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
        drawn.append(words.encode(x=alt.XValue(0), y=y, text=alt.TextValue(text)))
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
