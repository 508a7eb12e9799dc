"""Singular values, ranks and intruders against naive formulas, identities, and planted ranks."""

import math

import pytest
import torch
from torch import Tensor

from mechdiff.measures.weights.spectra import (
    effective_dtype,
    intruder_dimensions,
    left_directions,
    rounding_floor,
    spectral_norm_null,
    spectrum,
    spectrum_of_factors,
)
from mechdiff.models.adapters import Factors
from oracles import weights as oracle

SHAPES = [(40, 40), (64, 24), (24, 64), (30, 1)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def decaying(d_out: int, d_in: int, seed: int = 0) -> Tensor:
    """Singular values 1/i."""
    left = torch.linalg.qr(random(d_out, d_out, seed=seed).double()).Q
    right = torch.linalg.qr(random(d_in, d_in, seed=seed + 1).double()).Q
    k = min(d_out, d_in)
    return (left[:, :k] / torch.arange(1, k + 1) @ right[:k]).float()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_whole_spectrum_is_the_naive_one(shape):
    change = random(*shape)
    found = spectrum(change)
    torch.testing.assert_close(found.values, torch.from_numpy(oracle.singular_values(change.numpy())), rtol=1e-10, atol=1e-10)
    assert found.complete
    assert found.stable_rank == pytest.approx(oracle.stable_rank(change.double().numpy()), rel=1e-10)
    for percent in (50, 90, 99, 100):
        assert found.energy_rank(percent) == oracle.energy_rank(change.numpy(), percent)


@pytest.mark.parametrize("make", [decaying, random], ids=["decaying", "flat"])
def test_the_top_of_a_large_spectrum_is_found_from_below_and_within_its_error(make):
    change = make(400, 600)
    found, true = spectrum(change, exact_up_to=100, top=32), spectrum(change)
    assert len(found.values) == 32
    assert not found.complete
    assert (found.values <= true.values[:32] * (1 + 1e-5)).all()
    nearest = (found.values[:, None] - true.values).abs().amin(1)
    assert (nearest <= found.error + 1e-5 * true.values[0]).all()
    assert found.frobenius == pytest.approx(true.frobenius, rel=1e-12)
    assert found.stable_rank == pytest.approx(true.stable_rank, rel=1e-3)


def test_ranks_beyond_the_known_values_are_not_given():
    found = spectrum(random(300, 400), exact_up_to=100, top=16)
    assert found.energy_rank(99) is None
    assert found.numerical_rank is None
    low = random(300, 3) @ random(3, 400, seed=1)
    found = spectrum(low, floor=rounding_floor(low), exact_up_to=100, top=16)
    assert (found.numerical_rank, found.energy_rank(99.9999)) == (3, 3)


def test_factors_have_the_spectrum_of_their_product():
    factors = Factors(left=random(80, 5).double(), right=random(5, 30, seed=1).double())
    found, whole = spectrum_of_factors(factors), spectrum(factors.product())
    torch.testing.assert_close(found.values, whole.values[:5], rtol=1e-12, atol=0)
    assert found.frobenius == pytest.approx(math.sqrt(factors.squared_norm()), rel=1e-12)
    assert found.numerical_rank == 5


def test_the_rank_of_factors_is_their_products_not_their_width():
    left = random(80, 2).double() @ random(2, 6, seed=2).double()
    assert spectrum_of_factors(Factors(left=left, right=random(6, 30, seed=1).double())).numerical_rank == 2


# ---- against noise -----------------------------------------------------------------------------------------------------------------


def test_noise_has_the_spectral_norm_of_its_null():
    change = random(300, 500)
    found = spectrum(change)
    assert float(found.values[0]) == pytest.approx(spectral_norm_null(found.frobenius, 300, 500), rel=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64, 64), (200, 300), (576, 192)])
def test_rounding_alone_stays_under_its_floor_and_near_it(dtype, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rounded = weight.to(dtype)
    worst = float(spectrum(rounded.double() - weight).values[0])
    assert 0.5 * rounding_floor(rounded) < worst < 0.8 * rounding_floor(rounded)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("size", [0.02, 0.7])
def test_a_low_rank_change_keeps_its_rank_when_merged(dtype, rank, size):
    """Made and merged in the weights' own precision, as peft does, on rows of different sizes."""
    base = (random(200, 150) * torch.linspace(0.2, 2, 200)[:, None]).to(dtype)
    left, right = random(200, rank, seed=1), random(rank, 150, seed=2)
    tuned = base + left.to(dtype) @ right.to(dtype) * (size * float(base.float().norm() / (left @ right).norm()))
    change = tuned.double() - base.double()
    assert spectrum(change, floor=rounding_floor(tuned, change)).numerical_rank == rank


def test_directions_under_the_rounding_floor_do_not_count():
    base = random(200, 150).bfloat16()
    tuned = base + (random(200, 16, seed=1) @ random(16, 150, seed=2) * 5e-4).bfloat16()
    change = tuned.double() - base.double()
    assert (spectrum(change, floor=rounding_floor(tuned, change)).numerical_rank or 0) < 16


@pytest.mark.parametrize(("dtype", "ulp_of_one"), [(torch.float32, 2**-23), (torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
def test_the_floor_is_that_of_one_unit_in_the_last_place(dtype, ulp_of_one):
    """Of a row of weights between 1 and 2: 1.5 (sqrt 9 + sqrt 1) ulp / sqrt 12."""
    weight = 1 + torch.rand(1, 9, generator=torch.Generator().manual_seed(0)).to(dtype) * 0.9
    weight[0, 0] = 1 + ulp_of_one  # no coarser dtype holds it
    assert rounding_floor(weight.to(dtype)) == pytest.approx(1.5 * 4 * ulp_of_one / 12**0.5, rel=1e-6)


def test_weights_that_are_bfloat16_numbers_count_as_bfloat16():
    weight = random(20, 20)
    assert effective_dtype(weight) == torch.float32
    assert effective_dtype(weight.bfloat16().float()) == torch.bfloat16
    assert effective_dtype(weight.half().float()) == torch.float16
    assert rounding_floor(weight.bfloat16().float()) == rounding_floor(weight.bfloat16())


# ---- directions --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 40), (64, 24), (24, 64)])
def test_intruders_are_counted_as_naively(shape):
    base = decaying(*shape)
    tuned = base + random(shape[0], 3, seed=5) @ random(3, shape[1], seed=6) * 0.1
    for epsilon in (0.3, 0.5, 0.7, 0.9):
        assert intruder_dimensions(base, tuned, k=8, epsilon=epsilon) == oracle.intruders(base.numpy(), tuned.numpy(), 8, epsilon)
    assert intruder_dimensions(base, base) == 0


def test_a_strong_new_direction_is_one_intruder():
    """In a matrix of 200 outputs, a random direction is near none of 24 singular vectors."""
    base = decaying(200, 24)
    direction = random(200, 1, seed=5)
    tuned = base + 5 * direction / direction.norm() @ (random(1, 24, seed=6) / 24**0.5)
    assert intruder_dimensions(base, tuned, k=1) == 1


@pytest.mark.parametrize("exact_up_to", [1024, 20])
def test_left_directions_of_factors_and_of_their_product_are_the_same(exact_up_to):
    factors = Factors(left=random(80, 3).double(), right=random(3, 30, seed=1).double())
    one, values = left_directions(factors, 2)
    other, expected = left_directions(factors.product(), 2, exact_up_to=exact_up_to)
    torch.testing.assert_close(values.double(), expected.double(), rtol=1e-5, atol=0)
    torch.testing.assert_close((one.double().T @ other.double()).abs(), torch.eye(2, dtype=torch.float64), atol=1e-5, rtol=0)
