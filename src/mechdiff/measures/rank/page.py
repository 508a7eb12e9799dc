"""The section on rank gives the rank that regression chooses at every site, and what maps of each rank do."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from mechdiff import terms
from mechdiff.measures.divergence.words import why_no_share
from mechdiff.measures.rank import charts, findings
from mechdiff.measures.rank import words as rank_words
from mechdiff.measures.rank.findings import HALF, MOST, SERIES
from mechdiff.measures.transport.findings import CLOSENESS, TRANSPORT
from mechdiff.report import difference
from mechdiff.report.parts import Drawn, Run, Section, note, table
from mechdiff.report.phrasing import decimal, listed, nats, share, shown
from mechdiff.rows import where

TITLE = "How many dimensions does the change have?"


def rank(run: Run) -> Section:
    """Q3, second half: the rank of the change, and the least rank that does what the whole map does."""
    if where(run.rows, measure="rank").filter(pl.col("control").ne_missing("no_op")).is_empty():
        return Section(id="rank", title=TITLE, parts=[note("The rank of the change was not measured in this run.")])
    parts: list[Any] = [*_not_applied(run), *_chosen(run), *_r2(run), *_causal(run, CLOSENESS)]
    found = difference.difference(run.rows, run.summary)
    if why := why_no_share(found):
        parts.append(note(f"What maps of each rank recover cannot be given as a share: {why}, so there is no effect to share."))
    else:
        parts += _causal(run, TRANSPORT)
    return Section(id="rank", title=TITLE, parts=[*parts, *_ends(run), *_strengths(run)])


def _not_applied(run: Run) -> list[dict]:
    same = findings.same_at_all_ranks(run.rows)
    if same.is_empty():
        return []
    where = listed(sorted({f"{r['name']}{' (Fisher-weighted)' if r['unit'] else ''}" for r in same.iter_rows(named=True)}))
    said = f"rank_not_applied: at {where} the maps of all ranks above 0 do the same on every prompt, to nine digits. "
    return [note(said + "Either the rank was not applied, or the change has no more directions; read no rank curve there.")]


def _chosen(run: Run) -> list[Any]:
    found = findings.chosen(run.summary)
    if found.is_empty():
        return []
    caption = " ".join(["Rank of the change, site by site.", *rank_words.how_many_dimensions(run.rows, run.summary)])
    every = [one for name in found["name"].to_list() if (one := findings.seen(run.rows, run.summary, name))]
    counts = {says: sum(one.says == says for one in every) for says in ("rank", "at least", "nothing", "unseen")}
    words = {"rank": "the rank that is drawn is seen", "at least": "it is as large as the prompts can show, so at least that",
             "nothing": "too few prompts to tell", "unseen": "no dimension is seen that the base's activation predicts"}  # fmt: skip
    caption += f" Of {len(every)} sites: {listed(f'at {n} {words[says]}' for says, n in counts.items() if n)}."
    return [Drawn(name="rank_by_layer", chart=charts.rank_by_layer, caption=caption.strip(), reading="rank_by_layer")]


def _r2(run: Run) -> list[Any]:
    shown = findings.sites_of_curves(run.rows, run.summary)
    split = difference.reported(run.rows, "rank")
    said = []
    for name in shown:
        curve = findings.r2_curves(run.rows, run.summary, name)
        held = curve.filter(pl.col("curve") == f"{terms.of_split(split)} prompts").sort("value", descending=True, maintain_order=True)
        if not held.is_empty():
            best = held.row(0, named=True)
            said.append(f"{name} {decimal(best['value'])} at rank {best['rank']}")
    if not shown:
        return []
    caption = "R² of the change by rank of the regression"
    caption += f"; highest on the {terms.of_split(split)} prompts, over the ranks tried: {listed(said)}." if said else "."
    return [Drawn(name="rank_r2", chart=charts.r2_by_rank, options={"sites": shown}, caption=caption, reading="rank_r2")]


def _causal(run: Run, direction: str) -> list[Any]:
    shown = findings.curve_sites(run.rows, run.summary)[: findings.SITES]
    said = []
    for name in shown:
        curve = findings.causal(run.rows, name, direction)
        ranks = findings.needed(curve, direction)
        most = max(curve["rank"].to_list(), default=0)
        if ranks:
            less = f"rank {ranks[HALF]} does 50 % and " if ranks[HALF] < ranks[MOST] else ""
            said.append(
                f"{name}: {less}rank {ranks[MOST]} {'does ' * (not less)}90 % of the gain from rank 0 to the largest, {most} (of the means)"
            )
        elif not curve.is_empty():
            said.append(f"{name}: the largest rank does not do significantly more than rank 0, a constant vector")
    if not said:
        return []
    words = {
        CLOSENESS: "KL of the tuned model with the base's mapped activation patched in, from the unedited one, by rank of the map",
        TRANSPORT: "Recovery by rank of the mapped activation that is patched in: share of D that the base recovers",
    }[direction]
    name = "rank_closeness" if direction == CLOSENESS else "rank_transport"
    chart = charts.closeness_by_rank if direction == CLOSENESS else charts.transport_by_rank
    return [
        Drawn(
            name=name,
            chart=chart,
            options={"sites": shown},
            caption=f"{words}. {'; '.join(said)}.{_fisher(run, shown)}",
            reading="rank_causal" if direction == CLOSENESS else "",
        )
    ]


def _fisher(run: Run, shown: Sequence[str]) -> str:
    """Where the metric of the Fisher-weighted curve has not converged."""
    found = findings.fisher_agreement(run.rows, shown)
    apart = [f"{name} {decimal(value)}" for name, value in found.items() if value < findings.CONVERGED]
    if not apart:
        return ""
    return f" The Fisher metrics of two halves of the training prompts do not agree (cosine: {listed(apart)}): more fisher_samples are needed there."


def _ends(run: Run) -> list[dict]:
    """The causal curves in numbers: rank 0, the ranks that do half and nine tenths, the largest, and a random subspace of that rank."""
    lines = []
    for name in findings.curve_sites(run.rows, run.summary):
        for direction in (CLOSENESS, TRANSPORT):
            curve = findings.causal(run.rows, name, direction)
            of_rrr = curve.filter(pl.col("series") == "rrr")
            if of_rrr.is_empty():
                continue
            ranks = findings.needed(curve, direction) or {}
            first, last = of_rrr.row(0, named=True), of_rrr.row(-1, named=True)
            random = curve.filter(pl.col("series") == SERIES[3])
            beside = random.sort("rank")["value"][-1] if len(random) else None
            in_words = nats if direction == CLOSENESS else share
            largest = shown(last["value"], last["low"], last["high"], digits=None if direction == CLOSENESS else 2)
            lines.append((
                f"{name}, {'KL with the map, nats' if direction == CLOSENESS else 'recovery'}", in_words(first["value"]), str(ranks.get(HALF, "–")),
                str(ranks.get(MOST, "–")), f"{largest}, rank {last['rank']}", "–" if beside is None else in_words(beside),
            ))  # fmt: skip
    columns = ("site and score", "rank 0", "rank for 50 %", "for 90 %", "largest", "random subspace")
    return [table(columns, lines, folded="Maps of each rank, in numbers")] if lines else []


def _strengths(run: Run) -> list[Any]:
    shown = findings.site_of_strengths(run.rows, run.summary)
    if not shown:
        return []
    said, tables = [], []
    for direction in (CLOSENESS, TRANSPORT):
        found = findings.by_strength(run.rows, shown, direction).filter(pl.col("rank") > 0)
        if not found.is_empty():
            tables.append(_grid(findings.by_strength(run.rows, shown, direction), direction, shown))
            best = found.sort("value", descending=direction == TRANSPORT, maintain_order=True).row(0, named=True)
            value = f"{nats(best['value'])} nats" if direction == CLOSENESS else f"{share(best['value'])} of D"
            word = "closest" if direction == CLOSENESS else "recovers most"
            said.append(f"{word}: rank {best['rank']} at strength {best['s']:g}, {value}")
    caption = f"Rank by strength at {shown}. Best cells are selected on these prompts, so optimistically biased: {listed(said)}."
    return [note(caption), *tables, *_drops(run, shown)]


def _grid(found: pl.DataFrame, direction: str, name: str) -> dict:
    """A row for each rank, a column for each strength."""
    strengths = sorted(set(found["s"].to_list()))
    by = {(r["rank"], r["s"]): r["value"] for r in found.iter_rows(named=True)}
    in_words = nats if direction == CLOSENESS else share
    lines = [(str(rank), *(in_words(by.get((rank, s))) for s in strengths)) for rank in sorted({rank for rank, _ in by})]
    title = f"{'KL of the tuned model, nats' if direction == CLOSENESS else 'Share of D recovered'}, by rank and strength at {name}"
    return table(("rank", *(f"s = {s:g}" for s in strengths)), lines, folded=title)


def _drops(run: Run, name: str) -> list[Drawn]:
    """How much of the identity's damage the map of each rank avoids, by strength."""
    found = findings.drop_by_strength(run.summary, name)
    if found["s"].n_unique() < 2:
        return []
    best = found.sort("value", descending=True, maintain_order=True).row(0, named=True)
    caption = f"Drop of KL against patching in the base's activation as it is, by strength, a line for each rank, at {name}. Largest (selected on "
    caption += f"these prompts, so optimistically biased): {share(best['value'], 3)} with rank {best['rank']} at strength {best['s']:g}."
    return [Drawn(name="drop_strength", chart=charts.drop_by_strength, options={"sites": [name]}, caption=caption, reading="drop_strength")]
