"""Values per prompt with a known mean, as skewed as divergences are: log-normal parts of a given coefficient of variation (CV).

Divergences of real pairs have CVs of 0.6 to 3.8 over prompts. Each null here has the mean 0 exactly, and none is symmetric about it: the
values of a paired test, of a factorial and of a difference between two runs, where there is nothing to find.
"""

from collections.abc import Callable

import numpy as np
from numpy import ndarray

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
