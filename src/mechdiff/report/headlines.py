"""Which sentences may stand at the top of the page? A sentence that is true can still mislead a reader who quotes it alone.

Each clause of the verdict is a `Candidate`: its words, and beside them what a reader would have to know to weigh them. `admit` says which gate of
GATES it fails; the verdict is built from those that fail none. What is refused stays in its own section, and the section on trust says why.

    the whole    a part is named beside its whole, which is at least LEAST_WHOLE of D, or of the way in logits ("65 % of a block that has 5 %": none)
    prompts      at least `needed` prompts stand behind it; with fewer than FEW the sentence says so
    test         a claim that something is there has a test or an interval that leaves 0 out
    budget       a search that stopped at its budget has found nothing but its budget
    construction what must hold whatever the models are (the last block's output carries everything) is no finding
    event        a score of texts that were put to the models is spoken of where either model says such a thing itself
    length       a score of texts has one sign whether it is taken per token or per byte
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mechdiff.report.phrasing import between, prompts, share
from mechdiff.statistics.intervals import FEW, FEWEST

WORDS = 60
"""Of a sentence, without its intervals and numbers of clusters, beyond which no clause is added: what comes later stays in its section."""
IN_BRIEF = 25
"""Words of one of the six first answers."""
UNCOUNTED = r"\[.*?\]|\(\d+ clusters?\)|\bfewer than \d+ (?:clusters|prompts); "
"""Intervals, and of how many prompts or clusters they are: that an interval is of few costs no clause its room."""
LEAST_WHOLE = 0.2
"""Share of D, or of the way in logits, under which what a whole has is too little to name its parts."""


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number as a sentence prints it, and what stands behind it."""

    shown: str
    """ "8.1", "10 of 10"."""
    value: float
    of: str
    """What it is, in a few words."""
    unit: str = ""
    n: int | None = None
    """Prompts, texts or positions behind it."""
    low: float | None = None
    high: float | None = None
    """Ends of its 95 % interval."""

    @property
    def behind(self) -> str:
        """ "KL of the next token, nats; 95 % CI [6.77, 9.16]; n = 10"."""
        ends = between(self.low, self.high)
        said = [f"{self.of}, {self.unit}" if self.unit else self.of, *([f"95 % CI {ends}"] if ends else [])]
        return "; ".join([*said, *([f"n = {self.n}"] if self.n is not None else [])])


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A clause that might stand in the verdict, or a sentence that might stand in one of the six first answers, and what decides whether it may."""

    text: str
    parts: tuple["str | Number", ...] = ()
    """Of one of the six first answers: its words, and its numbers with what stands behind them; `told` makes both."""
    caveat: str = ""
    """What a reader would want to know of it before leaning on it."""
    shorter: "Candidate | None" = None
    """The same with less, for where there is no room."""
    n: int | None = None
    """Prompts behind it; None where it is not about prompts, as what is said of weights."""
    needed: int = FEWEST
    """Prompts that it takes."""
    whole: float | None = None
    """Share of D, or of the way in logits, of the whole that it names a part of; None where it gives shares of these itself."""
    of: str = "D"
    """What `whole` is a share of."""
    tested: bool = True
    """Whether a test, or an interval, stands behind the claim."""
    at_budget: bool = False
    """Whether the search that found it stopped because its budget was spent."""
    by_construction: bool = False
    """Whether it would hold of any two models."""
    happens: bool = True
    """Whether what a score is about happens at all: a refusal, of a score of refusals."""
    lengths_agree: bool = True
    """Whether it has one sign per token and per byte."""


def quoting(text: str, letters: int, says: Callable[[str], Candidate], closing: str = "") -> Candidate:
    """What `says` makes of a quotation, which is cut to so many letters, and then word by word until there are at most IN_BRIEF words in all.

    What was cut ends in "…" and `closing`.
    """
    kept = text if len(text) <= letters else text[:letters].rstrip()
    while True:
        one = says(text if kept == text else f"{kept} …{closing}")
        if len(one.text.split()) <= IN_BRIEF or " " not in kept:
            return one
        kept = kept.rpartition(" ")[0].rstrip()


def told(*parts: "str | Number", **known: Any) -> Candidate:
    """A sentence of words and numbers, as a candidate for one of the six first answers; `known`: what decides whether it may stand."""
    return Candidate(text="".join(part if isinstance(part, str) else part.shown for part in parts), parts=parts, **known)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One condition that a headline meets."""

    name: str
    rule: str
    """What must hold, as docs/STATISTICS.md prints it."""
    fails: Callable[[Candidate], bool]
    why: str
    """What is said of a sentence that failed it."""


GATES = (
    Gate(
        name="construction",
        rule="not true by construction (the last block's `resid_post`, a site where everything is carried)",
        fails=lambda one: one.by_construction,
        why="it holds by construction",
    ),
    Gate(
        name="prompts",
        rule=f"at least {FEWEST} prompts, or as many as the claim takes; under {FEW} the sentence says how few",
        fails=lambda one: one.n is not None and one.n < one.needed,
        why="it rests on {prompts} and takes {needed}",
    ),
    Gate(
        name="whole",
        rule=f"a part is named beside its whole, which has at least {share(LEAST_WHOLE)} of D, or of the way in logits",
        fails=lambda one: one.whole is not None and not one.whole >= LEAST_WHOLE,
        why="the whole that it is a part of has {whole} of {of}",
    ),
    Gate(
        name="budget",
        rule="the search did not stop at its budget",
        fails=lambda one: one.at_budget,
        why="the search stopped at its budget",
    ),
    Gate(
        name="test",
        rule="a test at 5 % or an interval supports what is said to be there; how many parts are named was chosen on other prompts",
        fails=lambda one: not one.tested,
        why="it does not pass a test at 5 %, its interval holds 0, or how many are named was not chosen on other prompts",
    ),
    Gate(
        name="event",
        rule="what a score is about happens in an answer of either model (a refusal, for refusal margin)",
        fails=lambda one: not one.happens,
        why="neither model ever does what this scores",
    ),
    Gate(
        name="length",
        rule="scores of texts have one sign per token and per byte",
        fails=lambda one: not one.lengths_agree,
        why="it changes its sign, or vanishes, with the way of counting length",
    ),
)


def admit(one: Candidate) -> Gate | None:
    """The first gate that a candidate fails; None where it may stand at the top of the page."""
    return next((gate for gate in GATES if gate.fails(one)), None)


def reason(one: Candidate) -> str:
    """Why a candidate was refused; empty where it was not."""
    gate = admit(one)
    return "" if gate is None else gate.why.format(prompts=prompts(one.n or 0), needed=one.needed, whole=share(one.whole or 0.0), of=one.of)


def sentence(candidates: Sequence[Candidate]) -> str | None:
    """The clauses that pass all gates as one sentence, which says so where it rests on few prompts; None where none passes."""
    passed = spoken(candidates)
    if not passed:
        return None
    text = "; ".join(_within(one.text.removesuffix("."), place) for place, one in enumerate(passed))
    few = min((one.n for one in passed if one.n is not None), default=FEW)
    said = re.search(rf"\b{few} (\w+ )?(prompt|cluster)", text)
    beside = f" ({prompts(few)} only)" if few < FEW and not said else ""
    return f"{text[0].upper()}{text[1:]}{beside}."


def _within(text: str, place: int) -> str:
    """A clause behind others does not open with a capital, unless a name or a letter does: "Along the answers", but "D" and "L4.mlp_out"."""
    return f"{text[0].lower()}{text[1:]}" if place and text[1:2].islower() else text


def spoken(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that pass all gates and have room in one sentence, in their order: the first always has."""
    found: list[Candidate] = []
    length = 0
    for one in candidates:
        words = len(re.sub(UNCOUNTED, "", one.text).replace(" %", "%").split())
        if admit(one) is None and (not found or length + words <= WORDS):
            found.append(one)
            length += words
    return found


def refused(candidates: Sequence[Candidate]) -> list[str]:
    """What did not pass, each with its reason."""
    said = spoken(candidates)
    return [
        f"{one.text.removesuffix('.')}: {reason(one) or 'it passes every gate, and its sentence has no room left'}"
        for one in candidates
        if one not in said
    ]


def table() -> list[str]:
    """The gates as lines of a Markdown table: docs/STATISTICS.md holds these lines."""
    return [
        "| gate | a headline passes if | else |",
        "|---|---|---|",
        *(f'| {gate.name} | {gate.rule} | "{_plain(gate.why)}" |' for gate in GATES),
    ]


def _plain(why: str) -> str:
    return why.replace("{prompts}", "n prompts").replace("{needed}", "m").replace("{whole}", "x %").replace("{of}", "D")
