"""Properties 8 to 11 of METHOD: which changes of the states each similarity forgives, which it must see, and where it must stay silent."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from drawn import examples, rotation, seeds, spread
from mechdiff.maps.maps import Map
from mechdiff.measures.similarity.formula import linear_cka, mutual_knn, neighbourhood, procrustes_distance
from mechdiff.measures.similarity.geometry import geometry

sizes = st.tuples(st.integers(5, 24), st.integers(2, 40))
decays = st.sampled_from([0.0, 0.5, 1.0])


def near(x: Tensor, seed: int, change: float = 0.5) -> Tensor:
    return x + change * spread(seed, *x.shape) + 1.0


# ---- 8: CKA ------------------------------------------------------------------------------------------------------------------------


@examples(60)
@given(seeds, sizes, decays, st.floats(0.01, 100), st.floats(-10, 10), st.booleans())
def test_property_08_cka_is_symmetric_and_forgives_rotation_scale_shift_and_a_joint_order(
    seed: int, size: tuple[int, int], decay: float, scale: float, shift: float, debiased: bool
) -> None:
    x = spread(seed, *size, decay)
    y = near(x, seed + 2)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    value = linear_cka(x, y, debiased=debiased)
    assert linear_cka(y, x, debiased=debiased) == pytest.approx(value, rel=1e-12, abs=1e-12)
    assert linear_cka(x, scale * y @ rotation(seed, size[1]) + shift, debiased=debiased) == pytest.approx(value, rel=1e-8, abs=1e-9)
    assert linear_cka(x[order], y[order], debiased=debiased) == pytest.approx(value, rel=1e-9, abs=1e-10)
    assert linear_cka(x, x, debiased=debiased) == pytest.approx(1, abs=1e-12)
    assert linear_cka(x, y[order], debiased=debiased) != value or bool((order == torch.arange(len(x))).all())


@examples(40)
@given(seeds, seeds, sizes, decays)
def test_property_08_cka_stays_within_its_bounds(seed: int, other: int, size: tuple[int, int], decay: float) -> None:
    x, y = spread(seed, *size, decay), spread(other, size[0], size[1] + 3)
    assert abs(linear_cka(x, y)) <= 1 + 1e-12  # a cosine of U-centred matrices
    assert -1e-12 <= linear_cka(x, y, debiased=False) <= 1 + 1e-12


@examples(30)
@given(seeds, st.integers(30, 60), st.integers(4, 8), st.floats(8, 100), st.booleans())
def test_property_08_cka_sees_an_invertible_linear_map(seed: int, n: int, d: int, stretch: float, debiased: bool) -> None:
    x = spread(seed, n, d)
    stretched = x * torch.cat([torch.ones(d - 1), torch.tensor([stretch])])
    assert linear_cka(x, stretched, debiased=debiased) < 0.9


@examples(10)
@given(seeds, st.integers(2, 8), st.floats(0.3, 3))
def test_property_08_biased_and_debiased_meet_with_many_prompts_and_part_with_few(seed: int, d: int, change: float) -> None:
    x = spread(seed, 1000, d)
    y = near(x, seed + 1, change)
    assert linear_cka(x, y) == pytest.approx(linear_cka(x, y, debiased=False), abs=1e-2)
    a, b = spread(seed, 20, 30), spread(seed + 5, 20, 30)
    assert linear_cka(a, b, debiased=False) > linear_cka(a, b)


@examples(10)
@given(seeds, st.integers(6, 9), st.integers(1, 9), st.data())
def test_property_08_the_mean_over_minibatches_is_unbiased(seed: int, n: int, d: int, data: st.DataObject) -> None:
    """The mean of HSIC1 over every subset of one size is HSIC1 of all rows."""
    x, y, size = spread(seed, n, d), spread(seed + 1, n, 7), data.draw(st.integers(4, n - 1))

    def hsic(rows: list[int]) -> float:
        return float((geometry(x[rows]).u_centred * geometry(y[rows]).u_centred).sum() / (len(rows) * (len(rows) - 3)))

    batches = [hsic(list(some)) for some in combinations(range(n), size)]
    assert np.mean(batches) == pytest.approx(hsic(list(range(n))), rel=1e-9, abs=1e-10)


@examples(3)
@given(seeds)
def test_property_08_debiased_is_near_zero_where_biased_is_near_one(seed: int) -> None:
    pairs = [(spread(seed + i, 40, 4096), spread(seed + 100 + i, 40, 4096)) for i in range(3)]
    biased = np.mean([linear_cka(x, y, debiased=False) for x, y in pairs])
    assert biased == pytest.approx(math.sqrt(4096**2 / (4096 + 40) ** 2), abs=1e-3)  # 0.9903, METHOD B1
    assert abs(np.mean([linear_cka(x, y) for x, y in pairs])) < 0.08


# ---- 9: canonical correlations -----------------------------------------------------------------------------------------------------


def mean_canonical_correlation(x: Tensor, y: Tensor) -> float:
    """By the cosines of the two column spaces, on what their ranks leave."""
    spaces = []
    for states in (x, y):
        left, values, _ = torch.linalg.svd(states - states.mean(0), full_matrices=False)
        spaces.append(left[:, values > 1e-10 * values[0]])
    return float(torch.linalg.svdvals(spaces[0].T @ spaces[1]).clamp(max=1).mean())


@examples(25)
@given(seeds, st.integers(12, 40), st.integers(0, 30), decays)
def test_property_09_with_few_rows_canonical_correlations_are_all_1_and_no_similarity_of_ours_is(
    seed: int, n: int, more: int, decay: float
) -> None:
    """Why there is none among the similarities: whatever forgives every invertible map says 1 of states that have nothing in common."""
    x, y = spread(seed, n, n + more, decay), spread(seed + 2, n, n + more, decay)
    assert mean_canonical_correlation(x, y) == pytest.approx(1, abs=1e-9)
    assert abs(linear_cka(x, y)) < 0.9
    assert procrustes_distance(x, y) > 0.3
    assert mutual_knn(x, y) < 0.9
    turned = rotation(seed + 3, n + more) * torch.linspace(1, 100, n + more).double()
    assert mean_canonical_correlation(x, x @ turned) == pytest.approx(1, abs=1e-9)
    assert linear_cka(x, x @ turned) < 1 - 1e-4


@examples(10)
@given(seeds, st.sampled_from(["whitened_procrustes", "procrustes", "ridge"]), st.integers(6, 16), st.integers(12, 100))
def test_property_09_maps_that_whiten_or_are_not_anchored_warn_with_few_rows(seed: int, family: str, d: int, n: int) -> None:
    """Canonical correlations are what whitening leaves: by name only, and with a warning under five rows for each feature."""
    x = spread(seed, n, d)
    one = Map(family, lam=0.01) if family == "ridge" else Map(family)
    warned = one.fit(x, near(x, seed + 1)).warnings_
    assert bool(warned) == (n < 5 * d)
    assert all(f"{n} rows for {d} features" in said for said in warned)


# ---- 10, 11: shapes and neighbours -------------------------------------------------------------------------------------------------


@examples(60)
@given(seeds, st.tuples(st.integers(3, 12), st.integers(1, 16)), decays, st.floats(0.01, 100), st.floats(-10, 10))
def test_property_10_procrustes_is_a_metric_on_shapes(seed: int, size: tuple[int, int], decay: float, scale: float, shift: float) -> None:
    x, y, z = (spread(seed + 3 * i, *size, decay) for i in range(3))
    xy, yz, xz = procrustes_distance(x, y), procrustes_distance(y, z), procrustes_distance(x, z)
    assert xz <= xy + yz + 1e-9
    assert procrustes_distance(y, x) == pytest.approx(xy, rel=1e-9, abs=1e-9)
    assert 0 <= xy <= math.sqrt(2) + 1e-9
    assert procrustes_distance(x, scale * x @ rotation(seed, size[1]) + shift) < 1e-8
    if min(size) > 2:
        assert xy > 1e-3, "other shapes are apart"


@examples(40)
@given(seeds, sizes, decays, st.floats(0.1, 10), st.data())
def test_property_11_mutual_knn_is_a_share_and_forgives_what_cosines_do(
    seed: int, size: tuple[int, int], decay: float, scale: float, data: st.DataObject
) -> None:
    x, y = spread(seed, *size, decay), spread(seed + 2, *size, decay)
    k = data.draw(st.integers(1, size[0] - 1))
    value = mutual_knn(x, y, k)
    assert 0 <= value <= 1
    assert mutual_knn(y, x, k) == value
    assert value * k * size[0] == pytest.approx(round(value * k * size[0]), abs=1e-9)
    assert mutual_knn(x, scale * x + 5, k) == 1
    assert mutual_knn(x, x @ rotation(seed, size[1]), k) == 1
    assert mutual_knn(x, y, size[0] - 1) == 1, "all others are everyone's neighbours"


@examples(6)
@given(seeds, st.integers(30, 60), st.integers(5, 30))
def test_property_11_independent_states_share_neighbours_by_chance(seed: int, n: int, d: int) -> None:
    k = neighbourhood(n)
    values = [mutual_knn(spread(seed + i, n, d), spread(seed + 500 + i, n, d)) for i in range(30)]
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    assert np.mean(values) == pytest.approx(k / (n - 1), abs=5 * float(error))
    assert error < 0.02
    assert [neighbourhood(few) for few in (1, 2, 3, 10, 20, 21, 500)] == [0, 0, 1, 4, 9, 10, 10]
