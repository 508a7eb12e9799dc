"""The figures show the causal map, by layer and site, in shares of D and in nats."""

import math
from collections.abc import Sequence

import altair as alt
import polars as pl

from mechdiff.measures.patching import findings
from mechdiff.report import curves, difference, drawing, phrasing
from mechdiff.report.curves import Axes, Look
from mechdiff.report.difference import BREAKAGE, RECOVERY, STREAM
from mechdiff.report.drawing import (
    ARM_COLOURS,
    ARM_DASHES,
    INK,
    LEFT,
    QUIET,
    SHARE_RANGE,
    SITE_COLOURS,
    SITE_DASHES,
    SITE_SHAPES,
    WIDE,
    Chart,
)
from mechdiff.report.phrasing import power_of_ten, with_interval
from mechdiff.rows import where
from mechdiff.statistics import floors

SITES = ("resid_post", "attn_out", "mlp_out")
TITLES = {
    BREAKAGE: "The base's activation in the tuned model: KL from the tuned model",
    RECOVERY: "The tuned activation in the base: KL from the base",
}
SHORT = {BREAKAGE: "Base's activation in tuned: KL, nats", RECOVERY: "Tuned activation in base: KL, nats"}


def cells(rows: pl.DataFrame, summary: pl.DataFrame) -> pl.DataFrame:
    """`panel line layer value low high floor`: the mean KL from the unedited running model, identity arm, by direction and site."""
    plain = (pl.col(name).is_null() for name in ("unit", "control", "rank", "strength"))
    found = where(
        summary, measure="patching", metric="kl_own_nats", arm="identity", site=SITES, split=difference.reported(rows, "patching")
    ).filter(pl.col("layer").is_not_null(), pl.col("mean").is_finite(), *plain)
    low, high = (pl.coalesce(end, "mean").alias(name) for end, name in (("ci_low", "low"), ("ci_high", "high")))
    return found.select("layer", "floor", low, high, panel="direction", line="site", value="mean").sort("panel", "line", "layer")


def kl_by_layer(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """A panel a direction, a line a site, on a log scale down to three noise floors."""
    table = cells(rows, summary)
    if table.is_empty() or not drawing.ends(table["value"])[1] > 0:
        return None
    most = drawing.ends(table["high"])[1]
    bottom = 10.0 ** int(pl.Series([max(floors.FLOORS * drawing.ends(table["floor"].fill_null(0))[1], 1e-5 * most)]).log10().floor()[0])
    says = [
        f"L{r['layer']}.{r['line']}, {r['panel']}: {with_interval(r['value'], r['low'], r['high'])} nats"
        for r in table.iter_rows(named=True)
    ]
    table = table.with_columns(pl.col("value", "low", "high").clip(lower_bound=bottom), says=pl.Series(says)).drop("floor")
    scale = alt.Scale(type="log", domain=[bottom, 1.5 * most], nice=False, clamp=True)
    axis, layers = drawing.left_axis(values=drawing.powers(scale), format="~g"), drawing.layer_range(table)
    pinned = f", nats (bottom: {power_of_ten(bottom)} or less)"
    titles = {direction: text + pinned for direction, text in TITLES.items()} if width >= WIDE else SHORT
    names = [site for site in SITE_COLOURS if site in table["line"].unique().to_list()]
    axes = Axes(x=lambda last: drawing.layer_axis(layers, width, title=last), scale=scale, ticks=axis, height=130)
    return curves.panels(table, titles, axes, Look(names=names, colours=SITE_COLOURS, dashes=SITE_DASHES), width)


def causal_map(
    rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE, unit: str | None = None, what: str | None = None
) -> Chart | None:
    """Share of D that writing the other model's state carries over: layer by site, one map per direction."""
    shares = findings.site_shares(rows, summary, unit=unit, what=what).filter(pl.col("layer").is_not_null())
    if shares["share"].drop_nulls().is_empty():
        return None
    titles = {
        BREAKAGE: "KL increase: the base's activation is patched into the tuned model",
        RECOVERY: "Recovery: the tuned activation is patched into the base",
    }
    if width < WIDE:
        titles = {BREAKAGE: "KL increase: base patched into tuned", RECOVERY: "Recovery: tuned patched into base"}
    panels = [
        _map_panel(part, drawing.layer_range(shares), width, titles[direction], first=place == 0)
        for place, direction in enumerate(titles)
        if not (part := shares.filter(pl.col("direction") == direction)).is_empty()
    ]
    keys = ("dot: below 3 × numerical noise", "plus: share over 1.05", "minus: under −0.05")
    key = "; ".join(keys) if width >= WIDE else [*keys]
    note = alt.TitleParams(key, anchor="start", orient="bottom", fontSize=11, fontWeight="normal", color=QUIET, offset=4)
    return drawing.styled(drawing.vconcat(*panels, spacing=12, title=note))


def arms_by_layer(
    rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE, sites: Sequence[str] = ("resid_post", "attn_out")
) -> Chart | None:
    """What each way of guessing the tuned state costs the tuned model, by layer, with D and the noise floor as references."""
    cells = where(
        summary,
        measure="patching",
        direction=BREAKAGE,
        metric=floors.effect_metric(rows, BREAKAGE),
        arm=list(ARM_COLOURS),
        site=list(sites),
        unit=None,
        control=None,
        rank=None,
        strength=None,
        split=difference.reported(rows, "patching"),
    ).filter(pl.col("layer").is_not_null())
    if cells.is_empty() or not drawing.ends(cells["mean"])[1] > 0:
        return None
    found = difference.difference(rows, summary)
    most = drawing.ends(cells["mean"])[1]
    bottom = max(floors.FLOORS * drawing.ends(cells["floor"].fill_null(0))[1], 1e-5 * most)
    bottom = 10.0 ** math.floor(math.log10(bottom))
    top = 1.5 * max(drawing.ends(cells["ci_high"].fill_null(0))[1], most, found.mean if found else 0)
    scale = alt.Scale(type="log", domain=[bottom, top], nice=False, clamp=True)
    present = [site for site in sites if site in cells["site"]]
    panels = [
        _arms_panel(
            cells.filter(pl.col("site") == site),
            scale,
            found.mean if found else None,
            drawing.layer_range(cells),
            width,
            first=place == 0,
        )
        for place, site in enumerate(present)
    ]
    return drawing.styled(drawing.vconcat(*panels, spacing=14))


def cka_against_effect(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """Similarity of the states at a site against the share of D that writing that site carries over."""
    points = findings.similarity_against_effect(rows, summary)
    if points.is_empty():
        return None
    word = points["direction"][0]
    label = "KL increase" if word == BREAKAGE else "recovery"
    low, high = min(drawing.ends(points["cka"])[0], 0.98), max(drawing.ends(points["cka"])[1], 1.0)
    pad = 0.04 * (high - low)
    records = [{**row, "says": f"{row['name']}: CKA {row['cka']:.3f}, {label} {row['share']:.2f}"} for row in points.iter_rows(named=True)]
    domain = [site for site in SITE_COLOURS if site in points["site"].unique().to_list()]
    colour = alt.Color(
        "site:N",
        title=None,
        scale=alt.Scale(domain=domain, range=[SITE_COLOURS[s] for s in domain]),
        legend=drawing.legend_of(domain, width),
    )
    shapes = [SITE_SHAPES.get(s, "stroke") for s in domain]
    shape = alt.Shape("site:N", title=None, scale=alt.Scale(domain=domain, range=shapes), legend=drawing.legend_of(domain, width))
    x = alt.X(
        "cka:Q",
        title="CKA of the two models' activations (1: same shape)",
        scale=alt.Scale(domain=[low - pad, high + pad], nice=False),
        axis=alt.Axis(tickCount=6),
    )
    y = alt.Y("share:Q", title=f"{label}, share of D", scale=alt.Scale(padding=10))
    dots = alt.Chart(drawing.inline(records)).mark_point(size=56, filled=True, opacity=0.72)
    dots = dots.encode(x=x, y=y, color=colour, shape=shape, description=alt.Description("says:N"))
    names = [
        alt.Chart(drawing.inline([row]))
        .mark_text(aria=False, align=side, dx=shift, fontWeight=600, color=INK)
        .encode(x=x, y=y, text=alt.Text("name:N"))
        for row, side, shift in _labelled(points, (low + high) / 2)
    ]
    return drawing.styled(drawing.layer(dots, *names, width=width - 72, height=270))


def _labelled(points: pl.DataFrame, middle: float) -> list[tuple[dict, str, int]]:
    """Up to four outputs with a large share and room for a name; names stand on the side away from the edge."""
    chosen: list[dict] = []
    for row in points.filter(~pl.col("site").is_in(STREAM), pl.col("share") > 0.05).sort("share", descending=True).iter_rows(named=True):
        if len(chosen) < 4 and all(abs(row["share"] - other["share"]) > 0.08 for other in chosen):
            chosen.append(row)
    return [(row, "left", 9) if row["cka"] < middle else (row, "right", -9) for row in chosen]


def _map_panel(table: pl.DataFrame, layers: tuple[int, int], width: int, title: str, *, first: bool) -> alt.LayerChart:
    sites = sorted(table["site"].unique().to_list(), key=lambda kind: list(SITE_COLOURS).index(kind))
    records = [
        {**row, "says": _cell_says(row), "x": row["layer"] - 0.47, "end": row["layer"] + 0.47, "sign": sign_of(row)}
        for row in table.iter_rows(named=True)
    ]
    x = drawing.layer_axis(layers, width, title=not first)
    y = alt.Y(
        "site:N",
        title=None,
        sort=sites,
        axis=drawing.left_axis(ticks=False, domain=False),
        scale=alt.Scale(paddingInner=0.08, paddingOuter=0),
    )
    bar = alt.Legend(
        orient="top", direction="horizontal", gradientLength=180, gradientThickness=9, titleOrient="left", title="share of D", offset=6
    )
    colour = alt.Color("share:Q", scale=alt.Scale(domain=[0, 1], range=SHARE_RANGE, clamp=True), legend=bar if first else None)
    base = alt.Chart(drawing.inline([r for r in records if r["counts"] and r["share"] is not None]))
    left = drawing.layer_axis(layers, width, field="x", title=not first)
    cells = base.mark_rect(stroke="#c3ccd6", strokeWidth=0.5).encode(
        x=left, x2=alt.X2("end:Q"), y=y, color=colour, description=alt.Description("says:N")
    )
    signs = (
        alt.Chart(drawing.inline([r for r in records if r["counts"] and r["sign"]]))
        .mark_text(aria=False, fontSize=11, fontWeight=700, color="#b03a00")
        .encode(x=x, y=y, text=alt.Text("sign:N"))
    )
    quiet = alt.Chart(drawing.inline([r for r in records if not r["counts"]]))
    empty = quiet.mark_circle(size=6, color="#9aa4ae", opacity=1).encode(x=x, y=y, description=alt.Description("says:N"))
    return drawing.layer(cells, signs, empty, width=width - LEFT - 12, height=24 * len(sites), title=drawing.title_of(title))


def sign_of(row: dict) -> str:
    """Marks shares outside the colour scale: the write overshoots, or does the opposite."""
    share = row["share"]
    return "" if share is None else "+" if share > 1.05 else "−" if share < -0.05 else ""


def _cell_says(row: dict) -> str:
    where = f"L{row['layer']}.{row['site']}"
    if not row["counts"]:
        return f"{where}: below 3 × numerical noise"
    return where if row["share"] is None else f"{where}: share {phrasing.with_interval(row['share'], row['low'], row['high'], digits=2)}"


def _arms_panel(
    table: pl.DataFrame, scale: alt.Scale, d: float | None, layers: tuple[int, int], width: int, *, first: bool
) -> alt.LayerChart:
    bottom = float(scale.domain[0])
    names = [arm for arm in ARM_COLOURS if arm in table["arm"].unique().to_list()]
    says = [f"L{r['layer']}.{r['site']}, {r['arm']}: {r['mean']:.3g} nats" for r in table.iter_rows(named=True)]
    ends = [pl.max_horizontal(pl.coalesce(name, "mean"), pl.lit(bottom)).alias(name) for name in ("ci_low", "ci_high", "mean")]
    data = drawing.inline(table.select("layer", "arm", "mean", "ci_low", "ci_high").with_columns(*ends, says=pl.Series(says)).to_dicts())
    x, axis = drawing.layer_axis(layers, width, title=not first), drawing.left_axis(tickCount=4, format="~g")
    stroke, dash, fill = drawing.line_channels(names, "arm", ARM_COLOURS, ARM_DASHES, width, first)
    base = alt.Chart(data)
    y = alt.Y("mean:Q", scale=scale, axis=axis)
    band = base.mark_area(aria=False, opacity=0.13).encode(
        x=x, y=alt.Y("ci_low:Q", scale=scale, axis=axis), y2=alt.Y2("ci_high:Q"), fill=fill
    )
    line = base.mark_line(aria=False, strokeWidth=2).encode(x=x, y=y, stroke=stroke, strokeDash=dash)
    dots = base.mark_circle(size=18, opacity=1).encode(x=x, y=y, fill=fill, description=alt.Description("says:N"))
    marks = [band, line, dots]
    if d and d > bottom:
        rule = alt.Chart(drawing.inline([{"mean": d}]))
        marks.insert(0, rule.mark_rule(aria=False, color=QUIET, strokeDash=[3, 3]).encode(y=y))
        text = rule.mark_text(aria=False, align="left", baseline="bottom", dx=3, dy=-2, color=QUIET)
        marks.append(text.encode(x=alt.XValue(0), y=y, text=alt.TextValue(f"D = {phrasing.nats(d)}")))
    pinned = f" (bottom: {phrasing.power_of_ten(bottom)} or less)" if drawing.ends(table["mean"])[0] < bottom else ""
    return drawing.layer(*marks, width=width - LEFT - 12, height=150, title=drawing.title_of(f"{table['site'][0]}: KL, nats{pinned}"))
