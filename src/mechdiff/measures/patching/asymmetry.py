"""Does patching the base's activation into the tuned model do more than the reverse? One number a site, comparable across directions.

    A = (J_breakage - J_recovery) / (J_breakage + J_recovery)

with J the mean Jensen-Shannon divergence of the edited run from its own unedited one, over the same prompts: of the tuned model with the
base's state (breakage), of the base with the tuned state (recovery). 1: only the tuned model is moved; -1: only the base; 0: both alike.
Jensen-Shannon because it is symmetric and bounded: shares of D have different references and cannot be compared. The interval is a paired
bootstrap over prompts. No index where J_breakage + J_recovery is under three noise floors. Where the vocabularies differ
both J are on the tokens that both models have.
"""

import altair as alt
import numpy as np
import polars as pl

from mechdiff import shares, terms
from mechdiff.architectures.sites import KINDS, Site
from mechdiff.measures.patching import findings
from mechdiff.report import difference, drawing
from mechdiff.report.difference import BREAKAGE, RECOVERY
from mechdiff.report.drawing import LEFT, SITE_COLOURS, SITE_DASHES, WIDE, Chart
from mechdiff.report.parts import Drawn, Run
from mechdiff.report.phrasing import with_interval
from mechdiff.rows import where
from mechdiff.statistics import floors as statistics_floors
from mechdiff.statistics import intervals
from mechdiff.statistics import summary as statistics_summary

SITES = ("resid_post", "attn_out", "mlp_out")
_SCHEMA = {
    "layer": pl.Int64,
    "site": pl.String,
    "name": pl.String,
    "index": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "nats": pl.Float64,
    "n": pl.Int64,
}


def by_site(rows: pl.DataFrame, summary: pl.DataFrame) -> pl.DataFrame:
    """`layer site name index low high nats n` in the order of computation: A with its interval, null under three floors.

    `nats` is the sum of both J.
    """
    written = (
        where(
            rows,
            measure="patching",
            metric=shares.own_js(shared=statistics_floors.on_shared(rows)),
            arm="identity",
            split=difference.reported(rows, "patching"),
        )
        .filter(
            pl.col("layer").is_not_null(),
            pl.col("value").is_finite(),
            pl.col("prompt").is_not_null(),
            *(pl.col(name).is_null() for name in ("unit", "control", "rank", "strength")),
        )
        .with_columns(name=difference.site_name())
    )
    sides = [written.filter(pl.col("direction") == direction) for direction in (BREAKAGE, RECOVERY)]
    both = sides[0].join(sides[1], on=["name", "prompt"], how="semi"), sides[1].join(sides[0], on=["name", "prompt"], how="semi")
    if both[0].is_empty():
        return pl.DataFrame(schema=_SCHEMA)
    (prompts, names, one), (_, _, other) = (statistics_summary.prompt_matrix(side, by="name") for side in both)
    total = (one + other).mean(axis=0)
    counts = total > statistics_floors.FLOORS * _floor(rows)
    content = np.full((3, len(names)), np.nan)
    if len(prompts) and counts.any():
        content[:, counts] = intervals.asymmetry_intervals(one[:, counts], other[:, counts])
    sites = [Site.parse(name) for name in names]
    columns = [[s.layer for s in sites], [s.kind for s in sites], names, *content, total, [len(prompts)] * len(names)]
    found = pl.DataFrame(dict(zip(_SCHEMA, columns, strict=True)), schema=_SCHEMA).with_columns(
        pl.col("index", "low", "high").fill_nan(None)
    )
    order = pl.col("site").replace_strict({kind: place for place, kind in enumerate(KINDS)}, default=len(KINDS), return_dtype=pl.Int64)
    return found.sort("layer", order)


def _floor(rows: pl.DataFrame) -> float:
    """The larger of both models' floors of JS; of KL where only that was stored; 0 without either."""
    floors, shared = statistics_floors.noise_floors(rows), statistics_floors.on_shared(rows)
    for metric in (shares.own_js(shared=shared), shares.own(shared=shared)):
        found = floors.filter(pl.col("metric") == metric)["floor"]
        if len(found):
            return float(found.to_numpy().max())
    return 0.0


def parts(run: Run) -> list[Drawn]:
    """The figure with its caption, for the section on patching; nothing where it was not measured in both directions."""
    found = by_site(run.rows, run.summary)
    known = found.filter(pl.col("index").is_not_null())
    if known.is_empty():
        return []
    caption = f"Asymmetry index A at {len(known)} sites"
    caption += f", {len(found) - len(known)} others are below 3 × numerical noise. " if len(known) < len(found) else ". "
    ranked, chosen_on = findings.ranked_outputs(run.rows, run.summary)
    first = ranked.select("name").join(known, on="name", maintain_order="left").head(1) if len(ranked) else ranked
    for strongest in first.iter_rows(named=True):
        value = with_interval(strongest["index"], strongest["low"], strongest["high"], decimals=2)
        caption += (
            f"At {strongest['name']}, the site where both patches together do most on the {terms.of_split(chosen_on)} prompts, A = {value}."
        )
    return [Drawn(name="asymmetry", chart=asymmetry_by_layer, caption=caption, reading="asymmetry")]


def asymmetry_by_layer(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """A by layer, for the residual stream after each block and for what attention and the MLP add to it."""
    found = by_site(rows, summary).filter(pl.col("site").is_in(SITES))
    if found["index"].drop_nulls().is_empty():
        return None
    layers = drawing.layer_range(found)
    known = found.filter(pl.col("index").is_not_null())
    names = [name for name in SITES if name in known["site"].unique().to_list()]
    says = [f"{r['name']}: A = {with_interval(r['index'], r['low'], r['high'], decimals=2)}" for r in known.iter_rows(named=True)]
    base = alt.Chart(drawing.inline(known.with_columns(says=pl.Series(says)).to_dicts()))
    x, axis = drawing.layer_axis(layers, width), drawing.left_axis(values=[-1, -0.5, 0, 0.5, 1], format=".1f")
    scale = alt.Scale(domain=[-1, 1], nice=False, clamp=True)
    stroke, dash, fill = drawing.line_channels(names, "site", SITE_COLOURS, SITE_DASHES, width)
    y = alt.Y("index:Q", scale=scale, axis=axis)
    zero = alt.Chart(drawing.inline([{"index": 0}])).mark_rule(aria=False, color="#9aa4ae").encode(y=y)
    band = base.mark_area(aria=False, opacity=0.14).encode(x=x, y=alt.Y("low:Q", scale=scale, axis=axis), y2=alt.Y2("high:Q"), fill=fill)
    line = base.mark_line(aria=False, strokeWidth=1.6).encode(x=x, y=y, stroke=stroke, strokeDash=dash)
    dots = base.mark_circle(size=26, opacity=1).encode(x=x, y=y, fill=fill, description=alt.Description("says:N"))
    title = drawing.title_of("A: 1 only the tuned model is moved, −1 only the base" if width >= WIDE else "A: tuned moved 1, base moved −1")
    return drawing.styled(drawing.layer(zero, band, line, dots, width=width - LEFT - 12, height=130, title=title))
