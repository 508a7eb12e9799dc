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
from mechdiff.report.drawing import BLUE, WIDE, Chart
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


def _sites(found: pl.DataFrame) -> list[str]:
    return found.sort(effect_shares.kind_place())["site"].unique(maintain_order=True).to_list()


def _layers(table: pl.DataFrame, width: int) -> Callable[[bool], alt.X]:
    ends = drawing.layer_range(table)
    return lambda last: drawing.layer_axis(ends, width, title=last)
