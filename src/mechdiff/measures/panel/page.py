"""The section on the panel shows each group of texts: how far apart the two models are there, and what changed of its scores."""

import math

from mechdiff.measures.panel import findings
from mechdiff.measures.panel.charts import kl_by_group
from mechdiff.measures.panel.findings import Change
from mechdiff.measures.panel.words import ON_BOTH, name
from mechdiff.report.parts import Drawn, Run, Section, note, table
from mechdiff.report.phrasing import decimal, nats, share, shown
from mechdiff.statistics.floors import FLOORS

TITLE = "What else changed?"
COLUMNS = (
    "texts",
    "n",
    "KL(tuned ‖ base), nats a position",
    "same top-1 token",
    "loss, nats per token: tuned less base",
    "perplexity ×",
    "right answers",
    "refusals",
)
NOT_MEASURED = "What changed outside the study's prompts was not measured: add `panel` to the study's measures."


def panel(run: Run) -> Section:
    """The section; a note where it was not measured, with the reason where there is one."""
    found = findings.groups(run.summary)
    if found.is_empty():
        why = run.why_not("panel")
        return Section(id="panel", title=TITLE, parts=[note(f"The panel was not read{why}." if why else NOT_MEASURED)])
    n = int(found["n"].sum())
    both = ON_BOTH if findings.on_shared(run.summary) else ""
    caption = (
        f"{n} texts of {len(found)} groups: KL(tuned ‖ base) of the next token{both}, as each text's mean over its "
        "positions (of a prompt with options, and of a request, the last position alone). Black: the group's mean and 95 % interval over texts."
    )
    figure = Drawn(name="kl_by_group", chart=kl_by_group, caption=caption, reading="kl_by_group")
    return Section(id="panel", title=TITLE, parts=[figure, _groups(run)])


def _groups(run: Run) -> dict:
    changed = {(one.group, one.score): one for one in findings.changes(run.rows, run.summary)}
    lines = []
    for r in findings.groups(run.summary).iter_rows(named=True):
        group = r["group"]
        loss = changed.get((group, "loss"))
        quiet = " (not above three times the numerical noise)" if r["floor"] is not None and r["kl"] <= FLOORS * r["floor"] else ""
        lines.append(
            [
                name(group), str(r["n"]), f"{shown(r['kl'], r['low'], r['high'], r['n'])}{quiet}",
                shown(r["top1"], r["top1_low"], r["top1_high"], r["n"], digits=2),
                _loss(loss), _perplexity(loss), *(_rate(changed.get((group, score))) for score in ("right", "refusal")),
            ]
        )  # fmt: skip
    title = "Each group. p: family-wise over all groups and scores (Holm); no p, no test: too few texts."
    return table(COLUMNS, lines, title=title)


def _p(one: Change) -> str:
    return "" if math.isnan(one.p) else f"; p = {nats(one.p)}"


def _loss(one: Change | None) -> str:
    if one is None:
        return "–"
    return f"{shown(one.change, one.low, one.high, one.n)}{_p(one)}"


def _perplexity(one: Change | None) -> str:
    return "–" if one is None else decimal(math.exp(one.change))


def _rate(one: Change | None) -> str:
    return "–" if one is None else f"{share(one.base)} to {share(one.tuned)}{_p(one)}"
