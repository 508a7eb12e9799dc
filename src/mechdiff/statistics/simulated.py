"""Simulations say how the intervals and tests of `statistics.intervals` fare at the skew and the number of prompts of a run's own values.

Intervals of a mean and p values are exact only for very many prompts. How often they hold the truth, and how often they find what is not there, was
measured on values of known mean (`validate/skewed.py`): data/coverage.json, written by benchmarks/coverage.py, shown in docs/STATISTICS.md and
docs/NULLS.md. A page prints the measured coverage where it is under ENOUGH, and no sentence rests on a test that does not speak.

The skew is that of log-normal values with the same spread of logarithms (`cv_of`). The plain sd / mean of few prompts is too low where it matters:
of true CV 2 and 16 prompts it states a coverage of 91 % where 88 % hold, the logarithms 89 %.

A null result says what it would have shown: `detectable`, from the power of the very test that is used (`mean_p`), which was simulated too.
"""

import json
from functools import cache
from importlib.resources import files

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.special import ndtri

from mechdiff.statistics.intervals import FEWEST, LEVEL

ENOUGH = 0.93
"""Coverage from which an interval is called one of 95 %."""
SMALL = 1e-3
"""Of the mean: smaller values count as this, since how small they are says nothing of the mean."""


POWER = 0.8
"""With which a mean that is called detectable is found."""


@cache
def _shipped() -> dict:
    return dict(json.loads((files("mechdiff") / "data" / "coverage.json").read_text()))


@cache
def _measured(name: str) -> tuple[ndarray, ndarray, ndarray]:
    """CVs, numbers of prompts, and what was found there of the intervals (`mean`, `geometric`) or of a test, `[cv, n]`."""
    table = _shipped()["table"]
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
    most = _shipped()["most"][test]
    cvs, sizes, found = _measured(test)
    if n_prompts < max(sizes[0], FEWEST) or not 0 <= cv <= cvs[-1]:
        return False
    rows = slice(max(int(np.searchsorted(cvs, cv, side="right")) - 1, 0), int(np.searchsorted(cvs, cv)) + 1)
    columns = slice(
        int(np.searchsorted(sizes, n_prompts, side="right")) - 1, min(int(np.searchsorted(sizes, n_prompts)), len(sizes) - 1) + 1
    )
    return bool((found[rows, columns] <= most).all())


def detectable(spread: ndarray, n_prompts: ndarray | int, *, level: float = LEVEL) -> ndarray:
    """The smallest mean, of values with this standard deviation, that `mean_p` would have told from 0 with 80 % power. Elementwise.

    It is 4.6 standard errors of 8 prompts, 3.5 of 16 and 3.2 of 32, where Student's t takes 3.3, 3.0 and 2.9: a p that holds at skew costs power.
    Between simulated numbers of prompts it runs along 1 / n, down to what normal errors take: (1 - level) / 4 on the mean's side. The values are
    normal; means of skewed ones are found more often on the side of the long tail and less often on the other (docs/NULLS.md has both). NaN of
    fewer prompts than have a p, and at levels beyond the simulated ones.
    """
    table = _shipped()["detectable"]
    levels, sizes = np.array(table["levels"]), np.array(table["n"], float)
    wrong, n = 1 - level, np.asarray(n_prompts, float)
    if not levels.min() - 1e-9 <= wrong <= levels.max() + 1e-9:
        return np.full(np.broadcast(spread, n).shape, np.nan)
    order = np.argsort(levels)
    by_size = [float(np.interp(np.log(wrong), np.log(levels[order]), np.array(row)[order])) for row in table["errors"]]
    in_the_limit = float(ndtri(1 - wrong / 4) + ndtri(POWER))
    errors = np.interp(1 / np.maximum(n, sizes[0]), [0.0, *(1 / sizes[::-1])], [in_the_limit, *by_size[::-1]])
    return np.where(n >= FEWEST, errors * spread / np.sqrt(np.maximum(n, 1)), np.nan)
