"""The factorial in words."""

import polars as pl

from mechdiff.report import findings_factorial
from mechdiff.report.findings import Difference
from mechdiff.report.phrasing import nats, with_interval


def early_or_late(rows: pl.DataFrame, summary: pl.DataFrame, found: Difference | None) -> list[str]:
    """Whether lower and upper blocks need each other, or do the same job: said where it is a tenth of D and no chance."""
    for unit in reversed(findings_factorial.units(rows, summary)):
        most = findings_factorial.strongest_interaction(findings_factorial.effects(rows, summary, unit))
        if found is None or most is None or most["q"] is None or most["q"] > 0.05 or abs(most["mean"]) < 0.1 * found.mean:
            continue
        words, side = ("need each other", "more") if most["mean"] > 0 else ("do the same job", "less")
        size, ends = abs(most["mean"]), sorted((abs(most["low"]), abs(most["high"])))
        return [
            f"The tuned blocks up to {most['layer']} and those above {words}: together they bring the base {with_interval(size, *ends)} nats {side} "
            f"than both alone, at the split point where this is largest (q = {nats(most['q'])})."
        ]
    return []
