"""A rate says how often simulated studies raised a false alarm, or how often their intervals held the truth."""

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

LEVEL, WRONG = 0.95, 0.05
APPROXIMATE = 0.07
"""What passes of tests that hold in the limit of many prompts: t tests of jackknifed numbers."""
FAMILY = 8
"""Layers that are tested together."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How often something came out in simulated studies."""

    what: str
    kind: str
    """"false alarms", "coverage" or "power"."""
    asked: float
    least: float
    most: float
    found: float
    repeats: int

    @property
    def holds(self) -> bool:
        return self.least <= self.found <= self.most


def false_alarms(what: str, p: ndarray | list[float], *, at_most: float = 0.0) -> Rate:
    """The share of p at or below 5 %; passes within two standard errors, and, of a test that is approximate, up to `at_most`."""
    found = np.asarray(p) <= WRONG
    most = max(at_most, WRONG + 2 * (WRONG * (1 - WRONG) / len(found)) ** 0.5)
    return Rate(what=what, kind="false alarms", asked=WRONG, least=0.0, most=most, found=float(found.mean()), repeats=len(found))


def coverage(what: str, held: ndarray, *, least: float = 0.90, most: float = 1.0) -> Rate:
    """The share of intervals that hold the truth."""
    return Rate(what=what, kind="coverage", asked=LEVEL, least=least, most=most, found=float(np.mean(held)), repeats=len(held))
