"""Directions of a change: planted ones come out, chance is told from them, and identical states have none."""

import pytest
import torch
from torch import Tensor

from mechdiff.measures.steering.subspaces import change_subspace, label_swapped, random_basis, random_vector, split_half_cosine


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


BASE = normal(40, 24)


def test_identical_states_have_no_directions() -> None:
    found = change_subspace(BASE, BASE.clone(), 8)
    assert found.rank == 0
    assert not found.mean.any()
    assert (found.relative_size, found.split_half_cosine) == (0.0, None)
    noisy = BASE + normal(40, 24, seed=1) * 1e-8
    assert change_subspace(BASE, noisy, 8).rank == 0, "rounding is no direction"
    assert not change_subspace(BASE, noisy, 8).mean.any()


def test_a_constant_shift_is_one_direction() -> None:
    shift = normal(24, seed=2)
    found = change_subspace(BASE, BASE + shift, 8)
    torch.testing.assert_close(found.mean, shift)
    assert found.rank == 1
    torch.testing.assert_close(found.basis[:, 0], shift / shift.norm())
    assert found.split_half_cosine == pytest.approx(1)
    assert found.relative_size == pytest.approx(float(shift.norm() / BASE.norm(dim=1).mean()))
    torch.testing.assert_close(found.origin, BASE.mean(0))


def test_the_basis_is_the_mean_then_the_principal_directions_of_the_rest() -> None:
    differences = normal(40, 3, seed=3) @ torch.diag(torch.tensor([5.0, 2.0, 0.5], dtype=torch.float64)) @ random_basis(24, 3, seed=4).T
    shift = normal(24, seed=5) * 3
    found = change_subspace(BASE, BASE + differences + shift, 8)
    assert found.rank == 4
    torch.testing.assert_close(found.basis.T @ found.basis, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(found.basis[:, 0], (differences.mean(0) + shift) / (differences.mean(0) + shift).norm())
    centred = differences - differences.mean(0)
    outside = centred - centred @ torch.outer(found.basis[:, 0], found.basis[:, 0])
    vectors = torch.linalg.eigh(outside.T @ outside)[1]
    for place in (1, 2, 3):
        assert abs(float(found.basis[:, place] @ vectors[:, -place])) == pytest.approx(1)
    change = centred + (differences.mean(0) + shift)
    torch.testing.assert_close(change @ found.basis @ found.basis.T, change, msg="U_k spans the whole change")
    assert change_subspace(BASE, BASE + differences + shift, 2).rank == 2
    torch.testing.assert_close(found.leading(2), change_subspace(BASE, BASE + differences + shift, 2).basis)


def test_contrast_takes_the_mean_on_neutral_prompts_off() -> None:
    everywhere, here = normal(24, seed=6), normal(24, seed=7)
    found = change_subspace(BASE, BASE + everywhere + here, 8, contrast=everywhere)
    torch.testing.assert_close(found.mean, here)
    nothing = change_subspace(BASE, BASE + everywhere, 8, contrast=everywhere)
    assert nothing.rank == 0, "what is everywhere is no contrast"


def test_split_halves_of_noise_do_not_agree() -> None:
    cosines = [split_half_cosine(normal(40, 200, seed=seed), seed=seed) for seed in range(20)]
    assert abs(sum(cosines) / 20) < 0.1
    assert max(map(abs, cosines)) < 0.4


def test_swapping_the_labels_cancels_what_prompts_share() -> None:
    shift = normal(24, seed=8) * 10
    assert float(label_swapped(BASE, BASE + shift, seed=0).norm()) < 1e-12
    noise = normal(40, 24, seed=9)
    lengths = [float(label_swapped(BASE, BASE + shift + noise, seed=seed).norm()) for seed in range(50)]
    chance = (24 / 40) ** 0.5
    assert sum(lengths) / 50 == pytest.approx(chance, rel=0.15)
    assert len(set(lengths)) == 50, "each draw swaps other prompts"
    odd = label_swapped(BASE[:3], BASE[:3] + shift, seed=0)
    torch.testing.assert_close(odd, shift / 3, msg="one of three is swapped")


def test_random_directions_are_as_asked() -> None:
    basis = random_basis(24, 5, seed=0)
    torch.testing.assert_close(basis.T @ basis, torch.eye(5, dtype=torch.float64))
    assert not torch.equal(basis, random_basis(24, 5, seed=1))
    like = normal(24, seed=10)
    found = random_vector(like, seed=0)
    assert float(found.norm()) == pytest.approx(float(like.norm()))
    assert abs(float(found @ like / like.norm() ** 2)) < 0.7
