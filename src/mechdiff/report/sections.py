"""The sections of the page are made from the run's tables, in the order of its questions. Numbers in, plain text out.

A section whose rows are absent is one sentence that says so.
"""

from dataclasses import replace

from mechdiff.measures.attribution.page import attribution
from mechdiff.measures.behaviour.page import answers
from mechdiff.measures.divergence.page import divergence
from mechdiff.measures.divergence.texts_page import texts
from mechdiff.measures.divergence.tokenizers import tokenizers
from mechdiff.measures.factorial.page import factorial
from mechdiff.measures.grafting.page import grafting
from mechdiff.measures.heads.page import heads
from mechdiff.measures.patching.page import agreement, patching
from mechdiff.measures.rank.page import rank
from mechdiff.measures.similarity.page import similarity
from mechdiff.measures.steering.page import steering
from mechdiff.measures.transport.page import transport
from mechdiff.measures.weights.page import weights
from mechdiff.report import leads as report_leads
from mechdiff.report import spoken, verdict
from mechdiff.report.parts import Run, Section, note
from mechdiff.report.record import trust


def all_sections(run: Run) -> list[Section]:
    """What the run found, in the order of its questions, and how far to trust it; each with what its measure found in words at its head."""
    with spoken.in_measured_words(run.rows):
        return _all_sections(run)


def _all_sections(run: Run) -> list[Section]:
    found = [
        divergence(run),
        texts(run),
        answers(run),
        weights(run),
        grafting(run),
        similarity(run),
        patching(run),
        factorial(run),
        transport(run),
        rank(run),
        steering(run),
        heads(run),
        attribution(run),
        agreement(run),
        tokenizers(run),
        trust(run),
    ]
    leads = report_leads.leads(run.rows, run.summary, run.manifest)
    found[-1] = replace(found[-1], parts=[*found[-1].parts, *_kept_below(run)])
    return [replace(section, lead=leads.get(section.id, [])) for section in found]


def _kept_below(run: Run) -> list[dict]:
    """What did not pass the gates of the verdict, and why."""
    kept = verdict.refused(run.rows, run.summary, run.manifest)
    if not kept:
        return []
    return [
        note("What does not stand at the top of the page, and why (the gates of headlines: docs/STATISTICS.md):"),
        {"kind": "list", "entries": [{"what": "", "why": one} for one in kept]},
    ]
