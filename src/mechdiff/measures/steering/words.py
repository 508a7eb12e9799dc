"""The page's sentences say whether a vector switches the change on or off, within what neutral prompts allow."""

import polars as pl

from mechdiff.measures.steering import answers_page, findings
from mechdiff.measures.steering.doses import QUESTIONS
from mechdiff.measures.steering.findings import LEVEL, Limits, Tested
from mechdiff.report.headlines import Candidate
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import decimal, listed, nats, share, with_interval

WAYS = {"base<-base": "recovers {} of D", "tuned<-tuned": "takes {} off KL(base ‖ tuned)"}
"""Shares of KL: what a vector recovers is no part of a whole that others have."""
TRIED = {"add": "the mean difference added to the base", "ablate": "the change's directions ablated in the tuned model"}


def lead(run: Run) -> list[str]:
    """Whether an edit obeys, and what one vector does over whole answers."""
    return [*does_it_obey(run.rows, run.summary, run.manifest), *answers_page.lead(run)]


def clause(run: Run) -> list[Candidate]:
    """The edit that does it with little harm, for the verdict."""
    return headline(run.rows, run.summary, run.manifest)


def does_it_obey(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> list[str]:
    """What each tested edit does beside random directions of its size, or why it was not tested; and where side effects were measured."""
    tried = findings.tried(rows)
    if tried.is_empty():
        return []
    allowed = findings.limits(manifest)
    found = {one.direction: one for one in findings.tested(rows, allowed)}
    said = [_sentence(found[direction]) if direction in found else _untested(tried, direction, allowed) for direction in QUESTIONS]
    names = listed(tried["name"].unique(maintain_order=True).to_list())
    return [
        *_limits_once([text for text in said if text], allowed),
        f"Side effects on unrelated prompts were measured at {names} only, with edits at all positions.",
    ]


def headline(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> list[Candidate]:
    """What stood its test; nothing is said at the top of what did not."""
    if findings.tried(rows).is_empty():
        return []
    tested = findings.tested(rows, findings.limits(manifest))
    return [Candidate(text=f"{_does(one)} {_chance(one)}; {_harm(one)}", n=one.n, tested=one.obeys) for one in tested]


def _sentence(one: Tested) -> str:
    text = _does(one)
    text = f"{text[0].upper()}{text[1:]}"
    if one.obeys:
        return f"{text} {_chance(one)}; {_harm(one)}."
    why = (
        "no more than random directions of this size do" if one.p > LEVEL else "and as its interval holds 0, that cannot be told from none"
    )
    return f"{text}, {why} {_chance(one)}; {_harm(one)}."


def _does(one: Tested) -> str:
    way = WAYS[one.direction].format(with_interval(one.share, one.low, one.high, digits=2))
    where = f"at {one.name}, at all positions"
    if one.edit == "add":
        return f"adding the mean difference {where}, at strength {one.strength:g}, {way}"
    return f"ablating {'1 direction' if one.rank == 1 else f'{one.rank} directions'} of the change {where}, {way}"


def _chance(one: Tested) -> str:
    return f"({one.draws} random ones: mean {share(one.typical)}, highest {share(one.highest)}; p = {nats(one.p)})"


def _harm(one: Tested) -> str:
    ratio = "" if one.side_ratio is None else f" and a perplexity ratio of {decimal(one.side_ratio, 3)}"
    return f"on {one.neutral} unrelated prompts it has a KL of {nats(one.side_kl)} nats per token{ratio}"


def _untested(tried: pl.DataFrame, direction: str, allowed: Limits) -> str:
    """Of a question without a test: that nothing tried keeps the limits, or that too few random directions were run to say anything."""
    here = tried.filter(pl.col("direction") == direction)
    if here.is_empty():
        return ""
    within = here.filter(pl.col("side_kl") <= allowed.kl_nats, pl.col("side_ratio").fill_null(1.0) <= allowed.perplexity_ratio)
    what, where = TRIED[QUESTIONS[direction]], listed(here["name"].unique(maintain_order=True).to_list())
    if not within.is_empty():
        return f"Whether {what} at {where} does more than random directions was not tested."
    of = (
        [f"{s or 1.0:g}" for s in here["strength"].to_list()] if QUESTIONS[direction] == "add" else [f"{k}" for k in here["rank"].to_list()]
    )
    word = "strength" if QUESTIONS[direction] == "add" else "number"
    doses = f"{word}{'s' * (len(set(of)) > 1)}{' of directions' * (word == 'number')} {listed(dict.fromkeys(of))}"
    return f"Unrelated prompts change beyond the limits under every dose tried of {what} at {where} ({doses}{_bounds(allowed)})."


def _bounds(allowed: Limits) -> str:
    return f"; limits: KL {nats(allowed.kl_nats)} nats per token, perplexity ratio {decimal(allowed.perplexity_ratio)}"


def _limits_once(sentences: list[str], allowed: Limits) -> list[str]:
    """The sentences with what the limits are said in the first that names them alone."""
    bounds = _bounds(allowed)
    first = next((place for place, text in enumerate(sentences) if bounds in text), None)
    return [text if place == first else text.replace(bounds, "") for place, text in enumerate(sentences)]
