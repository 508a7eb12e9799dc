"""A quantity is one number of one run, made from effects on each prompt."""

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy import ndarray

from mechdiff.comparison.effects import Table
from mechdiff.report.phrasing import nats
from mechdiff.statistics import simulated, spread
from mechdiff.statistics.spread import Estimate


@dataclass(frozen=True, kw_only=True)
class Main:
    """A number that runs are compared in first: the differences of all such numbers are one family of tests (`contrasts`), and `local` draws them."""

    axis: str
    name: str
    of: Literal["parts", "directions"]
    """Over how many of what it says that a change is spread."""
    noun: str = ""
    """What the summary calls it; empty: no sentence is made of it."""
    leads: bool = False
    """Whether it says which change is more distributed, or takes more directions; where several do, the first that all runs have."""

    @property
    def key(self) -> tuple[str, str]:
        return self.axis, self.name


@dataclass(frozen=True, kw_only=True)
class Plain:
    """What a difference in a number is called for a reader of a minute."""

    says: str
    """Of two runs, with {high} and {low} for their names, {a} and {b} for their numbers, {times} for how many times the one is the other."""
    order: str
    """Of several runs: "How much the next token changes, nats"."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One number of one run."""

    axis: str
    name: str
    estimate: Estimate
    unit: str
    parts: int | None = None
    """Parts available, where it is a number of parts."""
    null: tuple[float, float, float] | None = None
    """What an effect that all parts share alike would give: mean and middle 95 %."""
    nothing: tuple[float, float, float] | None = None
    """What this noise alone would give, with no effect anywhere: mean and middle 95 %."""
    silent: str = ""
    """Why no sentence may be made of it (`spread.silence`)."""
    where: str = ""
    """The place or choice that it is of, such as a site."""
    layer: int | None = None
    beyond: bool = False
    """Whether a threshold was not passed at any place that was measured: the value is one behind the last."""
    draws: ndarray | None = field(default=None, repr=False)
    """Bootstrap draws of a number that is no smooth one, such as a layer."""
    main: Main | None = None
    """Of a main number, what makes it one."""
    plain: Plain | None = None
    """Its words in the first sentences of a comparison; None: it has none there."""

    @property
    def key(self) -> tuple[str, str]:
        return self.axis, self.name

    def of_available(self) -> "Quantity":
        """The same as a share of the parts that there are, for runs on different bases."""
        assert self.parts
        own, parts = self.estimate, self.parts
        contributions = own.contributions / (parts**0.5 if own.rooted else parts)
        scaled = replace(own, value=own.value / parts, low=own.low / parts, high=own.high / parts, contributions=contributions)
        null, nothing = (None if one is None else (one[0] / parts, one[1] / parts, one[2] / parts) for one in (self.null, self.nothing))
        draws = None if self.draws is None else self.draws / parts
        unit = "share of depth" if self.unit == "layer" else "share of parts"
        return replace(self, estimate=scaled, unit=unit, null=null, nothing=nothing, draws=draws)


def number(axis: str, name: str, of: Table, *, parts: int | None = None, null: bool = False, where: str = "") -> Quantity:
    """The effective number of parts of some effects."""
    measured = of.values.shape[1]
    parts = parts or measured
    estimate = spread.number_of_parts(of.values, of.prompts, parts=parts)
    drawn = null and measured > 1 and len(of.prompts) > 1
    even, nothing = (spread.evened(of.values), spread.nothing(of.values)) if drawn else (None, None)
    silent = spread.silence(of.values, skew=float(simulated.cv_of(of.total[:, None])[0]))
    return Quantity(
        axis=axis, name=name, estimate=estimate, unit="parts", parts=parts, null=even, nothing=nothing, silent=silent, where=where
    )  # fmt: skip


def exact(value: float) -> Estimate:
    """A number that no prompt moves."""
    return Estimate(value=value, low=value, high=value)


def ratio(part: ndarray, whole: ndarray, prompts: list[str]) -> Estimate:
    """A share: the mean of `part` over that of `whole`, on the same prompts."""
    return spread.estimate(np.column_stack([part, whole]), share_of, prompts)


def share_of(means: ndarray) -> ndarray:
    """The first columns' means over the last one's."""
    found = means[..., :-1] / means[..., -1:]
    return np.asarray(found[..., 0] if found.shape[-1] == 1 else found)


def mean_of(means: ndarray) -> ndarray:
    return np.asarray(means[..., 0])


def crossing(axis: str, name: str, of: Table, places: list[float], unit: str, *, threshold: float) -> Quantity:
    """The first place whose effect passes a share of D, and its 95 % set by bootstrap; `places` has one more than the parts, behind the last."""
    order = np.argsort(of.prompts)  # by their names across runs, so that two runs of the same prompts have the same resamples
    point, draws = spread.crossings(of.values[order], of.total[order], threshold=threshold)
    drawn = np.array(places, dtype=float)[draws]
    low, high = (float(end) for end in np.quantile(drawn, [0.025, 0.975], method="nearest"))
    at = float(places[point])
    found = Estimate(value=at, low=min(low, at), high=max(high, at), prompts=tuple(of.prompts))
    return Quantity(axis=axis, name=name, estimate=found, unit=unit, parts=len(of.names), beyond=point == len(of.names), draws=drawn)


def by_divergence(axis: str, name: str, of: Table, *, parts: int | None = None) -> Quantity:
    """A number of parts by shares of D, beside the D that it is of: at another D of the same fine-tune it is another number."""
    return number(axis, name, of, parts=parts, where=f"at D = {nats(float(of.total.mean()))}")
