"""Fine-tunes are compared at one size: each is made larger or smaller until it moves neutral prompts as far as another one does."""

import math

from mechdiff.comparison.comparable import Loaded
from mechdiff.comparison.compared import Compared
from mechdiff.measures.interpolation import findings
from mechdiff.measures.interpolation.findings import GONE, Number, Sized
from mechdiff.report.parts import Section, note, table
from mechdiff.report.phrasing import listed, nats, shown
from mechdiff.rows import where

COLUMNS = (
    "",
    "at the size of",
    "KL on unrelated prompts, nats",
    "strength of its change",
    "KL(base ‖ run) there, nats",
    "D left there, nats",
)


def axis(of: Compared) -> Section:
    """Each fine-tune at the size of each other one. Size is KL(base || tuned) on neutral prompts."""
    known = [run for run in of.runs if findings.moving(run.content.rows) is not None]
    parts = [
        note(
            f"No size is known of {listed(run.name for run in of.runs if run not in known)}: nothing was interpolated on unrelated prompts."
        )
    ]
    parts = parts if len(known) < len(of.runs) else []
    lines = [_line(one, other) for one in known for other in known if one is not other]
    if lines:
        parts.insert(
            0, table(COLUMNS, lines, title="Each change times the strength at which it moves unrelated prompts as far as the other one")
        )
    return Section(id="same_size", title="What does each do at the size of another?", parts=parts)


def _line(one: Loaded, other: Loaded) -> list[str]:
    named = [one.name, other.name]
    if neutral(one) != neutral(other):
        return [*named, "other unrelated prompts", "–", "–", "–"]
    found: Sized | None = findings.at_size_of(one.content.rows, other.content.rows)
    if found is None:
        return [*named, "–", "–", "–", "–"]
    reached = math.isfinite(found.strength.value)
    numbers = [_shown(found.strength, 2), _shown(found.gone), _shown(found.left)] if reached else ["not reached", "–", "–"]
    return [*named, nats(found.size), *numbers]


def _shown(one: Number, decimals: int | None = None) -> str:
    return shown(one.value, one.low, one.high, decimals=decimals)


def neutral(run: Loaded) -> set[str]:
    """The neutral prompts of a run, by what they are called across runs."""
    rows = where(run.content.rows, measure="interpolation", metric=GONE, split="neutral")
    return {run.key("neutral", name) for name in rows["prompt"].unique()}
