"""The sections of the page are made from the run's tables, in the order of its questions. Numbers in, plain text out.

A section whose rows are absent is one sentence that says so.
"""

from collections.abc import Mapping
from dataclasses import replace

from mechdiff.report import difference, headlines, spoken, verdict
from mechdiff.report.difference import Difference
from mechdiff.report.parts import Chapter, Run, Section, State, is_absent, note
from mechdiff.report.phrasing import said_once
from mechdiff.report.record import how_sure, trust


def all_sections(run: Run, chapters: Mapping[str, Chapter]) -> list[Section]:
    """What the run found, in the order of its questions, and how far to trust it; each with what its measure found in words at its head."""
    with spoken.in_measured_words(run.rows):
        ready = computed(run, chapters)
        made = {name: (_of_chapter if name in ready else _of_waiting)(run, chapter) for name, chapter in chapters.items()}
        placed = [(section.place or chapters[name].place, section) for name, sections in made.items() for section in sections]
        return [*(section for _, section in sorted(placed, key=lambda one: one[0])), _trust(run, ready)]


def computed(run: Run, chapters: Mapping[str, Chapter]) -> Mapping[str, Chapter]:
    """The chapters that a run that is not finished has all of; of a finished run all."""
    waits = run.manifest.get("waits")
    return {name: chapter for name, chapter in chapters.items() if name not in waits} if waits else chapters


def lead(run: Run, chapter: Chapter) -> list[str]:
    """A measure's numbers in words. Where the two models do not differ, or there is no D to take shares of, most measures have nothing to say."""
    found = difference.difference(run.rows, run.summary)
    there = found is None or {"nothing": True, "effect": found.counts, "shares": found.divides}[chapter.needs]
    return said_once(chapter.lead(run) if there else chapter.over_answers(run))


def _of_chapter(run: Run, chapter: Chapter) -> list[Section]:
    first, *others = (make(run) for make in chapter.sections)
    first = replace(first, lead=lead(run, chapter))
    found = difference.difference(run.rows, run.summary)
    differs = found is None or found.counts
    beside = [replace(one, state="effect" if differs else "none") if one.lead and not one.state else one for one in others]
    return [first if first.state or is_absent(first) else replace(first, state=_state(run, chapter, first, found)), *beside]


def _of_waiting(run: Run, chapter: Chapter) -> list[Section]:
    return [replace(make(run), lead=[], parts=[note("Not computed yet.")], state="waits") for make in chapter.sections]


def _state(run: Run, chapter: Chapter, section: Section, found: Difference | None) -> State:
    """Whether a chapter that was measured found something."""
    if chapter.shows:
        return "effect" if chapter.shows(run) else "none"
    shares = chapter.clause_of < verdict.OF_SHARES or found is None or found.divides
    said = chapter.clause(run) if shares else chapter.clause_over_answers(run)
    passed = any(headlines.admit(one) is None for one in said) if said else bool(section.lead)
    return "effect" if passed else "none"


def _trust(run: Run, chapters: Mapping[str, Chapter]) -> Section:
    """How far to trust the rest, and what did not pass the gates of the verdict, with the reason."""
    section = trust(run)
    said = how_sure(difference.difference(run.rows, run.summary), run.manifest)
    return replace(section, lead=said, parts=[*section.parts, *_kept_below(run, chapters)])


def _kept_below(run: Run, chapters: Mapping[str, Chapter]) -> list[dict]:
    kept = verdict.refused(run, chapters)
    if not kept:
        return []
    return [
        note("What does not stand at the top of the page, and why (the gates of headlines: docs/STATISTICS.md):"),
        {"kind": "list", "entries": [{"what": "", "why": one} for one in kept]},
    ]
