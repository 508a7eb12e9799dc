"""The verdict has at most five sentences, one for each question of a study, each computed from the run's tables and true of them.

1. Do they behave differently?  2. Which weights changed, and which module's change matters?  3. Where does it matter?
4. Can a map carry it, how many dimensions has it, does it obey?  5. Which heads carry it?

Every clause is a candidate, and only those that pass all gates of `headlines` are spoken. Where D is not above the noise floor there is no effect on
the next token to take shares of: then the first two are all there is, but for what is said of whole answers. What each measure found beside this
stands at the head of its section (`sections.lead`).
"""

from collections.abc import Mapping

from mechdiff.report import difference, headlines, spoken
from mechdiff.report.headlines import Candidate
from mechdiff.report.parts import Chapter, Run
from mechdiff.report.phrasing import said_once
from mechdiff.statistics.memory import once

SENTENCES = (1, 2, 3, 4, 5)
OF_SHARES = 3
"""From this sentence on all are of shares of D."""


def verdict(run: Run, chapters: Mapping[str, Chapter]) -> list[str]:
    """At most five sentences with their intervals; fewer where measures were left out, or where there is no effect to explain."""
    return said_once(sentence for clauses in candidates(run, chapters) if (sentence := headlines.sentence(clauses)))


def refused(run: Run, chapters: Mapping[str, Chapter]) -> list[str]:
    """What might have stood in the verdict and did not pass a gate, each with its reason."""
    return said_once(text for clauses in candidates(run, chapters) for text in headlines.refused(clauses))


@once
def candidates(run: Run, chapters: Mapping[str, Chapter]) -> list[list[Candidate]]:
    """What might be said, a list for each of the five sentences: the clauses of its measures, in the order of the page."""
    found = difference.difference(run.rows, run.summary)
    ordered = sorted(chapters.values(), key=lambda chapter: chapter.place)

    def clauses(chapter: Chapter, number: int) -> list[Candidate]:
        there = number < OF_SHARES or found is None or found.divides
        return chapter.clause(run) if there else chapter.clause_over_answers(run)

    with spoken.in_measured_words(run.rows):
        return [[one for chapter in ordered if chapter.clause_of == number for one in clauses(chapter, number)] for number in SENTENCES]
