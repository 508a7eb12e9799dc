"""Refits on permuted targets, from inner products alone, against refits that are made."""

import pytest
import torch
from torch import Tensor

from mechdiff.maps.refits import permutations, permuted_r2
from mechdiff.maps.regression import Examples, cross_validated
from whole_matrix import coefficients


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rank", [None, 2])
def test_permuted_refits_are_refits(rank: int | None) -> None:
    x, z, x_test, z_test = random(40, 60), random(40, 5, seed=1) + 3, random(15, 60, seed=2), random(15, 5, seed=3) + 3
    groups, test = torch.arange(20).repeat_interleave(2), Examples(inputs=x_test, targets=z_test, groups=torch.arange(15))
    found = permuted_r2(Examples(inputs=x, targets=z, groups=groups), test, draws=4, seed=3, rank=rank, lam=0.1)
    expected = []
    for order in permutations(groups, 4, 3):
        predicted = (x_test - x.mean(0)) @ coefficients(x, z[order], 0.1, rank) + z.mean(0)
        expected.append(1 - (z_test - predicted).square().sum() / (z_test - z_test.mean(0)).square().sum())
    torch.testing.assert_close(found, torch.stack(expected))


def test_permuted_refits_choose_lambda_anew() -> None:
    x, z, x_test, z_test = random(20, 30), random(20, 3, seed=1), random(9, 30, seed=2), random(9, 3, seed=3)
    groups, test = torch.arange(20), Examples(inputs=x_test, targets=z_test, groups=torch.arange(9))
    found = permuted_r2(Examples(inputs=x, targets=z, groups=groups), test, draws=4, seed=3)
    expected = []
    for order in permutations(groups, 4, 3):
        lam = cross_validated(x, z[order], groups, seed=3).lambda_
        predicted = (x_test - x.mean(0)) @ coefficients(x, z[order], lam) + z.mean(0)
        expected.append(1 - (z_test - predicted).square().sum() / (z_test - z_test.mean(0)).square().sum())
    torch.testing.assert_close(found, torch.stack(expected))


def test_whole_prompts_are_permuted_each_keeping_its_rows_in_order() -> None:
    [order] = permutations(torch.arange(6).repeat_interleave(3), 1, seed=3)
    blocks = order.reshape(6, 3)
    assert sorted(order.tolist()) == list(range(18))
    assert (blocks[:, 0] % 3 == 0).all()
    assert (blocks[:, 1:] - blocks[:, :-1] == 1).all()


def test_groups_of_other_sizes_keep_their_own_rows() -> None:
    groups = torch.tensor([0, 1, 1, 2, 3, 3, 4, 4, 4])
    seen = set()
    for order in permutations(groups, 20, seed=0):
        assert sorted(order.tolist()) == list(range(9))
        assert order[6:].tolist() == [6, 7, 8], "no other group has three rows"
        seen |= {tuple(order[1:3].tolist()), tuple(order[[0, 3]].tolist())}
    assert seen == {(1, 2), (4, 5), (0, 3), (3, 0)}
