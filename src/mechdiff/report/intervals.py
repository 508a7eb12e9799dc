"""Intervals from values per prompt: the bootstrap, the jackknife, bands over layers. Arrays in, arrays out.

The unit that is resampled is the prompt: values of different layers, sites and arms on one prompt belong together, so
every function draws prompts once and uses the draw for all columns. That also makes it fast: the means of B resamples
of G columns are one matrix product, [B, prompt] counts times [prompt, G] values.

- `bca_means`, `bca_shares`: bias-corrected and accelerated bootstrap (Efron 1987), for a mean and for a ratio of means.
  At strong skew and few prompts the interval is a little short (CV 3.5, n = 150: 89 % coverage instead of 95 %).
- `bca_asymmetry`: (a - b) / (a + b) of two means, such as breakage against recovery.
- `wilson`: for shares of prompts, whose bootstrap says "exactly 0" after 0 of 32.
- `jackknife`: from delete-one values, for numbers such as CKA that a row bootstrap biases upward (duplicated rows).
- `simultaneous_bands`: the whole profile lies inside with 95 % probability (max-|t| bootstrap), so that peaks and
  crossings may be read off the curve.
- `geometric`: the t interval of a geometric mean, which keeps its coverage where a mean's does not.
- `sign_flip_max_t`: p values of many paired differences at once; `peak_set`: where a profile is highest, as a set; `detectable`: what a null
  result would not have missed.
- `first_past`: the earliest layer whose share passes a threshold, with the 95 % set of that layer.

The same seed gives the same bytes.
"""

import json
from collections.abc import Iterator
from importlib.resources import files

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.special import ndtr, ndtri
from scipy.stats import binomtest
from scipy.stats import t as student

RESAMPLES = 2000
LEVEL = 0.95
MANY_PROMPTS = 5000
"""Above this many prompts the bootstrap's law is its own expansion to second order, which costs nothing."""
BLOCK = 4000
"""Columns at a time, so that the [column, resample] table stays near 64 MB."""


def resample_counts(n_prompts: int, *, resamples: int = RESAMPLES, seed: int = 0) -> Float[ndarray, "resample prompt"]:
    """How often each prompt is drawn in each resample; rows sum to `n_prompts`."""
    drawn = np.random.default_rng([seed, n_prompts]).integers(0, n_prompts, size=(resamples, n_prompts))
    drawn += np.arange(resamples)[:, None] * n_prompts
    return np.bincount(drawn.ravel(), minlength=resamples * n_prompts).reshape(resamples, n_prompts).astype(float)


def bca_means(
    values: Float[ndarray, "prompt column"], *, seed: int = 0, level: float = LEVEL, resamples: int = RESAMPLES
) -> tuple[Float[ndarray, " column"], Float[ndarray, " column"]]:
    """Low and high end of the interval of each column's mean. It always contains the mean; NaN for a single prompt."""
    n_prompts, n_columns = values.shape
    if n_prompts < 2:
        return np.full(n_columns, np.nan), np.full(n_columns, np.nan)
    mean = values.mean(axis=0)
    if n_prompts > MANY_PROMPTS:
        low, high = _second_order(values - mean, level)
        return np.minimum(mean + low, mean), np.maximum(mean + high, mean)
    counts = resample_counts(n_prompts, resamples=resamples, seed=seed) / n_prompts
    ends = []
    for block in _blocks(n_columns):
        centred = values[:, block] - mean[block]  # so that small spreads on large means keep their digits
        low, high = bca((counts @ centred).T, np.zeros(centred.shape[1]), centred.T, level)
        ends.append((mean[block] + low, mean[block] + high))
    return np.concatenate([low for low, _ in ends]), np.concatenate([high for _, high in ends])


def bca_shares(
    values: Float[ndarray, "prompt column"],
    total: Float[ndarray, " prompt"] | Float[ndarray, "prompt column"],
    *,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[Float[ndarray, " column"], Float[ndarray, " column"], Float[ndarray, " column"]]:
    """Share, low and high end, where the share of a column is mean(values) / mean(total) over the same prompts.

    `total` is one for all columns, or each column's own.
    """
    n_prompts, n_columns = values.shape
    total = np.broadcast_to(total[:, None] if total.ndim == 1 else total, values.shape)
    share = values.mean(axis=0) / total.mean(axis=0)
    if n_prompts < 2:
        return share, np.full(n_columns, np.nan), np.full(n_columns, np.nan)
    counts = resample_counts(n_prompts, seed=seed) / n_prompts
    ends = []
    for block in _blocks(n_columns):
        draws = (counts @ values[:, block] / (counts @ total[:, block])).T
        influence = ((values[:, block] - share[block] * total[:, block]) / total[:, block].mean(axis=0)).T
        ends.append(bca(draws, share[block], influence, level))
    return share, np.concatenate([low for low, _ in ends]), np.concatenate([high for _, high in ends])


def bca_asymmetry(
    one: Float[ndarray, "prompt column"], other: Float[ndarray, "prompt column"], *, seed: int = 0, level: float = LEVEL
) -> tuple[Float[ndarray, " column"], Float[ndarray, " column"], Float[ndarray, " column"]]:
    """(mean one - mean other) / (mean one + mean other) of each column, low and high end: 1 if `other` is 0, -1 if `one` is."""
    return bca_shares(one - other, one + other, seed=seed, level=level)


def wilson(mean: ndarray, n_prompts: ndarray | int, *, level: float = LEVEL) -> tuple[ndarray, ndarray]:
    """Interval of a share of prompts (values 0 and 1), which a bootstrap gets wrong at its ends. Elementwise."""
    z = _z(level) ** 2 / n_prompts
    centre, reach = (mean + z / 2) / (1 + z), np.sqrt(z * mean * (1 - mean) + z**2 / 4) / (1 + z)
    return np.minimum(centre - reach, mean), np.maximum(centre + reach, mean)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p of two shares on the same prompts: of those on which the two differ, half should go either way."""
    differing = only_first + only_second
    return 1.0 if not differing else float(binomtest(only_first, differing, 0.5).pvalue)


def rule_of_three(n_prompts: int, *, level: float = LEVEL) -> float:
    """The largest rate at which no event in so many prompts is not surprising: about 3/n."""
    return float(1 - (1 - level) ** (1 / n_prompts))


def jackknife(value: ndarray, spread: ndarray, n_prompts: ndarray, *, level: float = LEVEL) -> tuple[ndarray, ndarray]:
    """Interval of a number with delete-one values: `spread` is their standard deviation (ddof 1). Elementwise."""
    with np.errstate(invalid="ignore", divide="ignore"):
        error = (n_prompts - 1) / np.sqrt(n_prompts) * spread
        reach = student.ppf((1 + level) / 2, n_prompts - 1) * error
    return value - reach, value + reach


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


def detectable(spread: ndarray, n_prompts: ndarray | int, *, level: float = LEVEL, power: float = 0.8) -> ndarray:
    """The smallest mean, of values with this standard deviation, that would be told from 0 with this power: 2.8 standard errors, by Student's t."""
    n = np.maximum(np.asarray(n_prompts, float), 2)
    reach = student.ppf((1 + level) / 2, n - 1) + student.ppf(power, n - 1)
    return np.where(np.asarray(n_prompts) > 1, reach * spread / np.sqrt(n), np.nan)


def measured_coverage(cv: float, n_prompts: int) -> float | None:
    """How often `bca_means` held the truth in simulations of this coefficient of variation and number of prompts (benchmarks/coverage.py).

    Between the simulated ones on a logarithmic scale; None for fewer prompts or more skew than were simulated.
    """
    table = json.loads((files("mechdiff") / "data" / "coverage.json").read_text())["table"]
    cvs, sizes = (sorted({one[name] for one in table}) for name in ("cv", "n"))
    if n_prompts < sizes[0] or not 0 < cv <= cvs[-1]:
        return None
    grid = np.array([[one["mean"] for one in table if one["cv"] == row] for row in cvs])
    of_size = [float(np.interp(np.log(n_prompts), np.log(sizes), row)) for row in grid]
    return float(np.interp(np.log(cv), np.log(cvs), of_size))


def peak_set(values: Float[ndarray, "prompt place"], *, seed: int = 0, level: float = LEVEL) -> tuple[int, list[int]]:
    """Index of the place with the largest mean, and the smallest set of places that holds the largest in 95 % of resamples."""
    peak = int(values.mean(axis=0).argmax())
    if len(values) < 2:
        return peak, list(range(values.shape[1]))
    times = np.bincount((resample_counts(len(values), seed=seed) @ values).argmax(axis=1), minlength=values.shape[1])
    order = np.argsort(-times, kind="stable")
    enough = int((np.cumsum(times[order]) >= level * times.sum()).argmax()) + 1
    return peak, sorted({peak, *(int(place) for place in order[:enough])})


SIGNS = 10_000
"""Sign flips that are drawn where there are more."""


def sign_flip_max_t(values: Float[ndarray, "prompt test"], *, seed: int = 0) -> Float[ndarray, " test"]:
    """Two-sided p of each column's mean against 0, family-wise over all columns: by flipping the signs of whole prompts and taking the largest |t|.

    All flips are tried where there are at most SIGNS, else so many are drawn and one is added (Phipson and Smyth 2010). Valid for any dependence
    between columns, if values are symmetric about 0 where there is no effect: differences of the same prompts are (Westfall and Young 1993).
    """
    n = len(values)
    if n < 2:
        return np.ones(values.shape[1])
    exact = 2 ** (n - 1) <= SIGNS  # a flip and its opposite give the same |t|
    codes = np.arange(2 ** (n - 1))[:, None] >> np.arange(n) & 1 if exact else np.random.default_rng(seed).integers(0, 2, (SIGNS, n))
    signs = 1.0 - 2.0 * codes
    squares = (values**2).sum(axis=0)

    def t_of(means: ndarray) -> ndarray:
        left = np.maximum(squares / n - means**2, 1e-12 * squares / n + 1e-300)
        return np.abs(means) / np.sqrt(left)

    real = t_of(values.mean(axis=0))
    largest = t_of(signs @ values / n).max(axis=1)
    beyond = (largest[:, None] >= real * (1 - 1e-9)).sum(axis=0)
    return beyond / len(signs) if exact else (1 + beyond) / (1 + len(signs))


def false_discovery_q(p: Float[ndarray, " test"]) -> Float[ndarray, " test"]:
    """Benjamini-Hochberg q: the share of false finds to expect among all tests with a q this small."""
    order = np.argsort(p, kind="stable")
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty(len(p))
    q[order] = np.minimum.accumulate(scaled[::-1])[::-1].clip(max=1)
    return q


def _blocks(n_columns: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, n_columns, BLOCK))


def bca(
    draws: Float[ndarray, "column resample"],
    point: Float[ndarray, " column"],
    influence: Float[ndarray, "column prompt"],
    level: float,
) -> tuple[Float[ndarray, " column"], Float[ndarray, " column"]]:
    """BCa ends per column; `influence` of each prompt gives the acceleration. Sorts `draws`."""
    n_columns, resamples = draws.shape
    below = (draws < point[:, None]).mean(axis=1) + (draws == point[:, None]).mean(axis=1) / 2
    bias = ndtri(below.clip(1 / resamples, 1 - 1 / resamples))
    size = np.abs(influence).max(axis=1, keepdims=True)
    influence = np.divide(influence, size, out=np.zeros_like(influence), where=size > 0)  # so that no square underflows
    squares = (influence**2).sum(axis=1)
    acceleration = np.divide((influence**3).sum(axis=1), 6 * squares**1.5, out=np.zeros(n_columns), where=squares > 0)
    draws = np.sort(draws, axis=1)
    ends = []
    for z in (-_z(level), _z(level)):
        moved = bias + (bias + z) / np.maximum(1 - acceleration * (bias + z), 1e-3)
        place = ndtr(moved) * (resamples - 1)
        left = np.floor(place).astype(int)
        right = np.minimum(left + 1, resamples - 1)
        columns = np.arange(n_columns)
        ends.append(draws[columns, left] + (place - left) * (draws[columns, right] - draws[columns, left]))
    return np.minimum(ends[0], point), np.maximum(ends[1], point)


def _second_order(centred: Float[ndarray, "prompt column"], level: float) -> tuple[ndarray, ndarray]:
    """BCa ends relative to the mean, to second order: z + skew (2 z^2 + 1) / (6 sqrt n), in standard errors (Hall 1992)."""
    n_prompts, n_columns = centred.shape
    variance = (centred**2).mean(axis=0)
    skew = np.divide((centred**3).mean(axis=0), variance**1.5, out=np.zeros(n_columns), where=variance > 0)
    z = _z(level)
    lean = skew * (2 * z**2 + 1) / (6 * np.sqrt(n_prompts))
    error = np.sqrt(variance / n_prompts)
    return (lean - z) * error, (lean + z) * error


def _z(level: float) -> float:
    return float(ndtri((1 + level) / 2))
