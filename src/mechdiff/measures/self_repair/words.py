"""The page's sentence says whether later blocks undo what one output writes, or add to it."""

import polars as pl

from mechdiff.measures.self_repair import findings
from mechdiff.report.difference import RECOVERY
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import prompts, with_interval

LEAST = 0.01
"""Part of the way under which nothing is spoken of: rounding has a sign too."""


def lead(run: Run) -> list[str]:
    """Where later blocks surely take most off what is written, or add most to it; that nothing was shown, where nothing is sure."""
    found = findings.sites(run.rows).filter("written")
    if found.is_empty():
        return []
    clear = pl.col("direct_low") * pl.col("direct_high") > 0  # else there is nothing by itself to undo or to add to
    sure = found.filter("sure", clear, pl.col("repaired").abs() >= LEAST).sort(
        pl.col("repaired").abs(), descending=True, maintain_order=True
    )
    if sure.is_empty():
        return [
            f"That later blocks undo what the selected layers' outputs write, or add to it, could not be shown ({prompts(found['n'][0])})."
        ]
    return [_said(sure.row(0, named=True), len(found))]


def _said(row: dict, of: int) -> str:
    """One site's parts of the way, each with its interval."""
    runs, whose = ("base", "tuned model") if row["direction"] == RECOVERY else ("tuned model", "base")
    undo = row["repaired"] * row["direct"] > 0
    size = abs(row["repaired"]), *sorted(abs(row[f"repaired_{end}"]) for end in ("low", "high"))
    alone, with_them = _part(row, "direct"), _part(row, "total")
    return (
        f"By itself the {whose}'s {row['name']} moves the {runs} {alone} of the way in logits, and {with_them} with what later blocks do: they "
        f"{'undo' if undo else 'add'} {with_interval(*size, digits=2)} of the way ({prompts(row['n'])}; the largest of {of} "
        "looked at, so somewhat overstated)."
    )


def _part(row: dict, what: str) -> str:
    return with_interval(row[what], row[f"{what}_low"], row[f"{what}_high"], digits=2)
