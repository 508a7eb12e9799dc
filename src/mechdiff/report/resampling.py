"""Any statistic of a set of prompts with its bootstrap: how often each prompt counts goes in, the number comes out.

`intervals` has the bootstraps of means and of ratios of means, in closed form. An effective number of sites is neither; here a number is given as a
function of counts, so that one draw of prompts serves every statistic of a run, and differences of runs on the same prompts are paired.

The interval is BCa: bias from the share of draws below the estimate, acceleration from leaving out one prompt at a time (Efron 1987). Of two runs on
different prompts the draws are independent, and the acceleration is of both samples together (DiCiccio and Efron 1996). Draws of few prompts spread
too little, so the interval is expanded: its normal quantile z becomes sqrt(n / (n - 1)) t, of Student's t with the samples' degrees of freedom
(Hesterberg 2015). The p value of a difference is twice the smaller share of draws on either side of 0, never below 2 / (draws + 1), and reduced
in the same way. Without this two runs of one truth are told apart in 9 % of cases at 16 prompts, with it in 5 to 6 %.

When it misleads: with fewer than ten prompts; and where a statistic is biased upward by noise (an effective number counts what noise adds), in
both the estimate and its interval. Compare such numbers between runs of about the same number of prompts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.special import ndtr, ndtri
from scipy.stats import t as student

from mechdiff.report import intervals

Statistic = Callable[[Float[ndarray, "draw prompt"]], Float[ndarray, " draw"]]
"""How often each prompt counts in each draw, to the number of each draw."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number of one run, or a difference of two, with its draws."""

    value: float
    draws: Float[ndarray, " draw"]
    influence: Float[ndarray, " prompt"]
    """What each prompt adds, from leaving it out."""
    n: int
    """Prompts; of two runs on different prompts those of the smaller."""
    freedom: int
    """Degrees of freedom: n - 1, of two runs on different prompts n1 + n2 - 2."""

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high end, 95 %; NaN where a draw is not defined."""
        if not (np.isfinite(self.draws).all() and np.isfinite(self.influence).all()):
            return np.nan, np.nan
        reach = self._expansion * student.ppf((1 + intervals.LEVEL) / 2, self.freedom)
        low, high = intervals.bca(self.draws[None], np.array([self.value]), self.influence[None], float(2 * ndtr(reach) - 1))
        return float(low[0]), float(high[0])

    @property
    def p(self) -> float:
        """Two-sided, against 0."""
        if not np.isfinite(self.draws).all():
            return np.nan
        above, below = (self.draws >= 0).sum(), (self.draws <= 0).sum()
        z = -ndtri(min(0.5, (1 + min(above, below)) / (1 + len(self.draws))))
        return float(2 * student.sf(z / self._expansion, self.freedom))

    @property
    def _expansion(self) -> float:
        """How much more the truth strays from the estimate than draws do."""
        return float(np.sqrt(self.n / max(1, self.n - 1)))

    @property
    def detectable(self) -> float:
        """The smallest difference from 0 that would be seen with 80 % power at 5 %: 2.8 standard errors."""
        return float((ndtri(0.975) + ndtri(0.8)) * np.std(self.draws))


def estimate(statistic: Statistic, n_prompts: int, *, seed: int = 0) -> Estimate:
    """The statistic of all prompts, of each bootstrap draw, and with each prompt left out. The same seed and `n_prompts` draw the same prompts."""
    value = float(statistic(np.ones((1, n_prompts)))[0])
    draws = statistic(intervals.resample_counts(n_prompts, seed=seed))
    without = statistic(1.0 - np.eye(n_prompts)) if n_prompts > 1 else np.full(1, np.nan)
    return Estimate(value=value, draws=draws, influence=(n_prompts - 1) * (without.mean() - without), n=n_prompts, freedom=n_prompts - 1)


def difference(one: Estimate, other: Estimate, *, paired: bool) -> Estimate:
    """one - other. `paired`: both are of the same prompts in the same order, and of one seed; else the seeds must differ."""
    parts = [one.influence / one.n, -other.influence / other.n]  # each sample's own size belongs to its part
    influence = one.influence - other.influence if paired else np.concatenate(parts)
    freedom = one.freedom if paired else one.freedom + other.freedom
    return Estimate(
        value=one.value - other.value, draws=one.draws - other.draws, influence=influence, n=min(one.n, other.n), freedom=freedom
    )


def bands(
    one: Float[ndarray, "prompt column"], other: Float[ndarray, "prompt2 column"] | None = None, *, paired: bool = False, seed: int = 0
) -> tuple[Float[ndarray, " column"], Float[ndarray, " column"], Float[ndarray, " column"]]:
    """Means of all columns (or their differences one - other) with simultaneous 95 % bands (max-|t|): mean, low, high."""
    if other is None or paired:
        values = one if other is None else one - other
        low, high = intervals.simultaneous_bands(values, seed=seed)
        return values.mean(axis=0), low, high
    centre = one.mean(axis=0) - other.mean(axis=0)
    error = np.sqrt(one.var(axis=0, ddof=1) / len(one) + other.var(axis=0, ddof=1) / len(other))
    moved = np.zeros((intervals.RESAMPLES, one.shape[1]))
    square = np.zeros_like(moved)
    for sign, values, own in ((1, one, seed), (-1, other, seed + 1)):
        centred, counts = values - values.mean(axis=0), intervals.resample_counts(len(values), seed=own) / len(values)
        shift = counts @ centred
        moved += sign * shift
        square += np.maximum(counts @ centred**2 - shift**2, 0) / (len(values) - 1)
    t = np.divide(np.abs(moved), np.sqrt(square), out=np.zeros_like(moved), where=square > 1e-300)
    reach = np.quantile(t.max(axis=1), intervals.LEVEL) * error
    return centre, centre - reach, centre + reach


def share_values(values: Float[ndarray, "prompt column"], total: Float[ndarray, " prompt"]) -> Float[ndarray, "prompt column"]:
    """Each prompt's part in a ratio of means, linearised: their mean is the ratio mean(values) / mean(total), their spread that of the ratio."""
    share = values.mean(axis=0) / total.mean()
    return share + (values - share * total[:, None]) / total.mean()
