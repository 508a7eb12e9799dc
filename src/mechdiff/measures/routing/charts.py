"""The figure shows at every layer the share of tokens that go to another expert, and how far the gates lie apart."""

import altair as alt
import polars as pl

from mechdiff.measures.routing import findings
from mechdiff.measures.routing.plan import JS, TOP
from mechdiff.report import drawing
from mechdiff.report.drawing import LEFT, PURPLE, SKY, WIDE, WINE, Chart
from mechdiff.report.phrasing import with_interval

COLOURS = {"both": WINE, "inputs alone": SKY, "router weights alone": PURPLE}
DASHES = {"inputs alone": [7, 3], "router weights alone": [2, 3]}
PANELS = {TOP: "Share of tokens that go to another top-1 expert", JS: "Jensen-Shannon of the two gates, nats"}


def experts_by_layer(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """A panel of the share of tokens and one of JS, a line for what moves them, with 95 % bands at each layer alone."""
    tables = {metric: findings.by_layer(rows, summary, metric) for metric in PANELS}
    tables = {metric: table for metric, table in tables.items() if not table.is_empty()}
    if not tables:
        return None
    layers = drawing.layer_range(pl.concat(tables.values()))
    panels = []
    for place, (metric, table) in enumerate(tables.items(), start=1):
        x = drawing.layer_axis(layers, width, title=place == len(tables))
        panels.append(_panel(table, x, width, PANELS[metric], legend=place == 1))
    return drawing.styled(drawing.vconcat(*panels, spacing=12))


def _panel(table: pl.DataFrame, x: alt.X, width: int, title: str, *, legend: bool) -> alt.LayerChart:
    names = [name for name in COLOURS if name in table["source"].unique().to_list()]
    says = [f"layer {r['layer']}, {r['source']}: {with_interval(r['mean'], r['low'], r['high'])}" for r in table.iter_rows(named=True)]
    base = alt.Chart(drawing.inline(table.with_columns(says=pl.Series(says)).to_dicts()))
    top = drawing.ends(table.select(pl.coalesce("high", "mean")).to_series())[1]
    scale = alt.Scale(domain=[0, 1.04 * top or 1], nice=False)
    stroke, dash, fill = drawing.line_channels(names, "source", COLOURS, DASHES, width, legend)
    mean = alt.Y("mean:Q", scale=scale, axis=drawing.left_axis(tickCount=4, format=".3~g"))
    band = base.transform_filter("isValid(datum.low)").mark_area(aria=False, opacity=0.14)
    line = base.mark_line(aria=False, strokeWidth=2).encode(x=x, y=mean, stroke=stroke, strokeDash=dash)
    dots = base.mark_circle(size=24, opacity=1).encode(x=x, y=mean, fill=fill, description=alt.Description("says:N"))
    shaded = band.encode(x=x, y=alt.Y("low:Q", scale=scale), y2=alt.Y2("high:Q"), fill=fill)
    return drawing.layer(shaded, line, dots, width=width - LEFT - 12, height=130, title=drawing.title_of(title))
