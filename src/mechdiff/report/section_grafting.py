"""Which module's change matters: grafts of tuned weights into the base, alone, in network order, greedily, and cut to a rank."""

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from mechdiff.report import drawing, findings, findings_grafting
from mechdiff.report.drawing import BLACK, BLUE, GREEN, LEFT, ORANGE, PURPLE, SKY, VERMILLION, WIDE, Chart
from mechdiff.report.parts import Drawn, Run, Section, note, table
from mechdiff.report.phrasing import between, nats, share, with_interval
from mechdiff.report.wording import BIASED, how_many_modules
from mechdiff.report.wording_difference import why_no_share

TITLE = "Which module's change matters?"
LINE_FROM = 4
"""Points from which on a line is drawn through them: three say nothing of the way between."""
ROUNDING = 0.02
"""How far the ends may be off, as a share of 1 + D: half precision on other batch shapes moves them by less."""
MODULES = 20
"""Modules alone that are drawn."""
RAMPS = {"from_below": "from the embedding up", "from_above": "from the output down"}
RAMP_COLOURS = dict(zip(RAMPS.values(), (BLUE, VERMILLION), strict=True))
RAMP_DASHES = {RAMPS["from_above"]: [7, 3]}
LINES = (BLACK, VERMILLION, BLUE, GREEN, PURPLE, SKY)
DASHES: tuple[list[int], ...] = ([1, 0], [7, 3], [2, 3], [7, 3, 2, 3], [5, 2, 1, 2], [10, 4])


def grafting(run: Run) -> Section:
    """Q1, second half: what the change of each module does."""
    if run.rows.filter(pl.col("measure") == "grafting").is_empty():
        return Section(id="grafting", title=TITLE, parts=[note("Grafting was not run.")])
    alone, ranking = findings_grafting.ranked(run.rows)
    found = findings.difference(run.rows, run.summary)
    if run.rows.filter(pl.col("measure") == "grafting", pl.col("arm") == "alone").is_empty():
        return Section(
            id="grafting", title=TITLE, parts=[note("No module of the network changed, so there is nothing to graft."), *_ends(run)]
        )
    why = why_no_share(found) if found is not None else ""
    if alone.is_empty() or why:
        said = f"No share of D can be given: {why or 'D is not above 0, or not finite'}. The values in nats are in summary.parquet."
        return Section(id="grafting", title=TITLE, parts=[note(said), *_ends(run)])
    parts: list[Any] = [
        Drawn(name="grafts_alone", chart=grafts_alone, caption=_alone_caption(run, alone, ranking), reading="grafts_alone"),
        *_ends(run),
    ]
    curves = {arm: findings_grafting.shares(run.rows, arm) for arm in RAMPS}
    if any(len(curve) > 1 for curve in curves.values()):
        parts.append(
            Drawn(name="grafts_in_order", chart=grafts_in_order, caption=_ramp_caption(curves, len(alone)), reading="grafts_in_order")
        )
    return Section(id="grafting", title=TITLE, parts=[*parts, *_greedy(run), *_truncation(run)])


def _alone_caption(run: Run, alone: pl.DataFrame, ranking: str | None) -> str:
    best = alone.row(0, named=True)
    said = f"Share of D that the tuned weights of one module alone recover in the base, {len(alone)} changed modules"
    said += f", the {MODULES} strongest drawn" if len(alone) > MODULES else ""
    steady = findings_grafting.steadiness(run.rows, ranking)
    other = ranking != findings.reported(run.rows, "grafting")
    chosen = f"chosen on the {ranking} prompts" if other else BIASED
    said += f". {best['name']} ({chosen}{steady}) recovers "
    said += with_interval(best["share"], best["low"], best["high"], digits=2)
    return f"{said}. The shares of all sum to {share(float(alone['share'].to_numpy().sum()))}; they need not sum to 1."


def _ends(run: Run) -> list[dict]:
    """Did v(nothing) = D and v(everything) = 0 hold?"""
    held = findings_grafting.checked(run.prompt_rows)
    found = findings.difference(run.rows, run.summary)
    said = []
    if held.none_from_d is not None:
        said.append(f"with nothing grafted the base is {nats(held.none_from_d)} nats off D on the worst prompt")
    if held.largest_all is not None:
        said.append(f"with everything grafted it is at most {nats(held.largest_all)} nats from the tuned model")
    if not said:
        return []
    off = max(value for value in (held.none_from_d, held.largest_all) if value is not None)
    fine = off <= ROUNDING * (1 + (found.mean if found else 0))
    return [
        note(
            ("Both ends hold: " if fine and len(said) == 2 else "The ends: " if fine else "The ends do NOT hold, so trust no share here: ")
            + ", and ".join(said)
            + "."
        )
    ]


def _ramp_caption(curves: dict[str, pl.DataFrame], modules: int) -> str:
    """Where each curve passes one half: a module where all were tried, else the two points between which it lies."""
    said = []
    for arm, words in (("from_below", "from the embedding up half of D is recovered {}"), ("from_above", "from the output down {}")):
        order = curves[arm] if arm == "from_below" else curves[arm].reverse()
        past = order.with_row_index("i").filter(pl.col("share") >= 0.5)
        if past.is_empty():
            continue
        here, few = past["name"][0], len(order) < modules
        before = order["name"][past["i"][0] - 1] if past["i"][0] else None
        between_them = f"between {before} and {here}" if before else f"at {here} already, the first point"
        said.append(words.format(f"{between_them} ({len(order)} points)" if few else f"once {here} is in"))
    caption = "Recovered share with ever more modules grafted, in network order"
    return f"{caption}: {', '.join(said)}." if said else f"{caption}."


def _greedy(run: Run) -> list[Any]:
    sets = findings_grafting.greedy(run.rows)
    if sets.is_empty():
        return []
    said = how_many_modules(run.rows)
    reported = findings.reported(run.rows, "grafting")
    caption = f"Greedy forward selection of modules on the select prompts; shares of D are of the {reported} prompts. "
    return [Drawn(name="grafts_greedy", chart=grafts_greedy, caption=f"{caption}{said[0].upper()}{said[1:]}.", reading="grafts_greedy")]


def _truncation(run: Run) -> list[Any]:
    cut = findings_grafting.truncated(run.rows)
    if cut.is_empty():
        return []
    rows = []
    for (name,), part in cut.group_by("name", maintain_order=True):
        full = part["share"][-1]
        near = part.filter(pl.col("share") >= findings_grafting.WANTED * full)
        enough = str(near["rank"][0]) if full > 0 and len(near) else "–"
        first = part.row(0, named=True)
        ends = between(part["low"][-1], part["high"][-1], digits=3)
        rows.append((str(name), share(full, 3), ends, f"{share(first['share'], 3)} ({first['rank']})", enough))
    columns = ("change cut to its first directions", "at the largest rank", "95 %", "at the smallest (rank)", "rank for 0.9 of that")
    caption = "Recovered share of D when the change of the weights is cut to its first k singular directions. "
    name, *_, enough = rows[0]
    caption += (
        f"For {name}, k = {enough} recovers 0.9 of what the largest k does." if enough != "–" else f"For {name}, no k recovers anything."
    )
    return [Drawn(name="grafts_by_rank", chart=grafts_by_rank, caption=caption, reading="grafts_by_rank"), table(columns, rows)]


def _share_scale(low: float, high: float) -> alt.Scale:
    """At least 0 to 1, wider where a graft leads away from the tuned model or past it; at most 1 beyond either end."""
    return alt.Scale(domain=[max(min(0.0, low), -1.0), min(max(1.0, high), 2.0)], nice=False, clamp=True)


def _scale_of(table: pl.DataFrame) -> alt.Scale:
    """The scale that holds every share, and every end where there are intervals."""
    ends = table.select("share", "low", "high").cast(pl.Float64).to_numpy()
    known = ends[np.isfinite(ends)]
    return _share_scale(float(known.min(initial=0.0)), float(known.max(initial=1.0)))


def _says(row: dict, name: str) -> str:
    return f"{name}: {with_interval(row['share'], row['low'], row['high'], digits=2)} of D"


def _bars(table: pl.DataFrame, labels: Sequence[str], width: int, *, wanted: float | None = None) -> alt.LayerChart:
    """Horizontal bars of shares with their intervals, top to bottom as given."""
    left = 120 if width >= WIDE else 104
    records = [
        {"name": label, "share": r["share"], "low": r["low"], "high": r["high"], "zero": 0, "says": _says(r, label)}
        for label, r in zip(labels, table.iter_rows(named=True), strict=True)
    ]
    scale = _scale_of(table)
    y = alt.Y(
        "name:N",
        sort=list(labels),
        title=None,
        axis=alt.Axis(ticks=False, domain=False, minExtent=left, maxExtent=left, labelLimit=left - 8),
    )
    x = alt.X("share:Q", title="share of D recovered", scale=scale, axis=alt.Axis(tickCount=6, format=".1f"))
    base = alt.Chart(drawing.inline(records))
    bars = base.mark_bar(color=SKY, height={"band": 0.66}).encode(x=x, x2=alt.X2("zero:Q"), y=y, description=alt.Description("says:N"))
    marks = [bars, base.mark_rule(aria=False, color=BLACK, strokeWidth=1.3).encode(x=alt.X("low:Q", scale=scale), x2=alt.X2("high:Q"), y=y)]
    if wanted is not None:
        rule = alt.Chart(drawing.inline([{"share": wanted}])).mark_rule(aria=False, color=ORANGE, strokeDash=[3, 3])
        marks.append(rule.encode(x=x))
    return alt.layer(*marks, width=width - left - 20, height=19 * len(labels))


def grafts_alone(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """Recovered share of each changed module alone, the strongest first."""
    alone, _ = findings_grafting.ranked(rows)
    if alone.is_empty():
        return None
    alone = alone.head(MODULES)
    return drawing.styled(_bars(alone, alone["name"].to_list(), width))


def grafts_greedy(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """Recovered share of the greedy sets, each with the module that it adds."""
    sets = findings_grafting.greedy(rows)
    if sets.is_empty():
        return None
    labels = [f"{size}: {'+ ' * (size > 1)}{added}" for size, added in enumerate(sets["added"].to_list(), start=1)]
    return drawing.styled(_bars(sets, labels, width, wanted=findings_grafting.WANTED))


def grafts_in_order(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """Recovered share with all modules up to one place of the network grafted, and with all from that place on."""
    curves = [findings_grafting.shares(rows, arm).with_columns(curve=pl.lit(words)) for arm, words in RAMPS.items()]
    both = pl.concat(curves)
    if both.is_empty():
        return None
    order = sorted(set(both.select("layer", "site").iter_rows()), key=lambda key: findings_grafting.place(*key))
    places = {key: place for place, key in enumerate(order)}
    names = [site if layer is None else f"L{layer}.{site}" for layer, site in order]
    records = [
        {"place": names[places[r["layer"], r["site"]]], "curve": r["curve"], "share": r["share"], "low": r["low"], "high": r["high"],
         "says": _says(r, f"{r['curve']}, {r['name']} the last")}
        for r in both.iter_rows(named=True)
    ]  # fmt: skip
    step = math.ceil(len(names) / (12 if width >= WIDE else 5))
    axis = alt.Axis(values=names[::step], labelAngle=-40 if len(names) > 4 else 0, labelOverlap=False, grid=False, ticks=True)
    x = alt.X("place:O", sort=names, title="module, in network order", axis=axis, scale=alt.Scale(type="point", padding=0.5))
    present = [words for words in RAMPS.values() if words in both["curve"].unique().to_list()]
    channels = drawing.line_channels(present, "curve", RAMP_COLOURS, RAMP_DASHES, width)
    few = both.group_by("curve").len()["len"].to_numpy().max() < LINE_FROM
    return _lines(both, records, x, channels, width, opacity=0.13, joined=not few)


def grafts_by_rank(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """Recovered share of the change cut to its first k singular directions: all modules together, and the strongest alone."""
    cut = findings_grafting.truncated(rows)
    if cut.is_empty():
        return None
    names = cut["name"].unique(maintain_order=True).to_list()
    records = [
        {
            "name": r["name"],
            "rank": r["rank"],
            "share": r["share"],
            "low": r["low"],
            "high": r["high"],
            "says": _says(r, f"{r['name']}, rank {r['rank']}"),
        }
        for r in cut.iter_rows(named=True)
    ]
    ranks = sorted(set(cut["rank"].to_list()))
    x = alt.X("rank:O", title="directions kept, k", sort=ranks, axis=alt.Axis(labelAngle=0, grid=False), scale=alt.Scale(padding=0.5))
    colours, dashes = dict(zip(names, LINES, strict=False)), dict(zip(names, DASHES, strict=False))
    return _lines(cut, records, x, drawing.line_channels(names, "name", colours, dashes, width), width, opacity=0.1)


def _lines(
    table: pl.DataFrame,
    records: list[dict],
    x: alt.X,
    channels: tuple[alt.Stroke, alt.StrokeDash, alt.Fill],
    width: int,
    *,
    opacity: float,
    joined: bool = True,
) -> Chart:
    """Recovered shares as lines with dots, and their 95 % bands of this opacity; not `joined`: as dots with their intervals."""
    scale, left = _scale_of(table), drawing.left_axis(tickCount=5, format=".1f")
    stroke, dash, fill = channels
    base, y = alt.Chart(drawing.inline(records)), alt.Y("share:Q", scale=scale, axis=left)
    band = base.mark_area(aria=False, opacity=opacity).encode(x=x, y=alt.Y("low:Q", scale=scale, axis=left), y2=alt.Y2("high:Q"), fill=fill)
    line = base.mark_line(aria=False, strokeWidth=2).encode(x=x, y=y, stroke=stroke, strokeDash=dash)
    dots = base.mark_circle(size=26, opacity=1).encode(x=x, y=y, fill=fill, description=alt.Description("says:N"))
    title = drawing.title_of("Share of D recovered")
    ends = base.mark_rule(aria=False, strokeWidth=1.3).encode(
        x=x, y=alt.Y("low:Q", scale=scale, axis=left), y2=alt.Y2("high:Q"), stroke=stroke, strokeDash=dash
    )
    marks = (band, line, dots) if joined else (ends, dots)
    return drawing.styled(alt.layer(*marks, width=width - LEFT - 12, height=190, title=title))
