"""The section on grafts puts tuned weights into the base: modules alone, in network order, greedily, and cut to a rank."""

from typing import Any

import polars as pl

from mechdiff import terms
from mechdiff.measures.divergence import both_answers
from mechdiff.measures.divergence.words import whose, why_no_share
from mechdiff.measures.grafting import findings
from mechdiff.measures.grafting.charts import MODULES, RAMPS, grafts_alone, grafts_by_rank, grafts_greedy, grafts_in_order
from mechdiff.measures.grafting.words import BIASED, how_many_modules
from mechdiff.report import difference
from mechdiff.report.parts import Drawn, Run, Section, note, table
from mechdiff.report.phrasing import listed, nats, prompts, share, shown, with_interval
from mechdiff.rows import where

TITLE = "Which module's change matters?"


ROUNDING = 0.02
"""How far the ends may be off, as a share of 1 + D: half precision on other batch shapes moves them by less."""


def grafting(run: Run) -> Section:
    """Q1, second half: what the change of each module does."""
    if where(run.rows, measure="grafting").is_empty():
        return Section(id="grafting", title=TITLE, parts=[note("Grafting was not run.")])
    alone, ranking = findings.ranked(run.rows)
    found = difference.difference(run.rows, run.summary)
    if where(run.rows, measure="grafting").filter(pl.col("arm") == "alone").is_empty():
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
    curves = {arm: findings.shares(run.rows, arm) for arm in RAMPS}
    if any(len(curve) > 1 for curve in curves.values()):
        parts.append(
            Drawn(name="grafts_in_order", chart=grafts_in_order, caption=_ramp_caption(curves, len(alone)), reading="grafts_in_order")
        )
    over = [part for one in run.by_answers for part in _over_answers(one)]
    over += both_answers.parts(run, findings.over_answers, "module alone", findings.INTO_BASE)
    return Section(id="grafting", title=TITLE, parts=[*parts, *over, *_greedy(run), *_truncation(run)])


def _over_answers(run: Run) -> list[dict]:
    """Modules alone, by what they recover over whole answers, beside the next token on the same prompts."""
    found = findings.first_and_answer(run.rows)
    if found.is_empty():
        return []
    lines = [
        (
            row["name"],
            share(row["first"], 3),
            shown(row["answer"], row["low"], row["high"], row["n"], digits=3),
            share(row["additive"], 3),
        )
        for row in found.head(MODULES).iter_rows(named=True)
    ]
    columns = ("module alone", "recovered at the first token", "recovered over the answer", "Fisher share over the answer")
    total = float(found["additive"].to_numpy().sum())
    of = whose(run)
    against = f"The first token against {'the whole answer' if of == 'the answers' else of}"
    said = f"{against} ({prompts(found['n'][0])}); the Fisher shares of all {len(found)} modules sum to {share(total)}"
    return [table(columns, lines, title=said)]


def _alone_caption(run: Run, alone: pl.DataFrame, ranking: str | None) -> str:
    best = alone.row(0, named=True)
    said = f"Share of D that the tuned weights of one module alone recover in the base, {len(alone)} changed modules"
    said += f", the {MODULES} strongest drawn" if len(alone) > MODULES else ""
    steady = findings.steadiness(run.rows, ranking)
    other = ranking != difference.reported(run.rows, "grafting")
    chosen = f"chosen on the {terms.of_split(ranking)} prompts" if other else BIASED
    said += f". {best['name']} ({chosen}{steady}) recovers "
    said += with_interval(best["share"], best["low"], best["high"], digits=2, n=best.get("n"))
    return f"{said}. The shares of all sum to {share(float(alone['share'].to_numpy().sum()))}; they need not sum to 1."


def _ends(run: Run) -> list[dict]:
    """Did v(nothing) = D and v(everything) = 0 hold?"""
    held = findings.checked(run.prompt_rows)
    found = difference.difference(run.rows, run.summary)
    said = []
    if held.none_from_d is not None:
        said.append(f"copying nothing gives the base (off D by {nats(held.none_from_d)} nats on the worst prompt)")
    if held.largest_all is not None:
        said.append(f"copying everything gives the tuned model (off by at most {nats(held.largest_all)} nats)")
    if not said:
        return []
    off = max(value for value in (held.none_from_d, held.largest_all) if value is not None)
    fine = off <= ROUNDING * (1 + (found.mean if found else 0))
    return [note(f"{'Checks passed' if fine else 'A check FAILED, so trust no share here'}: {listed(said)}.")]


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
    sets = findings.greedy(run.rows)
    if sets.is_empty():
        return []
    said = how_many_modules(run.rows)
    reported = difference.reported(run.rows, "grafting")
    caption = f"Greedy forward selection of modules on the validation prompts; shares of D are of the {terms.of_split(reported)} prompts. "
    return [Drawn(name="grafts_greedy", chart=grafts_greedy, caption=f"{caption}{said[0].upper()}{said[1:]}.", reading="grafts_greedy")]


def _truncation(run: Run) -> list[Any]:
    cut = findings.truncated(run.rows)
    if cut.is_empty():
        return []
    rows = []
    for (name,), part in cut.group_by("name", maintain_order=True):
        full = part["share"][-1]
        near = part.filter(pl.col("share") >= findings.WANTED * full)
        enough = str(near["rank"][0]) if full > 0 and len(near) else "–"
        first = part.row(0, named=True)
        largest = shown(full, part["low"][-1], part["high"][-1], digits=3)
        rows.append((str(name), largest, f"{share(first['share'], 3)} ({first['rank']})", enough))
    columns = ("change cut to its first directions", "at the largest rank", "at the smallest (rank)", "rank for 90 % of that")
    caption = "Recovered share of D when the change of the weights is cut to its first k singular directions. "
    name, *_, enough = rows[0]
    caption += (
        f"For {name}, k = {enough} recovers 90 % of what the largest k does." if enough != "–" else f"For {name}, no k recovers anything."
    )
    drawn = Drawn(name="grafts_by_rank", chart=grafts_by_rank, caption=caption, reading="grafts_by_rank")
    return [drawn, table(columns, rows, title="Recovered share of D, by rank of the copied change")]
