"""Quantiles of any number of values are read from counts: no value is kept, and each is known to a thousandth of itself.

A value of 0 or more falls into the bin of its float32's sign, exponent and first nine bits of mantissa. A bin is a 2^-9 of its values wide and is
read as its middle, so a quantile is at most 2^-10 of itself (0.1 %) from that of all values; 0 is read as 0. Mean, root mean square and maximum are
sums and are exact.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

_LEFT_OUT = 23 - 9
ERROR = 2.0**-10
"""The most by which a quantile is off, of itself."""


def counted(values: Float[ndarray, " value"]) -> dict[str, ndarray]:
    """Which bins the values fall into, and how many into each."""
    bits = np.abs(np.asarray(values, dtype=np.float32)).view(np.uint32) >> _LEFT_OUT
    bins, counts = np.unique(bits, return_counts=True)
    return {"bins": bins.astype(np.int32), "counts": counts.astype(np.int64)}


def together(one: Mapping[str, ndarray], other: Mapping[str, ndarray]) -> dict[str, ndarray]:
    """The counts of both."""
    bins, where = np.unique(np.concatenate([one["bins"], other["bins"]]), return_inverse=True)
    counts = np.bincount(where, np.concatenate([one["counts"], other["counts"]])).astype(np.int64)
    return {"bins": bins, "counts": counts}


def quantile(counts: Mapping[str, ndarray], share: float) -> float:
    """The value that `share` of all lie below, between two values in proportion (as numpy's linear quantile); NaN of none."""
    n = int(counts["counts"].sum())
    if not n:
        return float("nan")
    place = share * (n - 1)
    low, past = int(place), place - int(place)
    ends = _nth(counts, np.array([low, min(low + 1, n - 1)]))
    return float((1 - past) * ends[0] + past * ends[1])


def _nth(counts: Mapping[str, ndarray], places: Int[ndarray, " place"]) -> Float[ndarray, " place"]:
    """The values at these places of all in order, from 0."""
    bins = counts["bins"][np.searchsorted(counts["counts"].cumsum(), places, side="right")].astype(np.uint32)
    middle = ((bins << _LEFT_OUT) | (1 << (_LEFT_OUT - 1))).view(np.float32).astype(np.float64)
    return np.where(bins == 0, 0.0, middle)
