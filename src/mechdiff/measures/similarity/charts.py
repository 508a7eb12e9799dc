"""The figure shows CKA by layer."""

import altair as alt
import polars as pl

from mechdiff.measures.similarity import findings
from mechdiff.report import drawing
from mechdiff.report.difference import STREAM
from mechdiff.report.drawing import LEFT, ORANGE, SITE_COLOURS, SITE_DASHES, WIDE, Chart
from mechdiff.report.phrasing import with_interval


def cka_by_layer(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """CKA at every layer with jackknife bands: the residual stream above, what attention and the MLP add below."""
    table = findings.similarity_by_site(rows, summary).filter(pl.col("cka").is_not_nan())
    if table.is_empty():
        return None
    null = findings.null_band(rows)
    low, high = pl.coalesce("low", "cka"), pl.coalesce("high", "cka")
    table = table.with_columns(low=low, high=high)
    far = not null.is_empty() and drawing.ends(null["high"])[1] < drawing.ends(table["low"])[0]
    parts = [("Residual stream", _stream(table)), ("Outputs added to it", _outputs(table))]
    parts = [(title, part) for title, part in parts if not part.is_empty()]
    panels = [
        _cka_panel(part, manifest, drawing.layer_range(table), width, title=not far and place == len(parts)).properties(
            title=drawing.title_of(f"{title}: CKA")
        )
        for place, (title, part) in enumerate(parts, start=1)
    ]
    if far:
        panels.append(_whole_scale(table, null, width))
    return drawing.styled(
        drawing.vconcat(*panels, spacing=12, resolve=drawing.scales(stroke="independent", strokeDash="independent", fill="independent"))
    )


def _stream(table: pl.DataFrame) -> pl.DataFrame:
    return table.filter(pl.col("site").is_in(STREAM))


def _outputs(table: pl.DataFrame) -> pl.DataFrame:
    return table.filter(~pl.col("site").is_in(STREAM))


def _cka_panel(table: pl.DataFrame, manifest: dict, layers: tuple[int, int], width: int, *, title: bool) -> alt.LayerChart:
    names = [name for name in SITE_COLOURS if name in table["site"].unique().to_list()]
    says = [f"{row['name']}: CKA {with_interval(row['cka'], row['low'], row['high'], decimals=3)}" for row in table.iter_rows(named=True)]
    data = drawing.inline(table.select("layer", "site", "cka", "low", "high").with_columns(says=pl.Series(says)).to_dicts())
    stroke, dash, fill = drawing.line_channels(names, "site", SITE_COLOURS, SITE_DASHES, width)
    least = drawing.ends(table["cka"])[0]
    bottom, top = max(drawing.ends(table["low"])[0], 2 * least - 1), max(drawing.ends(table["high"])[1], 1.0)
    pad = 0.04 * (top - bottom) or 0.02
    scale = alt.Scale(domain=[bottom - pad, top + pad], nice=False, zero=False, clamp=True)
    x, axis = drawing.layer_axis(layers, width, title=title), drawing.left_axis(tickCount=4)
    base = alt.Chart(data)
    band = base.mark_area(aria=False, opacity=0.16).encode(x=x, y=alt.Y("low:Q", scale=scale, axis=axis), y2=alt.Y2("high:Q"), fill=fill)
    line = base.mark_line(aria=False, strokeWidth=2).encode(x=x, y=alt.Y("cka:Q", scale=scale, axis=axis), stroke=stroke, strokeDash=dash)
    dots = base.mark_circle(size=22, opacity=1).encode(
        x=x, y=alt.Y("cka:Q", scale=scale, axis=axis), fill=fill, description=alt.Description("says:N")
    )
    return drawing.layer(*_marked_layers(manifest, layers, x), band, line, dots, width=width - LEFT - 12, height=140)


def _marked_layers(manifest: dict, layers: tuple[int, int], x: alt.X) -> list[alt.Chart]:
    """Grey columns behind the hot layers."""
    hot = [layer for layer in (manifest.get("selection") or {}).get("hot_layers") or [] if layers[0] <= layer <= layers[1]]
    if not hot:
        return []
    records = [{"layer": layer - 0.5, "end": layer + 0.5, "says": f"selected layer {layer}"} for layer in hot]
    return [
        alt.Chart(drawing.inline(records))
        .mark_rect(color=ORANGE, opacity=0.16)
        .encode(x=x, x2=alt.X2("end:Q"), description=alt.Description("says:N"))
    ]


def _whole_scale(table: pl.DataFrame, null: pl.DataFrame, width: int) -> alt.LayerChart:
    """The same lines on the scale from 0 to 1, above what unrelated states would give."""
    x = drawing.layer_axis(drawing.layer_range(table), width)
    scale = alt.Scale(domain=[min(0.0, drawing.ends(null["low"])[0]), 1.0], nice=False)
    axis = drawing.left_axis(values=[0, 0.5, 1], format=".1f")
    chance = alt.Chart(drawing.inline(null.select("layer", "low", "high").to_dicts())).mark_area(aria=False, color="#9aa4ae", opacity=0.6)
    chance = chance.encode(x=x, y=alt.Y("low:Q", scale=scale, axis=axis), y2=alt.Y2("high:Q"))
    lines = alt.Chart(drawing.inline(table.select("layer", "site", "cka").to_dicts())).mark_line(aria=False, strokeWidth=1.2)
    names = [name for name in SITE_COLOURS if name in table["site"].unique().to_list()]
    colour = alt.Color("site:N", legend=None, scale=alt.Scale(domain=names, range=[SITE_COLOURS[n] for n in names]))
    lines = lines.encode(x=x, y=alt.Y("cka:Q", scale=scale, axis=axis), color=colour)
    title = drawing.title_of("The same from 0 to 1; grey: random pairing")
    return drawing.layer(chance, lines, width=width - LEFT - 12, height=64, title=title)
