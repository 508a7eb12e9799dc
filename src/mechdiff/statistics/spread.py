"""Over how many parts is an effect spread, and do two effects differ in that? Arrays in, numbers out.

Parts are sites, layers, modules, heads, or dimensions; m_i is the mean effect of part i over prompts, with its sign. The effective number of
parts is the participation ratio

    N = (sum m_i)^2 / sum m_i^2          1: one part has all of it;  n: all n parts have alike

so many equal parts, all leading the same way, would have this total with this sum of squares. Parts that lead the other way lower it, and where
parts cancel it falls below 1: then the effect is not a matter of a number of parts, and nothing is said (`opposed`). The localisation index is
1 / N. Only proportions count: N of an effect and of ten times that effect are one number.

**Why the signs stay.** To cut negative means off at 0, or to take absolute values, counts the noise of every part that does nothing: of 60 parts
of which one has all, each with a fifth of it as noise, 8 prompts then give 4.5 and 11, and of pure noise n / pi and 0.6 n. With signs that noise
cancels in the sum, so that N is nearly unbiased (1.0; pure noise gives about 1 for any n), and there is no kink where most parts truly are.

**How an interval is made.** What is estimated is the root r = sum m_i / |m|, which is more nearly linear in the means than its square: intervals
of N itself hold the truth in 86 to 92 % of studies where one part has all, those of r in 91 to 94 %. N is r^2.

r is a curved function of means, so that with few prompts it is biased. Hence the delete-one jackknife (Quenouille 1956, Tukey 1958). Each
prompt's pseudo-value

    n r - (n - 1) r(without this prompt)

is its contribution to r, and their mean is r with the bias of order 1/n taken out. That correction varies from study to study too, so that the
pseudo-values of r alone give intervals that are too short. Hence the same once more: the pseudo-values of the corrected number, which takes every
pair of prompts away. They behave like a sample: a t interval gives the interval of r, a t test with the degrees of freedom of the smaller run
compares two runs on other prompts, the paired t test two runs on the same ones (how often each is wrong where nothing differs: docs/NULLS.md). Any
smooth function of means is treated alike, so that one run's interval and the difference of two cannot contradict each other in method. With two to
five prompts t intervals are wide, and right to be.

**Nothing there.** Beside "all parts alike" stands the other null: no part does anything. It is the noise's own number of parts, and a number that
cannot be told from it is not one of an effect. Whether anything is there at all is `presence`: is the mean of their sum above 0, by a test
that holds where prompts are few and skewed? Where it is not, or where opposed parts make up a quarter, no sentence is made of N (`silence`).

It misleads where parts are redundant (two that do the same each break little alone), and where they are counted at another grain: sites are not
heads. "Cannot be told apart" is not "equal": beside it stands the smallest difference that would have been seen in 4 of 5 such studies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.stats import t as student

from mechdiff.statistics import bootstrap, intervals, simulated
from mechdiff.statistics.intervals import FEWEST, LEVEL

Statistic = Callable[[ndarray], ndarray]
"""From means [*, column] to [*] or [*, result]."""

POWER = 0.8
COVERAGE = 0.9
"""How often the interval of an effective number held the truth in simulations of 8 to 32 prompts: 89 to 100 %, by the spread and the skew."""
WRONG = 0.05
"""Of p values, what counts as found."""
OPPOSED = 0.25
"""Parts that lead the other way make up this much of what the others add: a number of parts then says little."""
ROUNDING = 1e-9
"""Differences of this relative size are rounding."""


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
    rooted: bool = False
    """The contributions are of the number's root."""

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


def root(means: Float[ndarray, "*draw part"]) -> Float[ndarray, "*draw"]:
    """r of mean effects, whose square is N; NaN where no part has an effect."""
    length = np.sqrt((means**2).sum(-1))
    return np.divide(means.sum(-1), length, out=np.full(length.shape, np.nan), where=length > 0)


def effective(means: Float[ndarray, "*draw part"], sizes: Float[ndarray, " part"] | float = 1.0) -> Float[ndarray, "*draw"]:
    """(sum m)^2 / sum (m^2 / size) of gains or squared changes, which have no sign (what falls below 0 is rounding); NaN where all are 0.

    `sizes`: one step of a rank stands for several dimensions that share its gain evenly.
    """
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


def number_of_parts(
    values: Float[ndarray, "prompt part"], prompts: Sequence[str], *, parts: int | None = None, level: float = LEVEL
) -> Estimate:
    """N of effects per prompt, from its root; `parts`: how many there are, where not all were measured."""
    found = estimate(values, root, prompts, level=level)
    value, low, high = (min(max(float(one), 0.0) ** 2, float(parts or values.shape[1])) for one in (found.value, found.low, found.high))
    return replace(found, value=value, low=low if found.low == found.low else np.nan, high=high, rooted=True)


def presence(values: Float[ndarray, "prompt part"], *, skew: float | None = None, seed: int = 0) -> float:
    """p of "together the parts do nothing on average": `mean_p` of the sum of each prompt's parts, whose mean squared is the numerator of N.

    It asks for no symmetry: flips of whole prompts' signs found an effect in 15 to 25 % of studies of strongly skewed noise that all parts share.
    1 where even this finds more than may be at so many prompts of this `skew`: that of D, else of the length of each prompt's effects.
    """
    if not _tests_presence(values, skew):
        return 1.0
    return float(intervals.mean_p(values.sum(axis=1, keepdims=True), seed=seed)[0])


def _tests_presence(values: Float[ndarray, "prompt part"], skew: float | None) -> bool:
    """Whether `presence` speaks at so many prompts of this skew."""
    cv = simulated.cv_of(np.linalg.norm(values, axis=1, keepdims=True))[0] if skew is None else skew
    return simulated.speaks("presence", len(values), 0.0 if cv != cv else float(cv))


def opposed(values: Float[ndarray, "prompt part"]) -> float:
    """What parts that lead the other way take off, as a share of what the others add; each prompt's parts are signed by the other prompts.

    So the noise of a part that does nothing counts on either side alike, and adds nothing on average.
    """
    others = values.sum(axis=0) - values
    ahead, back = float(np.where(others > 0, values, 0).sum()), float(-np.where(others < 0, values, 0).sum())
    return max(0.0, back) / ahead if ahead > 0 else np.inf


UNTESTED = "too few prompts of this skew for a test of whether the parts do anything"


def silence(values: Float[ndarray, "prompt part"], *, skew: float | None = None, seed: int = 0) -> str:
    """Why no sentence may be made of a number of parts; empty where one may. `skew`: see `presence`."""
    if len(values) < FEWEST:
        return f"fewer than {FEWEST} prompts"
    if not _tests_presence(values, skew):
        return UNTESTED
    if values.mean(axis=0).sum() <= 0 or not presence(values, skew=skew, seed=seed) <= WRONG:
        return "the sum of the parts' effects is not significant (p > 0.05)"
    if opposed(values) > OPPOSED:
        return "parts work against each other"
    return ""


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
    scale = sum(max(mean, 0.0) for mean in means) if one.rooted and other.rooted else 1.0  # a^2 - b^2 = (a - b)(a + b)
    difference = means[0] - means[1]
    rounding = ROUNDING * max(abs(mean) for mean in means)
    if error <= rounding:
        return _exact(difference * scale if abs(difference) > rounding else 0.0, (one.n, other.n), paired)
    reach = float(student.ppf((1 + level) / 2, freedom))
    smallest = (reach + float(student.ppf(POWER, freedom))) * error * scale
    p = float(2 * student.sf(abs(difference) / error, freedom))
    low, value, high = (scale * end for end in (difference - reach * error, difference, difference + reach * error))
    return Contrast(value=value, low=low, high=high, p=p, smallest=smallest, n=(one.n, other.n), paired=paired)


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
    return _drawn(values, float(values.mean()), draws, seed)


def nothing(values: Float[ndarray, "prompt part"], *, draws: int = 400, seed: int = 0) -> tuple[float, float, float]:
    """The null of no effect: the same of this noise alone, around 0."""
    return _drawn(values, 0.0, draws, seed)


def _drawn(values: Float[ndarray, "prompt part"], mean: float, draws: int, seed: int) -> tuple[float, float, float]:
    """N, estimated, of resamples of the values' noise around one mean of all parts."""
    rng, n = np.random.default_rng([seed, *values.shape]), len(values)
    noise = (values - values.mean(axis=0)) * (n / (n - 1)) ** 0.5
    found = [max(float(pseudo_values(mean + noise[rng.integers(0, n, n)], root).mean()), 0.0) ** 2 for _ in range(draws)]
    known = np.minimum([one for one in found if np.isfinite(one)] or [np.nan], values.shape[1])
    low, high = np.quantile(known, [0.025, 0.975])
    return float(known.mean()), float(low), float(high)


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
            counts = bootstrap.resample_counts(len(side), seed=at) / len(side)
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
    counts = bootstrap.resample_counts(len(effect), seed=seed)
    passed = np.concatenate([(counts @ effect) > threshold * (counts @ total)[:, None], np.ones((len(counts), 1), bool)], axis=1)
    point = np.append(effect.mean(axis=0) > threshold * total.mean(), True)
    return int(point.argmax()), passed.argmax(axis=1)
