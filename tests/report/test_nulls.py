"""From draws of a null distribution to p."""

import polars as pl
import pytest

from mechdiff.report.nulls import permutation_p
from mechdiff.rows import rows

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
    found = permutation_p(pl.concat([rows([real], **MAP), rows(draws, control=names, **MAP)]))
    return float(found["p"][0])


def test_p_counts_the_draws_that_are_at_least_as_close() -> None:
    assert p_of(0.5, [0.1, 0.6, 0.2, 0.3]) == pytest.approx(2 / 5)


def test_refits_that_are_the_same_map_are_ties_however_they_were_computed() -> None:
    assert p_of(-0.0987845111, [-0.0987845212] * 200) == 1
