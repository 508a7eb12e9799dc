"""What simulations say of the intervals and tests of `intervals.py`, at the skew and the number of prompts of a run's own values.

Intervals of a mean and p values are exact only for very many prompts. How often they hold the truth, and how often they find what is not there, was
measured on values of known mean (`validate/skewed.py`): data/coverage.json, written by benchmarks/coverage.py, shown in docs/STATISTICS.md and
docs/NULLS.md. A page prints the measured coverage where it is under ENOUGH, and no sentence rests on a test that does not speak.

The skew is that of log-normal values with the same spread of logarithms (`cv_of`). The plain sd / mean of few prompts is too low where it matters:
of true CV 2 and 16 prompts it states a coverage of 91 % where 88 % hold, the logarithms 89 %.
"""

import json
from functools import cache
from importlib.resources import files

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechdiff.report.intervals import FEWEST

ENOUGH = 0.93
"""Coverage from which an interval is called one of 95 %."""
SMALL = 1e-3
"""Of the mean: smaller values count as this, since how small they are says nothing of the mean."""


@cache
def _measured(name: str) -> tuple[ndarray, ndarray, ndarray]:
    """CVs, numbers of prompts, and what was found there of the intervals (`mean`, `geometric`) or of a test, `[cv, n]`."""
    table = json.loads((files("mechdiff") / "data" / "coverage.json").read_text())["table"]
    cvs, sizes = (np.array(sorted({one[axis] for one in table})) for axis in ("cv", "n"))
    by_place = {(one["cv"], one["n"]): one[name] for one in table}
    return cvs, sizes, np.array([[by_place[cv, n] for n in sizes] for cv in cvs])


def cv_of(values: Float[ndarray, "prompt column"]) -> Float[ndarray, " column"]:
    """Each column's coefficient of variation, as log-normal values of this spread of logarithms have it; NaN where a value is negative."""
    mean = values.mean(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.log(np.maximum(values, SMALL * mean))
        spread = np.sqrt(np.expm1(logs.var(axis=0, ddof=1))) if len(values) > 1 else np.full_like(mean, np.nan)
    return np.where((values >= 0).all(axis=0) & (mean > 0), spread, np.nan)


def coverages(cv: ndarray, n_prompts: ndarray, *, of: str = "mean") -> ndarray:
    """How often intervals of a `mean`, or of a `share` of D, held the truth at each skew and number of prompts: between the simulated ones on a
    logarithmic scale.

    More prompts or less skew than were simulated count as the nearest simulated ones, and so does more skew: then it is what holds at most. NaN for
    fewer prompts than any interval has, and where the skew is not known.
    """
    cvs, sizes, grid = _measured(of)
    cv, n_prompts = np.broadcast_arrays(np.asarray(cv, float), np.asarray(n_prompts, float))
    found = np.full(cv.shape, np.nan)
    for n in np.unique(n_prompts[n_prompts >= FEWEST]):
        of_size = [float(np.interp(np.log(n), np.log(sizes), row)) for row in grid]
        here = (n_prompts == n) & (cv == cv)
        found[here] = np.interp(np.log(np.maximum(cv[here], 1e-9)), np.log(cvs), of_size)
    return found


def coverage(cv: float, n_prompts: int) -> float | None:
    """The same of one mean; None for fewer prompts or more skew than were simulated."""
    found = float(coverages(np.array(cv), np.array(n_prompts)))
    return found if 0 < cv <= _measured("mean")[0][-1] and found == found else None


def speaks(test: str, n_prompts: int, cv: float) -> bool:
    """Whether so many prompts of this skew let a test's p of 0.05 be spoken of: at most 5 % false alarms + two standard errors, in simulations.

    `test` is a column of data/coverage.json, such as "mean_p". Between simulated numbers of prompts and skews, all around must hold.
    """
    most = json.loads((files("mechdiff") / "data" / "coverage.json").read_text())["most"][test]
    cvs, sizes, found = _measured(test)
    if n_prompts < max(sizes[0], FEWEST) or not 0 <= cv <= cvs[-1]:
        return False
    rows = slice(max(int(np.searchsorted(cvs, cv, side="right")) - 1, 0), int(np.searchsorted(cvs, cv)) + 1)
    columns = slice(
        int(np.searchsorted(sizes, n_prompts, side="right")) - 1, min(int(np.searchsorted(sizes, n_prompts)), len(sizes) - 1) + 1
    )
    return bool((found[rows, columns] <= most).all())
