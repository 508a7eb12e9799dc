"""How stable is a choice? A head, module or layer that was the strongest on a few prompts may not be the strongest on others like them.

The prompts that chose are cut in two at random, many times; each half chooses by itself. `agreement` is how often both halves choose the same: near 1
the choice is the models', near 1 / (candidates) it is the prompts'. Halves are smaller than the whole, so the choice of all prompts is steadier than
this says.
"""

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechdiff.statistics.intervals import FEWEST

CUTS = 400


def agreement(values: Float[ndarray, "prompt candidate"], *, seed: int = 0) -> float:
    """The share of random cuts in two whose halves have their largest mean at one candidate; NaN from fewer than FEWEST prompts or one candidate."""
    n, candidates = values.shape
    if n < FEWEST or candidates < 2:
        return float("nan")
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(n), (CUTS, 1)), axis=1)
    first, second = order[:, : n // 2], order[:, n // 2 :]
    picks = [values[half].mean(axis=1).argmax(axis=1) for half in (first, second)]
    return float((picks[0] == picks[1]).mean())


def said(values: Float[ndarray, "prompt candidate"]) -> str:
    """ "; two halves of them choose the same in 62 % of cuts", to be put behind "chosen on the select prompts"; empty where it is not known."""
    found = agreement(values)
    return "" if found != found else f"; two halves of them choose the same in {found:.0%} of cuts".replace("%", "\u00a0%")
