"""The figure shows how far apart the two models are on each group of texts, every text a point."""

import altair as alt
import polars as pl

from mechdiff.measures.panel import findings
from mechdiff.measures.panel.words import name
from mechdiff.report import drawing
from mechdiff.report.drawing import BLACK, BLUE, WIDE, Chart
from mechdiff.report.phrasing import nats, with_interval

ROW = 24
LABELS = 128
"""Pixels of the groups' names."""


def kl_by_group(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """A line a group, the largest mean first: texts as points, their mean with its 95 % interval in black. None where all are 0."""
    found = findings.groups(summary).sort("kl", descending=True)
    texts = findings.kl(rows).filter(pl.col("value").is_finite())
    if found.is_empty() or not (found["kl"] > 0).any():
        return None
    order = [name(group) for group in found["group"].to_list()]
    scale, bottom = drawing.log_scale(texts.filter(pl.col("value") > 0)["value"], found["high"], decades=4)
    points = [
        {"group": name(r["group"]), "kl": max(r["value"], bottom), "says": f"{r['prompt']}: {nats(r['value'])} nats"}
        for r in texts.iter_rows(named=True)
    ]
    means = [
        {"group": name(r["group"]), "kl": max(r["kl"], bottom), "low": None if r["low"] is None else max(r["low"], bottom), "high": r["high"],
         "says": f"{name(r['group'])}: mean {with_interval(r['kl'], r['low'], r['high'])} nats, n = {r['n']}"}
        for r in found.iter_rows(named=True)
    ]  # fmt: skip
    y = alt.Y("group:N", sort=order, title=None, axis=alt.Axis(labelLimit=LABELS, minExtent=LABELS, maxExtent=LABELS))
    title = f"KL(tuned ‖ base), nats a position{drawing.pinned(texts['value'], bottom)}"
    x = alt.X("kl:Q", scale=scale, title=title, axis=alt.Axis(values=drawing.powers(scale), format="~g"))
    dots = (
        alt.Chart(drawing.inline(points))
        .mark_circle(size=22, opacity=0.55, color=BLUE)
        .encode(x=x, y=y, description=alt.Description("says:N"))
    )
    base = alt.Chart(drawing.inline(means))
    ends = alt.X("low:Q", scale=scale), alt.X2("high:Q")
    bands = base.transform_filter("isValid(datum.low)").mark_rule(aria=False, color=BLACK, strokeWidth=2).encode(x=ends[0], x2=ends[1], y=y)
    ticks = base.mark_tick(color=BLACK, thickness=3, size=14).encode(x=x, y=y, description=alt.Description("says:N"))
    return drawing.styled(drawing.layer(dots, bands, ticks, width=width - LABELS - 24, height=ROW * len(order)))
