"""How many dimensions does the change have: the rank that regression chooses at every site, and what maps of each rank do."""

import math
from collections.abc import Sequence
from itertools import islice
from typing import Any

import altair as alt
import polars as pl

from mechdiff.report import curves, drawing, findings, findings_rank, wording
from mechdiff.report.curves import GREY, WINE
from mechdiff.report.drawing import BLUE, INK, LEFT, ORANGE, SHARE_RANGE, SITE_COLOURS, SITE_DASHES, VERMILLION, WIDE, Chart
from mechdiff.report.findings_rank import HALF, MOST, SERIES
from mechdiff.report.findings_transport import CLOSENESS, TRANSPORT
from mechdiff.report.parts import Drawn, Run, Section, note, table
from mechdiff.report.phrasing import between, listed, nats, share, with_interval

TITLE = "How many dimensions does the change have?"
SITES = 3
"""Sites whose curves are drawn."""
KINDS = {"rank_chosen": "centred: rank of what differs between prompts", "rank_uncentred": "uncentred: the constant shift counts too"}
LOOKS = {"rrr": WINE, "rank_truncated": BLUE, "fisher": ORANGE, "random subspace": GREY}
LOOK_DASHES = {"rank_truncated": [7, 3], "fisher": [5, 2, 1, 2], "random subspace": [2, 3]}
R2_LOOKS = {"fit prompts": GREY, "cross-validated": BLUE}
R2_DASHES = {"fit prompts": [2, 3], "cross-validated": [7, 3]}
UNITS = {CLOSENESS: "nats", TRANSPORT: "of D"}


def rank(run: Run) -> Section:
    """Q3, second half: the rank of the change, and the least rank that does what the whole map does."""
    if run.rows.filter(pl.col("measure") == "rank", pl.col("control").ne_missing("no_op")).is_empty():
        return Section(id="rank", title=TITLE, parts=[note("The rank of the change was not measured in this run.")])
    parts: list[Any] = [*_not_applied(run), *_chosen(run), *_r2(run), *_causal(run, CLOSENESS)]
    found = findings.difference(run.rows, run.summary)
    if found is None or not found.counts:
        why = "D was not measured" if found is None else "D is not above three times the noise floor"
        parts.append(note(f"What maps of each rank recover cannot be given as a share: {why}, so there is no effect to share."))
    else:
        parts += _causal(run, TRANSPORT)
    return Section(id="rank", title=TITLE, parts=[*parts, *_ends(run), *_strengths(run)])


def _not_applied(run: Run) -> list[dict]:
    same = findings_rank.same_at_all_ranks(run.rows)
    if same.is_empty():
        return []
    where = listed(sorted({f"{r['name']}{' (Fisher-weighted)' if r['unit'] else ''}" for r in same.iter_rows(named=True)}))
    said = f"rank_not_applied: at {where} the maps of all ranks above 0 do the same on every prompt, to nine digits. "
    return [note(said + "Either the rank was not applied, or the change has no more directions; read no rank curve there.")]


def _chosen(run: Run) -> list[Any]:
    found = findings_rank.chosen(run.summary)
    if found.is_empty():
        return []
    caption = " ".join(wording.how_many_dimensions(run.rows, run.summary))
    flat = found.filter(pl.col("rank_chosen") == 0)
    caption += f" Of {len(found)} sites {len(flat)} have rank 0: there the change is the same on every prompt, or none that was found."
    most = found.sort("rank_chosen", descending=True, nulls_last=True, maintain_order=True).row(0, named=True)
    caption += f" Highest: {most['rank_chosen']} at {most['name']}." if most["rank_chosen"] else ""
    return [Drawn(name="rank_by_layer", chart=rank_by_layer, caption=caption.strip(), reading="rank_by_layer")]


def _r2(run: Run) -> list[Any]:
    shown = _sites_of_curves(run.rows, run.summary)
    split = findings.reported(run.rows, "rank")
    said = []
    for name in shown:
        curve = findings_rank.r2_curves(run.rows, run.summary, name)
        held = curve.filter(pl.col("curve") == f"{split} prompts").sort("value", descending=True, maintain_order=True)
        if not held.is_empty():
            best = held.row(0, named=True)
            said.append(f"{name} {share(best['value'])} at rank {best['rank']}")
    if not shown:
        return []
    caption = "R² of the change by rank of the regression"
    caption += f"; highest on the {split} prompts: {listed(said)}." if said else "."
    return [Drawn(name="rank_r2", chart=r2_by_rank, options={"sites": shown}, caption=caption, reading="rank_r2")]


def _sites_of_curves(rows: pl.DataFrame, summary: pl.DataFrame) -> list[str]:
    """Sites whose R2 curves are drawn: those with causal curves first, then in the order of the ranks found."""
    names = [*findings_rank.curve_sites(rows, summary), *findings_rank.chosen(summary)["name"].to_list()]
    known = (name for name in dict.fromkeys(names) if not findings_rank.r2_curves(rows, summary, name).is_empty())
    return list(islice(known, SITES))


def _causal(run: Run, direction: str) -> list[Any]:
    shown = findings_rank.curve_sites(run.rows, run.summary)[:SITES]
    said = []
    for name in shown:
        curve = findings_rank.causal(run.rows, name, direction)
        ranks = findings_rank.needed(curve, direction)
        most = max(curve["rank"].to_list(), default=0)
        if ranks:
            less = f"rank {ranks[HALF]} does 50 % and " if ranks[HALF] < ranks[MOST] else ""
            said.append(f"{name}: {less}rank {ranks[MOST]} {'does ' * (not less)}90 % of the gain from rank 0 to the largest, {most}")
        elif not curve.is_empty():
            said.append(f"{name}: no rank does more than rank 0, within its interval")
    if not said:
        return []
    words = {
        CLOSENESS: "Closeness by rank of the written map: KL of the tuned model from the unedited one",
        TRANSPORT: "Transport proper by rank: share of D that the base recovers",
    }[direction]
    name = "rank_closeness" if direction == CLOSENESS else "rank_transport"
    chart = closeness_by_rank if direction == CLOSENESS else transport_by_rank
    return [
        Drawn(
            name=name,
            chart=chart,
            options={"sites": shown},
            caption=f"{words}. {'; '.join(said)}.",
            reading="rank_causal" if direction == CLOSENESS else "",
        )
    ]


def _ends(run: Run) -> list[dict]:
    """The causal curves in numbers: rank 0, the ranks that do half and nine tenths, the largest, and a random subspace of that rank."""
    lines = []
    for name in findings_rank.curve_sites(run.rows, run.summary):
        for direction in (CLOSENESS, TRANSPORT):
            curve = findings_rank.causal(run.rows, name, direction)
            of_rrr = curve.filter(pl.col("series") == "rrr")
            if of_rrr.is_empty():
                continue
            ranks = findings_rank.needed(curve, direction) or {}
            first, last = of_rrr.row(0, named=True), of_rrr.row(-1, named=True)
            random = curve.filter(pl.col("series") == SERIES[3])
            beside = random.sort("rank")["value"][-1] if len(random) else None
            in_words = nats if direction == CLOSENESS else share
            digits = None if direction == CLOSENESS else 2
            ends = between(last["low"], last["high"], digits=digits)
            lines.append((
                f"{name}, {'closeness, nats' if direction == CLOSENESS else 'recovery'}", in_words(first["value"]), str(ranks.get(HALF, "–")),
                str(ranks.get(MOST, "–")), f"{in_words(last['value'])} ({last['rank']})", ends, "–" if beside is None else in_words(beside),
            ))  # fmt: skip
    columns = ("site and score", "rank 0", "rank for 50 %", "for 90 %", "largest (rank)", "95 %", "random subspace")
    return [table(columns, lines, folded="Maps of each rank, in numbers")] if lines else []


def _strengths(run: Run) -> list[Any]:
    shown = _sites_of_strengths(run.rows, run.summary)
    if not shown:
        return []
    said = []
    for direction in (CLOSENESS, TRANSPORT):
        found = findings_rank.by_strength(run.rows, shown, direction).filter(pl.col("rank") > 0)
        if not found.is_empty():
            best = found.sort("value", descending=direction == TRANSPORT, maintain_order=True).row(0, named=True)
            value = f"{nats(best['value'])} nats" if direction == CLOSENESS else f"{share(best['value'])} of D"
            word = "closest" if direction == CLOSENESS else "recovers most"
            said.append(f"{word}: rank {best['rank']} at strength {best['s']:g}, {value}")
    caption = f"Rank by strength at {shown}, on the prompts that are reported, so that a best cell is a little flattered: {listed(said)}."
    return [Drawn(name="rank_strength", chart=rank_by_strength, options={"sites": [shown]}, caption=caption, reading="rank_strength")]


def _sites_of_strengths(rows: pl.DataFrame, summary: pl.DataFrame) -> str:
    """The first site with several strengths of each rank; empty without one."""
    found = (name for name in findings_rank.curve_sites(rows, summary) if len(findings_rank.by_strength(rows, name, CLOSENESS)))
    return next(found, "")


def rank_by_layer(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """The rank of the change at every layer, of what differs between prompts and with the constant shift."""
    found = findings_rank.chosen(summary)
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
    return curves.panels(
        table.drop("rank", "name"), lambda last: drawing.layer_axis(layers, width, title=last), titles, names, scale, axis, width,
        looks_of=(SITE_COLOURS, SITE_DASHES), height=120,
    )  # fmt: skip


def r2_by_rank(
    rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE, sites: Sequence[str] | None = None
) -> Chart | None:
    """R2 of the change by rank: on the prompts of the fit, cross-validated with its standard error, on the reported prompts."""
    shown = _sites_of_curves(rows, summary) if sites is None else sites
    if not shown:
        return None
    parts = [findings_rank.r2_curves(rows, summary, name).with_columns(panel=pl.lit(name)) for name in shown]
    found = pl.concat(parts)
    held = f"{findings.reported(rows, 'rank')} prompts"
    says = [f"{r['panel']}, rank {r['rank']}, {r['curve']}: {share(r['value'], 3)}" for r in found.iter_rows(named=True)]
    table = found.rename({"curve": "line"}).with_columns(says=pl.Series(says))
    names = curves.ordered(table["line"].unique().to_list(), ("fit prompts", "cross-validated", held))
    scale, axis = curves.share_scale(table, most=1.0), drawing.left_axis(tickCount=5, format=".1f")
    x = curves.rank_axis(table["rank"].to_list(), width, "rank k of the regression")
    picked = {r["name"]: r["rank_chosen"] for r in findings_rank.chosen(summary).iter_rows(named=True)}

    def marks(panel: str) -> list[alt.Chart]:
        drawn = [curves.zero(scale, axis)]
        if picked.get(panel) in table["rank"].to_list():
            line = alt.Chart(drawing.inline([{"rank": picked[panel]}])).mark_rule(aria=False, color=ORANGE, strokeWidth=1.5)
            drawn.append(line.encode(x=x(False)))
        return drawn

    titles = {name: f"{name}: R² of the change" + ("; orange: the rank chosen" if width >= WIDE else "") for name in shown}
    looks = {**R2_LOOKS, held: VERMILLION}, R2_DASHES
    return curves.panels(table, x, titles, names, scale, axis, width, looks_of=looks, height=120, marks=marks, opacity=0.18)


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
    shown = findings_rank.curve_sites(rows, summary)[:SITES] if sites is None else sites
    parts = [findings_rank.causal(rows, name, direction).with_columns(panel=pl.lit(name)) for name in shown]
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
    looks = {**curves.looks([n for n in names if n not in LOOKS])[0], **LOOKS}, LOOK_DASHES
    titles = {name: f"{name}: {words}" for name in shown}
    return curves.panels(table, x, titles, names, scale, axis, width, looks_of=looks, height=120, opacity=0.14)


def rank_by_strength(
    rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE, sites: Sequence[str] | None = None
) -> Chart | None:
    """Rank by strength at one site: closeness in nats, and the share of D recovered."""
    name = _sites_of_strengths(rows, summary) if sites is None else "".join(sites)
    tables = {direction: findings_rank.by_strength(rows, name, direction) for direction in (CLOSENESS, TRANSPORT)} if name else {}
    known = [
        _heat(found, direction, name, width, first=direction == CLOSENESS) for direction, found in tables.items() if not found.is_empty()
    ]
    return drawing.styled(alt.vconcat(*known, spacing=12).resolve_scale(color="independent")) if known else None


def _heat(found: pl.DataFrame, direction: str, name: str, width: int, *, first: bool) -> alt.LayerChart:
    low, high = drawing.ends(found["value"])
    dark_high = direction == TRANSPORT
    domain = [0.0, 1.0] if dark_high else [min(0.0, low), high or 1.0]
    in_words = (lambda value: f"{nats(value)} nats") if direction == CLOSENESS else (lambda value: f"{share(value)} of D")
    span = domain[1] - domain[0]
    records = [
        {
            "rank": r["rank"], "s": f"{r['s']:g}", "value": r["value"], "says": f"rank {r['rank']}, s = {r['s']:g}: {in_words(r['value'])}",
            "text": f"{r['value']:.2g}" if direction == CLOSENESS else share(r["value"]),
"dark": (r["value"] - domain[0]) / span > 0.55 if dark_high else (r["value"] - domain[0]) / span < 0.45,
        }
        for r in found.iter_rows(named=True)
    ]  # fmt: skip
    ranks = sorted(set(found["rank"].to_list()))
    strengths = [f"{s:g}" for s in sorted(set(found["s"].to_list()), reverse=True)]
    snug = alt.Scale(paddingInner=0.05, paddingOuter=0)
    x = alt.X("rank:O", sort=ranks, title="rank k of the map", axis=alt.Axis(labelAngle=0, ticks=False, domain=False), scale=snug)
    y = alt.Y("s:N", sort=strengths, title=None, axis=drawing.left_axis(ticks=False, domain=False), scale=snug)
    colours = SHARE_RANGE if dark_high else SHARE_RANGE[::-1]
    colour = alt.Color("value:Q", scale=alt.Scale(domain=domain, range=colours, clamp=True), legend=None)
    base = alt.Chart(drawing.inline(records))
    layers = [base.mark_rect(stroke="#c3ccd6", strokeWidth=0.5).encode(x=x, y=y, color=colour, description=alt.Description("says:N"))]
    if len(ranks) * (1 if width >= WIDE else 2) <= 16:
        for dark, ink in ((True, "white"), (False, INK)):
            words = alt.Chart(drawing.inline([r for r in records if r["dark"] == dark])).mark_text(aria=False, fontSize=10, color=ink)
            layers.append(words.encode(x=x, y=y, text=alt.Text("text:N")))
    words_of = {CLOSENESS: "KL, nats (dark: close)", TRANSPORT: "share of D recovered (dark: all)"}[direction]
    title = drawing.title_of(f"{name}, strength by rank: {words_of}" if width >= WIDE else words_of)
    return alt.layer(*layers, width=width - LEFT - 12, height=24 * len(strengths), title=title)
