"""The charts on attribution hold estimates against true effects, and the heads of one model against those of the other.

A few heads are far larger than all others, so both axes are linear near 0 and logarithmic far from it (symlog, the same on both): the line on
which both coordinates are equal stays straight, the many small heads come apart, and the large ones stay on the page.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl

from mechdiff import labels
from mechdiff.measures.attribution import churn, findings
from mechdiff.measures.attribution.churn import OUTLIER
from mechdiff.measures.attribution.findings import ESTIMATES, RANDOM, TOP
from mechdiff.measures.attribution.words import WAYS, written
from mechdiff.report import drawing
from mechdiff.report.curves import GREY
from mechdiff.report.drawing import BASE, BLUE, INK, ORANGE, PURPLE, QUIET, SKY, WIDE, WINE, Chart
from mechdiff.report.phrasing import decimal, nats, with_interval

GROUP_LOOKS = {TOP: (PURPLE, "circle"), RANDOM: (SKY, "triangle-up")}
GROUP_WORDS = {TOP: "largest estimates", RANDOM: "random others"}
STATE_LOOKS = {
    "entered": (BLUE, "triangle-up"),
    "left": (BASE, "triangle-down"),
    "stayed": (WINE, "diamond"),
    "others": (GREY, "circle"),
}
STATE_WORDS = {"entered": "entered: tuned only", "left": "left: base only", "stayed": "stayed: in both", "others": "others"}
LABELS = 14
LETTER, LINE = 6.3, 13.0
"""Pixels of a letter's width, and of a line's height, in the names beside points."""
SIDES = (("left", "middle", 7, 0), ("right", "middle", -7, 0), ("center", "bottom", 0, -7), ("center", "top", 0, 7),
         ("left", "bottom", 5, -4), ("left", "top", 5, 4), ("right", "bottom", -5, -4), ("right", "top", -5, 4))  # fmt: skip
"""Where a name may stand beside its point: align, baseline, dx, dy; the first that is free is taken."""


@dataclass(frozen=True, kw_only=True)
class Stretched:
    """An axis that is linear up to about `linear` on both sides of 0 and logarithmic beyond; and where a value stands on it in pixels."""

    low: float
    high: float
    linear: float
    pixels: float

    @classmethod
    def over(cls, values: Sequence[float], pixels: float) -> "Stretched":
        """An axis with all the values and 0 on it, and some room; linear over the smaller half of them."""
        sizes = sorted(abs(value) for value in values if value)
        linear = max(2 * sizes[len(sizes) // 2], sizes[-1] / 100) if sizes else 1.0
        low, high = (symlog(end, linear) for end in (min([0.0, *values]), max([0.0, *values])))
        room = 0.05 * (high - low) or 1.0
        ends = (math.copysign(linear * math.expm1(abs(end)), end) for end in (low - room, high + room))
        return cls(**dict(zip(("low", "high"), ends, strict=True)), linear=linear, pixels=pixels)

    def place(self, value: float) -> float:
        low, high, here = (symlog(each, self.linear) for each in (self.low, self.high, value))
        return self.pixels * (here - low) / (high - low)

    def ticks(self, apart: float) -> list[float]:
        """0, and round numbers from the ends inwards that stand at least so many pixels apart."""
        kept = [0.0]
        for end, sign in ((self.high, 1), (-self.low, -1)):
            top = math.floor(math.log10(end)) if end > 0 else 0
            steps = (sign * digit * 10.0**power for power in range(top, top - 5, -1) for digit in (5, 2, 1)) if end > 0 else ()
            for value in steps:
                if abs(value) <= end and all(abs(self.place(value) - self.place(other)) >= apart for other in kept):
                    kept.append(value)
        return sorted(kept)

    def scale(self) -> alt.Scale:
        return alt.Scale(type="symlog", constant=self.linear, domain=[self.low, self.high], nice=False)


def attributed_against_true(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """The estimated against the true change of m for every head that was patched: a row for each way to estimate, a column for each direction."""
    found = findings.validated(rows, summary, manifest)
    if found.is_empty():
        return None
    arms = [arm for arm in ESTIMATES if arm in found["arm"].to_list()]
    directions = [direction for direction in labels.CROSSED if direction in found["direction"].to_list()]
    across = 2 if width >= WIDE else 1
    inner = (width - 66 * across - 8) / across
    height = 210 if width >= WIDE else 190
    panels = []
    for place, (arm, direction) in enumerate((arm, direction) for arm in arms for direction in directions):
        here = found.filter(pl.col("arm") == arm, pl.col("direction") == direction)
        columns = [f"{word}{end}" for word in ("estimate", "effect") for end in ("", "_low", "_high")]
        values = found.filter(pl.col("direction") == direction).select(pl.col(columns).fill_null(0.0)).to_numpy().ravel().tolist()
        axes = Stretched.over(values, inner), Stretched.over(values, height)
        last = place >= len(arms) * len(directions) - (len(directions) if across == 2 else 1)
        panels.append(_scatter(here, axes, f"{WAYS[arm]}, {written(direction)}", width, last=last))
    return drawing.styled(
        drawing.concat(
            *panels, columns=min(across, len(directions)), spacing=14,
            resolve=drawing.scales(x="independent", y="independent", shape="shared", fill="shared"),
        )
    )  # fmt: skip


def _scatter(table: pl.DataFrame, axes: tuple[Stretched, Stretched], title: str, width: int, *, last: bool) -> alt.LayerChart:
    x_of, y_of = axes
    x = _axis("effect", x_of, "true effect, logits" if last else None, apart=44)
    y = _axis("estimate", y_of, "attributed, logits", apart=22)
    records = [
        {**row, "looks": GROUP_WORDS[row["group"]], "says": f"{row['name']} ({GROUP_WORDS[row['group']]}): attributed "
         f"{with_interval(row['estimate'], row['estimate_low'], row['estimate_high'])}, true "
         f"{with_interval(row['effect'], row['effect_low'], row['effect_high'])} logits"}
        for row in table.sort("group").iter_rows(named=True)
    ]  # fmt: skip
    base = alt.Chart(drawing.inline(records))
    across = base.mark_rule(aria=False, opacity=0.45, color=QUIET).encode(x=_same(x, "effect_low"), x2=alt.X2("effect_high:Q"), y=y)
    up = base.mark_rule(aria=False, opacity=0.45, color=QUIET).encode(x=x, y=_same(y, "estimate_low"), y2=alt.Y2("estimate_high:Q"))
    dots = base.mark_point(size=44, filled=True, opacity=0.8)
    shape, fill = _looks("looks", {GROUP_WORDS[group]: look for group, look in GROUP_LOOKS.items()}, width)
    dots = dots.encode(x=x, y=y, shape=shape, fill=fill, description=alt.Description("says:N"))
    points = [(x_of.place(r["effect"]), y_of.pixels - y_of.place(r["estimate"]), r["name"]) for r in records]
    order = sorted(range(len(records)), key=lambda i: -abs(records[i]["effect"]))[:4]
    names = _names(records, points, order, axes, x, y)
    return drawing.layer(
        *_zeros(axes, x, y),
        _identity(axes, x, y),
        across,
        up,
        dots,
        *names,
        width=x_of.pixels,
        height=y_of.pixels,
        title=drawing.title_of(title),
    )


def churn_of_heads(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """Attribution in the base against attribution in the tuned model, one point a head, with the lines from which on a head stands out."""
    found = churn.churn(rows, summary, manifest)
    if found.is_empty():
        return None
    limit = churn.threshold(manifest)
    lines = churn.limits(found, limit)
    inner, height = width - 74, 380 if width >= WIDE else 290
    every = [*found["base"].to_list(), *found["tuned"].to_list(), *lines["base"], *lines["tuned"]]
    axes = Stretched.over(every, inner), Stretched.over(every, height)
    x, y = (
        _axis("base", axes[0], "attribution in the base, logits", apart=44),
        _axis("tuned", axes[1], "in the tuned model, logits", apart=24),
    )
    records = [
        {**row, "looks": STATE_WORDS[row["state"] or "others"], "says": f"{row['name']}: base {nats(row['base'])} (z {decimal(row['z_base'], 1)}), "
         f"tuned {nats(row['tuned'])} logits (z {decimal(row['z_tuned'], 1)})" + (f", {row['state']}" if row["state"] else "")}
        for row in found.sort(pl.col("state").is_not_null(), maintain_order=True).iter_rows(named=True)
    ]  # fmt: skip
    shape, fill = _looks("looks", {STATE_WORDS[state]: look for state, look in STATE_LOOKS.items()}, width)
    base = [alt.Chart(drawing.inline([r for r in records if (r["state"] is None) == quiet])) for quiet in (True, False)]
    dots = [
        chart.mark_point(size=size, filled=True, opacity=opacity).encode(
            x=x, y=y, shape=shape, fill=fill, description=alt.Description("says:N")
        )
        for chart, size, opacity in zip(base, (16, 52), (0.5, 0.9), strict=True)
    ]
    points = [(axes[0].place(r["base"]), axes[1].pixels - axes[1].place(r["tuned"]), r["name"]) for r in records]
    farthest = sorted(
        (i for i, r in enumerate(records) if r["state"]), key=lambda i: -max(abs(records[i]["z_base"]), abs(records[i]["z_tuned"]))
    )
    names = _names(records, points, farthest[: LABELS if width >= WIDE else LABELS // 2], axes, x, y)
    return drawing.styled(
        drawing.layer(
            *_zeros(axes, x, y),
            _identity(axes, x, y),
            *_limit_lines(lines, limit, x, y, height),
            *dots,
            *names,
            width=inner,
            height=height,
        )
    )


def _limit_lines(lines: dict[str, tuple[float, float]], limit: float | None, x: alt.X, y: alt.Y, height: int) -> list[alt.Chart]:
    """Upright lines for the base, flat ones for the tuned model, with what they say at the ends where few heads are."""
    look = {"aria": False, "color": ORANGE, "strokeDash": [4, 3], "strokeWidth": 1.2}
    words = {"aria": False, "color": "#8a5c00", "fontSize": 10.5}
    layers = []
    for place, sign in enumerate((-1, 1)):
        text = f"z = {decimal(sign * OUTLIER, 0)}" if limit is None else nats(sign * limit)
        upright = alt.Chart(drawing.inline([{"base": lines["base"][place]}]))
        flat = alt.Chart(drawing.inline([{"tuned": lines["tuned"][place]}]))
        layers += [upright.mark_rule(**look).encode(x=x), flat.mark_rule(**look).encode(y=y)]
        ends = {"align": "right", "baseline": "top", "dx": -3, "dy": 2}, {"align": "left", "baseline": "bottom", "dx": 3, "dy": -2}
        layers.append(upright.mark_text(**words, **ends[place]).encode(x=x, y=alt.YValue((0, height)[place]), text=alt.TextValue(text)))
        layers.append(flat.mark_text(**words, **ends[place]).encode(x=alt.XValue(("width", 0)[place]), y=y, text=alt.TextValue(text)))
    return layers


def _identity(axes: tuple[Stretched, Stretched], x: alt.X, y: alt.Y) -> alt.Chart:
    """The line on which both coordinates are the same."""
    fields = [channel.shorthand.partition(":")[0] for channel in (x, y)]
    ends = max(axes[0].low, axes[1].low), min(axes[0].high, axes[1].high)
    line = alt.Chart(drawing.inline([dict.fromkeys(fields, value) for value in ends]))
    return line.mark_line(aria=False, color=QUIET, strokeDash=[1, 3], strokeWidth=1.2).encode(x=x, y=y)


def _axis(field: str, of: Stretched, title: str | None, *, apart: float) -> alt.X | alt.Y:
    channel = alt.X if field in ("effect", "base") else alt.Y
    sized = {} if channel is alt.X else {"minExtent": 46, "maxExtent": 46}
    axis = alt.Axis(values=of.ticks(apart), labelExpr="format(datum.value, '.3~g')", labelOverlap=False, grid=False, **sized)
    return channel(f"{field}:Q", title=title, scale=of.scale(), axis=axis)


def _same(channel: alt.X | alt.Y, field: str) -> alt.X | alt.Y:
    """The same axis for another column."""
    other = channel.copy()
    other.shorthand = f"{field}:Q"
    return other


def _zeros(axes: tuple[Stretched, Stretched], x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """Faint lines at 0."""
    origin = alt.Chart(drawing.inline([{x.shorthand.partition(":")[0]: 0.0, y.shorthand.partition(":")[0]: 0.0}]))
    return [origin.mark_rule(aria=False, color=drawing.FAINT).encode(x=x), origin.mark_rule(aria=False, color=drawing.FAINT).encode(y=y)]


def _looks(field: str, looks: dict[str, tuple[str, str]], width: int) -> tuple[alt.Shape, alt.Fill]:
    """Shape and colour say the same, in one legend."""
    names = list(looks)
    legend = drawing.legend_of(names, width)
    shapes, colours = ([look[i] for look in looks.values()] for i in (1, 0))
    shape = alt.Shape(f"{field}:N", title=None, scale=alt.Scale(domain=names, range=shapes), legend=legend)
    return shape, alt.Fill(f"{field}:N", title=None, scale=alt.Scale(domain=names, range=colours), legend=legend)


def _names(
    records: list[dict], points: list[tuple[float, float, str]], order: Sequence[int], axes: tuple[Stretched, Stretched], x: alt.X, y: alt.Y
) -> list[alt.Chart]:
    """The names of some points, where they cover neither each other nor a point; a name that finds no room is left to the table."""
    chosen = place_names(points, order, (axes[0].pixels, axes[1].pixels))
    fields = ("align", "baseline", "dx", "dy")
    named = [records[i] | dict(zip(fields, side, strict=True)) for i, side in chosen.items()]
    base = alt.Chart(drawing.inline(named))
    where: dict[str, Any] = {field: alt.ExprRef(f"datum.{field}") for field in fields}
    halo: dict[str, Any] = {"stroke": "#ffffff", "strokeWidth": 3}
    marks = (base.mark_text(aria=False, fontSize=11, fontWeight=600, color=INK, **where, **look) for look in (halo, {}))
    return [mark.encode(x=x, y=y, text=alt.Text("name:N")) for mark in marks]


def place_names(
    points: Sequence[tuple[float, float, str]], order: Sequence[int], size: tuple[float, float]
) -> dict[int, tuple[str, str, int, int]]:
    """The side on which each point's name stands, of those points in `order` that find one free; pixels, y downwards."""
    taken = [(px - 3, py - 3, px + 3, py + 3) for px, py, _ in points]
    chosen = {}
    for i in order:
        for side in SIDES:
            box = name_box(points[i], side)
            inside = box[0] >= 0 and box[2] <= size[0] and box[1] >= 0 and box[3] <= size[1]
            if inside and not any(_meet(box, other) for other in taken):
                chosen[i] = side
                taken.append(box)
                break
    return chosen


def name_box(point: tuple[float, float, str], side: tuple[str, str, int, int]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a name beside its point."""
    px, py, name = point
    align, baseline, dx, dy = side
    wide = LETTER * len(name)
    left = px + dx - {"left": 0.0, "center": wide / 2, "right": wide}[align]
    top = py + dy - {"top": 0.0, "middle": LINE / 2, "bottom": LINE}[baseline]
    return left, top, left + wide, top + LINE


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def symlog(value: float, linear: float) -> float:
    """sign(value) log(1 + |value| / linear), as Vega-Lite's scale of that name has it."""
    return math.copysign(math.log1p(abs(value) / linear), value)
