"""Over how many parts is an effect spread, and do two effects differ in that? Arrays in, numbers out.

Parts are sites, layers, modules, heads, or dimensions; m_i is the mean effect of part i over prompts (a part that leads the other way counts as
0). The effective number of parts is the participation ratio

    N = (sum m_i)^2 / sum (m_i^2 / size_i)          1: one part has all of it;  n: all n parts have alike

with size 1, but for ranks, where one step stands for several dimensions that share its gain evenly. The localisation index is 1 / N: 1 for one
part, 1/n for evenly everywhere. Only proportions count: N of an effect and of ten times that effect are one number, and shares of D need not add
up to 1.

N is a curved function of means, so that with few prompts it is biased: noise in the m_i lifts the number of a local effect and lowers that of a
spread one, by 5 to 12 % at 6 prompts and 2 % at 32. Hence the delete-one jackknife (Quenouille 1956, Tukey 1958). Each prompt's pseudo-value

    n N - (n - 1) N(without this prompt)

is its contribution to N, and their mean is N with the bias of order 1/n taken out. That correction varies from study to study too, so that the
pseudo-values of N alone give intervals that are too short (at 12 prompts two runs of one law would be called different in 9 to 13 % of studies,
instead of 5). Hence the same once more: the pseudo-values of the corrected number, which takes every pair of prompts away. They behave like a
sample: a t interval gives the interval of N, a t test with the degrees of freedom of the smaller run compares two runs on other prompts, the paired
t test two runs on the same ones (how often each is wrong where nothing differs: docs/NULLS.md). Any smooth function of means is treated alike,
so that one run's interval and the difference of two cannot contradict each other in method. With two to five prompts t intervals are wide, and
right to be.

It misleads where parts are redundant (two that do the same each break little alone), and where they are counted at another grain: sites are not
heads. "Cannot be told apart" is not "equal": beside it stands the smallest difference that would have been seen in 4 of 5 such studies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.stats import t as student

from mechdiff.report import intervals
from mechdiff.report.intervals import LEVEL

Statistic = Callable[[ndarray], ndarray]
"""From means [*, column] to [*] or [*, result]."""

POWER = 0.8
ROUNDING = 1e-9
"""Differences of this relative size are rounding."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number of one run, with its 95 % interval over prompts."""

    value: float
    low: float
    high: float
    prompts: tuple[str, ...] = ()
    """What the prompts are called across runs."""
    contributions: Float[ndarray, " prompt"] = field(default_factory=lambda: np.zeros(0), repr=False)
    """Pseudo-values; empty where the number is exact, or is not a smooth one."""

    @property
    def n(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """The difference of a number between two runs: one - other."""

    value: float
    low: float
    high: float
    p: float
    smallest: float
    """The difference that would have been found with 80 % probability."""
    n: tuple[int, int]
    paired: bool


def effective(means: Float[ndarray, "*draw part"], sizes: Float[ndarray, " part"] | float = 1.0) -> Float[ndarray, "*draw"]:
    """N of mean effects; NaN where no part has an effect above 0."""
    gained = np.maximum(means, 0)
    squares = (gained**2 / sizes).sum(-1)
    return np.divide(gained.sum(-1) ** 2, squares, out=np.full(squares.shape, np.nan), where=squares > 0)


def effective_rank(curve: Float[ndarray, "*draw rank"], ranks: Sequence[int], *, shift: bool = False) -> Float[ndarray, "*draw"]:
    """N over dimensions, from what the first k of them gain at each of the `ranks`, ascending; a fall behind a rise is no gain.

    `shift`: rank 0 is a constant shift, which is a dimension of its own; else rank 0 gains nothing.
    """
    sizes = np.diff([0, *ranks]).astype(float)
    if ranks[0] == 0:
        sizes[0] = 1.0
        curve = curve if shift else np.concatenate([np.zeros_like(curve[..., :1]), curve[..., 1:]], axis=-1)
    reached = np.maximum.accumulate(np.maximum(curve, 0), axis=-1)
    gains = np.diff(reached, axis=-1, prepend=np.zeros_like(reached[..., :1]))
    return effective(gains, sizes)


def pseudo_values(values: Float[ndarray, "prompt column"], statistic: Statistic) -> ndarray:
    """Each prompt's contribution to the statistic of the means."""
    n = len(values)
    return n * statistic(values.mean(axis=0)) - (n - 1) * statistic((values.sum(axis=0) - values) / (n - 1))


def contributions(values: Float[ndarray, "prompt column"], statistic: Statistic) -> Float[ndarray, " prompt"]:
    """Each prompt's contribution to the statistic with its bias taken out: their mean is that value, their spread its standard error.

    Two prompts leave no pairs to take away: their pseudo-values.
    """
    n, total = len(values), values.sum(axis=0)
    pseudo = pseudo_values(values, statistic)
    if n < 3:
        return pseudo
    without = statistic((total - values) / (n - 1))
    pairs = np.array([statistic((total - values[i] - np.delete(values, i, axis=0)) / (n - 2)).mean() for i in range(n)])
    corrected = (n - 1) * without - (n - 2) * pairs
    return pseudo.mean() - (n - 1) * (corrected - corrected.mean())


def estimate(
    values: Float[ndarray, "prompt column"],
    statistic: Statistic,
    prompts: Sequence[str],
    *,
    ends: tuple[float, float] = (-np.inf, np.inf),
    level: float = LEVEL,
) -> Estimate:
    """The statistic of the means with its bias of order 1/n taken out, and its t interval; `ends` are its smallest and largest possible value."""
    if len(values) < 2:
        point = float(statistic(values.mean(axis=0)))
        return Estimate(value=point, low=np.nan, high=np.nan, prompts=tuple(prompts))
    pseudo = contributions(values, statistic)
    mean, error = float(pseudo.mean()), float(pseudo.std(ddof=1) / np.sqrt(len(pseudo)))
    reach = float(student.ppf((1 + level) / 2, len(pseudo) - 1)) * error
    value, low, high = (float(np.clip(one, *ends)) for one in (mean, mean - reach, mean + reach))
    return Estimate(value=value, low=low, high=high, prompts=tuple(prompts), contributions=pseudo)


def contrast(one: Estimate, other: Estimate, *, level: float = LEVEL) -> Contrast | None:
    """One minus the other: paired where the prompts are the same, else with the smaller run's degrees of freedom.

    None where either has too few prompts.
    """
    if min(len(one.contributions), len(other.contributions)) < 2:
        return None
    paired = set(one.prompts) == set(other.prompts)
    if paired:
        pseudo = one.contributions - aligned(other, one.prompts)
        error, freedom = float(pseudo.std(ddof=1) / np.sqrt(len(pseudo))), float(len(pseudo) - 1)
    else:
        error = float(np.sqrt(sum(side.contributions.var(ddof=1) / side.n for side in (one, other))))
        freedom = float(min(one.n, other.n) - 1)
    means = [float(side.contributions.mean()) for side in (one, other)]
    difference = means[0] - means[1]
    rounding = ROUNDING * max(abs(mean) for mean in means)
    if error <= rounding:
        return _exact(difference if abs(difference) > rounding else 0.0, (one.n, other.n), paired)
    reach = float(student.ppf((1 + level) / 2, freedom))
    smallest = (reach + float(student.ppf(POWER, freedom))) * error
    p = float(2 * student.sf(abs(difference) / error, freedom))
    low, high = difference - reach * error, difference + reach * error
    return Contrast(value=difference, low=low, high=high, p=p, smallest=smallest, n=(one.n, other.n), paired=paired)


def _exact(difference: float, n: tuple[int, int], paired: bool) -> Contrast:
    """A difference that is the same on every prompt."""
    p = 0.0 if difference else 1.0
    return Contrast(value=difference, low=difference, high=difference, p=p, smallest=0.0, n=n, paired=paired)


def aligned(one: Estimate, prompts: Sequence[str]) -> Float[ndarray, " prompt"]:
    """Contributions in the order of `prompts`."""
    place = {prompt: i for i, prompt in enumerate(one.prompts)}
    return one.contributions[[place[prompt] for prompt in prompts]]


def evened(values: Float[ndarray, "prompt part"], *, draws: int = 400, seed: int = 0) -> tuple[float, float, float]:
    """The null of spreading: mean, and middle 95 %, of what would be estimated if all parts had alike, with this noise on as many prompts."""
    rng = np.random.default_rng([seed, *values.shape])
    even = values - values.mean(axis=0) + np.maximum(values.mean(axis=0), 0).mean()
    found = [pseudo_values(even[rng.integers(0, len(even), len(even))], effective).mean() for _ in range(draws)]
    mean, low, high = (min(float(one), float(even.shape[1])) for one in (np.nanmean(found), *np.nanquantile(found, [0.025, 0.975])))
    return mean, low, high


def contrast_of_draws(
    one: ndarray, other: ndarray, ends: tuple[float, float], n: tuple[int, int], *, paired: bool, seed: int = 0
) -> Contrast:
    """The difference of two numbers (`ends`) that are no smooth functions of means, from their bootstrap draws."""
    drawn = one - (other if paired else np.random.default_rng(seed).permutation(other))
    low, high = (float(end) for end in np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest"))
    value = ends[0] - ends[1]
    p = min(1.0, 2 * min(float((drawn <= 0).mean()), float((drawn >= 0).mean())))
    p = max(p, 1 / len(drawn)) if value else p
    return Contrast(value=value, low=min(low, value), high=max(high, value), p=p, smallest=np.nan, n=n, paired=paired)


# ---- profiles along layers ------------------------------------------------------------------------------------------------------------


def difference_bands(
    one: Float[ndarray, "prompt layer"], other: Float[ndarray, "prompt2 layer"], *, seed: int = 0, level: float = LEVEL
) -> tuple[Float[ndarray, " layer"], Float[ndarray, " layer"]]:
    """Ends that cover the difference of the means of two independent samples at all layers at once: max-|t| bootstrap with Welch's errors."""
    difference = one.mean(axis=0) - other.mean(axis=0)
    error = np.sqrt(sum(side.var(axis=0, ddof=1) / len(side) for side in (one, other)))
    varies = error > 1e-12 * (np.abs(difference) + 1e-300)
    reach = np.zeros_like(difference)
    if varies.any():
        moved, squares = 0.0, 0.0
        for sign, side, at in ((1, one[:, varies], seed), (-1, other[:, varies], seed + 1)):
            counts = intervals.resample_counts(len(side), seed=at) / len(side)
            centred = side - side.mean(axis=0)
            mean = counts @ centred
            moved = moved + sign * mean
            squares = squares + np.maximum(counts @ centred**2 - mean**2, 0) / (len(side) - 1)
        t = np.divide(np.abs(moved), np.sqrt(squares), out=np.zeros_like(moved), where=squares > 0)
        reach[varies] = np.quantile(t.max(axis=1), level) * error[varies]
    return difference - reach, difference + reach


def crossings(
    effect: Float[ndarray, "prompt layer"], total: Float[ndarray, " prompt"], *, threshold: float = 0.5, seed: int = 0
) -> tuple[int, ndarray]:
    """Index of the first layer whose share of `total` passes the threshold, on all prompts and in each resample; behind the last where none does."""
    counts = intervals.resample_counts(len(effect), seed=seed)
    passed = np.concatenate([(counts @ effect) > threshold * (counts @ total)[:, None], np.ones((len(counts), 1), bool)], axis=1)
    point = np.append(effect.mean(axis=0) > threshold * total.mean(), True)
    return int(point.argmax()), passed.argmax(axis=1)
