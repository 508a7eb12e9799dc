"""Values per prompt are drawn with a known mean, as skewed as divergences are: log-normal parts of a given coefficient of variation (CV).

Divergences of real pairs have CVs of 0.6 to 3.8 over prompts. Each null here has the mean 0 exactly, and none is symmetric about it: the
values of a paired test, of a factorial and of a difference between two runs, where there is nothing to find.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechdiff.statistics import bootstrap, intervals

Draw = Callable[[float], ndarray]
"""Fresh log-normal values of mean 1 with this CV."""


def lognormal(random: np.random.Generator, cv: float, shape: tuple[int, ...]) -> ndarray:
    """Values of mean 1."""
    deviation = np.sqrt(np.log1p(cv**2))
    return random.lognormal(-(deviation**2) / 2, deviation, shape)


def _one_mean(draw: Draw, cv: float) -> ndarray:
    return draw(cv) - 1


def _difference(draw: Draw, cv: float) -> ndarray:
    return draw(cv) - draw(cv / 2)


def _change(draw: Draw, cv: float) -> ndarray:
    return draw(cv) * (draw(cv / 2) - 1)


def _upstream(draw: Draw, cv: float) -> ndarray:
    bb = draw(cv)  # KL(tuned || run): D of the base; 0 of the tuned model itself
    tb, bt = 1.5 * bb * draw(cv / 2), 0.5 * bb * draw(cv / 2)
    return (bb - tb + bt) / 2


def _interaction(draw: Draw, cv: float) -> ndarray:
    bb = draw(cv)
    return 0.4 * bb * draw(cv / 2) + 0.6 * bb * draw(cv / 2) - bb


NULLS: dict[str, Callable[[Draw, float], ndarray]] = {
    "a mean of log-normal values, apart from the true one": _one_mean,
    "a difference of independent values, one of half the CV": _difference,
    "values that change by a factor of mean 1": _change,
    "the upstream effect of a factorial (bb = D, tt = 0)": _upstream,
    "the interaction of a factorial (bb = D, tt = 0)": _interaction,
}


def null(name: str, random: np.random.Generator, cv: float, shape: tuple[int, ...]) -> ndarray:
    """Values of mean 0, by the name of their law."""
    return NULLS[name](lambda of: lognormal(random, of, shape), cv)


FAMILY = 8
"""Tests that are made together: layers, heads, scores."""
FEWER = 4
"""Of a family there are so many times fewer studies."""


def most(repeats: int) -> float:
    """False alarms up to which a test passes: 5 % and two standard errors of so many studies."""
    return 0.05 + 2 * (0.05 * 0.95 / repeats) ** 0.5


def simulated(cv: float, n: int, repeats: int, *, seed: int = 0) -> dict[str, float]:
    """How often intervals hold the truth, and each test finds what is not there, in so many studies of n prompts.

    `mean`, `geometric`, `share`: coverage of 95 % intervals. `mean_p`, `presence`, `family_p`, `holm`: the largest rate, over all NULLS, of
    p <= 0.05: on both sides; on that side, of the two, where it comes more often; of any p of FAMILY tests on the same prompts, in a quarter as
    many studies.
    """
    random = np.random.default_rng([seed, round(10 * cv), n])
    values = lognormal(random, cv, (n, repeats))
    low, high = intervals.mean_intervals(values, seed=seed)
    _, log_low, log_high = intervals.geometric(values)
    middle = np.exp(-np.log1p(cv**2) / 2)
    part = values * random.uniform(0, 0.8, values.shape)
    _, share_low, share_high = intervals.share_intervals(part, values, seed=seed)
    found = {
        "mean": (low <= 1) & (high >= 1), "geometric": (log_low <= middle) & (log_high >= middle), "share": (share_low <= 0.4) & (share_high >= 0.4)
    }  # fmt: skip
    single, sides, family, holm = [], [], [], []
    for name in NULLS:
        values = null(name, random, cv, (n, repeats))
        seen, above = intervals.mean_p(values, seed=seed) <= 0.05, values.mean(axis=0) > 0
        single.append(seen.mean())
        sides += [(seen & above).mean(), (seen & ~above).mean()]
        families = [null(name, random, cv, (n, FAMILY)) for _ in range(repeats // FEWER)]
        family.append(np.mean([intervals.family_p(one, seed=seed).min() <= 0.05 for one in families]))
        holm.append(np.mean([intervals.holm(intervals.mean_p(one, seed=seed)).min() <= 0.05 for one in families]))
    largest = {"mean_p": max(single), "presence": max(sides), "family_p": max(family), "holm": max(holm)}
    return {name: round(float(value), 4) for name, value in ({name: held.mean() for name, held in found.items()} | largest).items()}


def in_clusters(random: np.random.Generator, cv: float, n_clusters: int, size: int, correlation: float, repeats: int) -> ndarray:
    """`[cluster, prompt, study]`: log-normal values of mean 1 whose logarithms share so much of their variance within a cluster."""
    deviation = np.sqrt(np.log1p(cv**2))
    common, own = random.normal(size=(n_clusters, 1, repeats)), random.normal(size=(n_clusters, size, repeats))
    mixed = np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own
    return np.exp(deviation * mixed - deviation**2 / 2)


LEVELS = (0.05, 0.025, 0.0125, 0.005)
"""At which `mean_p` finds: one score, and one of 2, 4 and 10 scores that are tested together."""


def needed(values: ndarray, level: float = LEVELS[0]) -> Float[ndarray, " study"]:
    """How far each study's values [prompt, study], of standard deviation 1, must all be moved up for `mean_p` to find them, in standard errors.

    Moving all values alike leaves every resample's t* as it is: the critical t of a study is a place among them, on both of the ways in which
    `mean_p` counts.
    """
    n, found = len(values), []
    shares = bootstrap.drawn_shares(n, 0)
    symmetric = int(level * (len(shares) + 1) + 1e-9)  # so many resamples, the sample itself among them, may lie as far out
    for block in bootstrap.blocks(values.shape[1]):
        mean = values[:, block].mean(axis=0)
        error, t = bootstrap.of_means(values[:, block] - mean, shares)
        size = np.sort(np.abs(t), axis=1)
        t.sort(axis=1)
        critical = np.maximum(size[:, -symmetric], t[:, -max(symmetric // 4, 1)])
        found.append((critical * error - mean) * np.sqrt(n))
    return np.concatenate(found)


def multiples(n: int, repeats: int, *, power: float = 0.8, seed: int = 0) -> list[float]:
    """The mean of n normal values that is found with this power, in standard errors, at each of LEVELS."""
    values = np.random.default_rng([seed, n]).normal(size=(n, repeats))
    return [round(float(np.quantile(needed(values, level), power)), 3) for level in LEVELS]


def powers(cv: float, n: int, repeats: int, mean: float, *, seed: int = 0) -> tuple[float, float]:
    """How often `mean_p` finds this mean of log-normal values of standard deviation 1: on the side of their long tail, and on the other."""
    values = (lognormal(np.random.default_rng([seed, round(10 * cv), n]), cv, (n, repeats)) - 1) / cv
    up, down = (float((intervals.mean_p(values + moved, seed=seed) <= 0.05).mean()) for moved in (mean, -mean))
    return up, down
