"""What may a sentence rest on at a run's own skew?

p values: the tests of `intervals.py`, held silent where simulations say that they find too often what is not there.

A test of few and skewed values raises false alarms: of log-normal values with CV 2 and ten prompts, p <= 0.05 of a mean comes in 9 % of studies where
nothing is to be found, of any of eight means in 19 %. Effects are parts of D, so the skew of a run is that of D over its prompts. Where a test's
measured rate at this skew and number of prompts is above 5 % (`simulated.speaks`; docs/NULLS.md has the table) there is no p here, NaN: nothing is
said to be there, no number stands for what was not tested (`in_words`), and the section on trust says why.

Intervals: `in_measured_words` has sentences print the share of simulations in which such an interval held the truth, where that is under 93 %.
"""

from contextlib import AbstractContextManager

import numpy as np
import polars as pl
from jaxtyping import Float
from numpy import ndarray

from mechdiff.report import difference, phrasing
from mechdiff.statistics import intervals, simulated
from mechdiff.statistics.memory import once

TESTS = {"mean_p": "one mean", "family_p": "several means together"}


@once
def skew(rows: pl.DataFrame) -> float:
    """The coefficient of variation of D over the reported prompts; 0 where D is not known, or is 0 on every prompt."""
    d = difference.d_per_prompt(rows)["d"].to_numpy()
    found = float(simulated.cv_of(d[:, None])[0]) if len(d) and np.isfinite(d).all() else np.nan
    return 0.0 if np.isnan(found) else found


def mean_p(rows: pl.DataFrame, values: Float[ndarray, " prompt"]) -> float:
    """Two-sided p of a mean against 0, by the bootstrap-t; NaN where that test does not speak."""
    return float(intervals.mean_p(values[:, None])[0]) if simulated.speaks("mean_p", len(values), skew(rows)) else np.nan


def family_p(rows: pl.DataFrame, values: Float[ndarray, "prompt test"]) -> Float[ndarray, " test"]:
    """The same of several means on the same prompts, family-wise."""
    if not simulated.speaks("family_p", len(values), skew(rows)):
        return np.full(values.shape[1], np.nan)
    return intervals.family_p(values)


def in_measured_words(rows: pl.DataFrame) -> AbstractContextManager[None]:
    """While open, intervals of means and of shares of D are called what such intervals held in simulations at this run's skew and prompts,
    and cells that name no other number of prompts are of that many (clusters of) prompts."""
    cv, n = np.array(skew(rows)), np.array(len(difference.d_per_prompt(rows)))
    mean, share = (float(simulated.coverages(cv, n, of=of)) for of in ("mean", "share"))
    return phrasing.measured(None if np.isnan(mean) else mean, None if np.isnan(share) else share, int(n) or None)


def in_words(p: float) -> str:
    """ "p = 0.031", or that there is none."""
    return "no test: too few prompts for this skew" if np.isnan(p) else f"p = {phrasing.nats(p)}"


def silent(rows: pl.DataFrame) -> str | None:
    """The sentence that names the tests which do not speak at this run's number of prompts and skew; None where all do."""
    n, cv = len(difference.d_per_prompt(rows)), skew(rows)
    quiet = [words for test, words in TESTS.items() if n and not simulated.speaks(test, n, cv)]
    if not quiet:
        return None
    return (
        f"With {n} prompts whose D varies as it does here (coefficient of variation {cv:.2g}), a test of {' and of '.join(quiet)} against 0 would "
        "find what is not there in more than 5 % of studies. It is not used: what rests on it is not said (docs/NULLS.md)."
    )
