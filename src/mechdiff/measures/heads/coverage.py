"""How much of an effect does a set of players (heads, MLPs) cover? Arrays in, numbers out.

Every player's and set's effect is v(S) in nats on each prompt, 0 for the empty set, and the whole is v(all). Coverage is a ratio of means over
prompts,

    c(S) = mean v(S) / mean v(all),      necessity of S = 1 - c(all without S)

so c(nothing) = 0 and c(all) = 1, which is asserted before anything is given out. Where mean v(all) is not above three noise floors, or cannot be told
from 0, there is no effect to explain: no ratio is made, not even a large one (two heads that cancel have effects alone and none together).

Over how many players shares (Shapley values) are spread: spread.py.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechdiff.statistics import intervals
from mechdiff.statistics.floors import FLOORS

ENDS = 1e-6
"""How far c(all) may lie from 1, as a share."""


@dataclass(frozen=True, kw_only=True)
class Whole:
    """The effect of all players on each prompt, which coverage is a share of."""

    values: Float[ndarray, " prompt"]
    floor: float = 0.0
    """The noise floor of an effect, in nats."""

    @property
    def mean(self) -> float:
        return float(self.values.mean()) if len(self.values) else 0.0

    @cached_property
    def counts(self) -> bool:
        """Whether there is an effect to explain: above three floors, and with an interval above 0 (few prompts have none)."""
        if not np.isfinite(self.mean) or self.mean <= FLOORS * self.floor or self.mean <= 0:
            return False
        return len(self.values) < intervals.FEWEST or float(intervals.mean_intervals(self.values[:, None])[0][0]) > 0


@dataclass(frozen=True, kw_only=True)
class Covered:
    """Coverage of several sets, with 95 % intervals over prompts; NaN throughout where there is no effect to explain."""

    share: Float[ndarray, " set"]
    low: Float[ndarray, " set"]
    high: Float[ndarray, " set"]


def coverage(values: Float[ndarray, "prompt set"], whole: Whole, *, seed: int = 0) -> Covered:
    """c(S) of each column. Raises ValueError where the prompts are not those of the whole."""
    if len(values) != len(whole.values):
        raise ValueError(f"effects of {len(values)} prompts and a whole of {len(whole.values)}: they must be the same prompts")
    if not whole.counts:
        nothing = np.full(values.shape[1], np.nan)
        return Covered(share=nothing, low=nothing, high=nothing)
    checked = np.column_stack([np.zeros(len(values)), whole.values, values])
    share, low, high = intervals.share_intervals(checked, whole.values, seed=seed)
    assert share[0] == 0, "nothing covers nothing"
    assert abs(share[1] - 1) < ENDS, "all players cover all of it"
    return Covered(share=share[2:], low=low[2:], high=high[2:])


def necessity(without: Float[ndarray, "prompt set"], whole: Whole, *, seed: int = 0) -> Covered:
    """1 - c(all without S) of each column, given v(all without S)."""
    found = coverage(without, whole, seed=seed)
    return Covered(share=1 - found.share, low=1 - found.high, high=1 - found.low)


def two_point(
    alone: Float[ndarray, "prompt player"], without: Float[ndarray, "prompt player"], whole: Float[ndarray, " prompt"]
) -> ndarray:
    """(v(h) + v(all) - v(all without h)) / 2 `[prompt, player]`: the Shapley values where v is quadratic, as it is for small edits."""
    return (alone + whole[:, None] - without) / 2


def first_to(share: Float[ndarray, " k"], sizes: Float[ndarray, " k"] | list[int], threshold: float) -> int | None:
    """The smallest of `sizes` whose coverage reaches the threshold; None if none does."""
    reached = [size for size, one in zip(sizes, share, strict=True) if one >= threshold]
    return int(min(reached)) if reached else None
