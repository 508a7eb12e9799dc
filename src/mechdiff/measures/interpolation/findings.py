"""The numbers on interpolation say how D and the way from the base grow with strength, by form, and what each form leaves of D at one neutral KL.

Between two strengths that were run, a mean KL is read off a straight line through its roots. Intervals: 95 % of resamples of the prompts, drawn alike
for all forms and strengths, report and neutral prompts each by themselves, widened for few prompts as a t interval is (Hesterberg 2015,
arXiv 1411.5279).
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float
from numpy import ndarray
from scipy.special import ndtr
from scipy.stats import t as student

from mechdiff.measures.interpolation.plan import FORMS, LOGITS, REPEATED, WEIGHTS
from mechdiff.report import spoken
from mechdiff.rows import where
from mechdiff.statistics import bootstrap, intervals
from mechdiff.statistics.intervals import FEWEST
from mechdiff.statistics.memory import once
from mechdiff.statistics.summary import prompt_matrix

LEFT, GONE = "kl_other_nats", "kl_own_nats"
"""D(a), and how far the run went from the base."""


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number with its 95 % interval over prompts; NaN where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One metric of one form on one split."""

    strengths: Float[ndarray, " strength"]
    values: Float[ndarray, "prompt strength"]

    @property
    def means(self) -> Float[ndarray, " strength"]:
        return self.values.mean(axis=0)

    def drawn(self) -> Float[ndarray, "draw strength"]:
        """The mean first, then that of each resample; the mean alone of too few prompts."""
        few = len(self.values) < FEWEST
        draws = [] if few else [bootstrap.drawn_shares(len(self.values), 0) @ self.values]
        return np.vstack([self.means, *draws])

    def at(self, strength: float) -> Float[ndarray, " prompt"] | None:
        """The values at a strength that was run."""
        place = np.flatnonzero(self.strengths == strength)
        return self.values[:, place[0]] if len(place) else None


@once
def curve(rows: pl.DataFrame, form: str, metric: str, split: str = "report", unit: str | None = None) -> Curve | None:
    """None where it was not measured. `unit`: of some modules' weights alone."""
    found = where(rows, measure="interpolation", arm=form, metric=metric, split=split, unit=unit)
    _, strengths, table = prompt_matrix(found, by="strength")
    return Curve(strengths=np.array(strengths, dtype=float), values=table) if len(table) and len(strengths) > 1 else None


def forms(rows: pl.DataFrame) -> list[str]:
    """Those that were run."""
    return [form for form in FORMS if curve(rows, form, LEFT) is not None]


def modules(rows: pl.DataFrame) -> list[str]:
    """The groups of modules whose weights were moved alone."""
    found = where(rows, measure="interpolation", arm=WEIGHTS, metric=LEFT)["unit"].drop_nulls().unique().sort().to_list()
    return [unit for unit in found if curve(rows, WEIGHTS, LEFT, unit=unit) is not None]


# ---- between strengths ---------------------------------------------------------------------------------------------------------------


def reach(
    strengths: Float[ndarray, " strength"], means: Float[ndarray, "draw strength"], level: Float[ndarray, " draw"]
) -> Float[ndarray, " draw"]:
    """The first strength from 0 on at which the means are at a level; NaN where no strength that was run is beyond it."""
    ahead = strengths >= 0
    x, y, wanted = strengths[ahead], np.sqrt(np.maximum(means[:, ahead], 0)), np.sqrt(np.maximum(level, 0))[:, None]
    passes = (y[:, :-1] - wanted) * (y[:, 1:] - wanted) <= 0
    place, lines = passes.argmax(axis=1), np.arange(len(y))
    start, rise = y[lines, place], y[lines, place + 1] - y[lines, place]
    part = np.divide(wanted[:, 0] - start, rise, out=np.zeros_like(start), where=rise != 0)
    return np.where(passes.any(axis=1), x[place] + part * (x[place + 1] - x[place]), np.nan)


def between(
    strengths: Float[ndarray, " strength"], means: Float[ndarray, "draw strength"], at: Float[ndarray, " draw"]
) -> Float[ndarray, " draw"]:
    """The means at a strength of each draw; NaN outside of those that were run."""
    roots = np.sqrt(np.maximum(means, 0))
    place = np.clip(np.searchsorted(strengths, np.nan_to_num(at), side="right") - 1, 0, len(strengths) - 2)
    lines = np.arange(len(roots))
    part = (at - strengths[place]) / (strengths[place + 1] - strengths[place])
    inside = (at >= strengths[0]) & (at <= strengths[-1])
    return np.where(inside, (roots[lines, place] + part * (roots[lines, place + 1] - roots[lines, place])) ** 2, np.nan)


def tail(n: int) -> float:
    """Share of resamples of n prompts beyond either end of a 95 % interval: less than 0.025, for resamples vary less than samples do."""
    return float(ndtr(-np.sqrt(n / (n - 1)) * student.ppf(0.975, n - 1)))


def number(draws: Float[ndarray, " draw"], n: int) -> Number:
    """From the estimate and its resamples of n prompts; without an interval where more resamples have no number than lie beyond an end."""
    again = draws[1:]
    if not len(again) or np.isnan(again).mean() > tail(n) or np.isnan(draws[0]):
        return Number(value=float(draws[0]), low=np.nan, high=np.nan)
    low, high = np.nanquantile(again, [tail(n), 1 - tail(n)])
    return Number(value=float(draws[0]), low=float(min(low, draws[0])), high=float(max(high, draws[0])))


@once
def half(rows: pl.DataFrame, form: str, unit: str | None = None) -> Number | None:
    """The strength at which half of D is gone; NaN where none that was run gets there, None where the form was not run or D is not above 0."""
    left = curve(rows, form, LEFT, unit=unit)
    start = None if left is None else left.at(0.0)
    if left is None or start is None or not np.isfinite(left.values).all() or not start.mean() > 0:
        return None
    drawn = left.drawn()
    return number(reach(left.strengths, drawn, drawn[:, left.strengths == 0][:, 0] / 2), len(left.values))


# ---- at one neutral KL ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Matched:
    """A form at the strength at which it moves neutral prompts as far as the weights do at theirs."""

    form: str
    weights: float
    """The strength of the weights."""
    neutral: float
    """Their mean KL(base || run) on neutral prompts, in nats."""
    strength: Number
    """Of the form; NaN where it does not go so far."""
    left: Number
    """D(a) there, in nats."""


@once
def matched(rows: pl.DataFrame) -> list[Matched]:
    """Every form at every positive strength at which the weights were run; empty without neutral prompts."""
    price = curve(rows, WEIGHTS, GONE, "neutral")
    if price is None or not np.isfinite(price.values).all():
        return []
    drawn = price.drawn()
    found = []
    for form in forms(rows):
        cost, left = curve(rows, form, GONE, "neutral"), curve(rows, form, LEFT)
        if cost is None or left is None or not (np.isfinite(cost.values).all() and np.isfinite(left.values).all()):
            continue
        costs, lefts = cost.drawn(), left.drawn()
        n = min(len(price.values), len(cost.values), len(left.values))
        draws = min(len(costs), len(lefts), len(drawn))  # all, or where there are few prompts of one kind the estimate alone
        for place in np.flatnonzero(price.strengths > 0):
            level = drawn[:draws, place]
            own = np.full(draws, price.strengths[place])
            at = own if form == WEIGHTS else reach(cost.strengths, costs[:draws], level)
            found.append(Matched(
                form=form, weights=float(price.strengths[place]), neutral=float(level[0]), strength=number(at, n),
                left=number(between(left.strengths, lefts[:draws], at), n),
            ))  # fmt: skip
    return found


# ---- beyond the tuned model ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Beyond:
    """What the largest strength does beside the tuned model, by weights."""

    strength: float
    here: Number
    """KL(base || run) at that strength, in nats."""
    tuned: float
    """The same at 1."""
    p: float
    """Of their difference; NaN where it is not tested."""

    @property
    def grows(self) -> bool:
        return self.p <= 0.05 and self.here.value > self.tuned


@once
def beyond(rows: pl.DataFrame, split: str) -> Beyond | None:
    """None where no strength beyond 1 was run on the split."""
    gone = curve(rows, WEIGHTS, GONE, split)
    if gone is None or gone.strengths[-1] <= 1 or not np.isfinite(gone.values).all():
        return None
    here, tuned = gone.values[:, -1], gone.at(1.0)
    if tuned is None:
        return None
    low, high = intervals.mean_intervals(here[:, None])
    return Beyond(
        strength=float(gone.strengths[-1]), here=Number(value=float(here.mean()), low=float(low[0]), high=float(high[0])),
        tuned=float(tuned.mean()), p=spoken.mean_p(rows, here - tuned),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Alone:
    """What is left of D with the weights of some modules alone."""

    unit: str
    at_one: Number
    """Nats, with their tuned weights: a graft."""
    strength: float
    """The largest that was run."""
    beyond: Number
    """Nats there."""
    less: Number
    """By how many nats more than that graft the largest strength leaves."""
    p: float
    """Of that difference, corrected for all groups of modules; NaN where it is not tested."""


@once
def alone(rows: pl.DataFrame) -> list[Alone]:
    """Of each group of modules whose numbers are all finite."""
    found = {unit: curve(rows, WEIGHTS, LEFT, unit=unit) for unit in modules(rows)}
    curves = {unit: one for unit, one in found.items() if one is not None and np.isfinite(one.values).all() and one.at(1.0) is not None}
    if not curves:
        return []
    tables = {unit: np.column_stack([one.values[:, one.strengths == 1][:, 0], one.values[:, -1]]) for unit, one in curves.items()}
    apart = np.column_stack([table[:, 1] - table[:, 0] for table in tables.values()])
    p = spoken.family_p(rows, apart)
    numbers = {unit: np.column_stack([table, table[:, 1] - table[:, 0]]) for unit, table in tables.items()}
    said = []
    for place, (unit, table) in enumerate(numbers.items()):
        low, high = intervals.mean_intervals(table)
        one, far, less = (Number(value=float(table[:, i].mean()), low=float(low[i]), high=float(high[i])) for i in range(3))
        said.append(Alone(unit=unit, at_one=one, strength=float(curves[unit].strengths[-1]), beyond=far, less=less, p=float(p[place])))
    return said


@once
def loops(rows: pl.DataFrame) -> list[tuple[float, float, int]]:
    """(strength, mean share of repeated 4-grams, answers) of the answers that were spoken."""
    found = where(rows, measure="interpolation", metric=REPEATED).filter(pl.col("value").is_not_nan())
    table = found.group_by("strength").agg(pl.col("value").mean(), n=pl.len()).sort("strength")
    return list(table.iter_rows())


def ends(rows: pl.DataFrame) -> float | None:
    """Nats: the largest KL(tuned || run) of the weights at 1 on any prompt; None where they were not run."""
    left = curve(rows, WEIGHTS, LEFT)
    at_one = None if left is None else left.at(1.0)
    return None if at_one is None else float(at_one.max())


# ---- at the size of another fine-tune ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sized:
    """A fine-tune at the strength at which it moves neutral prompts as far as another one does."""

    size: float
    """KL(base || tuned) of the other one on neutral prompts, in nats."""
    strength: Number
    """NaN where no strength that was run goes so far."""
    gone: Number
    """KL(base || run) there on its own report prompts, in nats."""
    left: Number
    """D(a) there, in nats."""


def moving(rows: pl.DataFrame) -> str | None:
    """The form by which a run is made larger and smaller: weights where they were run; None where neither weights nor logits were."""
    return next((form for form in (WEIGHTS, LOGITS) if curve(rows, form, GONE, "neutral") is not None), None)


def at_size_of(rows: pl.DataFrame, other: pl.DataFrame) -> Sized | None:
    """One run at the size of another on the same neutral prompts, which are drawn alike for both; None where they cannot be had."""
    form, theirs = moving(rows), moving(other)
    if form is None or theirs is None:
        return None
    cost, size = curve(rows, form, GONE, "neutral"), curve(other, theirs, GONE, "neutral")
    gone, left = curve(rows, form, GONE), curve(rows, form, LEFT)
    curves = [one for one in (cost, size, gone, left) if one is not None and np.isfinite(one.values).all()]
    if len(curves) < 4 or not (curves[1].strengths == 1).any():
        return None
    draws, n = min(len(one.drawn()) for one in curves), min(len(one.values) for one in curves)
    costs, sizes, far, near = (one.drawn()[:draws] for one in curves)
    level = sizes[:, curves[1].strengths == 1][:, 0]
    at = reach(curves[0].strengths, costs, level)
    return Sized(
        size=float(level[0]), strength=number(at, n), gone=number(between(curves[2].strengths, far, at), n),
        left=number(between(curves[3].strengths, near, at), n),
    )  # fmt: skip
