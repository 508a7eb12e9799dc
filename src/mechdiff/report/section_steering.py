"""Does the change obey: its directions added, enlarged, removed and exchanged, and what that costs on prompts that have nothing to do with it."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from mechdiff.report import curves, drawing, findings, findings_steering, phrasing, wording_steering
from mechdiff.report.drawing import BLUE, GREEN, ORANGE, PURPLE, QUIET, VERMILLION, WIDE, Chart
from mechdiff.report.findings_steering import EDITS, Limits
from mechdiff.report.parts import Drawn, Run, Section, note, table
from mechdiff.report.phrasing import listed, nats, share, shown, with_interval
from mechdiff.report.wording_difference import why_no_share

TITLE = "Does it obey?"
SHOWN = 3
"""Sites that are drawn."""
TOP = 14
ANSWERS = 5
LOOKS = {"add": VERMILLION, "interchange into base": BLUE, "interchange into tuned": PURPLE, "ablate": GREEN, "amplify": ORANGE}
LOOK_DASHES = {"interchange into tuned": [7, 3], "ablate": [2, 3], "amplify": [5, 2, 1, 2]}
SHAPES = {"add": "circle", "interchange into base": "square", "interchange into tuned": "diamond", "ablate": "triangle-down",
          "amplify": "triangle-up"}  # fmt: skip


def steering(run: Run) -> Section:
    """Q3, last part: can the change be turned on and off by hand."""
    if run.rows.filter(pl.col("measure") == "steering", pl.col("control").ne_missing("no_op")).is_empty():
        return Section(id="steering", title=TITLE, parts=[note("Steering was not tried in this run.")])
    known = findings.difference(run.rows, run.summary)
    parts: list[Any] = []
    if why := why_no_share(known):
        parts.append(note(f"There is no effect to share: {why}. The values in nats are in summary.parquet."))
    else:
        found = findings_steering.effects(run.rows)
        parts += [*_effect(run, found), *_strength(run, found), *_frontier(run, found)]
    return Section(id="steering", title=TITLE, parts=[*parts, *_answers(run)])


def _effect(run: Run, found: pl.DataFrame) -> list[Any]:
    by_rank = findings_steering.by_rank(found)
    real = by_rank.filter(pl.col("control").is_null())
    if real.is_empty():
        return []
    sites = findings_steering.sites(run.rows, run.summary, real)[:SHOWN]
    name = sites[0]
    said = []
    for edit in EDITS.values():
        here = real.filter(pl.col("name") == name, pl.col("edit") == edit).sort("rank")
        ends = [here.row(place, named=True) for place in dict.fromkeys((0, len(here) - 1))] if len(here) else []
        said += [f"{edit} {listed(_effect_of(one, findings_steering.beside(found, one)) for one in ends)}"] if ends else []
    caption = "Effect by number of directions at the last prompt token, as a share of the way to the other model. "
    caption += f"At {name}: {'; '.join(said)}."
    return [Drawn(name="steering_effect", chart=effect_by_rank, options={"sites": sites}, caption=caption, reading="steering_effect")]


def _effect_of(edit: dict, random: pl.Series) -> str:
    text = f"{with_interval(edit['share'], edit['low'], edit['high'], digits=2)} with {_directions(edit['rank'])}"
    if random.is_empty():
        return text
    draws = "1 random draw" if len(random) == 1 else f"mean of {len(random)} random draws"
    return f"{text} ({draws}: {share(float(random.to_numpy().mean()))})"


def _directions(rank: int | None) -> str:
    return "one direction" if rank == 1 else f"{rank} directions"


def _strength(run: Run, found: pl.DataFrame) -> list[Any]:
    curve = findings_steering.added(found)
    if curve["s"].n_unique() < 2:
        return []
    sites = findings_steering.sites(run.rows, run.summary, curve)[:SHOWN]
    name = sites[0]
    here = curve.filter(pl.col("name") == name).sort("s")
    said = listed(f"{with_interval(r['share'], r['low'], r['high'], digits=2)} at s = {r['s']:g}" for r in here.iter_rows(named=True))
    caption = f"The mean difference added to the base's activation, by strength. Share of D recovered at {name}: {said}."
    return [
        Drawn(name="steering_strength", chart=added_by_strength, options={"sites": sites}, caption=caption, reading="steering_strength")
    ]


def _frontier(run: Run, found: pl.DataFrame) -> list[Any]:
    allowed = findings_steering.limits(run.manifest)
    edits = findings_steering.frontier(run.rows, run.summary, allowed)
    real = edits.filter(pl.col("control").is_null())
    if real.is_empty():
        return [note("Side effects on neutral prompts were not measured, so no edit is said to be harmless.")]
    caption = f"Effect on the study's prompts against side effect on neutral ones, of {len(real)} edits. "
    caption += " ".join(wording_steering.does_it_obey(run.rows, run.summary, run.manifest))
    drawn = Drawn(name="steering_frontier", chart=frontier_of_edits, caption=caption, reading="steering_frontier")
    return [drawn, _sides(found, real, allowed)]


def _sides(found: pl.DataFrame, real: pl.DataFrame, allowed: Limits) -> dict:
    """The edits with the largest effect, random directions of the same dose beside them where these were run, and their side effects."""
    lines = []
    for r in real.sort("share", descending=True, maintain_order=True).head(TOP).iter_rows(named=True):
        random = findings_steering.beside(found, r)
        chance = "–" if random.is_empty() else f"{share(float(random.to_numpy().max()))} (of {len(random)})"
        lines.append((
            _name(r), shown(r["share"], r["low"], r["high"], r["n"], digits=2), chance, nats(r["side_kl"]),
            share(r["side_ratio"], 3), share(r["side_top1"], 3), "yes" if r["within"] else "no",
        ))  # fmt: skip
    columns = (
        "edit",
        "effect (95 %)",
        "highest random direction",
        "side KL, nats",
        "perplexity ratio",
        "same top-1 token",
        "within limits",
    )
    title = f"Edits by effect on these prompts, a share of the way to the other model, and their side effects (limits: KL {nats(allowed.kl_nats)} "
    title += f"nats per token, perplexity ratio {share(allowed.perplexity_ratio, 3)})"
    return table(columns, lines, title=title + (f"; {len(real) - TOP} others are weaker" if len(real) > TOP else ""))


def _name(row: dict) -> str:
    """ "ablate L4.attn_out, k = 2, s = 1.5, window 3, all positions" (no line ends inside k = 2)."""
    words = [f"{row['edit']} {row['name']}"]
    words += [f"k\u00a0=\u00a0{row['rank']}"] if row["rank"] is not None and row["edit"] != "add" else []
    words += [f"s\u00a0=\u00a0{row['strength']:g}"] if row["strength"] is not None else []
    words += [row["window"]] if row["window"] else []
    return ", ".join([*words, "all positions"] if row["everywhere"] else words)


def _answers(run: Run) -> list[dict]:
    """What base, tuned model and steered base say to a few prompts."""
    record = run.manifest.get("steering") or {}
    answers = (record.get("texts") or record.get("answers") or [])[:ANSWERS]
    if not answers:
        return []
    sites = list(dict.fromkeys(answer["site"] for answer in answers if answer.get("site")))
    parts = []
    for answer in answers:
        said = [(who, phrasing.visible(answer.get(who, "–"))) for who in ("base", "tuned", "steered")]
        entries = [{"what": {"steered": "base, steered"}.get(who, who), "why": text} for who, text in said]
        parts.append(
            {"kind": "list", "entries": [{"what": "Prompt", "why": phrasing.visible(answer.get("text") or answer["prompt"])}, *entries]}
        )
    where = f" at {listed(sites)}" if sites else ""
    return [note(f"What the base says with the mean difference added{where}, at all positions, beside both models (greedy):"), *parts]


def effect_by_rank(
    rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE, sites: Sequence[str] | None = None
) -> Chart | None:
    """Effect of every kind of edit by its number of directions; dotted: the mean of its controls."""
    found = findings_steering.by_rank(findings_steering.effects(rows))
    real = found.filter(pl.col("control").is_null())
    if real.is_empty():
        return None
    shown = findings_steering.sites(rows, summary, real)[:SHOWN] if sites is None else sites
    real = real.filter(pl.col("name").is_in(shown))
    says = [
        f"{r['edit']} {r['name']}, {_directions(r['rank'])}: {with_interval(r['share'], r['low'], r['high'], digits=2)} of D"
        for r in real.iter_rows(named=True)
    ]
    table = real.select("rank", "low", "high", value="share", line="edit", panel="name").with_columns(says=pl.Series(says))
    chance = findings_steering.controls(found).filter(pl.col("name").is_in(shown), pl.col("strength").is_null())
    chance = chance.group_by("name", "edit", "rank", maintain_order=True).agg(pl.col("share").mean()).sort("name", "edit", "rank")
    faint = chance.select("rank", value="share", line="edit", panel="name")
    names = curves.ordered(table["line"].unique().to_list(), list(EDITS.values()))
    scale, axis = curves.share_scale(table), drawing.left_axis(tickCount=5, format=".1f")
    x = curves.rank_axis(table["rank"].to_list(), width, "directions, k")
    zero = [curves.zero(scale, axis)]
    titles = {name: f"{name}: share of the way" + ("; dotted: random directions" if width >= WIDE else "") for name in shown}
    return curves.panels(
        table.sort("panel", "line", "rank"), x, titles, names, scale, axis, width, looks_of=(LOOKS, LOOK_DASHES), height=130, faint=faint,
        marks=lambda _: zero,
    )  # fmt: skip


def added_by_strength(
    rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE, sites: Sequence[str] | None = None
) -> Chart | None:
    """The mean difference added to the base, by strength, with what random vectors and swapped labels do at strength 1."""
    found = findings_steering.effects(rows)
    curve = findings_steering.added(found)
    if curve["s"].n_unique() < 2:
        return None
    shown = findings_steering.sites(rows, summary, curve)[:SHOWN] if sites is None else sites
    curve = curve.filter(pl.col("name").is_in(shown))
    says = [
        f"{r['name']}, s = {r['s']:g}: {with_interval(r['share'], r['low'], r['high'], digits=2)} of D" for r in curve.iter_rows(named=True)
    ]
    table = curve.select("s", "low", "high", value="share", line=pl.lit("add"), panel="name").with_columns(says=pl.Series(says))
    chance = findings_steering.controls(found).filter(
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
    return curves.panels(table, x, titles, ["add"], scale, axis, width, looks_of=(LOOKS, {}), height=120, marks=marks)


def frontier_of_edits(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """Effect against side effect of every edit, with the limits of the study."""
    allowed = findings_steering.limits(manifest)
    edits = findings_steering.frontier(rows, summary, allowed)
    if edits.filter(pl.col("control").is_null()).is_empty():
        return None
    positive = edits.filter(pl.col("side_kl") > 0)["side_kl"]
    ends = pl.concat([positive, pl.Series("side_kl", [allowed.kl_nats])])
    scale, bottom = drawing.log_scale(ends, ends)
    shares = edits.select(value="share", low="share", high="share")
    y_scale = curves.share_scale(shares)
    records = [
        {"side": max(r["side_kl"], bottom), "share": r["share"], "within": r["within"], "edit": "control" if r["control"] else r["edit"],
         "says": f"{_name(r)}{', ' + r['control'] if r['control'] else ''}: {share(r['share'])} of the way, side KL {nats(r['side_kl'])} nats, "
                 f"perplexity ratio {share(r['side_ratio'], 3)}"}
        for r in edits.iter_rows(named=True)
    ]  # fmt: skip
    names = [*curves.ordered(sorted({r["edit"] for r in records} - {"control"}), list(EDITS.values()))]
    names += ["control"] if any(r["edit"] == "control" for r in records) else []
    legend = drawing.legend_of(names, width)
    legend.columns = 2 if width < WIDE else 0
    colours, shapes = {**LOOKS, "control": curves.GREY}, {**SHAPES, "control": "cross"}
    domain = [colours.get(name, curves.OLIVE) for name in names]
    shape = alt.Shape("edit:N", title=None, scale=alt.Scale(domain=names, range=[shapes.get(n, "stroke") for n in names]), legend=legend)
    x = alt.X(
        "side:Q",
        title="side effect: KL on neutral prompts, nats a token",
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
        dots = points.mark_point(size=56, opacity=0.85, strokeWidth=1.4, filled=within, **({} if within else {"fill": "white"}))
        layers.append(dots.encode(x=x, y=y, shape=shape, stroke=stroke, description=says, **({"fill": fill} if within else {})))
    return drawing.styled(alt.layer(*layers, width=width - 72, height=270))


def _limits(allowed: Limits, scale: alt.Scale) -> list[alt.Chart]:
    """The largest side effect that is allowed."""
    across = alt.Chart(drawing.inline([{"side": allowed.kl_nats}]))
    x = alt.X("side:Q", scale=scale)
    upright = across.mark_rule(aria=False, color=ORANGE, strokeDash=[4, 3], strokeWidth=1.5).encode(x=x)
    limit = across.mark_text(aria=False, align="left", baseline="top", dx=4, dy=2, color="#8a5c00", fontWeight=600)
    return [upright, limit.encode(x=x, y=alt.value(0), text=alt.value("limit"))]
