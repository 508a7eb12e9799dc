"""The page shows of the closer layers the sweep over cuts, times strength, and maps written at several positions."""

from typing import Any

import altair as alt
import polars as pl

from mechdiff.measures.transport import charts, closer_findings
from mechdiff.report import curves, drawing
from mechdiff.report.curves import Axes, Behind
from mechdiff.report.drawing import INK, SHARE_RANGE, WIDE, Chart
from mechdiff.report.parts import Drawn, Run, table
from mechdiff.report.phrasing import nats, share, shown

SURE = 0.05
SHOWN = 2
"""Sites that are drawn."""
DARK = 0.55
"""Drops above are printed in white."""


def parts(run: Run) -> list[dict | Drawn]:
    return [*_sweep(run), *_positions(run)]


def _shown(rows: pl.DataFrame, summary: pl.DataFrame) -> pl.DataFrame:
    """The sweep of the map and the sites that are drawn: the estimator with a whitening where it was asked for, the sites that maps matter at."""
    found = closer_findings.sweep(rows, summary)
    if found.is_empty():
        return found
    arms, names = found["arm"].unique().sort(descending=True).to_list(), found["name"].unique(maintain_order=True).to_list()
    first = [name for name in charts.shown_at_strength(rows, summary) if name in names] or names
    order = pl.col("name").replace_strict({name: place for place, name in enumerate(first[:SHOWN])}, default=None, return_dtype=pl.Int64)
    found = found.filter(pl.col("arm") == arms[0]).with_columns(place=order).filter(pl.col("place").is_not_null())
    return found.sort("place", maintain_order=True)


def _sweep(run: Run) -> list[dict | Drawn]:
    found = closer_findings.sweep(run.rows, run.summary)
    if found.is_empty():
        return []
    shown = _shown(run.rows, run.summary)
    arm = shown["arm"][0]
    caption = (
        f"The sweep ({arm}): maps between the first k principal components of each side, times strength. Drop = 1 − KL_mapped / KL_raw, on "
    )
    caption += (
        "the prompts of the fit and on those that the maps have not seen; no drop is drawn where the base's own activation does no more harm "
        f"than 3 × numerical noise.{_of_all(found, shown)}"
    )
    parts: list[dict | Drawn] = [Drawn(name="transport_cuts", chart=drops, caption=caption, reading="transport_cuts")]
    parts.append(Drawn(name="transport_cut_curves", chart=by_strength, caption=_beyond(found, shown), reading="transport_cut_curves"))
    return [*parts, _table(found)]


def _of_all(found: pl.DataFrame, shown: pl.DataFrame) -> str:
    """How much of the sweep is drawn, where that is not all of it."""
    counts = {words: tuple(one[column].n_unique() for one in (shown, found)) for column, words in (("name", "sites"), ("arm", "maps"))}
    left = [f"{n} of {of} {words}" for words, (n, of) in counts.items() if n < of]
    return f" Drawn: {' and '.join(left)}; the table has all." if left else ""


def _beyond(found: pl.DataFrame, shown: pl.DataFrame) -> str:
    """What the sweep shows beside the same cuts between the tuned model and itself, where nothing differs."""
    text = "KL of the tuned model by strength, a line for each k; dotted: the same k between the tuned model and itself, where nothing differs. "
    if found["p"].is_null().all():
        return f"{text}So few prompts have no test of whether they differ.{_of_all(found, shown)}"
    further, closer = _apart(shown)
    text += (
        f"Of {len(shown)} writes drawn {further} come out farther from the tuned model than its own cut activations do, and {closer} closer"
    )
    if len(shown) < len(found):
        text += ", of all {} of the sweep {} and {}".format(len(found), *_apart(found))
    return f"{text} (p ≤ {SURE}, corrected for all of the sweep).{_of_all(found, shown)}"


def _apart(found: pl.DataFrame) -> tuple[int, int]:
    """How many writes are surely farther than their control, and how many closer."""
    sure = found.filter(pl.col("p") <= SURE)
    further = int((sure["apart"] > 0).sum())
    return further, len(sure) - further


def _table(found: pl.DataFrame) -> dict:
    columns = ("site, map", "k", "s", "KL_raw", "KL_mapped", "drop", "drop, training prompts", "KL, tuned with itself", "apart",
               "recovery", "recovery, base with itself")  # fmt: skip
    lines = [
        (
            f"{r['name']}, {r['arm']}", r["cut"], f"{r['s']:g}", nats(r["raw"]), nats(r["kl"]), shown(r["drop"], r["low"], r["high"], digits=2),
            share(r["fit_drop"]), nats(r["itself"]), shown(r["apart"], r["apart_low"], r["apart_high"]), share(r["moved"]),
            share(r["moved_itself"]),
        )
        for r in found.iter_rows(named=True)
    ]  # fmt: skip
    return table(columns, lines, folded=f"The sweep over cuts and strengths: all {len(lines)} writes")


def drops(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """Heat maps of k by strength: the drop on the prompts of the fit, and on the reported ones."""
    found = _shown(rows, summary)
    if found.is_empty() or found["drop"].is_null().all():
        return None
    names = found["name"].unique(maintain_order=True).to_list()
    panels = []
    for name in names:
        here = found.filter(pl.col("name") == name)
        pair = [
            _map(here, f"{name}: drop, {words} prompts", column, width) for column, words in (("fit_drop", "fit"), ("drop", "reported"))
        ]
        panels.append(drawing.hconcat(*pair, spacing=16) if width >= WIDE else drawing.vconcat(*pair, spacing=12))
    return drawing.styled(drawing.vconcat(*panels, spacing=12))


def _map(found: pl.DataFrame, title: str, column: str, width: int) -> alt.LayerChart:
    cuts, strengths = (found[name].unique(maintain_order=True).to_list() for name in ("cut", "s"))
    records = [
        {
            "k": r["cut"], "s": f"{r['s']:g}", "shade": r[column], "text": share(r[column]), "ink": "#ffffff" if r[column] > DARK else INK,
            "says": f"{r['name']}, {r['arm']}, k = {r['cut']}, s = {r['s']:g}: {share(r[column])}",
        }
        for r in found.iter_rows(named=True)
        if r[column] is not None
    ]  # fmt: skip
    side = (width - 2 * 58) // 2 if width >= WIDE else width - 58
    x = alt.X("s:N", sort=[f"{s:g}" for s in strengths], title="strength s", axis=alt.Axis(labelAngle=0, ticks=False, domain=False))
    y = alt.Y("k:N", sort=cuts, title="k", axis=alt.Axis(ticks=False, domain=False))
    colour = alt.Color("shade:Q", scale=alt.Scale(domain=[0, 1], range=SHARE_RANGE, clamp=True), legend=None)
    cells = alt.Chart(drawing.inline(records)).mark_rect(stroke="#c3ccd6", strokeWidth=0.5)
    layers = [cells.encode(x=x, y=y, color=colour, description=alt.Description("says:N"))]
    for ink in ("#ffffff", INK):
        words = alt.Chart(drawing.inline([r for r in records if r["ink"] == ink])).mark_text(aria=False, fontSize=10, color=ink)
        layers.append(words.encode(x=x, y=y, text=alt.Text("text:N")))
    return drawing.layer(*layers, width=max(side, 90), height=max(24 * len(cuts), 30), title=drawing.title_of(title))


def by_strength(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """Closeness by strength, a line for each k; dotted, the same k between the tuned model and itself."""
    found = _shown(rows, summary)
    if found.is_empty():
        return None
    found = found.with_columns(line=pl.lit("k = ") + pl.col("cut"))
    says = [f"{r['name']}, {r['line']}, s = {r['s']:g}: {nats(r['kl'])} nats" for r in found.iter_rows(named=True)]
    drawn = found.select("s", "line", panel="name", value="kl").with_columns(says=pl.Series(says))
    most = max(drawing.ends(found["kl"])[1], drawing.ends(found["itself"])[1])
    scale = alt.Scale(domain=[0, 1.1 * most or 1.0], nice=False, clamp=True)
    x = curves.strength_axis(drawing.ends(found["s"])[1])
    axes = Axes(x=x, scale=scale, ticks=drawing.left_axis(tickCount=4, format=".3~g"), height=120)
    titles = {name: f"{name}: KL, nats" for name in found["name"].unique(maintain_order=True).to_list()}
    marks, look = curves.full_strength(x), curves.look_of(drawn["line"].unique(maintain_order=True).to_list())
    faint = found.select("s", "line", panel="name", value="itself")
    return curves.panels(drawn, titles, axes, look, width, Behind(marks=lambda _: marks, faint=faint))


def _positions(run: Run) -> list[dict | Drawn]:
    """Mapped states at several positions together, beside the decision position alone."""
    found = closer_findings.at_positions(run.rows, run.summary)
    if found.is_empty():
        return []
    alone = "last prompt token alone"
    columns = ("site, map", "positions", f"KL, {alone}", "KL, all these", f"recovery, {alone}", "recovery, all")
    title = "Maps patched in at several positions together, each position's own activation by a map of all these positions of the training prompts "
    title += "(shift and mean: of each position): KL with a mapped activation in nats, and the share of D that the base recovers. "
    title += f"Beside it the {alone}"
    return [table(columns, map(_at, found.iter_rows(named=True)), title=title)]


def _at(r: dict[str, Any]) -> tuple[str, ...]:
    """The line of one map at some positions."""
    beside = nats(r["here_kl"]), nats(r["kl"]), share(r["here_moved"]), shown(r["moved"], r["low"], r["high"], digits=2)
    return f"{r['name']}, {r['arm']}", r["unit"].replace("_", " "), *beside
