"""Two figures say where in an answer the models part: at which token first, and before which kinds of token they differ most."""

from typing import Any

import altair as alt
import polars as pl

from mechdiff.measures.divergence import findings
from mechdiff.report import drawing
from mechdiff.report.drawing import BLACK, BLUE, LEFT, WIDE, Chart
from mechdiff.report.parts import Drawn, Run
from mechdiff.report.phrasing import listed, nats, prompts

NAMES = 150
"""Pixels for the names of kinds."""
SHOWN = 30
"""Offsets that have a bar of their own; what lies beyond is one bar."""


def parts(run: Run) -> list[Drawn]:
    """The figures whose numbers there are."""
    made = []
    found = findings.partings(run.prompt_rows, run.manifest)
    if found["offset"].n_unique() > 1:  # where all prompts part at one token, the caption of the figure above says so
        first = int((found["offset"] <= 0).sum())
        caption = f"The first token at which the two top-1 tokens differ, over {prompts(len(found))}: on {first} the first of the answer or before"
        caption += f", on {found['offset'].null_count()} none."
        made.append(Drawn(name="first_divergence", chart=first_divergence, caption=caption, reading="first_divergence", of=_single(run)))
    kinds = by_kind(run.manifest)
    if kinds["kind"].n_unique() > 1:
        means = kinds.group_by("kind", maintain_order=True).agg(pl.col("kl").mean(), n=pl.len()).sort("kl", descending=True)
        said = listed(f"{row['kind']} {nats(row['kl'])} ({prompts(row['n'])})" for row in means.iter_rows(named=True))
        caption = (
            f"KL(tuned ‖ base) before each kind of token of the tuned model's answers, mean of the prompts that have it, nats: {said}."
        )
        made.append(Drawn(name="kl_by_kind", chart=kl_by_kind, caption=caption, reading="kl_by_kind"))
    return made


def _single(run: Run) -> Run:
    """The run with a row a prompt, also where prompts share a cluster."""
    return Run(rows=run.prompt_rows, summary=run.summary, manifest=run.manifest)


def by_kind(manifest: dict) -> pl.DataFrame:
    """`prompt kind n kl`: the mean KL before the tokens of one kind of a prompt's answer, and how many they are."""
    schema = {"prompt": pl.String, "kind": pl.String, "n": pl.Int64, "kl": pl.Float64}
    found = pl.DataFrame(manifest.get("kl_by_kind") or [], schema=schema)
    return found.filter(pl.col("kl").is_finite())


def first_divergence(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """A bar for each token of the answer, as high as the prompts on which the two models first choose differently there; `never` last."""
    found = findings.partings(rows, manifest)
    if found.is_empty() or found["offset"].null_count() == len(found):
        return None
    offsets = [None if one is None else min(max(one, -1), SHOWN) for one in found["offset"].to_list()]
    last = max(one for one in offsets if one is not None)
    places = [*range(-1 if -1 in offsets else 0, last + 1), None]
    records = [
        {"where": _word(place), "prompts": offsets.count(place), "says": f"{_word(place)}: {prompts(offsets.count(place))}"}
        for place in places
    ]
    names = [record["where"] for record in records]
    axis = alt.Axis(
        labelAngle=0 if len(names) <= 10 else -40, title="token of the answer at which the top-1 tokens first differ", labelOverlap=False
    )
    x = alt.X("where:N", sort=names, axis=axis, scale=alt.Scale(paddingInner=0.25))
    y = alt.Y("prompts:Q", axis=drawing.left_axis(tickMinStep=1, format="d"), scale=alt.Scale(domainMin=0))
    bars = alt.Chart(drawing.inline(records)).mark_bar(fill=BLUE).encode(x=x, y=y, description=alt.Description("says:N"))
    return drawing.styled(drawing.layer(bars, width=width - LEFT - 12, height=150, title=drawing.title_of("prompts")))


def _word(place: int | None) -> str:
    if place is None:
        return "never"
    return "in the prompt" if place < 0 else f"{place + 1}" if place < SHOWN else f"{SHOWN + 1} or later"


def kl_by_kind(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """A dot for each prompt, and the mean of each kind as a mark, the largest above; on a log scale."""
    return dots(by_kind(manifest), "token", "KL(tuned ‖ base), nats per token", width)


def dots(found: pl.DataFrame, counted: str, title: str, width: int) -> Chart | None:
    """`prompt kind n kl`, a dot each, and the mean of each kind as a mark, the largest above; on a log scale. `n` of `counted` stand behind a dot."""
    drawn = found.filter(pl.col("kl") > 0)
    if drawn.is_empty():
        return None
    means = found.group_by("kind", maintain_order=True).agg(pl.col("kl").mean()).filter(pl.col("kl") > 0).sort("kl", descending=True)
    names = means["kind"].to_list()
    scale, bottom = drawing.log_scale(drawn["kl"], drawn["kl"])
    records = [
        {
            **r,
            "kl": max(r["kl"], bottom),
            "says": f"{r['prompt']}, {r['kind']}: {nats(r['kl'])} nats, {r['n']} {counted}{'s' * (r['n'] != 1)}",
        }
        for r in drawn.iter_rows(named=True)
    ]
    axis: dict[str, Any] = {"ticks": False, "domain": False, "labelLimit": NAMES - 8, "minExtent": NAMES - 4, "maxExtent": NAMES - 4}
    y = alt.Y("kind:N", sort=names, title=None, axis=alt.Axis(**axis))
    x = alt.X("kl:Q", scale=scale, title=title, axis=alt.Axis(values=drawing.powers(scale), format="~g"))
    says = alt.Description("says:N")
    points = alt.Chart(drawing.inline(records)).mark_circle(size=22, opacity=0.55, color=BLUE).encode(x=x, y=y, description=says)
    marks = [
        {"kind": r["kind"], "kl": max(r["kl"], bottom), "says": f"{r['kind']}, mean: {nats(r['kl'])} nats"}
        for r in means.iter_rows(named=True)
    ]
    ticks = alt.Chart(drawing.inline(marks)).mark_tick(color=BLACK, thickness=3, size=14).encode(x=x, y=y, description=says)
    return drawing.styled(drawing.layer(points, ticks, width=width - NAMES - 16, height=26 * len(names)))
