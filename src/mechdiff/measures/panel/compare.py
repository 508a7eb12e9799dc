"""Fine-tunes are compared on the texts of the panel: how far each moves every group, and what of its scores changed."""

import math

from mechdiff.comparison.comparable import Loaded
from mechdiff.comparison.compared import Compared
from mechdiff.measures.panel import findings
from mechdiff.measures.panel.plan import ALSO, GROUPS
from mechdiff.measures.panel.words import RATES, name
from mechdiff.report.parts import Section, note, table
from mechdiff.report.phrasing import decimal, listed, share, shown

TITLE = "What else did each change?"


def axis(of: Compared) -> Section:
    """A line a group, and of each fine-tune its KL there and, where a change was found, which; runs that read no panel are named."""
    known = [run for run in of.runs if not findings.groups(run.content.summary).is_empty()]
    absent = [run for run in of.runs if run not in known]
    parts = [note(f"No panel was read for {listed(run.name for run in absent)}.")] if absent else []
    if known:
        there = {group for run in known for group in findings.groups(run.content.summary)["group"].to_list()}
        groups = [group for group in (*GROUPS, ALSO) if group in there]
        columns = ["texts", *(text for run in known for text in (f"{run.name}: KL(tuned ‖ base), nats", f"{run.name}: changed"))]
        cells = {run.name: _cells(run) for run in known}
        lines = [[name(group), *(text for run in known for text in cells[run.name].get(group, ("–", "–")))] for group in groups]
        title = "By group; what changed beyond chance, each run corrected over its own groups and scores."
        parts.insert(0, table(columns, lines, title=title))
    return Section(id="panel", title=TITLE, parts=parts)


def _cells(run: Loaded) -> dict[str, tuple[str, str]]:
    """Group -> KL with its interval, and the changes that were found."""
    rows, summary = run.content.rows, run.content.summary
    found: dict[str, list[str]] = {}
    for one in findings.changes(rows, summary):
        if one.found:
            what = (
                f"perplexity × {decimal(math.exp(one.change))}"
                if one.score == "loss"
                else f"{RATES[one.score]} {share(one.base)} to {share(one.tuned)}"
            )
            found.setdefault(one.group, []).append(what)
    return {
        r["group"]: (shown(r["kl"], r["low"], r["high"], r["n"]), listed(found.get(r["group"], ["–"])))
        for r in findings.groups(summary).iter_rows(named=True)
    }
