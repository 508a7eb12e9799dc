"""Six first answers, three pairs of answers and the strips of one figure: what a reader wants to know before anything else, as plain data.

    How much?  What?  Where?  How complicated?  What else changed?  How sure?

A measure hands sentences for the questions that it can answer (`parts.Feed`); each passes the gates of `headlines`, or does not stand here. The
lowest place speaks first, and later ones where there is room: WORDS words and NUMBERS numbers. A question that nothing measured says so, and how to
measure it. The page, `mechdiff show`, notebooks, JSON and comparisons read this one source.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mechdiff.report import difference, headlines, record, spoken
from mechdiff.report.headlines import Candidate, Number, told
from mechdiff.report.overview.scales import PROMPTS
from mechdiff.report.overview.strips import Strip
from mechdiff.report.parts import Answers, Chapter, Question, Run
from mechdiff.report.phrasing import visible
from mechdiff.statistics.clusters import n_prompts
from mechdiff.statistics.intervals import FEW

WORDS, NUMBERS = headlines.IN_BRIEF, 2
"""Of one answer, at most."""
EXAMPLES, LETTERS = 3, 220
"""Pairs of answers that are shown, and letters of each."""
TITLES: dict[Question, str] = {
    "how_much": "How much?",
    "what": "What?",
    "where": "Where?",
    "how_complicated": "How complicated?",
    "what_else": "What else changed?",
    "how_sure": "How sure?",
}
UNSAID: dict[Question, str] = {
    "how_much": "It was measured, and these prompts cannot tell.",
    "what": "Nothing that our readers can name.",
    "where": "No layer, module or matrix stands out beyond chance.",
    "how_complicated": "These prompts cannot tell.",
    "what_else": "It was measured, and these texts cannot tell.",
    "how_sure": "Nothing is known of it.",
}
"""Of what was measured and nothing of which passes the gates."""
NO_CHANGE = "There is no change on these prompts to ask this of."
OF_A_CHANGE = ("what", "where", "how_complicated")
SMALL_COUNTS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One of the six first answers."""

    question: Question
    title: str
    parts: tuple[str | Number, ...]
    """Its sentences, words and numbers in their order."""
    measured: bool
    """Whether anything that answers it was measured."""
    section: str
    """Id of the page's section that has more."""
    caveats: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return "".join(part if isinstance(part, str) else part.shown for part in self.parts)

    @property
    def numbers(self) -> list[Number]:
        return [part for part in self.parts if isinstance(part, Number)]


@dataclass(frozen=True, kw_only=True)
class Example:
    """Both models' answers to one prompt, up to where they part and from there on."""

    prompt: str
    asked: str
    same: str
    base: str
    tuned: str
    kl_nats: float | None
    """D of the prompt."""


@dataclass(frozen=True, kw_only=True)
class Overview:
    """What stands first."""

    base: str
    tuned: str
    tiles: tuple[Tile, ...]
    examples: tuple[Example, ...]
    answered: int
    """Prompts that both models answered, of which the examples are those that differ most."""
    strips: tuple[Strip, ...]
    verdict: tuple[str, ...]
    """The same in at most five sentences, with intervals."""

    def data(self) -> dict[str, Any]:
        """All but the figure as JSON has it: tiles with text, numbers (value, unit, n, low, high), caveats and the section that has more."""
        return {
            "base": self.base,
            "tuned": self.tuned,
            "tiles": [
                {
                    "question": one.question, "title": one.title, "text": one.text, "measured": one.measured, "caveats": list(one.caveats),
                    "link": f"report.html#{one.section}",
                    "numbers": [{"shown": n.shown, "value": n.value, "of": n.of, "unit": n.unit, "n": n.n, "low": n.low, "high": n.high}
                                for n in one.numbers],
                }
                for one in self.tiles
            ],
            "examples": [{"prompt": one.prompt, "asked": one.asked, "base": one.same + one.base, "tuned": one.same + one.tuned,
                          "kl_nats": one.kl_nats} for one in self.examples],
            "answered": self.answered,
            "verdict": list(self.verdict),
        }  # fmt: skip


def overview(run: Run, chapters: Mapping[str, Chapter], verdict: Sequence[str] = ()) -> Overview:
    """What a run found, for a reader of one minute; `verdict`: its five sentences, to stand beside."""
    with spoken.in_measured_words(run.rows):
        tiles = tuple(tile(run, chapters, question) for question in TITLES)
        rows = [strip for chapter in chapters.values() for strip in chapter.strips(run) if strip.values]
        strips = tuple(strip for strip in rows if any(any(other.values.values()) for other in rows if other.group == strip.group))
        said = next((found for chapter in chapters.values() if (found := chapter.answers(run))), [])
    return Overview(
        base=record.short_name(run.manifest, "base"),
        tuned=record.short_name(run.manifest, "tuned"),
        tiles=tiles,
        examples=tuple(examples(run, said)),
        answered=len(said),
        strips=strips,
        verdict=tuple(verdict),
    )


def tile(run: Run, chapters: Mapping[str, Chapter], question: Question) -> Tile:
    """The answer to one question: of what passes the gates the first, and what there is room for after it."""
    names = feeders(chapters, question)
    measured = [name for name in names if was_measured(run, name)]
    taken = chosen(candidates(run, chapters, question))
    section = taken[0][0] if taken else (measured or names or ["trust"])[0]
    return Tile(
        question=question,
        title=TITLES[question],
        parts=_joined([one for _, one in taken]) or (_unsaid(run, question, names, measured),),
        measured=bool(measured) or question == "how_sure",
        section=section,
        caveats=tuple(dict.fromkeys(caveat for _, one in taken for caveat in _caveats(one))),
    )


def feeders(chapters: Mapping[str, Chapter], question: Question) -> list[str]:
    """The measures that have something to say to a question, who speaks first first."""
    return [
        name for _, name in sorted((chapter.feeds[question].place, name) for name, chapter in chapters.items() if question in chapter.feeds)
    ]


def candidates(run: Run, chapters: Mapping[str, Chapter], question: Question) -> list[tuple[str, Candidate]]:
    """All that could be said to a question, each with the section that has more; gates and room decide what stands in its tile."""
    found = [(name, one) for name in feeders(chapters, question) if was_measured(run, name) for one in _said(run, chapters[name], question)]
    if question == "how_sure":
        checked, ends = _checked(run), [*_warned(run), *_not_checked(run)]
        found = [*(("trust", one) for one in [*checked, *_how_many(run)]), *found, *(("trust", one) for one in ends)]
    return found


def was_measured(run: Run, name: str) -> bool:
    """Whether a run has rows of a measure, or a record of it."""
    return name in run.rows["measure"].unique() or name in run.summary["measure"].unique() or name in run.manifest


def _said(run: Run, chapter: Chapter, question: Question) -> list[Candidate]:
    """What a measure says; of the parts of a change only where there is one."""
    found = difference.difference(run.rows, run.summary)
    there = found is None or {"nothing": True, "effect": found.counts, "shares": found.divides}[chapter.needs]
    return chapter.feeds[question].says(run) if there else []


def chosen(candidates: Iterable[tuple[str, Candidate]]) -> list[tuple[str, Candidate]]:
    """Those that pass all gates and have room in one answer, in their order, shorter where only that has room: the first always has."""
    found: list[tuple[str, Candidate]] = []
    words = numbers = 0
    for name, given in candidates:
        for one in (given, *([given.shorter] if given.shorter else [])):
            long, many = words + len(one.text.split()), numbers + sum(isinstance(part, Number) for part in one.parts)
            if headlines.admit(one) is None and (not found or (long <= WORDS and many <= NUMBERS)):
                found.append((name, one))
                words, numbers = long, many
                break
    return found


def _joined(taken: Sequence[Candidate]) -> tuple[str | Number, ...]:
    """The parts of several sentences in a row, with spaces between."""
    parts: list[str | Number] = []
    for one in taken:
        parts += [*([" "] if parts else []), *(one.parts or (one.text,))]
    return tuple(parts)


def _caveats(one: Candidate) -> list[str]:
    few = [f"{one.n} prompts only: expect another number from other prompts"] if one.n is not None and one.n < FEW else []
    return [*few, *([one.caveat] if one.caveat else [])]


def _unsaid(run: Run, question: Question, names: Sequence[str], measured: Sequence[str]) -> str:
    """Why there is no answer: not measured, no change to ask it of, or nothing that passes the gates."""
    if not measured and set(names) & set(run.manifest.get("waits", ())):
        return "Not computed yet."
    if not measured:
        return f"Not measured. To measure it, run with --measures {names[0]}." if names else "Not measured."
    found = difference.difference(run.rows, run.summary)
    nothing = question in OF_A_CHANGE and found is not None and not found.counts
    return NO_CHANGE if nothing else UNSAID[question]


def _how_many(run: Run) -> list[Candidate]:
    """On how many prompts everything rests."""
    found = difference.difference(run.rows, run.summary)
    if found is None:
        return []
    n = n_prompts(run.manifest, found.split, found.n)
    number = Number(shown=str(n), value=n, of="test prompts", n=n)
    clusters = Number(shown=str(found.n), value=found.n, of="clusters of test prompts: prompts of one cluster count once", n=found.n)
    alike = () if n == found.n else (" that count as ", clusters, " (some are alike)")
    few = ", so intervals are wide" if found.n < FEW + 1 else ""
    return [told(f"{PROMPTS.word(found.n)}. ", number, f" test prompt{'s' * (n != 1)}", *alike, f"{few}.")]


def _warned(run: Run) -> list[Candidate]:
    """Warnings, in a word: the number is in the record."""
    n = len(record.warnings(run.manifest))
    count = SMALL_COUNTS[n] if n < len(SMALL_COUNTS) else "Many"
    return [told(f"{count} warning{'s' * (n != 1)}.", caveat=" ".join(record.warnings(run.manifest)))]


def _checked(run: Run) -> list[Candidate]:
    """That rows were computed again and do not agree, before all else."""
    found = run.verified
    if found is None or found["passed"]:
        return []
    differ = Number(
        shown=f"{found['differing']} of {found['rows']}",
        value=found["differing"],
        of="rows that were computed again and differ",
        n=found["rows"],
    )
    return [told("Not to be relied on: mechdiff verify found differences (rows: ", differ, ").")]


def _not_checked(run: Run) -> list[Candidate]:
    """Whether rows were computed again another way."""
    if run.verified is None:
        return [told("Not rechecked yet.", caveat="mechdiff verify computes a sample of the run's rows again, another way.")]
    if not run.verified["passed"]:
        return []
    return [told("Rechecked.", caveat=f"mechdiff verify computed {run.verified['rows']} rows again, another way: all agree.")]


def examples(run: Run, answered: Sequence[Answers], most: int = EXAMPLES) -> list[Example]:
    """The pairs of answers to the prompts on which the two models differ most, by D."""
    d = dict(difference.d_per_prompt(run.prompt_rows).select("prompt", "d").iter_rows())
    ranked = sorted(answered, key=lambda one: -d.get(one.prompt, float("-inf")))
    return [_example(one, d.get(one.prompt)) for one in ranked[:most]]


def _example(one: Answers, kl: float | None) -> Example:
    base, tuned = one.base.strip(), one.tuned.strip()
    here, there = parting(base, tuned)
    start = base.find(" ", here - LETTERS // 3) + 1 if here > LETTERS // 2 else 0
    same = ("… " if start else "") + base[start:here]
    return Example(
        prompt=one.prompt,
        asked=_short(one.asked.strip()),
        same=visible(same),
        base=_short(base[here:]),
        tuned=_short(tuned[there:]),
        kl_nats=kl,
    )


def parting(base: str, tuned: str) -> tuple[int, int]:
    """Where in either text the first word starts that is not the other's."""
    here = there = 0
    for one, other in zip(re.finditer(r"\S+\s*", base), re.finditer(r"\S+\s*", tuned), strict=False):
        if one[0].strip() != other[0].strip():
            break
        here, there = one.end(), other.end()
    return here, there


def _short(text: str) -> str:
    """A text in one piece of at most LETTERS letters."""
    return visible(text if len(text) <= LETTERS else text[: text.rfind(" ", 0, LETTERS) + 1 or LETTERS].rstrip() + " …")
