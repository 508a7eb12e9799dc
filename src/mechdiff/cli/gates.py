"""A gate is a condition on a number of a run under which a build fails: `--fail-on "panel.everyday.kl>0.05"`.

    MEASURE.METRIC>NUMBER     MEASURE.GROUP.METRIC<NUMBER     also >=, <=; .value, .low or .high at the end of the name

The number is the one that the page has, with its 95 % interval. Compared is the end of the interval that lies nearer to the failure (for > the upper,
for < the lower), so that a gate passes only where the whole interval does, and few prompts do not make it pass; `.value`, `.low` and `.high` choose
otherwise. Without an interval (too few prompts) the value itself is compared. What was not measured fails.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from mechdiff.errors import StudyError
from mechdiff.study.document import nearest

if TYPE_CHECKING:
    from mechdiff.api import Run

End = Literal["value", "low", "high"]
SIGNS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
FORM = re.compile(r"\s*([\w.]+?)(?:\.(value|low|high))?\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*", re.IGNORECASE)
OTHERWISE = {"everyday": "chat"}
"""Groups of the panel by another name."""
OVERALL = {"kl": "kl", "top1": "top1_same"}
"""What the panel says over all its groups."""
ONE = ("control", "arm", "rank", "strength", "layer", "site", "direction")
"""Columns of the summary that a number of the pair as a whole leaves empty."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One condition as it was asked for."""

    asked: str
    name: str
    sign: str
    limit: float
    end: End
    """Which number is compared."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A number of a run."""

    value: float
    low: float | None
    high: float | None
    n: int | None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a gate found."""

    gate: str
    name: str
    failed: bool
    said: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    compared: End | None = None
    """None: there was nothing to compare."""
    limit: float | None = None

    def data(self) -> dict[str, Any]:
        return asdict(self)


def gates_of(asked: Sequence[str] | None) -> list[Gate]:
    """The conditions of `--fail-on`. Raises StudyError for what is none, or asks for a measure that there is not."""
    from mechdiff.measures.catalogue import EXPERIMENTS

    gates = []
    for one in asked or ():
        found = FORM.fullmatch(one)
        if found is None:
            raise StudyError(f'--fail-on: given {one!r}, expected NAME>NUMBER or NAME<NUMBER, such as "panel.everyday.kl>0.05".')
        name, end, sign, limit = found.groups()
        measure = name.partition(".")[0]
        if measure not in EXPERIMENTS:
            raise StudyError(f"--fail-on: {measure!r} is no measure. There are: {', '.join(EXPERIMENTS)}.{nearest(measure, EXPERIMENTS)}")
        end = end or ("high" if ">" in sign else "low")
        gates.append(Gate(asked=one.strip(), name=_plain(name), sign=sign, limit=float(limit), end=cast(End, end)))
    return gates


def _plain(name: str) -> str:
    return ".".join(OTHERWISE.get(part, part) for part in name.split("."))


def refuse_unmeasured(gates: Sequence[Gate], measures: Mapping[str, Any]) -> None:
    """Raises StudyError, before anything is computed, where a gate asks for a measure that the study leaves out."""
    for one in gates:
        if (measure := one.name.partition(".")[0]) not in measures:
            raise StudyError(f"--fail-on {one.asked}: this study does not measure {measure}. It measures: {', '.join(measures)}.")


def checked(gates: Sequence[Gate], run: "Run") -> list[Verdict]:
    """What each gate finds in a run. Raises StudyError, with the names that there are, for a name that a measure of the run does not have."""
    if not gates:
        return []
    numbers = measured(run)
    return [_checked(one, numbers, {str(name) for name in run.rows()["measure"].unique()}) for one in gates]


def _checked(gate: Gate, numbers: Mapping[str, Measured], there: set[str]) -> Verdict:
    measure = gate.name.partition(".")[0]
    found = numbers.get(gate.name)
    if found is None and measure in there:
        own = [name for name in numbers if name.startswith(f"{measure}.")]
        raise StudyError(
            f"--fail-on {gate.asked}: this run has no {gate.name}.{nearest(gate.name, own)} It has: {', '.join(own) or 'none'}."
        )
    if found is None or found.value != found.value:
        why = "not measured in this run" if found is None else "it is undefined in this run"
        return Verdict(gate=gate.asked, name=gate.name, failed=True, said=why, limit=gate.limit)
    number, end = getattr(found, gate.end), gate.end
    if number is None:
        number, end = found.value, "value"
    failed = SIGNS[gate.sign](number, gate.limit)
    what = {"value": "the value", "low": "the lower end", "high": "the upper end"}[end]
    few = "" if found.low is not None or gate.end == "value" else " (no interval: too few prompts)"
    said = f"{what}{few} {number:.4g} is {'' if failed else 'not '}{gate.sign} {gate.limit:g}"
    return Verdict(gate=gate.asked, name=gate.name, failed=failed, said=said, compared=end, limit=gate.limit, **asdict(found))


def measured(run: "Run") -> dict[str, Measured]:
    """Every number of a run that a gate can name: of the pair as a whole, on the test prompts, the panel and the probes."""
    import polars as pl

    from mechdiff.measures.panel import findings as panel
    from mechdiff.report.difference import reported
    from mechdiff.shares import BETWEEN

    rows, summary = run.rows(), run.summary()
    whole = summary.filter(*(pl.col(name).is_null() for name in ONE))
    found: dict[str, Measured] = {}
    for measure in whole["measure"].unique(maintain_order=True):
        split = reported(rows, measure)
        mine = whole.filter(pl.col("measure") == measure, pl.col("split").is_null() | pl.col("split").eq_missing(split))
        for row in mine.iter_rows(named=True):
            if (name := _name(row, BETWEEN["base"])) and name not in found:
                found[name] = Measured(value=row["mean"], low=row["ci_low"], high=row["ci_high"], n=row["n"])
    for name, (value, low, high, n) in panel.overall(rows).items():
        found[f"panel.{OVERALL[name]}"] = Measured(value=value, low=low, high=high, n=n)
    return dict(sorted(found.items()))


def _name(row: Mapping[str, Any], kl: Sequence[str]) -> str | None:
    """ "divergence.kl", "panel.chat.top1_same", "behaviour.tuned.refusal"; None: of a unit that has no plain name."""
    unit = str(row["unit"] or "").removeprefix("texts: ")
    if unit and not re.fullmatch(r"\w+", unit):
        return None
    metric = "kl" if row["metric"] in kl else str(row["metric"]).removesuffix("_nats")
    return ".".join(part for part in (row["measure"], unit, metric) if part)
