"""The section on self-repair sets the direct effect of each output beside its total one."""

from typing import Any

from mechdiff.measures.self_repair import findings
from mechdiff.report.difference import RECOVERY
from mechdiff.report.parts import Run, Section, note, table
from mechdiff.report.phrasing import nats, shown

TITLE = "Do later blocks undo what an output writes?"
HOW = (
    "Direct: the other model's output is patched in, and all later outputs of attention and MLPs stay what they were, so that it reaches the logits "
    "through the residual stream alone. Total: they compute on. Undone is the difference: above 0 later blocks take off what was patched in "
    "(self-repair), below 0 they add to it. It misleads where the final norm, which is computed anew, divides a longer stream by more."
)


def self_repair(run: Run) -> Section:
    """The section; a note with the reason where it was not measured."""
    found = findings.sites(run.rows)
    if found.is_empty():
        return Section(id="self_repair", title=TITLE, parts=[note(f"Direct effects were not measured{run.why_not('self_repair')}.")])
    lines = [
        [
            row["name"],
            "the base" if row["direction"] == RECOVERY else "the tuned model",
            *(shown(row[what], row[f"{what}_low"], row[f"{what}_high"], row["n"], digits=2) for what in ("direct", "total", "repaired")),
            _tested(row),
            "yes" if row["sure"] else "no",
        ]
        for row in found.iter_rows(named=True)
    ]
    columns = ["output", "runs", "direct", "total", "undone by later blocks", "p", "after Holm over all"]
    return Section(id="self_repair", title=TITLE, parts=[table(columns, lines, title="Parts of the way in logits"), note(HOW)])


def _tested(row: dict[str, Any]) -> str:
    """The p of what later blocks undo, or why there is none."""
    if row["written"] is None:
        return "not defined"
    return "both write the same" if not row["written"] else "not tested" if row["p"] is None else nats(row["p"])
