"""The form of a fitted map against its dense matrix."""

import pytest
import torch
from torch import Tensor

from mechdiff.maps.affine import Affine, rank_of


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(d_in: int, d_out: int, rank: int, diagonal: Tensor | None = None) -> Affine:
    means = {"mean_in": random(d_in, seed=1), "mean_out": random(d_out, seed=2)}
    return Affine(**means, diagonal=diagonal, left=random(d_in, rank, seed=3), right=random(rank, d_out, seed=4))


def dense(one: Affine) -> Tensor:
    product = one.left @ one.right
    return product if one.diagonal is None else product + torch.diag(one.diagonal)


DIAGONALS = [None, torch.ones(12).double(), torch.full((12,), 0.5).double(), torch.linspace(0.5, 2, 12).double()]


@pytest.mark.parametrize("rank", [0, 1, 5, 12, 20])
@pytest.mark.parametrize("diagonal", DIAGONALS)
def test_a_map_and_its_rank_are_those_of_the_dense_matrix(diagonal: Tensor | None, rank: int) -> None:
    one, states = made(12, 12, rank, diagonal), random(3, 4, 12, seed=5)
    torch.testing.assert_close(one(states), one.mean_out + (states - one.mean_in) @ dense(one))
    assert one.rank_of_change() == int(torch.linalg.matrix_rank(dense(one) - torch.eye(12).double()))


@pytest.mark.parametrize(("d_in", "d_out"), [(12, 7), (7, 12)])
def test_between_widths_the_rank_is_that_of_the_product(d_in: int, d_out: int) -> None:
    one = made(d_in, d_out, 3)
    assert one(random(5, d_in)).shape == (5, d_out)
    assert one.rank_of_change() == 3


def test_a_product_that_undoes_the_identity_lowers_the_rank() -> None:
    axes = torch.linalg.qr(random(40, 4)).Q
    zero = torch.zeros(40).double()
    one = Affine(mean_in=zero, mean_out=zero, diagonal=None, left=axes, right=axes.T)
    assert one.rank_of_change() == 36, "a projection onto 4 directions changes the other 36"


def test_computed_in_float64_and_given_back_in_the_dtype_of_the_states() -> None:
    one, states = made(12, 12, 3, torch.ones(12).double()), random(5, 12).float()
    assert one(states).dtype == torch.float32
    torch.testing.assert_close(one(states), one(states.double()).float(), rtol=0, atol=0)


def test_features_left_out_move_by_the_mean_difference() -> None:
    small, kept = made(8, 8, 2, torch.full((8,), 0.5).double()), torch.arange(12) % 3 != 0
    whole = small.embedded(kept, kept, random(12, seed=6), random(12, seed=7))
    states = random(5, 12)
    torch.testing.assert_close(whole(states)[:, kept], small(states[:, kept]))
    torch.testing.assert_close((whole(states) - states)[:, ~kept], (random(12, seed=7) - random(12, seed=6))[~kept].expand(5, -1))


def test_singular_values_at_rounding_do_not_count() -> None:
    assert rank_of(torch.tensor([1.0, 1e-5, 1e-8]).double()) == 2
    assert rank_of(torch.zeros(3).double()) == rank_of(torch.zeros(0).double()) == 0
