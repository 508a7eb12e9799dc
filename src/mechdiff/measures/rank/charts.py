"""The charts on rank show the rank chosen by layer, R² of the change by rank, and what maps of each rank do."""

import math
from collections.abc import Sequence

import altair as alt
import polars as pl

from mechdiff import terms
from mechdiff.measures.rank import findings
from mechdiff.measures.rank.findings import SERIES
from mechdiff.measures.transport.findings import CLOSENESS, TRANSPORT
from mechdiff.report import curves, difference, drawing
from mechdiff.report.curves import GREY, Axes, Behind, Look
from mechdiff.report.drawing import (
    ORANGE,
    PURPLE,
    SHARE_RANGE,
    SITE_COLOURS,
    SITE_DASHES,
    SKY,
    TEAL,
    WIDE,
    Chart,
)
from mechdiff.report.phrasing import decimal, with_interval

KINDS = {"rank_chosen": "centred: rank of what differs between prompts", "rank_uncentred": "uncentred: the constant shift counts too"}
LOOKS = {"rrr": TEAL, "rank_truncated": PURPLE, "fisher": ORANGE, "random subspace": GREY}
LOOK_DASHES = {"rank_truncated": [7, 3], "fisher": [5, 2, 1, 2], "random subspace": [2, 3]}
R2_LOOKS = {"training prompts": GREY, "cross-validated": SKY}
R2_DASHES = {"training prompts": [2, 3], "cross-validated": [7, 3]}
UNITS = {CLOSENESS: "nats", TRANSPORT: "of D"}


def rank_by_layer(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """The rank of the change at every layer, of what differs between prompts and with the constant shift."""
    found = findings.chosen(summary)
    if found.is_empty():
        return None
    long = pl.concat(
        [found.select("name", "layer", line="site", panel=pl.lit(kind), rank=pl.col(kind).cast(pl.Float64)) for kind in KINDS]
    ).filter(pl.col("rank").is_not_null())
    if long.is_empty():
        return None
    highest = int(drawing.ends(long["rank"])[1])
    ranks = range(highest + 1) if highest <= 4 else [r for r in (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if r <= highest]
    # rank r is drawn at log2(r + 1): 0 stays on the page, and 300 too
    table = long.with_columns(value=(pl.col("rank") + 1).log(2), says=pl.format("{}: rank {}", "name", pl.col("rank").cast(pl.Int64)))
    top = max(drawing.ends(table["value"])[1], 1.0)
    scale = alt.Scale(domain=[-0.15, top * 1.05], nice=False)
    places = [math.log2(r + 1) for r in ranks]
    axis = drawing.left_axis(values=places, labelExpr="round(pow(2, datum.value)) - 1")
    names = [site for site in SITE_COLOURS if site in table["line"].unique().to_list()]
    layers = drawing.layer_range(table)
    titles = {kind: words if width >= WIDE else words.partition(":")[0] for kind, words in KINDS.items()}
    titles = {kind: f"Rank, {words}" for kind, words in titles.items()}
    axes = Axes(x=lambda last: drawing.layer_axis(layers, width, title=last), scale=scale, ticks=axis, height=120)
    look = Look(names=names, colours=SITE_COLOURS, dashes=SITE_DASHES)
    return curves.panels(table.drop("rank", "name"), titles, axes, look, width)


def r2_by_rank(
    rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE, sites: Sequence[str] | None = None
) -> Chart | None:
    """R2 of the change by rank: on the prompts of the fit, cross-validated with its standard error, on the reported prompts."""
    shown = findings.sites_of_curves(rows, summary) if sites is None else sites
    if not shown:
        return None
    parts = [findings.r2_curves(rows, summary, name).with_columns(panel=pl.lit(name)) for name in shown]
    found = pl.concat(parts)
    held = f"{terms.of_split(difference.reported(rows, 'rank'))} prompts"
    says = [f"{r['panel']}, rank {r['rank']}, {r['curve']}: {decimal(r['value'], 3)}" for r in found.iter_rows(named=True)]
    table = found.rename({"curve": "line"}).with_columns(says=pl.Series(says))
    names = curves.ordered(table["line"].unique().to_list(), ("training prompts", "cross-validated", held))
    scale, axis = curves.share_scale(table, most=1.0), drawing.left_axis(tickCount=5, format=".1f")
    x = curves.rank_axis(table["rank"].to_list(), width, "rank k of the regression")
    picked = {r["name"]: r["rank_chosen"] for r in findings.chosen(summary).iter_rows(named=True)}

    def marks(panel: str) -> list[alt.Chart]:
        drawn = [curves.zero(scale, axis)]
        if picked.get(panel) in table["rank"].to_list():
            line = alt.Chart(drawing.inline([{"rank": picked[panel]}])).mark_rule(aria=False, color=ORANGE, strokeWidth=1.5)
            drawn.append(line.encode(x=x(False)))
        return drawn

    titles = {name: f"{name}: R² of the change" + ("; orange: the rank chosen" if width >= WIDE else "") for name in shown}
    axes = Axes(x=x, scale=scale, ticks=axis, height=120)
    look = Look(names=names, colours={**R2_LOOKS, held: PURPLE}, dashes=R2_DASHES, opacity=0.18)
    return curves.panels(table, titles, axes, look, width, Behind(marks=marks))


def closeness_by_rank(
    rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE, sites: Sequence[str] | None = None
) -> Chart | None:
    """KL of the tuned model with the map of each rank written."""
    return _causal_chart(rows, summary, width, CLOSENESS, "KL, nats", sites)


def transport_by_rank(
    rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE, sites: Sequence[str] | None = None
) -> Chart | None:
    """The share of D that the base recovers with the map of each rank."""
    return _causal_chart(rows, summary, width, TRANSPORT, "share of D recovered", sites)


def _causal_chart(
    rows: pl.DataFrame, summary: pl.DataFrame, width: int, direction: str, words: str, sites: Sequence[str] | None
) -> Chart | None:
    shown = findings.curve_sites(rows, summary)[: findings.SITES] if sites is None else sites
    parts = [findings.causal(rows, name, direction).with_columns(panel=pl.lit(name)) for name in shown]
    found = pl.concat(parts) if parts else pl.DataFrame()
    if found.is_empty():
        return None
    digits = None if direction == CLOSENESS else 2
    says = [
        f"{r['panel']}, {r['series']}, rank {r['rank']}: {with_interval(r['value'], r['low'], r['high'], digits=digits)} {UNITS[direction]}"
        for r in found.iter_rows(named=True)
    ]
    names = curves.ordered(found["series"].unique().to_list(), SERIES)
    table = found.rename({"series": "line"}).with_columns(says=pl.Series(says)).drop("draws")
    if direction == CLOSENESS:
        top = drawing.ends(pl.concat([table["value"], table["high"].drop_nulls()]))[1]
        scale, axis = alt.Scale(domain=[0, 1.05 * top or 1.0], nice=False), drawing.left_axis(tickCount=4, format=".3~g")
    else:
        scale, axis = curves.share_scale(table), drawing.left_axis(tickCount=5, format=".1f")
    x = curves.rank_axis(table["rank"].to_list(), width, "rank k of the map")
    axes = Axes(x=x, scale=scale, ticks=axis, height=120)
    colours = {**curves.look_of([n for n in names if n not in LOOKS]).colours, **LOOKS}
    titles = {name: f"{name}: {words}" for name in shown}
    return curves.panels(table, titles, axes, Look(names=names, colours=colours, dashes=LOOK_DASHES, opacity=0.14), width)


def drop_by_strength(
    rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE, sites: Sequence[str] | None = None
) -> Chart | None:
    """The drop by strength at one site, a line for each rank of the map."""
    name = findings.site_of_strengths(rows, summary) if sites is None else "".join(sites)
    found = findings.drop_by_strength(summary, name).with_columns(panel=pl.lit(name), line=pl.format("rank {}", "rank"))
    if found["s"].n_unique() < 2:
        return None
    says = [f"{name}, rank {r['rank']} at strength {r['s']:g}: drop {decimal(r['value'], 3)}" for r in found.iter_rows(named=True)]
    ranks = sorted(found["rank"].unique().to_list())
    names = [f"rank {rank}" for rank in ranks]
    shades = [SHARE_RANGE[2 + place * 3 // max(1, len(ranks) - 1)] if rank else GREY for place, rank in enumerate(ranks)]
    patterns = [[1, 0], [7, 3], [2, 3], [5, 2, 1, 2], [10, 4], [3, 1]]
    dashes = {line: patterns[place % len(patterns)] for place, line in enumerate(names)}
    look = Look(names=names, colours=dict(zip(names, shades, strict=True)), dashes=dashes)
    scale, axis = curves.share_scale(found, least=-1.0), drawing.left_axis(tickCount=5, format=".1f")
    x, titles = curves.strength_axis(drawing.ends(found["s"])[1]), {name: f"{name}: drop by strength and rank"}
    table = found.with_columns(says=pl.Series(says)).drop("rank")
    axes = Axes(x=x, scale=scale, ticks=axis)
    return curves.panels(table, titles, axes, look, width, Behind(marks=lambda _: [curves.zero(scale, axis)]))
