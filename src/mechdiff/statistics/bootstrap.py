"""The bootstrap-t says how far means, and ratios of means, stray in units of their own standard error. Arrays in, arrays out.

The unit that is resampled is the prompt (or the cluster of prompts): values of different layers, sites and arms on one prompt belong together, so
prompts are drawn once for all columns. That also makes it fast: sums over B resamples of G columns are one matrix product, [G, prompt] values
times [prompt, B] counts.

Of a mean m with standard error s, each resample gives t* = (m* - m) / s*. Where few prompts have much of the whole, a resample that misses them has
a mean that is too low *and* an error that is too small: t* has a long left tail, and the interval, m - t*_high s to m - t*_low s, reaches further up
than down. The percentile bootstrap and its correction BCa know of the lower mean only and are too short there (docs/STATISTICS.md has both). Of a
ratio the error is that of its influence, (v - share d) / mean(d) (Efron and Tibshirani 1993, 12.5; Hall 1992).

A resample in which hardly anything varies, such as one prompt drawn n times, would be infinitely many errors away: no s* counts as less than
`LEAST` of s. With 8 prompts and more that changes no coverage, and halves the longest tenth of the intervals (docs/STATISTICS.md).
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.special import ndtri

RESAMPLES = 2000
LEAST = 0.2
"""The smallest standard error that a resample may have, of the sample's own."""
MANY_PROMPTS = 5000
"""Above this many prompts the bootstrap's distribution is its own expansion to second order, which costs nothing."""
BLOCK = 256
"""Columns at a time, so that each [column, resample] table stays near 4 MB: in the processor's cache."""


def resample_counts(n_prompts: int, *, resamples: int = RESAMPLES, seed: int = 0) -> Float[ndarray, "resample prompt"]:
    """How often each prompt is drawn in each resample; rows sum to `n_prompts`."""
    drawn = np.random.default_rng([seed, n_prompts]).integers(0, n_prompts, size=(resamples, n_prompts))
    drawn += np.arange(resamples)[:, None] * n_prompts
    return np.bincount(drawn.ravel(), minlength=resamples * n_prompts).reshape(resamples, n_prompts).astype(float)


@lru_cache(maxsize=4)
def drawn_shares(n_prompts: int, seed: int) -> Float[ndarray, "resample prompt"]:
    """The counts over the number of prompts, to be read only: every column of a run is drawn alike."""
    shares = resample_counts(n_prompts, seed=seed) / n_prompts
    shares.flags.writeable = False
    return shares


def of_means(
    centred: Float[ndarray, "prompt column"], shares: Float[ndarray, "resample prompt"]
) -> tuple[Float[ndarray, " column"], Float[ndarray, "column resample"]]:
    """Each column's standard error, and t* in every resample: `shares` are its counts divided by the number of prompts."""
    values = np.ascontiguousarray(centred.T)
    size = np.abs(values).max(axis=1, keepdims=True)
    values = np.divide(values, size, out=np.zeros_like(values), where=size > 0)  # so that no square underflows
    t = values @ shares.T
    squares = np.square(values) @ shares.T
    squares -= np.square(t)
    error = np.square(values).mean(axis=1)
    return size[:, 0] * np.sqrt(error / len(centred)), _in_errors(t, squares, error, len(centred))


def of_ratios(
    values: Float[ndarray, "prompt column"], total: Float[ndarray, "prompt total"], shares: Float[ndarray, "resample prompt"]
) -> tuple[Float[ndarray, " column"], Float[ndarray, "column resample"]]:
    """The same of mean(values) / mean(total), with one total for all columns or each its own. The error is that of the influence,
    (v - share d) / mean(d), in a resample about the resample's own share. A resample whose total is 0 has no share: NaN, and where there are many of
    them no interval.
    """
    over = total.mean(axis=0)
    influence = np.ascontiguousarray(((values - values.mean(axis=0) / over * total) / over).T)
    size = np.abs(influence).max(axis=1, keepdims=True)
    influence = np.divide(influence, size, out=np.zeros_like(influence), where=size > 0)
    weight = np.ascontiguousarray((total / over).T)
    drawn = weight @ shares.T  # the resample's mean of the total, in units of the total's mean
    drawn = np.where(drawn > 0, drawn, np.nan)
    moved = (influence @ shares.T) / drawn
    squares = (
        np.square(influence) @ shares.T - 2 * moved * ((influence * weight) @ shares.T) + np.square(moved) * (np.square(weight) @ shares.T)
    )
    error = np.square(influence).mean(axis=1)
    return size[:, 0] * np.sqrt(error / len(values)), _in_errors(moved, squares / np.square(drawn), error, len(values))


def _in_errors(moved: ndarray, squares: ndarray, error: Float[ndarray, " column"], n_prompts: int) -> Float[ndarray, "column resample"]:
    """`moved` divided by the resample's own standard error, which counts as no less than LEAST of the sample's. Overwrites both."""
    np.maximum(squares, LEAST**2 * error[:, None], out=squares)
    squares /= n_prompts
    np.sqrt(squares, out=squares)
    return np.divide(moved, squares, out=moved, where=squares > 0)


def ends(
    error: Float[ndarray, " column"], t: Float[ndarray, "column resample"], level: float
) -> tuple[Float[ndarray, " column"], Float[ndarray, " column"]]:
    """Low and high end of the interval, from the estimate on. Sorts `t`."""
    t.sort(axis=1)  # faster than a partition at the four places
    places = [(1 - level) / 2 * (t.shape[1] - 1), (1 + level) / 2 * (t.shape[1] - 1)]
    low, high = (t[:, int(place)] + (place - int(place)) * (t[:, int(place) + 1] - t[:, int(place)]) for place in places)
    return np.minimum(-high * error, 0.0), np.maximum(-low * error, 0.0)


def expansion(influence: Float[ndarray, "prompt column"], level: float) -> tuple[Float[ndarray, " column"], Float[ndarray, " column"]]:
    """The ends for very many prompts, to second order: z + skew (2 z^2 + 1) / (6 sqrt n), in standard errors (Hall 1992)."""
    n_prompts, n_columns = influence.shape
    variance = (influence**2).mean(axis=0)
    skew = np.divide((influence**3).mean(axis=0), variance**1.5, out=np.zeros(n_columns), where=variance > 0)
    z = float(ndtri((1 + level) / 2))
    lean = skew * (2 * z**2 + 1) / (6 * np.sqrt(n_prompts))
    error = np.sqrt(variance / n_prompts)
    return np.minimum((lean - z) * error, 0.0), np.maximum((lean + z) * error, 0.0)


def tails(t: Float[ndarray, "column resample"], real: Float[ndarray, " column"]) -> Float[ndarray, " column"]:
    """Twice the smaller of the shares of resamples at or beyond `real` on either side, the sample itself counted as one."""
    slack = 1e-9 * np.abs(np.where(np.isfinite(real), real, 0.0))[:, None]  # values that do not vary have an infinite t
    beyond = np.minimum((t >= real[:, None] - slack).sum(axis=1), (t <= real[:, None] + slack).sum(axis=1))
    return np.minimum(2 * (1 + beyond) / (1 + t.shape[1]), 1.0)


def blocks(n_columns: int) -> Iterator[slice]:
    """Columns, BLOCK at a time."""
    return (slice(start, start + BLOCK) for start in range(0, n_columns, BLOCK))
