"""The section on steering adds, enlarges, removes and exchanges the change's directions, and says what that costs on unrelated prompts."""

from typing import Any

import polars as pl

from mechdiff.measures.divergence.words import why_no_share
from mechdiff.measures.steering import answers_page, findings, words
from mechdiff.measures.steering.charts import SHOWN, added_by_strength, directions, effect_by_rank, frontier_of_edits, name
from mechdiff.measures.steering.findings import EDITS, Limits
from mechdiff.report import difference, phrasing
from mechdiff.report.parts import Drawn, Run, Section, note, table
from mechdiff.report.phrasing import decimal, listed, nats, share, shown, with_interval
from mechdiff.rows import where

TITLE = "Can one vector switch it on or off?"


TOP = 14
ANSWERS = 5


def steering(run: Run) -> Section:
    """Q3, last part: can the change be turned on and off by hand."""
    if where(run.rows, measure="steering").filter(pl.col("control").ne_missing("no_op")).is_empty():
        return Section(id="steering", title=TITLE, parts=[note("Steering was not tried in this run.")])
    known = difference.difference(run.rows, run.summary)
    parts: list[Any] = []
    if why := why_no_share(known):
        parts.append(note(f"There is no effect to share: {why}. The values in nats are in summary.parquet."))
    else:
        found = findings.effects(run.rows)
        parts += [*_effect(run, found), *_strength(run, found), *_frontier(run, found)]
    return Section(id="steering", title=TITLE, parts=[*parts, *answers_page.parts(run), *_answers(run)])


def _effect(run: Run, found: pl.DataFrame) -> list[Any]:
    by_rank = findings.by_rank(found)
    real = by_rank.filter(pl.col("control").is_null())
    if real.is_empty():
        return []
    sites = findings.sites(run.rows, run.summary, real)[:SHOWN]
    name = sites[0]
    said = []
    for edit in EDITS.values():
        here = real.filter(pl.col("name") == name, pl.col("edit") == edit).sort("rank")
        ends = [here.row(place, named=True) for place in dict.fromkeys((0, len(here) - 1))] if len(here) else []
        said += [f"{edit} {listed(_effect_of(one, findings.beside(found, one)) for one in ends)}"] if ends else []
    caption = "Effect by number of directions at the last prompt token, as a share of the way to the other model. "
    caption += f"At {name}: {'; '.join(said)}."
    return [Drawn(name="steering_effect", chart=effect_by_rank, options={"sites": sites}, caption=caption, reading="steering_effect")]


def _effect_of(edit: dict, random: pl.Series) -> str:
    text = f"{with_interval(edit['share'], edit['low'], edit['high'], digits=2)} with {directions(edit['rank'])}"
    if random.is_empty():
        return text
    draws = "1 random draw" if len(random) == 1 else f"mean of {len(random)} random draws"
    return f"{text} ({draws}: {share(float(random.to_numpy().mean()))})"


def _strength(run: Run, found: pl.DataFrame) -> list[Any]:
    curve = findings.added(found)
    if curve["s"].n_unique() < 2:
        return []
    sites = findings.sites(run.rows, run.summary, curve)[:SHOWN]
    name = sites[0]
    here = curve.filter(pl.col("name") == name).sort("s")
    said = listed(f"{with_interval(r['share'], r['low'], r['high'], digits=2)} at s = {r['s']:g}" for r in here.iter_rows(named=True))
    caption = f"The mean difference added to the base's activation, by strength. Share of D recovered at {name}: {said}."
    return [
        Drawn(name="steering_strength", chart=added_by_strength, options={"sites": sites}, caption=caption, reading="steering_strength")
    ]


def _frontier(run: Run, found: pl.DataFrame) -> list[Any]:
    allowed = findings.limits(run.manifest)
    edits = findings.frontier(run.rows, run.summary, allowed)
    real = edits.filter(pl.col("control").is_null())
    if real.is_empty():
        return [note("Side effects on unrelated prompts were not measured, so no edit is said to be harmless.")]
    caption = f"Effect on the study's prompts against side effect on unrelated ones, of {len(real)} edits. "
    caption += " ".join(words.does_it_obey(run.rows, run.summary, run.manifest))
    drawn = Drawn(name="steering_frontier", chart=frontier_of_edits, caption=caption, reading="steering_frontier")
    return [drawn, _sides(found, real, allowed)]


def _sides(found: pl.DataFrame, real: pl.DataFrame, allowed: Limits) -> dict:
    """The edits with the largest effect, random directions of the same dose beside them where these were run, and their side effects."""
    lines = []
    for r in real.sort("share", descending=True, maintain_order=True).head(TOP).iter_rows(named=True):
        random = findings.beside(found, r)
        chance = "–" if random.is_empty() else f"{share(float(random.to_numpy().max()))} (of {len(random)})"
        lines.append((
            name(r), shown(r["share"], r["low"], r["high"], r["n"], digits=2), chance, nats(r["side_kl"]),
            decimal(r["side_ratio"], 3), share(r["side_top1"], 3), "yes" if r["within"] else "no",
        ))  # fmt: skip
    columns = ["edit", "effect", "highest random direction", "side KL, nats", "perplexity ratio", "same top-1 token", "within limits"]
    title = f"Edits by effect on these prompts, a share of the way to the other model, and their side effects (limits: KL {nats(allowed.kl_nats)} "
    title += f"nats per token, perplexity ratio {decimal(allowed.perplexity_ratio, 3)})"
    return table(columns, lines, title=title + (f"; {len(real) - TOP} others are weaker" if len(real) > TOP else ""))


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
