"""Heads' products without the products: against numpy with d x d matrices in hand, and under changes of a head's own basis."""

import pytest
import torch
from torch import Tensor

from mechdiff.measures.weights.products import head_changes, product_change, product_norm
from mechdiff.models.projections import Projections
from oracles import weights as oracle


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention(seed: int = 0) -> Projections:
    """4 heads in 2 groups, d_head 5, d 16."""
    return Projections(
        query=random(4, 5, 17, seed=seed),
        key=random(2, 5, 17, seed=seed + 1),
        value=random(2, 5, 17, seed=seed + 2),
        output=random(4, 16, 5, seed=seed + 3),
    )


def test_the_norm_of_a_product_needs_no_product():
    left, right = random(3, 20, 4), random(3, 4, 30, seed=1)
    torch.testing.assert_close(product_norm(left, right), torch.linalg.matrix_norm(left @ right), rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [1e-9, 1e-4, 1.0])
def test_the_change_is_the_naive_one_however_small(size):
    left, right = random(20, 4), random(4, 30, seed=1)
    left_t, right_t = left + size * random(20, 4, seed=2), right + size * random(4, 30, seed=3)
    expected = oracle.product_change(left.numpy(), right.numpy(), left_t.numpy(), right_t.numpy())
    assert float(product_change(left, right, left_t, right_t)) == pytest.approx(expected, rel=1e-6)


def test_each_head_is_the_naive_one_with_its_group():
    base, tuned = attention(), attention(10)
    ov, qk = head_changes(base, tuned)
    for head in range(4):
        pick = [
            (p.output[head].numpy(), p.value[head // 2].numpy(), p.query[head].numpy().T, p.key[head // 2].numpy()) for p in (base, tuned)
        ]
        assert float(ov[head]) == pytest.approx(oracle.product_change(*pick[0][:2], *pick[1][:2]), rel=1e-9)
        assert float(qk[head]) == pytest.approx(oracle.product_change(*pick[0][2:], *pick[1][2:]), rel=1e-9)


def test_equal_heads_are_exactly_zero():
    ov, qk = head_changes(attention(), attention())
    assert (ov == 0).all()
    assert (qk == 0).all()


def test_another_basis_of_the_heads_changes_nothing():
    base = attention()
    turn, stretch = torch.linalg.qr(random(5, 5, seed=9)).Q, random(5, 5, seed=8)
    tuned = Projections(
        query=torch.linalg.inv(stretch).T @ base.query, key=stretch @ base.key, value=turn @ base.value, output=base.output @ turn.T
    )
    ov, qk = head_changes(base, tuned)
    assert float(ov.max()) < 1e-7
    assert float(qk.max()) < 1e-6
