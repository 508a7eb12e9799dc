"""What would a regression find if the targets had nothing to do with the inputs? Refits on targets permuted among prompts.

Only the pairing is broken: whole prompts (or clusters of them) exchange their targets, the fit is made anew with its penalty chosen anew, and
judged on the same held-out rows. In the dual form a refit needs inner products of targets alone: the predictions are fixed matrices on them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from mechdiff.maps.regression import FOLDS, LAMBDAS, Decomposed, Examples, decompose, fold_rows, last_least

_EPS = torch.finfo(torch.float64).eps


def permuted_r2(
    fit: Examples, test: Examples, *, draws: int, seed: int, rank: int | None = None, lam: float | None = None
) -> Float64[Tensor, " draw"]:
    """R2 of the targets of `test` in each draw of targets permuted among prompts, lambda chosen anew in each unless given.

    Only inner products of targets are permuted, so a draw costs n^2. `rank` None is ridge.
    """
    z, held_out = fit.targets.double(), test.targets.double()
    gram, cross = z @ z.T, held_out @ z.T
    total, whole = (held_out - held_out.mean(0)).square().sum(), held_out.square().sum()
    tried = LAMBDAS if lam is None else (lam,)
    smoothers = _Smoothers.of(fit.inputs, test.inputs, fit.groups, tried, seed)
    found = []
    for order in permutations(fit.groups, draws, seed):
        permuted = gram[order][:, order]
        best = last_least(smoothers.held_out @ permuted.flatten()) if len(tried) > 1 else 0
        if rank is None:
            error = whole - 2 * (smoothers.test[best] * cross[:, order]).sum() + (smoothers.test_squares[best] * permuted).sum()
        else:
            error = _reduced_error(smoothers, tried[best], rank, permuted, cross[:, order], whole)
        found.append(1 - error / total)
    return torch.stack(found) if found else torch.empty(0, dtype=torch.float64)


def permutations(groups: Int[Tensor, " row"], draws: int, seed: int) -> Iterator[Int[Tensor, " row"]]:
    """Row numbers with whole groups exchanged at random, each with another of the same number of rows (or with itself)."""
    sizes = groups.unique(return_counts=True)[1]
    random = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        order = torch.arange(len(sizes))
        for size in sizes.unique():
            alike = (sizes == size).nonzero()[:, 0]
            order[alike] = alike[torch.randperm(len(alike), generator=random)]
        yield exchanged(groups, order)


def exchanged(groups: Int[Tensor, " row"], order: Int[Tensor, " group"]) -> Int[Tensor, " row"]:
    """Row numbers in which the i-th group has the rows of group `order[i]`, which has as many."""
    rows_of = [(groups == name).nonzero()[:, 0] for name in groups.unique()]
    found = torch.empty_like(groups)
    for place, other in enumerate(order.tolist()):
        found[rows_of[place]] = rows_of[other]
    return found


@dataclass(frozen=True, kw_only=True)
class _Smoothers:
    """Predictions as matrices on the targets: they depend on the inputs alone, so all draws share them."""

    decomposed: Decomposed
    scores: Tensor
    """Test inputs in the axes of the fit, over s."""
    held_out: Tensor
    """`[lam, n * n]`: its product with the targets' Gram matrix is the cross-validated squared error."""
    test: Tensor
    """`[lam, test, n]`: predictions on the test rows, the mean of the targets included."""
    test_squares: Tensor
    """`[lam, n, n]`"""

    @classmethod
    def of(cls, inputs: Tensor, test_inputs: Tensor, groups: Tensor, lambdas: Sequence[float], seed: int) -> "_Smoothers":
        n = len(inputs)
        residuals = torch.zeros(len(lambdas), n, n, dtype=torch.float64)
        for held in fold_rows(groups, FOLDS, seed) if len(lambdas) > 1 else ():
            rest = torch.ones(n, dtype=torch.bool)
            rest[held] = False
            part = decompose(inputs[rest])
            for number, lam in enumerate(lambdas):
                row = torch.zeros(len(held), n, dtype=torch.float64)
                row[:, rest] = -_smoother(part, inputs[held], lam)
                row[torch.arange(len(held)), held] += 1
                residuals[number, held] = row
        held_out = torch.stack([(one.T @ one).flatten() for one in residuals])
        whole = decompose(inputs)
        test = torch.stack([_smoother(whole, test_inputs, lam) for lam in lambdas])
        scores = (test_inputs.double() - whole.mean) @ whole.right.T / whole.singular
        return cls(decomposed=whole, scores=scores, held_out=held_out, test=test, test_squares=test.transpose(1, 2) @ test)


def _smoother(fit: Decomposed, test_inputs: Tensor, lam: float) -> Tensor:
    """`[test, n]`: the matrix that takes the fit rows' targets to predictions, the mean of the targets included."""
    assert fit.left is not None
    scores = (test_inputs.double() - fit.mean) @ fit.right.T / fit.singular
    centred = fit.left - fit.left.mean(0)
    return (scores * fit.shrunk(lam)) @ centred.T + 1 / len(fit.left)


def _reduced_error(smoothers: _Smoothers, lam: float, rank: int, gram: Tensor, cross: Tensor, whole: Tensor) -> Tensor:
    """Squared error on the test rows of the rank-`rank` fit, from inner products of permuted targets alone."""
    fit = smoothers.decomposed
    assert fit.left is not None
    n = len(gram)
    mean_gram, mean_cross = gram.mean(0), cross.mean(1)
    centred = gram - mean_gram - mean_gram[:, None] + mean_gram.mean()
    inner = fit.left.T @ centred @ fit.left
    shrunk = fit.shrunk(lam)
    values, vectors = torch.linalg.eigh(shrunk.sqrt()[:, None] * inner * shrunk.sqrt())
    kept = min(rank, int((values > values[-1].clamp_min(0) * n * _EPS).sum())) if len(values) else 0
    axes = shrunk.sqrt()[:, None] * vectors[:, len(values) - kept :] / values[len(values) - kept :].sqrt()
    # targets of the test rows, less the fit's mean, and predictions, both along the axes
    minus_mean = cross - mean_cross[:, None] - mean_gram + mean_gram.mean()
    along, predicted = minus_mean @ fit.left @ axes, (smoothers.scores * shrunk) @ inner @ axes
    base = whole - 2 * mean_cross.sum() + len(cross) * mean_gram.mean()
    return base - ((2 * along - predicted) * predicted).sum()
