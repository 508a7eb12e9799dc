"""The charts on heads show the map of all of them, coverage by sets with random sets beside, single heads, and coverage across the network."""

from collections.abc import Callable, Sequence

import altair as alt
import numpy as np
import polars as pl

from mechdiff import labels
from mechdiff.measures.heads import findings, sets
from mechdiff.measures.heads.sets import ORDER_WORDS, Game, Shares
from mechdiff.report import curves, drawing
from mechdiff.report.curves import Axes, Behind, Look
from mechdiff.report.difference import BREAKAGE, RECOVERY, SAID
from mechdiff.report.drawing import BLUE, INK, LEFT, ORANGE, PURPLE, QUIET, SHARE_RANGE, SKY, TEAL, WIDE, Chart
from mechdiff.report.phrasing import heads_called, share, with_interval

COLOURS = {"greedy": PURPLE, "single": SKY, "attribution": TEAL, "without them": ORANGE, "random": QUIET}
DASHES: dict[str, list[int]] = {"single": [7, 3], "attribution": [2, 3], "without them": [5, 2, 1, 2], "random": [1, 2]}
TITLES = {BREAKAGE: "KL increase: the base's contribution into the tuned model", RECOVERY: "Recovery: the tuned contribution into the base"}
SHORT = {BREAKAGE: "KL increase: base's into tuned", RECOVERY: "Recovery: tuned into base"}
MANY = 40
"""Bars of one panel at most, half of that on a phone: the heads with the largest Shapley values."""


def head_map(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """Share of D that swapping each head carries over: layer by head, the block's MLP in the last row, one map a direction."""
    found = findings.map_of_heads(rows, summary).filter(pl.col("arm") == "contribution")
    found = found.filter(pl.col("head").is_not_null() | (pl.col("site") == "mlp_out"), pl.col("share").is_not_null())
    if found.is_empty() or found["head"].drop_nulls().is_empty():
        return None
    n_heads = int(drawing.ends(found["head"].drop_nulls())[1]) + 1
    layers, titles = drawing.layer_range(found), TITLES if width >= WIDE else SHORT
    panels: list[Chart] = []
    for direction in SAID:
        part = found.filter(pl.col("direction") == direction)
        if not part.is_empty():
            panels.append(_map(part, layers, n_heads, width, titles[direction], first=not panels))
    key = ["bottom row: the block's MLP; minus: under 0", "white: below 3 × numerical noise"]
    note = alt.TitleParams(
        "; ".join(key) if width >= WIDE else key, anchor="start", orient="bottom", fontSize=11, fontWeight="normal", color=QUIET, offset=4
    )
    return drawing.styled(drawing.vconcat(*panels, spacing=12, title=note, resolve=drawing.scales(color="independent")))


def _map(part: pl.DataFrame, layers: tuple[int, int], n_heads: int, width: int, title: str, *, first: bool) -> Chart:
    most = max(drawing.ends(part.filter(pl.col("head").is_not_null())["share"])[1], 1e-9)
    records = []
    for r in part.iter_rows(named=True):
        row = n_heads + 0.6 if r["head"] is None else r["head"]
        name = labels.player_name((r["layer"], r["head"]))
        says = f"{name}: {with_interval(r['share'], r['low'], r['high'], digits=3)}" + (
            "" if r["counts"] else ", below 3 × numerical noise"
        )
        records.append({"x": r["layer"] - 0.47, "end": r["layer"] + 0.47, "middle": r["layer"], "low": row - 0.45, "high": row + 0.45, "row": row,
                        "share": max(r["share"], 0.0), "minus": r["share"] < -0.005, "counts": r["counts"], "says": says})  # fmt: skip
    left = drawing.layer_axis(layers, width, field="x", title=not first)
    ticks = [*range(0, n_heads, 1 if n_heads <= 12 else 4 if n_heads <= 40 else 8), n_heads + 0.6]
    number = f"datum.value > {n_heads} ? 'MLP' : 'H' + format(datum.value, 'd')"
    axis = drawing.left_axis(values=ticks, labelExpr=number, grid=False, labelOverlap=False)
    scale = alt.Scale(domain=[n_heads + 1.2, -0.6], nice=False)
    y = alt.Y("low:Q", axis=axis, scale=scale)
    legend = _bar("share of D")
    colour = alt.Color("share:Q", scale=alt.Scale(domain=[0, most], range=SHARE_RANGE, clamp=True), legend=legend)
    white = alt.Chart(drawing.inline([r for r in records if not r["counts"]])).mark_rect(fill="#ffffff", stroke="#d9dee4", strokeWidth=0.4)
    cells = alt.Chart(drawing.inline([r for r in records if r["counts"]])).mark_rect(stroke="#d9dee4", strokeWidth=0.4)
    place = {"x": left, "x2": alt.X2("end:Q"), "y": y, "y2": alt.Y2("high:Q"), "description": alt.Description("says:N")}
    drawn = [white.encode(**place), cells.encode(**place, color=colour)]
    under = [record for record in records if record["minus"] and record["counts"]]
    if under:
        words = alt.Chart(drawing.inline(under)).mark_text(aria=False, color=INK, fontSize=9)
        at = alt.X("middle:Q", scale=alt.Scale(domain=[layers[0] - 0.5, layers[1] + 0.5], nice=False, zero=False))
        drawn.append(words.encode(x=at, y=alt.Y("row:Q", scale=scale, axis=axis), text=alt.TextValue("−")))
    height = max(110, min(15 * (n_heads + 2), 340))
    return drawing.layer(*drawn, width=width - LEFT - 12, height=height, title=drawing.title_of(title))


def _bar(title: str) -> alt.Legend:
    return alt.Legend(
        title=title, orient="top", direction="horizontal", gradientLength=140, gradientThickness=9, titleOrient="left", tickCount=3, format=".2~f",
        offset=2, padding=0,
    )  # fmt: skip


# ---- sets at one layer -------------------------------------------------------------------------------------------------------------


def coverage_by_heads(
    rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE, direction: str = BREAKAGE, layers: Sequence[int] = ()
) -> Chart | None:
    """Coverage by the first k heads of each order, one panel a closer layer; grey: the middle 95 % of random sets of k heads."""
    tables, bands = [], []
    for layer in layers:
        one = sets.spoken_of(rows, summary, direction, layer)
        if one is None or not one.whole.counts:
            continue
        panel = f"L{layer}"
        for way, order in sets.orders(manifest, direction, layer).items():
            table = sets.curve(one, order)
            tables.append(_line(table, panel, way, ORDER_WORDS[way]))
            if way == "greedy" and not (needed := table.filter(pl.col("necessity").is_not_null())).is_empty():
                without = needed.with_columns(share=pl.col("necessity"), low=None, high=None).cast({"low": pl.Float64, "high": pl.Float64})
                tables.append(_line(without, panel, "without them", "1 − coverage without the first k of the greedy order"))
        random = sets.band(one)
        bands.append(random.with_columns(panel=pl.lit(panel)))
        tables.append(_random_line(random, panel))
    if not tables:
        return None
    table, grey = pl.concat(tables), pl.concat(bands)
    names = [name for name in COLOURS if name in table["line"].unique().to_list()]
    scale, axis = curves.share_scale(table), drawing.left_axis(tickCount=5, format=".1f")
    titles = {
        panel: f"{panel}: coverage of all heads' {SAID[direction]}, by number of heads"
        for panel in table["panel"].unique(maintain_order=True)
    }
    if width < WIDE:
        titles = {panel: f"{panel}: coverage by number of heads" for panel in titles}
    x = _sizes(table["k"].to_list(), width)
    one_line = curves.rule(1.0, "all heads", scale, axis)
    marks = [*one_line, curves.zero(scale, axis)]
    axes = Axes(x=x, scale=scale, ticks=axis, height=190)
    look = Look(names=names, colours=COLOURS, dashes=DASHES, opacity=0.1)
    return curves.panels(table, titles, axes, look, width, Behind(marks=lambda _: marks, bands=grey))


def _line(table: pl.DataFrame, panel: str, line: str, words: str) -> pl.DataFrame:
    says = [
        f"{panel}, {words}, {r['k']} heads: {with_interval(r['share'], r['low'], r['high'], digits=2)}" for r in table.iter_rows(named=True)
    ]
    return table.select("k", "low", "high", value="share").with_columns(
        panel=pl.lit(panel), line=pl.lit(line), says=pl.Series(says, dtype=pl.String)
    )


def _random_line(band: pl.DataFrame, panel: str) -> pl.DataFrame:
    """The mean of random sets of each size; the grey area around it is the middle 95 % of them."""
    no_ends = {"low": pl.lit(None, dtype=pl.Float64), "high": pl.lit(None, dtype=pl.Float64)}
    return _line(band.with_columns(share="mean", **no_ends), panel, "random", "mean of random sets")


def _sizes(sizes: Sequence[int], width: int) -> Callable[[bool], alt.X]:
    most = max(sizes)
    step = next(step for step in (1, 2, 4, 8, 16, 32) if most / step <= (16 if width >= WIDE else 8))

    def x(last: bool) -> alt.X:
        axis = alt.Axis(values=[1, *range(step if step > 1 else 2, most + 1, step)], format="d", grid=False)
        title = "heads swapped together" if last else None
        return alt.X("k:Q", title=title, axis=axis, scale=alt.Scale(domain=[0.6, most + 0.4], nice=False, zero=False))

    return x


def single_heads(
    rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE, direction: str = BREAKAGE, layers: Sequence[int] = ()
) -> Chart | None:
    """Each head of the closer layers: its Fisher-projected coverage, which adds, with an interval; and of KL alone (v(h)/v(all)) and Shapley's share.

    Where the first was not measured, Shapley's share has the interval."""
    panels: list[Chart] = []
    for layer in layers:
        one = sets.game(rows, summary, direction, layer)
        shares = sets.head_shares(rows, one) if one and one.whole.counts else None
        if one is None or shares is None:
            continue
        room = one.n if one.n <= MANY else MANY if width >= WIDE else MANY // 2
        order = np.argsort(-np.abs((shares.fisher if shares.in_logits else shares.shapley).share), kind="stable")[:room]
        names = [heads_called(layer, [head]) for head in sorted(order)]
        bars = [_bar_of(one, shares, head) for head in sorted(order.tolist())]
        title = f"L{layer}: share of all heads' {SAID[direction]}" + (f" ({room} of {one.n})" if room < one.n else "")
        panels.append(_bars(bars, names, width, title, legend=not panels))
    return drawing.styled(drawing.vconcat(*panels, spacing=14)) if panels else None


def _bar_of(one: Game, shares: Shares, head: int) -> dict:
    name = heads_called(one.layer, [head])
    drawn, beside = (shares.fisher, shares.shapley) if shares.in_logits else (shares.shapley, shares.fisher)
    alone, other = sets.alone(one, head), float(beside.share[head])
    value, low, high = (float(end[head]) if np.isfinite(end[head]) else None for end in (drawn.share, drawn.low, drawn.high))
    bar, dot = KINDS if shares.in_logits else KINDS[::-1]
    says = f"{name}: {bar} {with_interval(value, low, high, digits=2)}, of KL alone {share(alone)}, {dot} {share(other)}"
    ends = {"low": low, "high": high}  # none for a single prompt
    return {
        "name": name,
        "value": value,
        **ends,
        "alone": alone,
        "other": other if np.isfinite(other) else None,
        "bar": bar,
        "dot": dot,
        "says": says,
    }


KINDS = ("Fisher-projected", "Shapley (KL)")
"""The bar, where shares that add were measured, and the dot beside it."""
ALONE = "alone (KL)"


def _bars(bars: list[dict], names: list[str], width: int, title: str, *, legend: bool) -> Chart:
    reach = [bar[end] for bar in bars for end in ("low", "high", "alone", "value", "other") if bar[end] is not None]
    low, high = min(0.0, *reach), max(0.1, *reach)
    scale, axis = alt.Scale(domain=[low, high], nice=True), drawing.left_axis(tickCount=5, format=".2~f")
    x = alt.X("name:N", sort=names, axis=_head_axis(names, width), scale=alt.Scale(paddingInner=0.3))
    base = alt.Chart(drawing.inline(bars))
    first, dot = bars[0]["bar"], bars[0]["dot"]
    kinds = [first, ALONE, dot]
    shown = drawing.legend_of(kinds, width) if legend else None
    colour = alt.Color("kind:N", title=None, scale=alt.Scale(domain=kinds, range=["#8fb8d8", ORANGE, INK]), legend=shown)
    shape = alt.Shape("kind:N", title=None, scale=alt.Scale(domain=kinds, range=["square", "circle", "diamond"]), legend=shown)
    bar = base.mark_bar(color="#8fb8d8").encode(x=x, y=alt.Y("value:Q", scale=scale, axis=axis), description=alt.Description("says:N"))
    ends = base.mark_rule(aria=False, color=BLUE, strokeWidth=1.4).encode(
        x=x, y=alt.Y("low:Q", scale=scale, axis=axis), y2=alt.Y2("high:Q")
    )
    dots = [{"name": b["name"], "value": b[key], "kind": kind} for b in bars for key, kind in (("alone", ALONE), ("other", dot))
            if b[key] is not None]  # fmt: skip
    keyed = [*dots, *({"name": b["name"], "value": 0.0, "kind": first} for b in bars[:1])]
    points = alt.Chart(drawing.inline(keyed)).mark_point(aria=False, filled=True, size=42, opacity=1)
    marks = points.encode(x=x, y=alt.Y("value:Q", scale=scale, axis=axis), color=colour, shape=shape,
                          opacity=alt.OpacityValue(1, condition={"test": f"datum.kind == '{first}'", "value": 0}))  # fmt: skip
    zero = curves.zero(scale, axis)
    return drawing.layer(zero, bar, ends, marks, width=width - LEFT - 12, height=150, title=drawing.title_of(title))


def _head_axis(names: list[str], width: int) -> alt.Axis:
    """ "L28H7" under each bar; where that has no room numbers alone, upright where two digits touch, and where even those do only some."""
    if len(names) <= (12 if width >= WIDE else 5):
        return alt.Axis(labelAngle=0, grid=False, title=None, labelOverlap=False)
    room = (width - LEFT - 12) / len(names)
    step = 1 if room >= 13 else next(step for step in (2, 4, 8, 16) if step * room >= 18)
    number = "split(datum.value, 'H')[1]"
    angle = 0 if step * room >= 18 else -90
    return alt.Axis(values=names[::step], labelExpr=number, labelAngle=angle, grid=False, title="head", labelOverlap=False)


# ---- the network -------------------------------------------------------------------------------------------------------------------


def network_coverage(
    rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE, direction: str = BREAKAGE
) -> Chart | None:
    """Coverage across the network by the two orders: heads alone, and heads and MLPs; grey: random sets of heads."""
    tables, bands = [], []
    for site, panel in (("attn_proj", "heads"), (None, "heads and MLPs")):
        one = sets.spoken_of(rows, summary, direction, None, site=site)
        if one is None or not one.whole.counts:
            continue
        for way, order in sets.network_orders(manifest, direction, only_heads=site is not None).items():
            tables.append(_line(sets.network_curve(one, order), panel, way, ORDER_WORDS[way]))
        random = sets.band(one)
        bands.append(random.with_columns(panel=pl.lit(panel)))
        tables.append(_random_line(random, panel))
    if not tables:
        return None
    table = pl.concat(tables)
    sizes = sorted(set(table["k"].to_list()))
    lasts = set(table.group_by("panel").agg(pl.col("k").max())["k"].to_list())
    scale, axis = curves.share_scale(table), drawing.left_axis(tickCount=5, format=".1f")
    inner = [size for size in sizes if size not in lasts]
    if width < WIDE and len(sizes) > 7:
        inner = inner[:-1:2]  # the last but one would touch the number of all
    ticks = alt.Axis(values=[*inner, *sorted(lasts)], labelAngle=0, grid=False, labelOverlap=False)

    def x(last: bool) -> alt.X:
        title = "players swapped together" if last else None
        return alt.X("k:O", sort=sizes, title=title, axis=ticks, scale=alt.Scale(type="point", padding=0.5))

    names = [name for name in COLOURS if name in table["line"].unique().to_list()]
    of = f" of the {SAID[direction]} by all of them" if width >= WIDE else ""
    titles = {panel: f"{panel}: coverage{of}" for panel in ("heads", "heads and MLPs")}
    marks = [*curves.rule(1.0, "all", scale, axis), curves.zero(scale, axis)]
    axes = Axes(x=x, scale=scale, ticks=axis, height=180)
    look = Look(names=names, colours=COLOURS, dashes=DASHES, opacity=0.1)
    return curves.panels(table, titles, axes, look, width, Behind(marks=lambda _: marks, bands=pl.concat(bands)))
