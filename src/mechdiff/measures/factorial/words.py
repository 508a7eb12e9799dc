"""Do lower and upper layers build on each other, or are they redundant?"""

import numpy as np
import polars as pl

from mechdiff import terms
from mechdiff.measures.divergence.words import whose
from mechdiff.measures.factorial import findings
from mechdiff.measures.factorial.findings import Halves, Interaction, over_answer, where_exchanged
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import nats, with_interval
from mechdiff.statistics import intervals

SURE = 0.05
LEAST = 0.1
"""Part of what both halves bring together under which an interaction is not spoken of."""


def lead(run: Run) -> list[str]:
    """Where lower and upper layers build on each other."""
    return [*early_or_late(run.rows, run.summary), *over_base(run)]


def over_base(run: Run) -> list[str]:
    """The same over the base's answers, where both models' were read."""
    one = run.over_base
    if one is None:
        return []
    answered = [unit for unit in findings.units(one.rows, one.summary) if over_answer(unit)]
    return [f"Over {whose(one)}: {said}" for said in _spoken(one.rows, answered)]


def early_or_late(rows: pl.DataFrame, summary: pl.DataFrame) -> list[str]:
    """Where lower and upper layers build on each other, or are redundant: in a linear score, a tenth of the whole at least, and no chance."""
    return _spoken(rows, findings.units(rows, summary))


def _spoken(rows: pl.DataFrame, units: list[str | None]) -> list[str]:
    known = [(unit, one) for unit in units if (one := findings.interaction(rows, unit)) is not None]
    if not known:
        return []
    p = intervals.holm(np.array([one.p for _, one in known]))
    return [f"{_said(one, unit)}." for (unit, one), sure in zip(known, p, strict=True) if sure <= SURE and _counts(one)]


def _counts(one: Interaction) -> bool:
    """Large enough, and with an interval on one side of 0, as its p has it."""
    return abs(one.mean) >= LEAST * one.whole > 0 and one.low * one.high > 0


def _said(one: Interaction, unit: str | None) -> str:
    words = "build on each other" if one.mean > 0 else "are partly redundant"
    in_words = ("nats" if one.score == "linear_nats" else "logits") + " per token" * over_answer(unit)
    size = f"interaction {with_interval(one.mean, one.low, one.high)} of {nats(one.whole)} {in_words}"
    return f"Layers 0 to {one.layer} and those above {words} (activations exchanged at {where_exchanged(unit)}: {size}; {how_chosen(one)})"


def how_chosen(one: Interaction) -> str:
    """How the split point was chosen, and what that asks of the interval."""
    if one.selected_on:
        return f"split point selected on the {terms.of_split(one.selected_on)} prompts"
    return f"the largest of {one.candidates} split points, with a band and p for all of them"


def which_half(found: Halves | None) -> str:
    """Where one half surely does more than the other."""
    if found is None:
        return "too few prompts to say which half does more"
    said = [f"the lower half does more from L = {found.lower_from} on"] if found.lower_from is not None else []
    said += [f"the upper half does more up to L = {found.upper_until}"] if found.upper_until is not None else []
    return f"{', '.join(said)} (95 % band over all split points)" if said else "at no end does one half surely do more than the other"
