"""The charts on linear maps show both scores by layer, how well maps fit, strengths, and maps applied at layers they were not fitted at."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import altair as alt
import polars as pl

from mechdiff import labels
from mechdiff.measures.transport import closer_findings, findings
from mechdiff.measures.transport.findings import CLOSENESS, LEARNED, REMOVAL, TRANSPORT
from mechdiff.report import curves, difference, drawing, effect_shares
from mechdiff.report.curves import Axes, Behind
from mechdiff.report.drawing import BLUE, INK, SHARE_RANGE, WIDE, Chart
from mechdiff.report.effect_shares import ARMS
from mechdiff.report.phrasing import decimal, nats, with_interval
from mechdiff.rows import where

TOP = "tuned activation"
"""The ceiling of transport, as a line of its own."""
LAW_POINTS = 24
SHOWN = 3
"""Sites that are drawn at the closer layers."""
LEAST_R2 = -0.5
"""R2 below is drawn here."""


def recovery_by_layer(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """Transport proper: the share of D that the base recovers with its own state mapped, below what the tuned state itself recovers."""
    found = findings.recovered(rows)
    top = findings.ceiling(rows).with_columns(arm=pl.lit(TOP))
    words = "share of D recovered by the base with its own activation mapped"
    return _shares_by_layer(pl.concat([found, top.select(found.columns)]), words if width >= WIDE else "share of D recovered", width)


def removal_by_layer(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """The way back: what the tuned model loses of the change with its own state mapped to the base's."""
    words = "share of KL(base ‖ tuned) removed" if width >= WIDE else "share removed"
    return _shares_by_layer(findings.recovered(rows, REMOVAL), words, width)


def _shares_by_layer(found: pl.DataFrame, words: str, width: int) -> Chart | None:
    if found.is_empty():
        return None
    names = curves.ordered(found["arm"].unique().to_list(), (*ARMS, TOP))
    says = [f"{r['name']}, {r['arm']}: {with_interval(r['share'], r['low'], r['high'], digits=2)}" for r in found.iter_rows(named=True)]
    table = found.select("layer", "share", "arm", "site").rename({"share": "value", "arm": "line", "site": "panel"})
    table = table.with_columns(says=pl.Series(says))
    scale, axis = curves.share_scale(table), drawing.left_axis(tickCount=5, format=".1f")
    maps = curves.look_of([name for name in names if name != TOP])
    look = replace(maps, names=names, colours={**maps.colours, TOP: BLUE}, dashes={**maps.dashes, TOP: [3, 3]})
    titles = {site: f"{site}: {words}" for site in _sites(found)}
    axes = Axes(x=_layers(table, width), scale=scale, ticks=axis)
    return curves.panels(table, titles, axes, look, width, Behind(marks=lambda _: [curves.zero(scale, axis)]))


def closeness_by_layer(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """KL of the tuned model with each guess of its state, by layer, on a log scale."""
    found = findings.closeness(rows)
    if found.is_empty() or not drawing.ends(found["kl"])[1] > 0:
        return None
    names = curves.ordered(found["arm"].unique().to_list(), ARMS)
    says = [f"{r['name']}, {r['arm']}: {nats(r['kl'])} nats" for r in found.iter_rows(named=True)]
    positive = found["kl"].to_frame().filter(pl.col("kl") > 0)["kl"]
    scale, bottom = drawing.log_scale(positive, found["kl"])
    value = pl.max_horizontal("kl", pl.lit(bottom)).alias("value")
    table = found.select("layer", value, line="arm", panel="site").with_columns(says=pl.Series(says))
    axis = drawing.left_axis(values=drawing.powers(scale), format="~g", labelOverlap=True)
    known = difference.difference(rows, summary)
    titles = {site: f"{site}: KL, nats{drawing.pinned(found['kl'], bottom)}" for site in _sites(found)}
    marks = curves.rule(known.mean, f"D = {nats(known.mean)}", scale, axis) if known and known.mean > bottom else []
    axes = Axes(x=_layers(table, width), scale=scale, ticks=axis)
    return curves.panels(table, titles, axes, curves.look_of(names), width, Behind(marks=lambda _: marks))


def fit_by_layer(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """R2 of the change on prompts that a map has not seen; dotted: on those that it was fitted on; filled: better than permuted refits."""
    found = findings.fit_quality(rows, summary, ("r2_change",)).filter(pl.col("arm").is_in(LEARNED))
    split = difference.reported(rows, "transport")
    held, train = found.filter(pl.col("split").eq_missing(split)), found.filter(pl.col("split") == "fit")
    if held.is_empty():
        return None
    names = curves.ordered(held["arm"].unique().to_list(), ARMS)
    other = {(r["name"], r["arm"]): r["mean"] for r in train.iter_rows(named=True)}
    says = [
        f"{r['name']}, {r['arm']}: {decimal(r['mean'])} ({decimal(other.get((r['name'], r['arm'])))} on the training prompts)"
        + (f", p = {nats(r['p'])}, q = {nats(r['q'])}" if r["p"] is not None else "")
        for r in held.iter_rows(named=True)
    ]
    held = held.with_columns(says=pl.Series(says), sure=(pl.col("q") <= 0.05).fill_null(False))
    table = held.select("layer", "says", "sure", value="mean", line="arm", panel="site")
    low = max(min(0.0, drawing.ends(held["mean"])[0]), LEAST_R2)
    scale, axis = alt.Scale(domain=[low, 1.0], nice=False, clamp=True), drawing.left_axis(tickCount=5, format=".1f")
    titles = {site: f"{site}: R² of the change" + ("; dotted: on the training prompts" if width >= WIDE else "") for site in _sites(held)}
    faint = train.select("layer", value="mean", line="arm", panel="site")
    zero = [curves.zero(scale, axis)]
    axes, look = Axes(x=_layers(table, width), scale=scale, ticks=axis), replace(curves.look_of(names), dashes={})
    return curves.panels(table, titles, axes, look, width, Behind(marks=lambda _: zero, faint=faint))


def shown_at_strength(rows: pl.DataFrame, summary: pl.DataFrame) -> list[str]:
    """Sites with strength curves that are drawn: the strongest first, then by what the tuned state recovers there."""
    curved = closer_findings.rows_of_strength(rows, CLOSENESS, "kl_own_nats")["name"].unique(maintain_order=True).to_list()
    site = findings.strongest_site(rows, summary)
    ceiling = findings.ceiling(rows).sort(pl.col("site").is_in(difference.STREAM), -pl.col("share"), maintain_order=True)
    order = [*([site[0]] if site else []), *ceiling["name"].to_list(), *curved]
    worth = findings.worth_mapping(rows, summary)
    shown = [name for name in dict.fromkeys(order) if name in curved]
    return ([name for name in shown if name in worth] or shown)[:SHOWN]


def closeness_by_strength(
    rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE, sites: Sequence[str] | None = None
) -> Chart | None:
    """KL of the tuned model by strength, with the quadratic law through the smallest strength."""
    found = closer_findings.rows_of_strength(rows, CLOSENESS, "kl_own_nats")
    shown = shown_at_strength(rows, summary) if sites is None else list(sites)
    found = found.filter(pl.col("name").is_in(shown))
    if found.is_empty():
        return None
    most = drawing.ends(found["value"])[1]
    law = closer_findings.quadratic(rows).filter(pl.col("name").is_in(shown), pl.col("curvature").is_not_null())
    end = drawing.ends(found["s"])[1]
    points = [
        {"panel": r["name"], "line": r["arm"], "s": s, "value": value}
        for r in law.iter_rows(named=True)
        for s in (end * i / LAW_POINTS for i in range(LAW_POINTS + 1))
        if (value := r["curvature"] * s * s) <= 1.15 * most
    ]
    faint = pl.DataFrame(points, schema={"panel": pl.String, "line": pl.String, "s": pl.Float64, "value": pl.Float64})
    scale = alt.Scale(domain=[0, 1.15 * most or 1.0], nice=False, clamp=True)
    words = "KL, nats" + ("; dotted: c s²" if width >= WIDE else "")
    return _by_strength(found, {name: f"{name}: {words}" for name in shown}, scale, "nats", width, faint)


def recovery_by_strength(
    rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE, sites: Sequence[str] | None = None
) -> Chart | None:
    """The share of D that the base recovers, by strength."""
    shown = shown_at_strength(rows, summary) if sites is None else list(sites)
    found = closer_findings.rows_of_strength(rows, TRANSPORT, "kl_other_nats").filter(pl.col("name").is_in(shown))
    if found.is_empty():
        return None
    return _by_strength(found, {name: f"{name}: share of D recovered" for name in shown}, curves.share_scale(found), "of D", width)


def _by_strength(
    found: pl.DataFrame, titles: dict[str, str], scale: alt.Scale, unit: str, width: int, faint: pl.DataFrame | None = None
) -> Chart:
    digits, form = (2, ".1f") if unit == "of D" else (None, ".3~g")
    says = [
        f"{r['name']}, {r['arm']}, s = {r['s']:g}: {with_interval(r['value'], r['low'], r['high'], digits=digits)} {unit}"
        for r in found.iter_rows(named=True)
    ]
    names = curves.ordered(found["arm"].unique().to_list(), ARMS)
    table = found.select("s", "value", "low", "high", line="arm", panel="name").with_columns(says=pl.Series(says))
    x = curves.strength_axis(drawing.ends(found["s"])[1])
    axes = Axes(x=x, scale=scale, ticks=drawing.left_axis(tickCount=4, format=form), height=120)
    marks, look = curves.full_strength(x), replace(curves.look_of(names), opacity=0.08)
    return curves.panels(table, titles, axes, look, width, Behind(marks=lambda _: marks, faint=faint))


def arm_of_squares(rows: pl.DataFrame, summary: pl.DataFrame) -> str:
    """The map whose misplaced copies are drawn: the one that sentences speak of, if it has any."""
    crossed = where(rows, measure="transport").filter(labels.other_layer_column().is_not_null())
    arms = curves.ordered(crossed["arm"].unique().to_list(), ARMS)
    best = findings.carried(rows, summary)
    return best.arm if best and best.arm in arms else arms[-1] if arms else ""


def squares(rows: pl.DataFrame, summary: pl.DataFrame, arm: str = "") -> dict[str, pl.DataFrame]:
    """By kind of site: what maps do at layers they were not fitted at, where a map has something to do."""
    arm = arm or arm_of_squares(rows, summary)
    kinds = where(rows, measure="transport").filter(pl.col("arm") == arm).sort(effect_shares.kind_place())
    found = {site: closer_findings.bogus_square(rows, arm, site) for site in kinds["site"].unique(maintain_order=True).to_list()}
    worth = findings.worth_mapping(rows, summary)
    found = {
        site: square.filter(pl.format("L{}.{}", "patched", pl.lit(site)).is_in(worth)) for site, square in found.items() if len(square)
    }
    return {site: square for site, square in found.items() if not square.is_empty()}


def bogus_maps(
    rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE, found: dict[str, pl.DataFrame] | None = None
) -> Chart | None:
    """Fitted layer by patched layer: KL in nats, the lowest of each row framed."""
    found = squares(rows, summary) if found is None else found
    if not found:
        return None
    abreast = len(found) if width >= WIDE else 1
    side = (width - 58 * abreast) // abreast
    panels = [_square(site, square, side) for site, square in found.items()]
    return drawing.styled(drawing.hconcat(*panels, spacing=16) if width >= WIDE else drawing.vconcat(*panels, spacing=12))


def _square(site: str, square: pl.DataFrame, side: int) -> alt.LayerChart:
    least = square.group_by("patched").agg(least=pl.col("nats").min())
    ratio = pl.when(pl.col("least") > 0).then((pl.col("nats") / pl.col("least")).log10()).otherwise(0.0)
    table = square.join(least, on="patched").with_columns(shade=ratio, best=pl.col("nats") == pl.col("least")).sort("patched", "fitted")
    layers, rows_of = ([f"L{layer}" for layer in sorted(set(square[name].to_list()))] for name in ("fitted", "patched"))
    records = [
        {
            "fitted": f"L{r['fitted']}", "patched": f"L{r['patched']}", "shade": r["shade"], "text": f"{r['nats']:.2g}", "best": r["best"],
            "says": f"fitted at L{r['fitted']}, patched at L{r['patched']}: {nats(r['nats'])} nats", "ink": "#ffffff" if r["shade"] > 0.55 else INK,
        }
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    snug = alt.Scale(paddingInner=0.06, paddingOuter=0)
    x = alt.X("fitted:N", sort=layers, title="map fitted at", axis=alt.Axis(labelAngle=0, ticks=False, domain=False), scale=snug)
    y = alt.Y("patched:N", sort=rows_of, title="patched in at", axis=alt.Axis(ticks=False, domain=False), scale=snug)
    base = alt.Chart(drawing.inline(records))
    colour = alt.Color("shade:Q", scale=alt.Scale(domain=[0, 1], range=SHARE_RANGE, clamp=True), legend=None)
    cells = base.mark_rect(stroke="#c3ccd6", strokeWidth=0.5).encode(x=x, y=y, color=colour, description=alt.Description("says:N"))
    won = alt.Chart(drawing.inline([r for r in records if r["best"]])).mark_rect(
        aria=False, filled=False, stroke="#d55e00", strokeWidth=2.2
    )
    layers_ = [cells, won.encode(x=x, y=y)]
    if len(layers) <= 8:
        for ink in ("#ffffff", INK):
            words = alt.Chart(drawing.inline([r for r in records if r["ink"] == ink])).mark_text(aria=False, fontSize=10, color=ink)
            layers_.append(words.encode(x=x, y=y, text=alt.Text("text:N")))
    title = drawing.title_of(f"{site}: nats")
    return drawing.layer(*layers_, width=max(side, 90), height=max(24 * len(rows_of), 30), title=title)


def _sites(found: pl.DataFrame) -> list[str]:
    return found.sort(effect_shares.kind_place())["site"].unique(maintain_order=True).to_list()


def _layers(table: pl.DataFrame, width: int) -> Callable[[bool], alt.X]:
    ends = drawing.layer_range(table)
    return lambda last: drawing.layer_axis(ends, width, title=last)
