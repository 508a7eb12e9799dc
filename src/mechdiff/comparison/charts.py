"""The charts of a comparison show numbers of runs with intervals, and curves of several runs over one another."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from mechdiff.report import curves, drawing
from mechdiff.report.curves import GREY, Axes, Behind, Look
from mechdiff.report.drawing import BLUE, GREEN, OLIVE, ORANGE, PURPLE, VERMILLION, WIDE, WINE, Chart
from mechdiff.report.phrasing import with_interval

RUNS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, WINE, OLIVE)
DASHES: tuple[list[int], ...] = ([1, 0], [7, 3], [2, 3], [7, 3, 2, 3], [5, 2, 1, 2], [10, 4], [3, 1])
ROW = 22
"""Pixels of a run in a panel of numbers."""


def look_of(names: Sequence[str], *, opacity: float = 0.16) -> Look:
    """Colour and dash of each run, by its place."""
    return Look(
        names=names,
        colours={name: RUNS[place % len(RUNS)] for place, name in enumerate(names)},
        dashes={name: DASHES[place % len(DASHES)] for place, name in enumerate(names)},
        opacity=opacity,
        columns=3,
    )


def numbers(*, table: pl.DataFrame, names: Sequence[str], log: bool, title: str, width: int = WIDE) -> Chart | None:
    """`panel line value low high null_low null_high most`: a panel a number, a row a run, a dot with its interval.

    Grey: what an effect that is spread alike would give; the line at the end: how many parts there are.
    """
    if table.is_empty():
        return None
    least, most = _domain(table, log)
    scale = alt.Scale(type="log", domain=[least, most], nice=False, clamp=True) if log else alt.Scale(domain=[least, most], nice=True)
    colours = look_of(names).colours
    panels = table["panel"].unique(maintain_order=True).to_list()
    shown = []
    for place, panel in enumerate(panels):
        part = table.filter(pl.col("panel") == panel)
        last = place == len(panels) - 1
        axis = alt.Axis(title=title if last else None, labels=last, ticks=last, tickCount=6, format="~g", labelOverlap=True)
        x = alt.X("value:Q", scale=scale, axis=axis)
        y = alt.Y("line:N", sort=list(names), axis=None, scale=alt.Scale(domain=list(names), padding=0.3))
        legend = drawing.legend_of(names, width) if place == 0 else None
        colour = alt.Color("line:N", title=None, scale=alt.Scale(domain=list(names), range=[colours[n] for n in names]), legend=legend)
        layers = _marks(part, x, y, colour, scale)
        shown.append(drawing.layer(*layers, width=width - 30, height=ROW * len(names), title=drawing.title_of(panel)))
    return drawing.styled(drawing.vconcat(*shown, spacing=6))


def _domain(table: pl.DataFrame, log: bool) -> tuple[float, float]:
    found = pl.concat([table[name].drop_nulls().drop_nans() for name in ("value", "low", "high", "most", "null_high")])
    low, high = drawing.ends(found)
    if log:
        return min(1.0, low) * 0.93, high * 1.07
    reach = 0.06 * ((high - low) or 1)
    return min(low, 0) - reach, max(high, 0) + reach


def _marks(part: pl.DataFrame, x: alt.X, y: alt.Y, colour: alt.Color, scale: alt.Scale) -> list[alt.Chart]:
    layers = []
    null = part.filter(pl.col("null_low").is_not_null())
    if not null.is_empty():
        grey = alt.Chart(drawing.inline(null.select("line", "null_low", "null_high").to_dicts()))
        layers.append(
            grey.mark_bar(aria=False, color=GREY, opacity=0.35, height=12).encode(
                x=alt.X("null_low:Q", scale=scale), x2=alt.X2("null_high:Q"), y=y
            )
        )
    ends = part.filter(pl.col("most").is_not_null()).select("most").unique().sort("most")
    if not ends.is_empty():
        layers.append(
            alt.Chart(drawing.inline(ends.to_dicts()))
            .mark_rule(aria=False, color=GREY, strokeDash=[3, 3])
            .encode(x=alt.X("most:Q", scale=scale))
        )
    if scale.type is alt.Undefined:
        layers.append(alt.Chart(drawing.inline([{"value": 0}])).mark_rule(aria=False, color=GREY).encode(x=x))
    says = [{**row, "says": _says(row)} for row in part.iter_rows(named=True)]
    known = [{key: row[key] for key in ("line", "low", "high")} for row in says if row["low"] is not None]
    bars = alt.Chart(drawing.inline(known)).mark_rule(aria=False, strokeWidth=2)
    layers.append(bars.encode(x=alt.X("low:Q", scale=scale), x2=alt.X2("high:Q"), y=y, color=colour))
    dots = alt.Chart(drawing.inline(says)).mark_circle(size=70, opacity=1)
    layers.append(dots.encode(x=x, y=y, color=colour, description=alt.Description("says:N")))
    return layers


def _says(row: dict) -> str:
    return f"{row['line']}, {row['panel']}: {with_interval(row['value'], row['low'], row['high'])}"


def along(
    *, table: pl.DataFrame, names: Sequence[str], by_depth: bool = False, zero: bool = False, title: str = "", width: int = WIDE
) -> Chart | None:
    """`panel line x value low high`: curves along layers (or relative depth), one panel above the other."""
    if table.is_empty():
        return None
    table = table.with_columns(says=pl.Series([_point(row) for row in table.iter_rows(named=True)], dtype=pl.String))
    if zero:
        low, high = drawing.ends(pl.concat([table[name].drop_nulls() for name in ("value", "low", "high")]))
        scale = alt.Scale(domain=[max(min(low, -0.1), -1.25), min(max(high, 0.1), 1.25)], nice=False, clamp=True)
    else:
        scale = curves.share_scale(table, least=-0.25, most=1.25)
    least, most = (float(end) for end in scale.domain)
    axis = drawing.left_axis(values=[tick for tick in (-1, -0.5, 0, 0.5, 1) if least <= tick <= most], format="~g")
    ends = drawing.layer_range(table)

    def x(last: bool) -> alt.X:
        if not by_depth:
            return drawing.layer_axis(ends, width, title=last)
        return alt.X(
            "x:Q", title="share of depth" if last else None, axis=alt.Axis(grid=False, format=".1f"), scale=alt.Scale(domain=[0, 1])
        )

    panels = {panel: panel + title for panel in table["panel"].unique(maintain_order=True).to_list()}
    marks = (lambda panel: [curves.zero(scale, axis)]) if zero else None
    axes = Axes(x=x, scale=scale, ticks=axis, height=100)
    return curves.panels(table.drop("against"), panels, axes, look_of(names), width, Behind(marks=marks))


def _point(row: dict) -> str:
    return f"{row['line']}, L{row['layer']} {row['panel']}: {with_interval(row['value'], row['low'], row['high'])}"


def sizes(*, table: pl.DataFrame, names: Sequence[str], width: int = WIDE) -> Chart | None:
    """`panel line layer value`: how much each block's weights changed, on a log scale; what did not change has no dot."""
    drawn = table.filter(pl.col("value") > 0)
    if drawn.is_empty():
        return None
    drawn = drawn.with_columns(says=pl.Series([_point(row) for row in drawn.iter_rows(named=True)], dtype=pl.String))
    scale, _ = drawing.log_scale(drawn["value"], drawn["value"])
    axis = drawing.left_axis(values=drawing.powers(scale), format="~g")
    panels = {panel: f"{panel}: ‖ΔW‖ / ‖W‖" for panel in drawn["panel"].unique(maintain_order=True).to_list()}
    ends = drawing.layer_range(table)

    def x(last: bool) -> alt.X:
        return drawing.layer_axis(ends, width, title=last)

    axes = Axes(x=x, scale=scale, ticks=axis, height=100)
    return curves.panels(drawn.drop("against"), panels, axes, look_of(names, opacity=0), width)


def by_rank(*, table: pl.DataFrame, names: Sequence[str], title: str, width: int = WIDE) -> Chart | None:
    """`panel line rank value low high`: curves by rank or by the size of a set."""
    if table.is_empty():
        return None
    says = [f"{r['line']}, {title} {r['rank']}: {with_interval(r['value'], r['low'], r['high'])}" for r in table.iter_rows(named=True)]
    table = table.with_columns(says=pl.Series(says, dtype=pl.String))
    scale, axis = curves.share_scale(table), drawing.left_axis(tickCount=4, format="~g")
    x = curves.rank_axis(table["rank"].to_list(), width, title)
    panels = {panel: panel for panel in table["panel"].unique(maintain_order=True).to_list()}
    axes = Axes(x=x, scale=scale, ticks=axis, height=130)
    return curves.panels(table, panels, axes, look_of(names), width)
