"""The figures show what grafted modules recover."""

import math
from collections.abc import Sequence

import altair as alt
import numpy as np
import polars as pl

from mechdiff.measures.grafting import findings
from mechdiff.report import drawing
from mechdiff.report.drawing import BLACK, LEFT, OLIVE, ORANGE, PURPLE, SKY, TEAL, WIDE, WINE, Chart
from mechdiff.report.phrasing import with_interval

LINE_FROM = 4
"""Points from which on a line is drawn through them: three say nothing of the way between."""


MODULES = 20
"""Modules alone that are drawn."""
RAMPS = {"from_below": "from the embedding up", "from_above": "from the output down"}
RAMP_COLOURS = dict(zip(RAMPS.values(), (SKY, PURPLE), strict=True))
RAMP_DASHES = {RAMPS["from_above"]: [7, 3]}
LINES = (WINE, PURPLE, SKY, ORANGE, OLIVE, TEAL)
DASHES: tuple[list[int], ...] = ([1, 0], [7, 3], [2, 3], [7, 3, 2, 3], [5, 2, 1, 2], [10, 4])


def _share_scale(low: float, high: float) -> alt.Scale:
    """At least 0 to 1, wider where a graft leads away from the tuned model or past it; at most 1 beyond either end."""
    return alt.Scale(domain=[max(min(0.0, low), -1.0), min(max(1.0, high), 2.0)], nice=False, clamp=True)


def _scale_of(records: list[dict]) -> alt.Scale:
    """The scale that holds every share, and every end where there are intervals."""
    ends = np.array([[one["share"], one["low"], one["high"]] for one in records], dtype=float)
    known = ends[np.isfinite(ends)]
    return _share_scale(float(known.min(initial=0.0)), float(known.max(initial=1.0)))


def _says(row: dict, name: str) -> str:
    return f"{name}: {with_interval(row['share'], row['low'], row['high'], digits=2)} of D"


def _bars(table: pl.DataFrame, labels: Sequence[str], width: int, *, wanted: float | None = None) -> alt.LayerChart:
    """Horizontal bars of shares with their intervals, top to bottom as given."""
    left = 120 if width >= WIDE else 104
    records = [
        {"name": label, "share": r["share"], "low": r["low"], "high": r["high"], "zero": 0, "says": _says(r, label)}
        for label, r in zip(labels, table.iter_rows(named=True), strict=True)
    ]
    scale = _scale_of(records)
    y = alt.Y(
        "name:N",
        sort=list(labels),
        title=None,
        axis=alt.Axis(ticks=False, domain=False, minExtent=left, maxExtent=left, labelLimit=left - 8),
    )
    x = alt.X("share:Q", title="share of D recovered", scale=scale, axis=alt.Axis(tickCount=6, format=".1f"))
    base = alt.Chart(drawing.inline(records))
    bars = base.mark_bar(color=SKY, height={"band": 0.66}).encode(x=x, x2=alt.X2("zero:Q"), y=y, description=alt.Description("says:N"))
    marks = [bars, base.mark_rule(aria=False, color=BLACK, strokeWidth=1.3).encode(x=alt.X("low:Q", scale=scale), x2=alt.X2("high:Q"), y=y)]
    if wanted is not None:
        rule = alt.Chart(drawing.inline([{"share": wanted}])).mark_rule(aria=False, color=ORANGE, strokeDash=[3, 3])
        marks.append(rule.encode(x=x))
    return drawing.layer(*marks, width=width - left - 20, height=19 * len(labels))


def grafts_alone(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """Recovered share of each changed module alone, the strongest first."""
    alone, _ = findings.ranked(rows)
    if alone.is_empty():
        return None
    alone = alone.head(MODULES)
    return drawing.styled(_bars(alone, alone["name"].to_list(), width))


def grafts_greedy(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """Recovered share of the greedy sets, each with the module that it adds."""
    sets = findings.greedy(rows)
    if sets.is_empty():
        return None
    labels = [f"{size}: {'+ ' * (size > 1)}{added}" for size, added in enumerate(sets["added"].to_list(), start=1)]
    return drawing.styled(_bars(sets, labels, width, wanted=findings.WANTED))


def grafts_in_order(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """Recovered share with all modules up to one place of the network grafted, and with all from that place on."""
    curves = [findings.shares(rows, arm).with_columns(curve=pl.lit(words)) for arm, words in RAMPS.items()]
    both = pl.concat(curves)
    if both.is_empty():
        return None
    order = sorted(set(both.select("layer", "site").iter_rows()), key=lambda key: findings.place(*key))
    places = {key: place for place, key in enumerate(order)}
    names = [site if layer is None else f"L{layer}.{site}" for layer, site in order]
    records = [
        {"place": names[places[r["layer"], r["site"]]], "curve": r["curve"], "share": r["share"], "low": r["low"], "high": r["high"],
         "says": _says(r, f"{r['curve']}, {r['name']} the last")}
        for r in both.iter_rows(named=True)
    ]  # fmt: skip
    step = math.ceil(len(names) / (12 if width >= WIDE else 5))
    axis = alt.Axis(values=names[::step], labelAngle=-40 if len(names) > 4 else 0, labelOverlap=False, grid=False, ticks=True)
    x = alt.X("place:O", sort=names, title="module, in network order", axis=axis, scale=alt.Scale(type="point", padding=0.5))
    present = [words for words in RAMPS.values() if words in both["curve"].unique().to_list()]
    channels = drawing.line_channels(present, "curve", RAMP_COLOURS, RAMP_DASHES, width)
    few = both.group_by("curve").len()["len"].to_numpy().max() < LINE_FROM
    return _lines(records, x, channels, width, opacity=0.13, joined=not few)


def grafts_by_rank(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """Recovered share of the change cut to its first k singular directions: all modules together, and the strongest alone."""
    cut = findings.truncated(rows)
    if cut.is_empty():
        return None
    names = cut["name"].unique(maintain_order=True).to_list()
    records = [
        {
            "name": r["name"],
            "rank": r["rank"],
            "share": r["share"],
            "low": r["low"],
            "high": r["high"],
            "says": _says(r, f"{r['name']}, rank {r['rank']}"),
        }
        for r in cut.iter_rows(named=True)
    ]
    ranks = sorted(set(cut["rank"].to_list()))
    x = alt.X("rank:O", title="directions kept, k", sort=ranks, axis=alt.Axis(labelAngle=0, grid=False), scale=alt.Scale(padding=0.5))
    colours, dashes = dict(zip(names, LINES, strict=False)), dict(zip(names, DASHES, strict=False))
    return _lines(records, x, drawing.line_channels(names, "name", colours, dashes, width), width, opacity=0.1)


def _lines(
    records: list[dict],
    x: alt.X,
    channels: tuple[alt.Stroke, alt.StrokeDash, alt.Fill],
    width: int,
    *,
    opacity: float,
    joined: bool = True,
) -> Chart:
    """Recovered shares as lines with dots, and their 95 % bands of this opacity; not `joined`: as dots with their intervals."""
    scale, left = _scale_of(records), drawing.left_axis(tickCount=5, format=".1f")
    stroke, dash, fill = channels
    base, y = alt.Chart(drawing.inline(records)), alt.Y("share:Q", scale=scale, axis=left)
    band = base.mark_area(aria=False, opacity=opacity).encode(x=x, y=alt.Y("low:Q", scale=scale, axis=left), y2=alt.Y2("high:Q"), fill=fill)
    line = base.mark_line(aria=False, strokeWidth=2).encode(x=x, y=y, stroke=stroke, strokeDash=dash)
    dots = base.mark_circle(size=26, opacity=1).encode(x=x, y=y, fill=fill, description=alt.Description("says:N"))
    title = drawing.title_of("Share of D recovered")
    ends = base.mark_rule(aria=False, strokeWidth=1.3).encode(
        x=x, y=alt.Y("low:Q", scale=scale, axis=left), y2=alt.Y2("high:Q"), stroke=stroke, strokeDash=dash
    )
    marks = (band, line, dots) if joined else (ends, dots)
    return drawing.styled(drawing.layer(*marks, width=width - LEFT - 12, height=190, title=title))
