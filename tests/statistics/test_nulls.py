"""From draws of a null distribution to p."""

import numpy as np
import polars as pl
import pytest

from mechdiff.measures.catalogue import NUMBERS
from mechdiff.rows import rows
from mechdiff.statistics.metric import facts
from mechdiff.statistics.nulls import permutation_p

MAP = {
    "measure": "transport",
    "metric": "r2_change",
    "direction": "tuned<-base",
    "split": "report",
    "layer": 3,
    "site": "attn_out",
    "arm": "rrr",
}


def p_of(real: float, draws: list[float]) -> float:
    names = [f"permuted#{i}" for i in range(len(draws))]
    found = permutation_p(pl.concat([rows([real], **MAP), rows(draws, control=names, **MAP)]), facts(NUMBERS))
    return float("nan") if found["untestable"][0] else float(found["p"][0])


def test_p_counts_the_draws_that_are_at_least_as_close() -> None:
    assert p_of(0.5, [0.6, *[0.01 * i for i in range(19)]]) == pytest.approx(2 / 21)
    assert p_of(0.5, [0.01 * i for i in range(19)]) == pytest.approx(1 / 20)


def test_refits_that_are_the_same_map_are_ties_however_they_were_computed() -> None:
    assert p_of(-0.0987845111, [*[-0.0987845212] * 180, *range(20)]) == 1


def test_a_test_that_cannot_reach_its_level_is_none() -> None:
    """Even if the real pairing were the closest of all, p would be over 0.05."""
    assert np.isnan(p_of(0.5, [0.1, 0.6, 0.2, 0.3])), "four draws: p is 1/5 at the least"
    assert np.isnan(p_of(-0.0987845111, [-0.0987845212] * 200)), "every refit is the same map"
    six = [0.9, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert np.isnan(p_of(0.9, six * 40)), "six pairings, of which the real one is the closest: p is 1/6"
    assert np.isnan(p_of(0.1, six * 40)), "nor where it is not the closest"
    assert p_of(0.05, [*six * 40, *[1.0] * 5]) == 1
