"""Ridge and reduced-rank regression against scikit-learn, naive d x d formulas and planted ranks."""

import math

import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from mechdiff.maps.regression import FOLDS, cross_validated, fold_rows, one_se
from whole_matrix import coefficients


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive(inputs: Tensor, targets: Tensor, penalty: float, rank: int | None = None) -> Tensor:
    """The same in the augmented form: rows sqrt(penalty) I added, least squares, projected on the top right singular vectors of what is fitted."""
    d = inputs.shape[1]
    x = torch.cat([inputs - inputs.mean(0), math.sqrt(penalty) * torch.eye(d, dtype=torch.float64)])
    z = torch.cat([targets - targets.mean(0), torch.zeros(d, targets.shape[1], dtype=torch.float64)])
    b = torch.linalg.lstsq(x, z, driver="gelsd").solution
    if rank is None:
        return b
    axes = torch.linalg.svd(x @ b).Vh[:rank].T
    return b @ axes @ axes.T


@pytest.mark.parametrize(("n", "d"), [(12, 30), (40, 9)])
def test_ridge_is_scikit_learns(n: int, d: int) -> None:
    x, z = random(n, d) + 2, random(n, 4, seed=1) - 1
    unit = float((x - x.mean(0)).square().sum() / d)
    expected = Ridge(alpha=0.3 * unit).fit(x.numpy(), z.numpy()).coef_.T
    torch.testing.assert_close(coefficients(x, z, 0.3), torch.from_numpy(expected))


@pytest.mark.parametrize(("n", "d"), [(12, 30), (40, 9)])
@pytest.mark.parametrize("lam", [0.0, 0.2])
@pytest.mark.parametrize("rank", [0, 1, 3, None])
def test_reduced_rank_regression_is_the_augmented_least_squares_projected(n: int, d: int, lam: float, rank: int | None) -> None:
    x, z = random(n, d), random(n, 6, seed=1)
    unit = float((x - x.mean(0)).square().sum() / d)
    found = coefficients(x, z, lam, rank)
    torch.testing.assert_close(found, naive(x, z, lam * unit, rank))
    assert rank is None or int(torch.linalg.matrix_rank(found)) <= rank


def test_both_ends_of_lambda() -> None:
    x, z = random(30, 6), random(30, 3, seed=1)
    torch.testing.assert_close(coefficients(x, z, 0.0), torch.linalg.lstsq(x - x.mean(0), z - z.mean(0)).solution)
    assert not coefficients(x, z, math.inf).any()


def test_errors_by_penalty_and_rank_are_those_of_fits_without_the_fold() -> None:
    x, z = random(18, 30), random(18, 4, seed=1)
    groups = torch.arange(9).repeat_interleave(2)
    found = cross_validated(x, z, groups, lambdas=(0.1, 1.0))
    expected, by_rank = torch.zeros(2).double(), torch.zeros(5).double()
    for held in fold_rows(groups, FOLDS, 0):
        rest = torch.tensor([row not in held.tolist() for row in range(18)])

        def error(lam: float, rank: int | None = None, rest: Tensor = rest, held: Tensor = held) -> Tensor:
            predicted = (x[held] - x[rest].mean(0)) @ coefficients(x[rest], z[rest], lam, rank) + z[rest].mean(0)
            return (z[held] - predicted).square().sum()

        expected += torch.stack([error(lam) for lam in (0.1, 1.0)]) / 18
        by_rank += torch.stack([error(found.lambda_of_ranks, rank) for rank in range(5)]) / 18
    torch.testing.assert_close(found.errors, expected)
    torch.testing.assert_close(found.errors_by_rank, by_rank)
    assert found.lambda_ == (0.1, 1.0)[int(expected.argmin())]


def test_a_prompts_rows_are_in_one_fold_and_every_row_in_one() -> None:
    groups = torch.arange(7).repeat_interleave(3)
    folds = list(fold_rows(groups, 5, seed=1))
    assert sorted(row for fold in folds for row in fold.tolist()) == list(range(21))
    assert all(set(groups[fold].tolist()).isdisjoint(groups[other].tolist()) for fold in folds for other in folds if other is not fold)
    assert list(fold_rows(torch.zeros(4, dtype=torch.long), 5, seed=1)) == []


def test_the_one_standard_error_rule_is_about_the_difference_on_the_same_prompts() -> None:
    hard = torch.tensor([0.0, 10.0, 20.0, 30.0]).double()[:, None]  # prompts differ far more than ranks do
    errors = hard + torch.tensor([3.0, 1.0, 0.99]).double() + torch.tensor([[0, 0.1, 0], [0, -0.1, 0], [0, 0.1, 0], [0, -0.1, 0]]).double()
    assert one_se(errors, 2) == 1
    assert one_se(errors - torch.tensor([0.0, 0, 0.5]).double(), 2) == 2


def planted_change(rank: int, n: int, noise: float, seed: int, d: int = 1024) -> tuple[Tensor, Tensor]:
    """States whose spectrum falls as 1/i, and a change that is a constant plus `rank` directions that the state decides, plus noise."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    states = draw(n, d) * torch.arange(1, d + 1).double() ** -0.5 @ torch.linalg.qr(draw(d, d))[0]
    change = torch.full((n, d), 0.5, dtype=torch.float64)
    if rank:
        along = states @ draw(d, rank)
        change = change + along / along.std(0) @ torch.linalg.qr(draw(d, rank))[0].T
    return states, change + noise * draw(n, d)


PLANTED = [(0, 0.0), (0, 0.05), (1, 0.0), (4, 0.0), (4, 0.05), (32, 0.0)]
WITH_MANY_ROWS = [pytest.param(*one, 450, marks=() if one == (4, 0.05) else pytest.mark.slow) for one in PLANTED]


@pytest.mark.parametrize(("rank", "noise", "n"), [*((*one, 150) for one in PLANTED), *WITH_MANY_ROWS])
def test_planted_ranks_come_out(rank: int, noise: float, n: int) -> None:
    for seed in range(2):
        states, change = planted_change(rank, n, noise, seed)
        assert cross_validated(states, change, torch.arange(n)).rank_one_se == rank


def test_changes_that_the_states_do_not_decide_have_rank_0() -> None:
    """One standard error alone would see some in a few of these."""
    plain = []
    for seed in range(15):
        both = random(120, 64, seed=seed)
        found = cross_validated(both[:60] * torch.arange(1, 65).double() ** -0.5, both[60:], torch.arange(60))
        excess = found.errors_of_prompts[:, 0] - found.errors_of_prompts[:, found.rank_best]
        plain.append(bool(excess.mean() > excess.std() / math.sqrt(60)))
        assert found.rank_one_se == 0
    assert any(plain)


def test_no_change_at_all_has_rank_0() -> None:
    found = cross_validated(random(20, 6), torch.zeros(20, 6), torch.arange(20))
    assert (found.rank_one_se, found.rank_best, found.lambda_) == (0, 0, math.inf)


def test_near_copies_of_one_item_are_held_out_together() -> None:
    """A change that the state does not decide, on 20 items of 5 near-copies each: copies that are split tell it to the fold, clusters do not."""
    items, changes = random(20, 30), random(20, 10, seed=1)
    states = items.repeat_interleave(5, 0) + 0.01 * random(100, 30, seed=2)
    change = changes.repeat_interleave(5, 0) + 0.01 * random(100, 10, seed=3)
    assert cross_validated(states, change, torch.arange(100)).rank_one_se > 0
    assert cross_validated(states, change, torch.arange(20).repeat_interleave(5)).rank_one_se == 0
