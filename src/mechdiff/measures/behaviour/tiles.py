"""What the tuned model's answers do that the base's do not, in one sentence for a reader who has a minute; and the answers themselves."""

from functools import partial
from typing import Any

from mechdiff.measures.behaviour import findings, said
from mechdiff.measures.behaviour.said import Said
from mechdiff.report.headlines import Candidate, Number, quoting, told
from mechdiff.report.parts import Answers, Run
from mechdiff.report.phrasing import visible
from mechdiff.rows import where
from mechdiff.statistics.intervals import FEWEST
from mechdiff.statistics.memory import once

GAINED = {
    "begin": "begin with “{}”",
    "contain": "contain “{}”",
    "has": "have {}",
    "written": "are written in {} letters",
    "than": "are {} than the base's",
}
MOST_OF = 0.8
"""Part of the answers from which they are said to do something, else to do it more often."""
LETTERS = 48
"""Letters of a beginning that are quoted."""


def what(run: Run) -> list[Candidate]:
    """What more answers of one model do than chance explains; the most telling first, what was gained before what was lost."""
    found = [one for one in apart(run) if one.p <= said.LEVEL]
    once_each: list[Said] = []
    for one in sorted(found, key=lambda one: (-said.KINDS.index(one.kind), not one.gained)):
        if not any(one.text in other.text or other.text in one.text for other in once_each):
            once_each.append(one)
    return [quoting(one.text, LETTERS, partial(_said, one, run)) for one in once_each]


@once
def apart(run: Run) -> list[Said]:
    """Features of the answers to the test prompts; prompts of one cluster count as one in the test."""
    names, own = (run.manifest.get("units") or {}).get("report", {}), _texts(run)
    clusters = [names.get(one["prompt"], one["prompt"]) for one in own]
    return said.apart([one["base"] for one in own], [one["tuned"] for one in own], clusters) if own else []


def _texts(run: Run) -> list[dict]:
    return [one for one in findings.texts(run.manifest) if one["split"] == "report"]


def _said(one: Said, run: Run, quoted: str) -> Candidate:
    text = visible(quoted)
    of = f"answers that {GAINED[one.kind].format(text)}; exact exchange test, family-wise p = {one.p:.2g}"
    base, tuned = (
        Number(shown=f"{k} of {one.n}", value=k / one.n, of=f"the {side}'s {of}", n=one.n)
        for side, k in (("base", one.base), ("tuned model", one.tuned))
    )
    limit = _limit(run)
    caveat = f"Answers were cut at {limit} tokens: what comes later was not seen." if limit else ""
    known: dict[str, Any] = {"n": one.n, "needed": FEWEST, "caveat": caveat}
    if one.kind == "than":
        more, fewer = (tuned, "shorter") if one.gained else (base, "longer")
        return told(f"Answers are {fewer} than the base's on ", more, ".", **known)
    does = GAINED[one.kind].format(text)
    if one.gained:
        words = f"Answers now {does}" if one.tuned >= MOST_OF * one.n else f"More answers {does}"
    else:
        words = f"Answers no longer {does}" if one.tuned <= (1 - MOST_OF) * one.n else f"Fewer answers {does}"
    return told(f"{words}: base ", base, ", tuned ", tuned, ".", **known)


def _limit(run: Run) -> int | None:
    """Tokens at which most answers to the test prompts were cut; None where most end by themselves."""
    cut = where(run.rows, measure="behaviour", metric="cut_off", split="report", direction=None)["value"]
    limit = (run.manifest.get("behaviour") or {}).get("max_tokens")
    return int(limit) if limit and len(cut) and float(cut.to_numpy().mean()) > 0.5 else None


def how_sure(run: Run) -> list[Candidate]:
    """Whether answers were cut before they ended."""
    limit = _limit(run)
    if limit is None:
        return []
    number = Number(shown=str(limit), value=limit, of="tokens at which most answers were cut", unit="tokens")
    return [told("Answers were cut at ", number, " tokens: what comes later was not seen.")]


def answers(run: Run) -> list[Answers]:
    """Both models' answers to the test prompts."""
    return [Answers(prompt=one["prompt"], asked=str(one["text"]), base=one["base"], tuned=one["tuned"]) for one in _texts(run)]
