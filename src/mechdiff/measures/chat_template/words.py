"""The page's sentences say what of the difference is the chat template's, and what the weights'."""

import math

from mechdiff.measures.chat_template import findings
from mechdiff.measures.chat_template.findings import Estimate, Split
from mechdiff.report import spoken
from mechdiff.report.headlines import Candidate
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import nats, prompts, with_interval

SURE = 0.05
LEAST = 0.1
"""Part of the whole under which an interaction is not spoken of."""


def lead(run: Run) -> list[str]:
    """How D is split, and whether template and weights build on each other."""
    found = findings.split(run.rows, "nats")
    if found is None or not findings.differs(run.summary):
        d = findings.estimates(run.summary, "kl_tuned_nats").get("bb")
        return (
            []
            if d is None
            else [
                f"Each with its own chat template, what the two models say next does not differ significantly (D = {nats(d['mean'])} nats)."
            ]
        )
    together = beyond_the_sum(findings.split(run.rows))
    return [f"{_split(found)}.", *([f"{together}."] if together else [])]


def clause(run: Run) -> list[Candidate]:
    """The same for the verdict."""
    found = findings.split(run.rows, "nats")
    if found is None or not findings.differs(run.summary):
        return []
    tested = any(_sure(found.shares[name]) for name in ("template_effect", "weights_effect"))
    return [Candidate(text=_split(found), n=found.n, tested=tested)]


def _split(found: Split) -> str:
    """Both parts of D, each with its interval."""
    template, weights = (_share(found.shares[name]) for name in ("template_effect", "weights_effect"))
    d = with_interval(found.whole.mean, found.whole.low, found.whole.high)
    return f"Each with its own chat template ({prompts(found.n)}) D is {d} nats: {template} of it is the template's, {weights} the weights'"


def beyond_the_sum(found: Split | None) -> str:
    """Whether template and weights need each other, in the score in which changes that merely add do not interact; empty where nothing is sure."""
    if found is None:
        return ""
    one = found.shares["interaction"]
    if not (found.p <= SURE and _sure(one) and abs(one.mean) >= LEAST):
        return ""
    said = "build on each other" if one.mean > 0 else "are partly redundant"
    return f"Template and weights {said}: beyond the sum of each alone both do {_share(one)} of what they do together ({spoken.in_words(found.p)})"


def _share(one: Estimate) -> str:
    return with_interval(one.mean, one.low, one.high, digits=2)


def _sure(one: Estimate) -> bool:
    """Whether its interval leaves 0 out."""
    return not math.isnan(one.low) and one.low * one.high > 0


def why_not(run: Run) -> str:
    """What the section says where nothing was crossed, with the reason where there is one."""
    return f"Template against weights was not measured{run.why_not(findings.MEASURE)}."
