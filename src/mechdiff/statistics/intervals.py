"""Intervals, p values and sets are made here from values on each prompt.

Arrays in, arrays out; a row is a prompt, or the mean of a cluster of prompts (`units.py`).

- `mean_intervals`, `share_intervals`, `asymmetry_intervals`: bootstrap-t (`bootstrap.py`), for a mean, a ratio of means, and (a - b) / (a + b).
- `mean_p`: is a mean apart from 0? `family_p`: the same of many columns at once. They need no symmetry, as flips of signs do.
- `wilson`: for shares of prompts, whose bootstrap says "exactly 0" after 0 of 32.
- `jackknife`, `jackknife_below_1`: from delete-one values, for numbers such as CKA that a row bootstrap biases upward (duplicated rows).
- `simultaneous_bands`: the whole profile lies inside with 95 % probability (max-|t| bootstrap), so that peaks and
  crossings may be read off the curve.
- `geometric`: the t interval of a geometric mean, which keeps its coverage where a mean's does not.
- `peak_set`: where a profile is highest, as a set; `first_past`: the earliest layer whose share passes a threshold, with the 95 % set of that
  layer.

How far they can be trusted at a run's own skew and number of prompts, and what a null result would not have missed: `simulated.py`.

The same seed gives the same bytes. There is no interval, and no p, of fewer than FEWEST rows: NaN.
"""

from collections.abc import Callable
from functools import wraps
from hashlib import blake2b
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.special import ndtri
from scipy.stats import binomtest
from scipy.stats import t as student

from mechdiff.statistics import bootstrap
from mechdiff.statistics.bootstrap import resample_counts

LEVEL = 0.95
F = TypeVar("F", bound=Callable[..., Any])
HELD = 1000
"""Tables whose intervals are remembered."""
FEWEST = 5
"""With fewer prompts there is no interval: a bootstrap of four has 35 samples."""
FEW = 10
"""With fewer prompts no headline is spoken without saying so."""


def _once(function: F) -> F:
    """The function, remembering what it gave for the very same numbers: a page asks for some intervals several times."""
    held: dict[bytes, tuple[ndarray, ...]] = {}

    @wraps(function)
    def remembering(*arrays: ndarray, **named: Any) -> tuple[ndarray, ...]:
        told = blake2b(repr([*((one.shape, one.dtype) for one in arrays), sorted(named.items())]).encode())
        for one in arrays:
            told.update(np.ascontiguousarray(one).tobytes())
        key = told.digest()
        if key not in held:
            while len(held) >= HELD:
                del held[next(iter(held))]
            held[key] = function(*arrays, **named)
        return tuple(one.copy() for one in held[key])

    return remembering  # type: ignore[return-value]


@_once
def mean_intervals(
    values: Float[ndarray, "prompt column"], *, seed: int = 0, level: float = LEVEL
) -> tuple[Float[ndarray, " column"], Float[ndarray, " column"]]:
    """Low and high end of the interval of each column's mean, which it always contains."""
    n_prompts, n_columns = values.shape
    if n_prompts < FEWEST:
        return np.full(n_columns, np.nan), np.full(n_columns, np.nan)
    mean = values.mean(axis=0)
    if n_prompts > bootstrap.MANY_PROMPTS:
        low, high = bootstrap.expansion(values - mean, level)
        return mean + low, mean + high
    shares = bootstrap.drawn_shares(n_prompts, seed)
    found = [
        bootstrap.ends(*bootstrap.of_means(values[:, block] - mean[block], shares), level)  # centred: small spreads keep their digits
        for block in bootstrap.blocks(n_columns)
    ]
    return mean + np.concatenate([low for low, _ in found]), mean + np.concatenate([high for _, high in found])


@_once
def share_intervals(
    values: Float[ndarray, "prompt column"],
    total: Float[ndarray, " prompt"] | Float[ndarray, "prompt column"],
    *,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[Float[ndarray, " column"], Float[ndarray, " column"], Float[ndarray, " column"]]:
    """Share, low and high end, where the share of a column is mean(values) / mean(total) over the same prompts.

    `total` is one for all columns, or each column's own; it is positive.
    """
    n_prompts, n_columns = values.shape
    total = total[:, None] if total.ndim == 1 else total
    share = values.mean(axis=0) / np.broadcast_to(total, values.shape).mean(axis=0)  # summed in the same order: the share of the whole is 1
    if n_prompts < FEWEST:
        return share, np.full(n_columns, np.nan), np.full(n_columns, np.nan)
    shares = bootstrap.drawn_shares(n_prompts, seed)
    found = [
        bootstrap.ends(*bootstrap.of_ratios(values[:, block], total if total.shape[1] == 1 else total[:, block], shares), level)
        for block in bootstrap.blocks(n_columns)
    ]
    return share, share + np.concatenate([low for low, _ in found]), share + np.concatenate([high for _, high in found])


def asymmetry_intervals(
    one: Float[ndarray, "prompt column"], other: Float[ndarray, "prompt column"], *, seed: int = 0, level: float = LEVEL
) -> tuple[Float[ndarray, " column"], Float[ndarray, " column"], Float[ndarray, " column"]]:
    """(mean one - mean other) / (mean one + mean other) of each column, low and high end: 1 if `other` is 0, -1 if `one` is."""
    return share_intervals(one - other, one + other, seed=seed, level=level)


def mean_p(values: Float[ndarray, "prompt test"], *, seed: int = 0) -> Float[ndarray, " test"]:
    """Two-sided p of each column's mean against 0, by the bootstrap-t: the larger of two, so that skew of either kind is held in check.

    The one counts resamples with |t*| as large (it knows heavy tails on both sides), the other twice the smaller tail's (it knows which side the
    tail is on), and that again twice: few prompts show less skew than there is. Without that, prompts with a coefficient of variation of 1
    give p < 0.05 in 8 % of studies where there is no effect; with it in 4 to 5 % (docs/NULLS.md). So p never finds what the 95 % interval does not.
    """
    p, _ = _tested(values, seed)
    return p


def family_p(values: Float[ndarray, "prompt test"], *, seed: int = 0) -> Float[ndarray, " test"]:
    """The same, family-wise over all columns: the share of resamples in which *any* column's |t*| is as large; never under the column's own p.

    Valid for any dependence between columns, since whole prompts are drawn (Westfall and Young 1993).
    """
    p, beyond = _tested(values, seed)
    return np.maximum(p, beyond)


def _tested(values: ndarray, seed: int) -> tuple[Float[ndarray, " test"], Float[ndarray, " test"]]:
    """Each column's own p, and the share of resamples whose largest |t*| over all columns reaches the column's."""
    n_prompts, n_tests = values.shape
    if n_prompts < FEWEST:
        return np.full(n_tests, np.nan), np.full(n_tests, np.nan)
    mean, own, real = values.mean(axis=0), np.empty(n_tests), np.empty(n_tests)
    shares = bootstrap.drawn_shares(n_prompts, seed)
    largest = np.zeros(len(shares))
    for block in bootstrap.blocks(n_tests):
        error, t = bootstrap.of_means(values[:, block] - mean[block], shares)
        always = np.where(mean[block] == 0, 0.0, np.copysign(np.inf, mean[block]))  # the t of values that do not vary
        real[block] = np.divide(mean[block], error, out=always, where=error > 1e-15 * np.abs(mean[block]))
        own[block] = np.minimum(2 * bootstrap.tails(t, real[block]), 1)
        np.abs(t, out=t)
        symmetric = (1 + (t >= np.abs(real[block])[:, None] * (1 - 1e-9)).sum(axis=1)) / (1 + len(shares))
        own[block] = np.maximum(own[block], symmetric)
        largest = np.maximum(largest, t.max(axis=0))
    beyond = (largest[:, None] >= np.abs(real) * (1 - 1e-9)).sum(axis=0)
    return own, (1 + beyond) / (1 + len(largest))


def holm(p: Float[ndarray, " test"]) -> Float[ndarray, " test"]:
    """p values of a few tests, family-wise whatever their dependence (Holm 1979). NaN is no test."""
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)).clip(max=1)
    return adjusted


def wilson(mean: ndarray, n_prompts: ndarray | int, *, level: float = LEVEL) -> tuple[ndarray, ndarray]:
    """Interval of a share of prompts (values 0 and 1), which a bootstrap gets wrong at its ends. Elementwise."""
    z = float(ndtri((1 + level) / 2)) ** 2 / n_prompts
    centre, reach = (mean + z / 2) / (1 + z), np.sqrt(z * mean * (1 - mean) + z**2 / 4) / (1 + z)
    return np.minimum(centre - reach, mean), np.maximum(centre + reach, mean)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p of two shares on the same prompts: of those on which the two differ, half should go either way."""
    differing = only_first + only_second
    return 1.0 if not differing else float(binomtest(only_first, differing, 0.5).pvalue)


def paired_shares(both: int, first: int, second: int, neither: int, *, level: float = LEVEL) -> tuple[float, float]:
    """Interval of (share of the second - share of the first) on the same prompts, from how many have both, only the first, only the second, none.

    Newcombe 1998 (Statistics in Medicine 17:2635, method 10): Wilson's ends of each share, joined by the correlation of the two. It holds where no
    prompt differs, and stays within -1 and 1, where a bootstrap of differences says "exactly 0".
    """
    n = both + first + second + neither
    one, other = (both + first) / n, (both + second) / n
    (low_one, high_one), (low_other, high_other) = (tuple(float(end) for end in wilson(np.array(p), n, level=level)) for p in (one, other))
    margins = float((both + first) * (second + neither) * (both + second) * (first + neither))
    apart = both * neither - first * second
    excess = max(apart - n / 2, 0.0) if apart > 0 else float(apart)  # his continuity correction, of positive correlations only
    phi = excess / np.sqrt(margins) if margins else 0.0
    below = (other - low_other) ** 2 - 2 * phi * (other - low_other) * (high_one - one) + (high_one - one) ** 2
    above = (high_other - other) ** 2 - 2 * phi * (high_other - other) * (one - low_one) + (one - low_one) ** 2
    return other - one - float(np.sqrt(max(below, 0))), other - one + float(np.sqrt(max(above, 0)))


def rule_of_three(n_prompts: int, *, level: float = LEVEL) -> float:
    """The largest rate at which no event in so many prompts is not surprising: about 3/n."""
    return float(1 - (1 - level) ** (1 / n_prompts))


def jackknife(value: ndarray, spread: ndarray, n_prompts: ndarray, *, level: float = LEVEL) -> tuple[ndarray, ndarray]:
    """Interval of a number with delete-one values: `spread` is their standard deviation (ddof 1). Elementwise."""
    with np.errstate(invalid="ignore", divide="ignore"):
        error = (n_prompts - 1) / np.sqrt(n_prompts) * spread
        reach = student.ppf((1 + level) / 2, n_prompts - 1) * error
    return value - reach, value + reach


def jackknife_below_1(value: ndarray, spread: ndarray, n_prompts: ndarray, *, level: float = LEVEL) -> tuple[ndarray, ndarray]:
    """The same of a similarity that ends at 1 (a debiased CKA), on the scale of Fisher's z, atanh: no end passes 1. NaN under FEWEST prompts.

    From a debiased value of 1 or more, which rounding or chance can give, down to what lies as far below it, and up to itself.
    """
    low, high = jackknife(value, spread, n_prompts, level=level)
    with np.errstate(invalid="ignore", divide="ignore"):
        z, reach = np.arctanh(value), (high - value) / (1 - value**2)
        inside = np.abs(value) < 1
        low, high = np.where(inside, np.tanh(z - reach), low), np.where(inside, np.tanh(z + reach), value)
    enough = n_prompts >= FEWEST
    return np.where(enough, low, np.nan), np.where(enough, high, np.nan)


def pseudo_values(value: Float[ndarray, " layer"], without: Float[ndarray, "prompt layer"]) -> Float[ndarray, "prompt layer"]:
    """Each prompt's contribution to `value`, from delete-one values; their mean is moved onto `value`."""
    pseudo = -(len(without) - 1) * without
    return pseudo - pseudo.mean(axis=0) + value


def simultaneous_bands(
    values: Float[ndarray, "prompt layer"], *, seed: int = 0, level: float = LEVEL
) -> tuple[Float[ndarray, " layer"], Float[ndarray, " layer"]]:
    """Low and high ends that cover the means of all layers at once. A layer without spread has a band of no width."""
    n_prompts = len(values)
    mean = values.mean(axis=0)
    error = values.std(axis=0, ddof=1) / np.sqrt(n_prompts)
    varies = error > 1e-12 * (np.abs(mean) + 1e-300)
    if not varies.any():
        return mean, mean
    scaled = (values - mean)[:, varies] / error[varies]
    counts = resample_counts(n_prompts, seed=seed) / n_prompts
    moved = counts @ scaled
    spread = np.sqrt(np.maximum(counts @ scaled**2 - moved**2, 0) / (n_prompts - 1))  # each resample's own standard error
    t = np.divide(np.abs(moved), spread, out=np.zeros_like(moved), where=spread > 0)
    reach = np.zeros_like(mean)
    reach[varies] = np.quantile(t.max(axis=1), level) * error[varies]
    return mean - reach, mean + reach


def first_past(
    values: Float[ndarray, "prompt layer"], total: Float[ndarray, " prompt"], *, threshold: float = 0.5, seed: int = 0, level: float = LEVEL
) -> tuple[int, int, int] | None:
    """Index of the first layer whose share of `total` passes the threshold, and the ends of its 95 % set. None if no layer does.

    A resample in which no layer passes counts as one layer after the last.
    """
    share = values.mean(axis=0) / total.mean()
    if not (share > threshold).any():
        return None
    counts = resample_counts(len(values), seed=seed)
    passed = (counts @ values) > threshold * (counts @ total)[:, None]
    first = np.where(passed.any(axis=1), passed.argmax(axis=1), values.shape[1])
    point = int((share > threshold).argmax())
    low = int(np.quantile(first, (1 - level) / 2, method="lower"))
    high = int(np.quantile(first, (1 + level) / 2, method="higher"))
    return point, min(low, point), max(high, point)


def geometric(
    values: Float[ndarray, "prompt column"], *, level: float = LEVEL
) -> tuple[Float[ndarray, " column"], Float[ndarray, " column"], Float[ndarray, " column"]]:
    """Geometric mean of each column of positive values, and its t interval on the scale of logarithms."""
    logs = np.log(values)
    middle, n = logs.mean(axis=0), len(values)
    if n < 2:
        return np.exp(middle), np.full_like(middle, np.nan), np.full_like(middle, np.nan)
    reach = student.ppf((1 + level) / 2, n - 1) * logs.std(axis=0, ddof=1) / np.sqrt(n)
    return np.exp(middle), np.exp(middle - reach), np.exp(middle + reach)


def peak_set(values: Float[ndarray, "prompt place"], *, seed: int = 0, level: float = LEVEL) -> tuple[int, list[int]]:
    """Index of the place with the largest mean, and the smallest set of places that holds the largest in 95 % of resamples."""
    peak = int(values.mean(axis=0).argmax())
    if len(values) < 2:
        return peak, list(range(values.shape[1]))
    times = np.bincount((resample_counts(len(values), seed=seed) @ values).argmax(axis=1), minlength=values.shape[1])
    order = np.argsort(-times, kind="stable")
    enough = int((np.cumsum(times[order]) >= level * times.sum()).argmax()) + 1
    return peak, sorted({peak, *(int(place) for place in order[:enough])})
