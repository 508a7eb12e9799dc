"""Properties 15 and 16 of METHOD: reduced-rank regression of the change, and maps that are anchored at the identity."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from drawn import examples, rotation, seeds, spread
from mechdiff.maps.maps import Map
from whole_matrix import coefficients

sizes = st.tuples(st.integers(3, 30), st.integers(2, 24))
decays = st.sampled_from([0.0, 0.5, 1.0])
penalties = st.sampled_from([0.0, 1e-3, 0.1, 1.0, 100.0])
NEAR = {"rtol": 1e-7, "atol": 1e-8}


def pair_of_states(seed: int, size: tuple[int, int], decay: float, rank: int, noise: float) -> tuple[Tensor, Tensor]:
    """States, and states that they become by a constant, `rank` directions that they decide themselves, and noise."""
    x = spread(seed, *size, decay)
    change = x @ spread(seed + 2, size[1], rank) @ spread(seed + 3, rank, size[1]) / size[1]
    return x, x + change + noise * spread(seed + 4, *size) + 0.5


# ---- 15: reduced-rank regression -----------------------------------------------------------------------------------------------------


@examples(60)
@given(seeds, sizes, decays, penalties, st.integers(1, 4), st.sampled_from([0.0, 0.1]), st.data())
def test_property_15_the_rank_is_kept_the_loss_falls_with_it_and_full_rank_is_ridge(
    seed: int, size: tuple[int, int], decay: float, lam: float, planted: int, noise: float, data: st.DataObject
) -> None:
    """The loss is what is minimised: the squared error and the penalty."""
    x, y = pair_of_states(seed, size, decay, planted, noise)
    centred = x - x.mean(0)
    penalty = lam * float(centred.square().sum()) / size[1]
    ranks = range(min(size[1], size[0] - 1) + 1)
    maps = [Map("rrr", rank=k, lam=lam).fit(x, y) for k in ranks]
    losses = []
    for k, one in zip(ranks, maps, strict=True):
        assert one.rank_ <= k
        [affine] = one.affines_
        change = affine.left @ affine.right
        losses.append(float((y - one.transform(x)).square().sum() + penalty * change.square().sum()))
        assert int((torch.linalg.svdvals(change) > 1e-6).sum()) <= k
    slack = 1e-9 * losses[0]
    assert all(later <= earlier + slack for earlier, later in pairwise(losses))
    full = Map("anchored_ridge", lam=lam).fit(x, y)
    torch.testing.assert_close(maps[-1].transform(x), full.transform(x), **NEAR)
    other = data.draw(st.sampled_from(ranks))
    direction = spread(seed + 9, size[1], size[1])
    rival = centred @ (direction[:, :other] @ direction[:other]) / size[1]
    aimed = float((y - y.mean(0) - centred - rival).square().sum())
    aimed += penalty * float((direction[:, :other] @ direction[:other] / size[1]).square().sum())
    assert losses[other] <= aimed + slack, "no other matrix of this rank does better"


@examples(40)
@given(seeds, sizes, st.integers(1, 12), decays, st.sampled_from([1e-3, 0.1, 1.0]), st.data())
def test_property_15_equivariant_to_another_basis_on_either_side(
    seed: int, size: tuple[int, int], d_out: int, decay: float, lam: float, data: st.DataObject
) -> None:
    x, z = spread(seed, *size, decay), spread(seed + 2, size[0], d_out)
    p, q = rotation(seed + 3, size[1]), rotation(seed + 4, d_out)
    rank = data.draw(st.none() | st.integers(0, d_out))
    torch.testing.assert_close(coefficients(x @ p, z @ q, lam, rank), p.T @ coefficients(x, z, lam, rank) @ q, **NEAR)


@examples(30)
@given(seeds, sizes, decays, st.sampled_from([1e-3, 0.1, 1.0]), st.sampled_from(["anchored_ridge", "anchored_procrustes", "rrr"]))
def test_property_15_an_anchored_map_turns_with_the_basis_of_both_models(
    seed: int, size: tuple[int, int], decay: float, lam: float, family: str
) -> None:
    x, y = pair_of_states(seed, size, decay, 2, 0.1)
    turn = rotation(seed + 5, size[1])
    settings = {"lam": lam, "rank": 1} if family == "rrr" else {"lam": lam}
    plain, turned = Map(family, **settings).fit(x, y), Map(family, **settings).fit(x @ turn, y @ turn)
    torch.testing.assert_close(turned.transform(x @ turn), plain.transform(x) @ turn, rtol=1e-6, atol=1e-7)


# ---- 16: anchored at the identity ----------------------------------------------------------------------------------------------------

LEARNED = ("diag_affine", "anchored_ridge", "anchored_procrustes", "rrr")


@examples(40)
@given(seeds, sizes, decays, st.sampled_from([1e9, math.inf]), st.integers(1, 5))
def test_property_16_a_large_penalty_leaves_the_shift(seed: int, size: tuple[int, int], decay: float, lam: float, n_new: int) -> None:
    x, y = pair_of_states(seed, size, decay, 2, 0.1)
    new = spread(seed + 6, n_new, size[1])
    shifted = new + y.mean(0) - x.mean(0)
    close = {"rtol": 1e-6, "atol": 1e-6 * float(1 + y.abs().max())}
    torch.testing.assert_close(Map("shift").fit(x, y).transform(new), shifted, rtol=0, atol=1e-12)
    for family in ("diag_affine", "anchored_ridge"):
        torch.testing.assert_close(Map(family, lam=lam).fit(x, y).transform(new), shifted, **close)
    torch.testing.assert_close(Map("rrr", lam=lam, rank=3).fit(x, y).transform(new), shifted, **close)
    turned = Map("anchored_procrustes", lam=lam).fit(x, y)  # it has a scale of its own, which no penalty is on
    centred_x, centred_y = x - x.mean(0), y - y.mean(0)
    scale = float((centred_x * centred_y).sum() / centred_x.square().sum())
    torch.testing.assert_close(turned.transform(new), y.mean(0) + scale * (new - x.mean(0)), **close)


@pytest.mark.bits
@examples(40)
@given(seeds, sizes, decays, st.sampled_from([None, 0.0, 0.1, 10.0, math.inf]), st.sampled_from(LEARNED), st.booleans())
def test_property_16_identical_models_give_the_identity_with_any_number_of_rows(
    seed: int, size: tuple[int, int], decay: float, lam: float | None, family: str, shifted: bool
) -> None:
    x = spread(seed, *size, decay)
    constant = spread(seed + 2, 1, size[1])[0] if shifted else torch.zeros(size[1], dtype=torch.float64)
    one = Map(family, **({} if lam is None else {"lam": lam})).fit(x, x + constant)
    new = spread(seed + 3, 7, size[1])
    torch.testing.assert_close(one.transform(new), new + constant, rtol=1e-9, atol=1e-9)
    assert one.rank_ == 0


@examples(25)
@given(seeds, st.tuples(st.integers(10, 30), st.integers(2, 12)), st.sampled_from(["diag_affine", "anchored_ridge"]))
def test_property_16_the_way_to_the_shift_is_monotone(seed: int, size: tuple[int, int], family: str) -> None:
    """The penalty takes the learned change away, and never adds to it."""
    x, y = pair_of_states(seed, size, 0.5, 2, 0.3)
    shifted = x + y.mean(0) - x.mean(0)
    learned = [float((Map(family, lam=lam).fit(x, y).transform(x) - shifted).norm()) for lam in (0.0, 1e-3, 0.1, 10.0, math.inf)]
    assert learned == pytest.approx(sorted(learned, reverse=True), rel=1e-9, abs=1e-12)
    assert learned[0] > learned[-1]
