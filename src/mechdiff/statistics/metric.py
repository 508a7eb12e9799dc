"""A measure declares its metrics here: what statistics and a second computation must know of a number and cannot see in it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import polars as pl

from mechdiff import shares
from mechdiff.rows import OVERLAP, WITHOUT


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric of a measure's rows."""

    name: str
    unit: Literal["nats", "logits", "bits", "share", "count", "ratio"]
    floor: Literal["own", "other", "either", "size", "zero"] | None = None
    """What is held against which noise floor.

    own: the mean, a distance from the running model's own distribution, against that model's floor.
    other: how far the mean is from D (or its reverse), which it is without an edit, against that model's floor.
    size: the mean without its sign, against that model's floor.
    either: the mean, a distance between the two models, against the larger of both floors.
    zero: the mean against 0, where no unedited run is scored by it.
    """
    share: Literal["breakage", "recovery"] | None = None
    """How its mean becomes a share of D."""
    drops: bool = False
    """Whether what other conditions leave of it is held against the identity condition's at the same place."""
    signed: bool = False
    """Whether either sign means something: then the smallest mean that would have been seen is given."""
    binary: bool = False
    """Whether it is 0 or 1 on a prompt: then its interval is Wilson's."""
    tested: bool = False
    """Whether its mean is a difference between runs on the same prompts, which is tested against 0: then there is a p."""
    terms: int = 1
    """Scores that it is a sum of: it strays by rounding so many times as far as one of them."""
    nearer: Literal["higher", "lower"] | None = None
    """Which way a permuted pairing is nearer: then there is a p."""
    undefined: Literal["undefined", "same_top_token"] = "undefined"
    """The flag where it has no value."""


def metrics(*names: str, unit: Literal["nats", "logits", "bits", "share", "count", "ratio"], nearer: Literal["higher", "lower"] | None = None,
            binary: bool = False, signed: bool = False) -> tuple[Metric, ...]:  # fmt: skip
    """Several metrics of one kind."""
    return tuple(Metric(name=name, unit=unit, nearer=nearer, binary=binary, signed=signed) for name in names)


def of_edited_runs(*, drops: bool = False, answers: bool = False) -> tuple[Metric, ...]:
    """What every edited run is scored by; `drops`: where the other model's state is mapped before it is written; `answers`: also over answers."""
    return (
        *(Metric(name=name, unit="nats", floor="own", share="breakage", drops=drops) for name in shares.OWN),
        *(Metric(name=name, unit="nats", floor="own") for name in shares.OWN_JS),
        Metric(name=shares.OTHER, unit="nats", floor="other", share="recovery"),
        Metric(name=OVERLAP, unit="nats", floor="size"),
        Metric(name="top1_same", unit="share", binary=True),
        Metric(name="logit_diff_divergent", unit="logits", signed=True, undefined="same_top_token"),
        *(one for what in shares.OVER if answers for one in _over_answers(what)),
    )


def _over_answers(what: str) -> tuple[Metric, ...]:
    undefined: Literal["undefined", "same_top_token"] = "same_top_token" if what == shares.DIVERGENT else "undefined"
    return (
        Metric(name=shares.own(shared=False, what=what), unit="nats", floor="own", share="breakage", undefined=undefined),
        Metric(name=shares.over(shares.OTHER, what), unit="nats", floor="other", share="recovery", undefined=undefined),
        Metric(name=shares.over(OVERLAP, what), unit="nats", floor="size", undefined=undefined),
        Metric(name=shares.over(shares.LOG_RATIO, what), unit="nats", signed=True, undefined=undefined),
    )


Refine = Callable[[pl.DataFrame, pl.DataFrame], pl.DataFrame]
"""(summary, rows) to the summary with what only the measure knows."""


def as_it_is(summary: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """The summary, unchanged."""
    return summary


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What statistics read of a measure."""

    metrics: tuple[Metric, ...]
    edited: bool = False
    """Whether all its rows are of runs with an edit, so that none says anything where there is no D."""
    refine: Refine = as_it_is
    """Floors and intervals that are not those of a mean over prompts."""


FACTS: dict[str, type[pl.DataType]] = {
    "in_nats": pl.Boolean,
    "floor_of": pl.String,
    "share_of": pl.String,
    "drops": pl.Boolean,
    "signed": pl.Boolean,
    "binary": pl.Boolean,
    "tested": pl.Boolean,
    "nearer": pl.String,
    "undefined_as": pl.String,
    "edited": pl.Boolean,
}
"""What is declared of a metric, as columns."""


def facts(numbers: Mapping[str, Numbers]) -> pl.DataFrame:
    """`measure metric` of every metric and of its delete-one values, and FACTS of each."""
    lines = [line for measure, one in numbers.items() for metric in one.metrics for line in _lines(measure, metric, edited=one.edited)]
    return pl.DataFrame(lines, schema={"measure": pl.String, "metric": pl.String, **FACTS}, orient="row")


def terms(numbers: Mapping[str, Numbers]) -> dict[tuple[str, str], int]:
    """Scores that a metric is a sum of, by (measure, metric)."""
    return {(measure, metric.name): metric.terms for measure, one in numbers.items() for metric in one.metrics}


def refuse_undeclared(rows: pl.DataFrame, of: pl.DataFrame) -> None:
    """Raises KeyError where rows have a metric that `of`, the facts, do not know: it would have no share and no floor, and nobody would be told."""
    unknown = rows.select("measure", "metric").unique().join(of, on=["measure", "metric"], how="anti").sort("measure", "metric")
    if len(unknown):
        names = ", ".join(f"{measure}: {metric}" for measure, metric in unknown.iter_rows())
        raise KeyError(f"metrics that no measure declares ({names}): `numbers` of its measure.py says what statistics must know of them")


def _lines(measure: str, one: Metric, *, edited: bool) -> Iterable[tuple[object, ...]]:
    said = (one.unit == "nats", one.floor, one.share, one.drops, one.signed, one.binary, one.tested, one.nearer, one.undefined, edited)
    yield (measure, one.name, *said)
    yield (measure, one.name + WITHOUT, False, None, None, False, False, False, False, None, "undefined", edited)
