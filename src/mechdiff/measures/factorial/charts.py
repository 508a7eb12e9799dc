"""The figure shows the effects below and above each block."""

import altair as alt
import polars as pl

from mechdiff.measures.factorial import findings
from mechdiff.measures.factorial.findings import where_exchanged
from mechdiff.report import drawing
from mechdiff.report.drawing import LEFT, PURPLE, SKY, WIDE, WINE, Chart
from mechdiff.report.phrasing import with_interval

COLOURS = {"upstream": SKY, "downstream": PURPLE, "interaction": WINE}
DASHES = {"downstream": [7, 3], "interaction": [2, 3]}
FEW = 4
"""Split points from which on there is a curve to draw."""
WORDS = {"linear_nats": "linear score, nats", "nats": "nats of KL"}


def effects_by_layer(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """The two main effects and the interaction by split point, with 95 % bands."""
    units = findings.units(rows, summary)
    if not units:
        return None
    score = findings.shown_score(rows, units[0])
    each = {unit: findings.effects(rows, summary, unit, score) for unit in units}
    curves = {unit: table for unit, table in each.items() if table["layer"].n_unique() >= FEW}
    tables = curves or each  # two points are no curve where others are: they stand in their table
    every = pl.concat(part.select("layer", pl.coalesce("low", "mean"), pl.coalesce("high", "mean")) for part in tables.values())
    low, high = drawing.ends(every["low"])[0], drawing.ends(every["high"])[1]
    pad = 0.04 * (high - low) or 1e-9
    scale = alt.Scale(domain=[min(low, 0.0) - pad, max(high, 0.0) + pad], nice=False)
    layers = drawing.layer_range(every)
    panels = []
    for place, (unit, table) in enumerate(tables.items()):
        where = where_exchanged(unit) if width < WIDE else f"Activations exchanged at {where_exchanged(unit)}"
        x = drawing.layer_axis(layers, width, title=place == len(tables) - 1)
        panels.append(_panel(table, scale, x, width, f"{where[0].upper()}{where[1:]}: {WORDS[score]}", legend=place == 0))
    return drawing.styled(drawing.vconcat(*panels, spacing=12))


def _panel(table: pl.DataFrame, scale: alt.Scale, x: alt.X, width: int, title: str, *, legend: bool) -> alt.LayerChart:
    axis = drawing.left_axis(tickCount=5, format=".3~g")
    names = [name for name in COLOURS if name in table["effect"].unique().to_list()]
    says = [f"L = {r['layer']}, {r['effect']}: {with_interval(r['mean'], r['low'], r['high'])} nats" for r in table.iter_rows(named=True)]
    base = alt.Chart(drawing.inline(table.select("layer", "effect", "mean", "low", "high").with_columns(says=pl.Series(says)).to_dicts()))
    stroke, dash, fill = drawing.line_channels(names, "effect", COLOURS, DASHES, width, legend)
    low, mean = alt.Y("low:Q", scale=scale, axis=axis), alt.Y("mean:Q", scale=scale, axis=axis)
    marks = [alt.Chart(drawing.inline([{"mean": 0}])).mark_rule(aria=False, color="#9aa4ae").encode(y=mean)]
    marks.append(
        base.transform_filter("isValid(datum.low)").mark_area(aria=False, opacity=0.14).encode(x=x, y=low, y2=alt.Y2("high:Q"), fill=fill)
    )
    marks.append(base.mark_line(aria=False, strokeWidth=2).encode(x=x, y=mean, stroke=stroke, strokeDash=dash))
    marks.append(base.mark_circle(size=20, opacity=1).encode(x=x, y=mean, fill=fill, description=alt.Description("says:N")))
    return drawing.layer(*marks, width=width - LEFT - 12, height=170, title=drawing.title_of(title))
