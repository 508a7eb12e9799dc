"""The figures show what steering along the change does, and what it harms."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from mechdiff.measures.steering import findings
from mechdiff.measures.steering.findings import EDITS, Limits
from mechdiff.report import curves, drawing
from mechdiff.report.curves import Axes, Behind, Look
from mechdiff.report.drawing import ORANGE, PURPLE, QUIET, SKY, TEAL, WIDE, WINE, Chart
from mechdiff.report.phrasing import decimal, nats, share, with_interval

SHOWN = 3
"""Sites that are drawn."""


LOOKS = {"add": ORANGE, "interchange into base": SKY, "interchange into tuned": WINE, "ablate": PURPLE, "amplify": TEAL}
LOOK_DASHES = {"interchange into tuned": [7, 3], "ablate": [2, 3], "amplify": [5, 2, 1, 2]}
SHAPES = {"add": "circle", "interchange into base": "square", "interchange into tuned": "diamond", "ablate": "triangle-down",
          "amplify": "triangle-up"}  # fmt: skip


def directions(rank: int | None) -> str:
    return "one direction" if rank == 1 else f"{rank} directions"


def name(row: dict) -> str:
    """ "ablate L4.attn_out, k = 2, s = 1.5, window 3, all positions" (no line ends inside k = 2)."""
    words = [f"{row['edit']} {row['name']}"]
    words += [f"k\u00a0=\u00a0{row['rank']}"] if row["rank"] is not None and row["edit"] != "add" else []
    words += [f"s\u00a0=\u00a0{row['strength']:g}"] if row["strength"] is not None else []
    words += [row["window"]] if row["window"] else []
    return ", ".join([*words, "all positions"] if row["everywhere"] else words)


def effect_by_rank(
    rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE, sites: Sequence[str] | None = None
) -> Chart | None:
    """Effect of every kind of edit by its number of directions; dotted: the mean of its controls."""
    found = findings.by_rank(findings.effects(rows))
    real = found.filter(pl.col("control").is_null())
    if real.is_empty():
        return None
    shown = findings.sites(rows, summary, real)[:SHOWN] if sites is None else sites
    real = real.filter(pl.col("name").is_in(shown))
    says = [
        f"{r['edit']} {r['name']}, {directions(r['rank'])}: {with_interval(r['share'], r['low'], r['high'], digits=2)} of D"
        for r in real.iter_rows(named=True)
    ]
    table = real.select("rank", "low", "high", value="share", line="edit", panel="name").with_columns(says=pl.Series(says))
    chance = findings.controls(found).filter(pl.col("name").is_in(shown), pl.col("strength").is_null())
    chance = chance.group_by("name", "edit", "rank", maintain_order=True).agg(pl.col("share").mean()).sort("name", "edit", "rank")
    faint = chance.select("rank", value="share", line="edit", panel="name")
    names = curves.ordered(table["line"].unique().to_list(), list(EDITS.values()))
    scale, axis = curves.share_scale(table), drawing.left_axis(tickCount=5, format=".1f")
    x = curves.rank_axis(table["rank"].to_list(), width, "directions, k")
    zero = [curves.zero(scale, axis)]
    titles = {name: f"{name}: share of the way" + ("; dotted: random directions" if width >= WIDE else "") for name in shown}
    axes, look = Axes(x=x, scale=scale, ticks=axis, height=130), Look(names=names, colours=LOOKS, dashes=LOOK_DASHES)
    return curves.panels(table.sort("panel", "line", "rank"), titles, axes, look, width, Behind(marks=lambda _: zero, faint=faint))


def added_by_strength(
    rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE, sites: Sequence[str] | None = None
) -> Chart | None:
    """The mean difference added to the base, by strength, with what random vectors and swapped labels do at strength 1."""
    found = findings.effects(rows)
    curve = findings.added(found)
    if curve["s"].n_unique() < 2:
        return None
    shown = findings.sites(rows, summary, curve)[:SHOWN] if sites is None else sites
    curve = curve.filter(pl.col("name").is_in(shown))
    says = [
        f"{r['name']}, s = {r['s']:g}: {with_interval(r['share'], r['low'], r['high'], digits=2)} of D" for r in curve.iter_rows(named=True)
    ]
    table = curve.select("s", "low", "high", value="share", line=pl.lit("add"), panel="name").with_columns(says=pl.Series(says))
    chance = findings.controls(found).filter(
        pl.col("edit") == "add", ~pl.col("everywhere") & pl.col("window").is_null(), pl.col("strength").is_null()
    )
    known = {(r["name"], r["control_kind"]): r["share"] for r in chance.iter_rows(named=True)}
    scale, axis = curves.share_scale(table), drawing.left_axis(tickCount=5, format=".1f")
    x = curves.strength_axis(drawing.ends(table["s"])[1])
    upright = curves.full_strength(x)

    def marks(panel: str) -> list[alt.Chart]:
        dots = [
            {"s": 1.0, "value": known[panel, kind], "says": f"{words} at s = 1: {share(known[panel, kind])} of D"}
            for kind, words in (("random_vector", "random vectors"), ("label_swap", "swapped labels"))
            if (panel, kind) in known
        ]
        drawn = alt.Chart(drawing.inline(dots)).mark_point(size=50, shape="cross", filled=True, color=QUIET, opacity=1)
        y = alt.Y("value:Q", scale=scale, axis=axis)
        return [
            curves.zero(scale, axis),
            *upright,
            *([drawn.encode(x=x(False), y=y, description=alt.Description("says:N"))] if dots else []),
        ]

    titles = {
        name: f"{name}: share of D recovered" + ("; crosses: random vectors, swapped labels" if width >= WIDE else "") for name in shown
    }
    axes, look = Axes(x=x, scale=scale, ticks=axis, height=120), Look(names=["add"], colours=LOOKS, dashes={})
    return curves.panels(table, titles, axes, look, width, Behind(marks=marks))


def frontier_of_edits(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """Effect against side effect of every edit, with the limits of the study."""
    allowed = findings.limits(manifest)
    edits = findings.frontier(rows, summary, allowed)
    if edits.filter(pl.col("control").is_null()).is_empty():
        return None
    positive = edits.filter(pl.col("side_kl") > 0)["side_kl"]
    ends = pl.concat([positive, pl.Series("side_kl", [allowed.kl_nats])])
    scale, bottom = drawing.log_scale(ends, ends)
    shares = edits.select(value="share", low="share", high="share")
    y_scale = curves.share_scale(shares)
    records = [
        {"side": max(r["side_kl"], bottom), "share": r["share"], "within": r["within"], "edit": "control" if r["control"] else r["edit"],
         "says": f"{name(r)}{', ' + r['control'] if r['control'] else ''}: {share(r['share'])} of the way, side KL {nats(r['side_kl'])} nats, "
                 f"perplexity ratio {decimal(r['side_ratio'], 3)}"}
        for r in edits.iter_rows(named=True)
    ]  # fmt: skip
    names = [*curves.ordered(sorted({r["edit"] for r in records} - {"control"}), list(EDITS.values()))]
    names += ["control"] if any(r["edit"] == "control" for r in records) else []
    legend = drawing.legend_of(names, width)
    legend.columns = 2 if width < WIDE else 0
    colours, shapes = {**LOOKS, "control": curves.GREY}, {**SHAPES, "control": "cross"}
    domain = [colours.get(name, drawing.OLIVE) for name in names]
    shape = alt.Shape("edit:N", title=None, scale=alt.Scale(domain=names, range=[shapes.get(n, "stroke") for n in names]), legend=legend)
    x = alt.X(
        "side:Q",
        title="side effect: KL on unrelated prompts, nats per token",
        scale=scale,
        axis=alt.Axis(values=drawing.powers(scale), format="~g"),
    )
    y = alt.Y("share:Q", title="effect, share of the way", scale=y_scale, axis=alt.Axis(tickCount=6, format=".1f"))
    stroke = alt.Stroke("edit:N", title=None, scale=alt.Scale(domain=names, range=domain), legend=legend)
    fill = alt.Fill("edit:N", title=None, scale=alt.Scale(domain=names, range=domain), legend=legend)
    says = alt.Description("says:N")
    layers = _limits(allowed, scale)
    for within in (False, True):
        points = alt.Chart(drawing.inline([r for r in records if r["within"] == within]))
        dots = points.mark_point(size=56, opacity=0.85, strokeWidth=1.4, filled=within, **({} if within else {"fill": "#ffffff"}))
        layers.append(dots.encode(x=x, y=y, shape=shape, stroke=stroke, description=says, **({"fill": fill} if within else {})))
    return drawing.styled(drawing.layer(*layers, width=width - 72, height=270))


def _limits(allowed: Limits, scale: alt.Scale) -> list[alt.Chart]:
    """The largest side effect that is allowed."""
    across = alt.Chart(drawing.inline([{"side": allowed.kl_nats}]))
    x = alt.X("side:Q", scale=scale)
    upright = across.mark_rule(aria=False, color=ORANGE, strokeDash=[4, 3], strokeWidth=1.5).encode(x=x)
    limit = across.mark_text(aria=False, align="left", baseline="top", dx=4, dy=2, color="#8a5c00", fontWeight=600)
    return [upright, limit.encode(x=x, y=alt.YValue(0), text=alt.TextValue("limit"))]
