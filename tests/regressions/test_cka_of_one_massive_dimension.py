"""One shared coordinate of large variance made CKA 0.996 of states that were otherwise independent, and layers were chosen by it."""

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from mechdiff.architectures.sites import Site
from mechdiff.measures.patching.selection import choose_layers
from mechdiff.measures.similarity.formula import cka_without_top, linear_cka, measure
from mechdiff.measures.similarity.geometry import pairings
from mechdiff.rows import rows
from oracles.states import cka


def independent_but_for_one(size: float, seed: int = 0, n: int = 40, d: int = 512) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, d, generator=random, dtype=torch.float64) for _ in range(2))
    x[:, 7] = y[:, 7] = size * torch.randn(n, generator=random, dtype=torch.float64)
    return x, y


@pytest.mark.parametrize(("size", "whole"), [(5, 0.4), (20, 0.99), (100, 0.999)])
@pytest.mark.parametrize("seed", range(3))
def test_independent_states_had_a_cka_of_one(size: float, whole: float, seed: int) -> None:
    x, y = independent_but_for_one(size, seed)
    assert linear_cka(x, y) > whole
    assert abs(cka_without_top(x, y)) < 0.1


@pytest.mark.parametrize("widths", [(12, 12), (12, 9)])
def test_cka_without_three_dimensions_is_that_of_the_others(widths: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    x, y = (random.standard_normal((20, d)) * np.array([1, 9, 1, 8, 1, 1, 7, *[1] * (d - 7)]) for d in widths)
    kept = [np.delete(states, [1, 3, 6], 1) for states in (x, y)]
    assert cka_without_top(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(cka(*kept), abs=1e-12)
    site = Site(2, "resid_post")
    frame = measure(
        {site: torch.from_numpy(x)}, {site: torch.from_numpy(y)}, [str(i) for i in range(20)], "report", orders=pairings(range(20), 2, 0)
    )
    assert frame.filter(pl.col("metric") == "cka_without_top3")["value"].item() == pytest.approx(cka(*kept), abs=1e-12)


def test_a_layer_was_chosen_by_one_dimension() -> None:
    """Block 1 is alike but for a wide coordinate that is another; block 2 is another but for a wide one that is alike."""
    values = {0: (1.0, 1.0), 1: (0.2, 0.99), 2: (0.996, 0.035)}
    table = [
        rows([value], measure="similarity", split="select", layer=layer, site="resid_post", metric=metric)
        for layer, both in values.items()
        for metric, value in zip(("cka", "cka_without_top3"), both, strict=True)
    ]
    chosen = choose_layers(pl.concat(table, rechunk=True))
    assert chosen is not None
    assert (chosen["hot_layers"], chosen["control_layers"]) == ([2], [0])
    assert "without its three widest dimensions" in chosen["why"]["L2"]
