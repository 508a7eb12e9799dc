"""One tidy table gives every number of every run beside the others', and the difference of each two runs.

Differences of the main numbers (`quantity.Main`) are a family: q (Benjamini-Hochberg over these numbers and all pairs of runs) is what a claim needs
under 0.05, beside an interval that leaves 0 out. The other numbers are for looking, and have no q.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import polars as pl
from scipy.stats import false_discovery_control

from mechdiff.comparison.quantity import Quantity
from mechdiff.statistics import spread
from mechdiff.statistics.spread import Contrast

ALPHA = 0.05
WORTH = 1.5
"""A number of parts is called higher where it is this many times the other; a difference that is certain can still be small."""

SCHEMA = {
    "axis": pl.String, "run": pl.String, "against": pl.String, "quantity": pl.String, "layer": pl.Int64, "value": pl.Float64, "low": pl.Float64,
    "high": pl.Float64, "p": pl.Float64, "q": pl.Float64, "smallest": pl.Float64, "n": pl.String, "unit": pl.String, "where": pl.String,
}  # fmt: skip
"""Columns of compare.parquet. `against` null: a run's own number; else the difference `run` - `against`, and the `smallest` one that would
have been found with 80 % probability, by q where there is one."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One number of two runs."""

    key: tuple[str, str]
    one: str
    other: str
    values: tuple[float, float]
    contrast: Contrast
    q: float | None
    silent: str = ""
    """Why no sentence may be made of it; empty where one may."""

    @property
    def apart(self) -> bool:
        """Whether the two can be told apart."""
        found = self.contrast
        return (found.low > 0 or found.high < 0) and (self.q is None or self.q <= ALPHA)

    @property
    def higher(self) -> str | None:
        """The run whose number of parts is higher, and by enough to speak of; None where that cannot be said."""
        if self.silent or not self.apart or max(self.values) < WORTH * min(self.values):
            return None
        return self.one if self.contrast.value > 0 else self.other


def pairs(found: Mapping[str, Sequence[Quantity]]) -> list[Pair]:
    """The difference of each two runs in every number that both have and that has a scatter, in the order of the numbers."""
    by_key = {run: {one.key: one for one in numbers} for run, numbers in found.items()}
    keys = list(dict.fromkeys(key for numbers in by_key.values() for key in numbers))
    held = []
    for key in keys:
        for one, other in combinations(found, 2):
            if key in by_key[one] and key in by_key[other] and (made := _contrast(by_key[one][key], by_key[other][key])) is not None:
                held.append((key, one, other, (by_key[one][key].estimate.value, by_key[other][key].estimate.value), made))
    main = [i for i, (key, one, *_) in enumerate(held) if by_key[one][key].main]
    for i in main:
        key, one, other, values, made = held[i]
        held[i] = (key, one, other, values, _as_one_of(made, len(main), by_key[one][key], by_key[other][key]))
    q = dict(zip(main, false_discovery_control(np.array([held[i][4].p for i in main])), strict=True)) if main else {}
    return [
        Pair(
            key=key,
            one=one,
            other=other,
            values=values,
            contrast=made,
            q=float(q[i]) if i in q else None,
            silent=by_key[one][key].silent or by_key[other][key].silent,
        )
        for i, (key, one, other, values, made) in enumerate(held)
    ]


def _contrast(one: Quantity, other: Quantity) -> Contrast | None:
    """None where a threshold was not passed in a run: "more than 2" less "more than 2" is no difference of 0."""
    if one.beyond or other.beyond:
        return None
    if one.draws is not None and other.draws is not None:
        n, same = (one.estimate.n, other.estimate.n), set(one.estimate.prompts) == set(other.estimate.prompts)
        return spread.contrast_of_draws(one.draws, other.draws, (one.estimate.value, other.estimate.value), n, paired=same)
    return spread.contrast(one.estimate, other.estimate)


def _as_one_of(made: Contrast, tests: int, one: Quantity, other: Quantity) -> Contrast:
    """The same, with the smallest difference that q would have found had it been the only one among so many tests."""
    strict = spread.contrast(one.estimate, other.estimate, level=1 - ALPHA / tests)
    return made if strict is None or made.smallest != made.smallest else replace(made, smallest=strict.smallest)


def relative(found: Mapping[str, Sequence[Quantity]]) -> dict[str, list[Quantity]]:
    """What runs on different bases have in common: parts as shares of those there are, places as shares of depth, and ranks as they are."""
    return {run: [made for one in numbers if (made := _without_unit(one)) is not None] for run, numbers in found.items()}


def _without_unit(one: Quantity) -> Quantity | None:
    if one.main and one.main.of == "directions":
        return one
    return one.of_available() if one.parts and (one.main or one.unit == "layer") else None


def tidy(found: Mapping[str, Sequence[Quantity]], held: Sequence[Pair]) -> pl.DataFrame:
    """All of it, one number a row."""
    own = [
        (one.axis, run, None, one.name, one.layer, one.estimate.value, _end(one.estimate.low), _end(one.estimate.high), None, None, None,
         str(one.estimate.n) if one.estimate.n else None, one.unit, one.where or None)
        for run, numbers in found.items()
        for one in numbers
    ]  # fmt: skip
    units = {one.key: one.unit for numbers in found.values() for one in numbers}
    differences = [
        (pair.key[0], pair.one, pair.other, pair.key[1], None, pair.contrast.value, pair.contrast.low, pair.contrast.high, pair.contrast.p, pair.q,
         _end(pair.contrast.smallest), said_n(pair.contrast), units[pair.key], "paired" if pair.contrast.paired else "unpaired")
        for pair in held
    ]  # fmt: skip
    return pl.DataFrame([*own, *differences], schema=SCHEMA, orient="row")


def tidy_profiles(along: pl.DataFrame) -> pl.DataFrame:
    """Shares of D along the layers, or their differences (`profiles.SCHEMA`), as rows of the same table; the intervals are simultaneous bands."""
    told = {"axis": pl.lit("where"), "run": pl.col("line"), "quantity": pl.format("share of D, {}", "panel"), "unit": pl.lit("share of D")}
    told |= {"where": pl.lit("simultaneous band")}
    empty = {name: pl.lit(None, kind) for name, kind in SCHEMA.items() if name not in along.columns and name not in told}
    return along.with_columns(**told, **empty).select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())


def _end(value: float) -> float | None:
    return None if value != value else value


def said_n(found: Contrast) -> str:
    return str(found.n[0]) if found.paired else f"{found.n[0]} and {found.n[1]}"
