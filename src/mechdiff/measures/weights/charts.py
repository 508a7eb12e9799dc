"""The figures show which weights changed, and in how many directions."""

from typing import Any

import altair as alt
import polars as pl

from mechdiff import labels
from mechdiff.measures.weights import findings
from mechdiff.measures.weights.findings import HEADS, IN_BLOCKS, OUTSIDE, short_tensor
from mechdiff.report import drawing
from mechdiff.report.drawing import BLUE, INK, LEFT, ORANGE, QUIET, SHARE_RANGE, WIDE, Chart
from mechdiff.report.phrasing import nats

GREY = "#9aa4ae"
SNUG = alt.Scale(paddingInner=0.08, paddingOuter=0)


def weight_map(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """Relative change of each block's attention, MLP and norms, by layer; below it embedding, final norm and unembedding."""
    modules, _ = findings.modules(summary)
    changed = modules.filter(pl.col("change") > 0, pl.col("change").is_finite())
    if changed.is_empty():
        return None
    scale = _colours(changed["change"])
    inside = modules.filter(pl.col("layer").is_not_null(), pl.col("site").is_in(IN_BLOCKS))
    panels = []
    if not inside.is_empty():
        panels.append(_block_panel(inside, scale, width))
    outside = modules.filter(pl.col("layer").is_null(), pl.col("site").is_in(OUTSIDE))
    if not outside.is_empty():
        panels.append(_outside_panel(outside, scale, width, legend=not panels))
    text = "dot: equal to the bit" if (modules["change"] == 0).any() else ""
    key = alt.TitleParams(text, anchor="start", orient="bottom", fontSize=11, fontWeight="normal", color=QUIET, offset=4)
    return drawing.styled(drawing.vconcat(*panels, spacing=10, title=key)) if panels else None


def _colours(changes: pl.Series) -> alt.Scale:
    """From the least to the largest change, in equal ratios where they lie far apart."""
    least, most = drawing.ends(changes)
    if most > 20 * least:
        return alt.Scale(type="log", domain=[max(least, most / 1e5), most], range=SHARE_RANGE[1:], clamp=True)
    return alt.Scale(domain=[0, most], range=SHARE_RANGE, clamp=True)


def _bar() -> alt.Legend:
    return alt.Legend(
        orient="top", direction="horizontal", gradientLength=180, gradientThickness=9, titleOrient="left", title="relative change",
        offset=6, format="~g", tickCount=3,
    )  # fmt: skip


def _block_panel(table: pl.DataFrame, scale: alt.Scale, width: int) -> alt.LayerChart:
    layers = drawing.layer_range(table)
    sites = [site for site in IN_BLOCKS if site in table["site"].unique().to_list()]
    records = [
        {"site": r["site"], "layer": r["layer"], "x": r["layer"] - 0.47, "end": r["layer"] + 0.47, "change": _drawn(r["change"], scale),
         "says": f"L{r['layer']}.{r['site']}: {nats(r['change'])}" + (f", most in {short_tensor(r['unit'])}" if r["change"] else "")}
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    y = alt.Y(
        "site:N",
        title=None,
        sort=sites,
        axis=drawing.left_axis(ticks=False, domain=False),
        scale=SNUG,
    )
    colour = alt.Color("change:Q", scale=scale, legend=_bar())
    left, x = drawing.layer_axis(layers, width, field="x"), drawing.layer_axis(layers, width)
    cells = alt.Chart(drawing.inline([r for r in records if r["change"]])).mark_rect(stroke="#c3ccd6", strokeWidth=0.5)
    dots = alt.Chart(drawing.inline([r for r in records if not r["change"]])).mark_circle(size=6, color=GREY, opacity=1)
    layered = drawing.layer(
        cells.encode(x=left, x2=alt.X2("end:Q"), y=y, color=colour, description=alt.Description("says:N")),
        dots.encode(x=x, y=y, description=alt.Description("says:N")),
    )
    return layered.properties(width=width - LEFT - 12, height=24 * len(sites))


ROWS = 18
"""Matrices of a block that are drawn: of more, the most changed."""


def matrix_map(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """Relative change of every matrix and vector of each block, by layer: queries, keys, values, output, MLP, norms."""
    found = findings.matrices(summary)
    changed = found.filter(pl.col("change") > 0, pl.col("change").is_finite())
    if changed.is_empty():
        return None
    most = changed.group_by("matrix").agg(pl.col("change").max()).sort("change", "matrix", descending=[True, False])["matrix"].to_list()
    shown = found.filter(pl.col("matrix").is_in(most[:ROWS]) if found["matrix"].n_unique() > ROWS else pl.lit(True))
    scale, names = _colours(changed["change"]), shown["matrix"].unique(maintain_order=True).to_list()
    records = [
        {"matrix": r["matrix"], "layer": r["layer"], "x": r["layer"] - 0.47, "end": r["layer"] + 0.47, "change": _drawn(r["change"], scale),
         "says": f"{short_tensor(r['unit'])}: {nats(r['change'])}"}
        for r in shown.iter_rows(named=True)
    ]  # fmt: skip
    layers = drawing.layer_range(shown)
    axis = alt.Axis(title=None, ticks=False, domain=False, labelLimit=BESIDE - 12, minExtent=BESIDE - 8, maxExtent=BESIDE - 8)
    y = alt.Y("matrix:N", sort=names, axis=axis, scale=SNUG)
    left, x = drawing.layer_axis(layers, width, field="x"), drawing.layer_axis(layers, width)
    cells = alt.Chart(drawing.inline([r for r in records if r["change"]])).mark_rect(stroke="#c3ccd6", strokeWidth=0.5)
    dots = alt.Chart(drawing.inline([r for r in records if not r["change"]])).mark_circle(size=6, color=GREY, opacity=1)
    colour, says = alt.Color("change:Q", scale=scale, legend=_bar()), alt.Description("says:N")
    cells, dots = cells.encode(x=left, x2=alt.X2("end:Q"), y=y, color=colour, description=says), dots.encode(x=x, y=y, description=says)
    return drawing.styled(drawing.layer(cells, dots, width=width - BESIDE - 12, height=20 * len(names)))


BESIDE = 150
"""Pixels for the names of matrices."""


def _outside_panel(table: pl.DataFrame, scale: alt.Scale, width: int, *, legend: bool) -> alt.LayerChart:
    """Embedding, final norm and unembedding: a cell each, its value beside it."""
    sites = [site for site in OUTSIDE if site in table["site"].unique().to_list()]
    records = [
        {"site": r["site"], "start": 0, "end": 1, "middle": 0.5, "beside": 1.3, "change": _drawn(r["change"], scale), "text": nats(r["change"]),
         "says": f"{r['site']}: {nats(r['change'])}"}
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    across: dict[str, Any] = {"axis": None, "scale": alt.Scale(domain=[0, 20], nice=False)}
    y = alt.Y("site:N", title=None, sort=sites, axis=drawing.left_axis(ticks=False, domain=False), scale=SNUG)
    changed, same = ([r for r in records if bool(r["change"]) == wanted] for wanted in (True, False))
    colour = alt.Color("change:Q", scale=scale, legend=_bar() if legend else None)
    cells = alt.Chart(drawing.inline(changed)).mark_rect(stroke="#c3ccd6", strokeWidth=0.5)
    cells = cells.encode(x=alt.X("start:Q", **across), x2=alt.X2("end:Q"), y=y, color=colour, description=alt.Description("says:N"))
    dots = alt.Chart(drawing.inline(same)).mark_circle(size=6, color=GREY, opacity=1)
    dots = dots.encode(x=alt.X("middle:Q", **across), y=y, description=alt.Description("says:N"))
    values = alt.Chart(drawing.inline(changed)).mark_text(aria=False, align="left", color=INK)
    values = values.encode(x=alt.X("beside:Q", **across), y=y, text=alt.Text("text:N"))
    return drawing.layer(cells, dots, values, width=width - LEFT - 12, height=24 * len(sites))


def _drawn(change: float, scale: alt.Scale) -> float:
    """A change that a colour can show: an infinite one (a tensor of zeros that changed) as the largest."""
    return min(change, float(scale.domain[1]))


def spectra_of(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """Singular values of the most changed matrices, one small panel each, on one log scale; the numerical rank marked."""
    found = findings.spectra(summary, manifest)
    if not found:
        return None
    every = pl.Series([value for one in found for value in one["values"]])
    scale, bottom = drawing.log_scale(every, every, decades=9)
    columns = 3 if width >= WIDE else 2
    columns = min(columns, len(found))
    inner = (width - LEFT - 12 - 26 * (columns - 1)) // columns
    rows_of = [found[start : start + columns] for start in range(0, len(found), columns)]
    panels = [
        drawing.hconcat(
            *(_spectrum(one, scale, bottom, inner, first=place == 0, lowest=line is rows_of[-1]) for place, one in enumerate(line)),
            spacing=10,
        )
        for line in rows_of
    ]
    return drawing.styled(drawing.vconcat(*panels, spacing=8))


def _spectrum(one: dict, scale: alt.Scale, bottom: float, width: int, *, first: bool, lowest: bool) -> alt.LayerChart:
    name = short_tensor(one["unit"])
    records = [
        {"index": place, "value": max(value, bottom), "says": f"{name}: singular value {place} is {nats(value)}"}
        for place, value in enumerate(one["values"], start=1)
    ]
    x = alt.X(
        "index:Q",
        title="index" if lowest else None,
        axis=alt.Axis(
            grid=False, format="d", tickMinStep=1, **({"tickCount": 4} if len(records) > 4 else {"values": [r["index"] for r in records]})
        ),
        scale=alt.Scale(domain=[0, len(records) + 1], nice=False),
    )
    ticks = drawing.powers(scale)
    ticks = ticks[:: max(1, len(ticks) // 4)]
    axis = (
        drawing.left_axis(values=ticks, labelExpr="'1e' + round(log(datum.value) / LN10)")
        if first
        else alt.Axis(values=ticks, labels=False, ticks=False, domain=False, title=None)
    )
    y = alt.Y("value:Q", scale=scale, axis=axis)
    marks = [
        alt.Chart(drawing.inline(records))
        .mark_circle(size=14, color=BLUE, opacity=1)
        .encode(x=x, y=y, description=alt.Description("says:N"))
    ]
    if one["null"]:
        rule = alt.Chart(drawing.inline([{"value": max(one["null"], bottom)}]))
        marks.append(rule.mark_rule(aria=False, color=QUIET, strokeDash=[3, 3]).encode(y=y))
    if one["rank"] and one["rank"] <= len(records):
        rule = alt.Chart(drawing.inline([{"index": one["rank"] + 0.5}]))
        marks.append(rule.mark_rule(aria=False, color=ORANGE, strokeWidth=1.5).encode(x=x))
        text = rule.mark_text(aria=False, align="left", baseline="top", dx=4, color="#8a5c00", fontWeight=600)
        marks.append(text.encode(x=x, y=alt.YValue(0), text=alt.TextValue(f"rank {one['rank']:.0f}")))
    title = drawing.title_of(name)
    title.fontSize, title.limit = 11.5, width
    return drawing.layer(*marks, width=width, height=110, title=title)


def head_map(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """Relative change of each head's OV and QK product: layer by head, one map each."""
    found = findings.heads(summary)
    if found.is_empty():
        return None
    most = drawing.ends(found["change"])[1]
    layers, n_heads = drawing.layer_range(found), int(drawing.ends(found["head"])[1]) + 1
    panels: list[Chart] = []
    for place, (metric, words) in enumerate(HEADS.items()):
        part = found.filter(pl.col("metric") == metric)
        if part.is_empty():
            continue
        records = [
            {"head": r["head"], "layer": r["layer"], "x": r["layer"] - 0.47, "end": r["layer"] + 0.47, "low": r["head"] - 0.45,
             "high": r["head"] + 0.45, "change": r["change"], "says": f"{labels.player_name((r['layer'], r['head']))}: {nats(r['change'])}"}
            for r in part.iter_rows(named=True) if r["change"] > 0
        ]  # fmt: skip
        left = drawing.layer_axis(layers, width, field="x", title=place == len(HEADS) - 1)
        ticks = list(range(0, n_heads, 1 if n_heads <= 12 else 4 if n_heads <= 40 else 8))
        axis = drawing.left_axis(values=ticks, labelExpr="'H' + format(datum.value, 'd')", grid=False)
        y = alt.Y("low:Q", axis=axis, scale=alt.Scale(domain=[n_heads - 0.5, -0.5], nice=False))
        legend = _bar() if not panels else None
        colour = alt.Color("change:Q", scale=alt.Scale(domain=[0, most], range=SHARE_RANGE, clamp=True), legend=legend)
        frame = alt.Chart(drawing.inline([{"x": layers[0] - 0.5, "end": layers[1] + 0.5, "low": -0.5, "high": n_heads - 0.5}]))
        frame = frame.mark_rect(aria=False, fill="#fafbfc", stroke="#d9dee4").encode(x=left, x2=alt.X2("end:Q"), y=y, y2=alt.Y2("high:Q"))
        cells = alt.Chart(drawing.inline(records)).mark_rect(stroke="#c3ccd6", strokeWidth=0.5)
        cells = cells.encode(x=left, x2=alt.X2("end:Q"), y=y, y2=alt.Y2("high:Q"), color=colour, description=alt.Description("says:N"))
        height = max(90, min(14 * n_heads, 320))
        title = drawing.title_of(words[0].upper() + words[1:])
        panels.append(drawing.layer(frame, cells, width=width - LEFT - 12, height=height, title=title))
    return drawing.styled(drawing.vconcat(*panels, spacing=12))
