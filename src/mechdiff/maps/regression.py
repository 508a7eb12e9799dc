"""Ridge and reduced-rank regression come from one decomposition for every penalty and every rank.

Inputs X `[row, d]` and targets Z `[row, d_out]`, both centred; for anchored maps Z is the change Y - X. With X = U S V' (thin, from the
n x n Gram matrix when there are fewer rows than features, never from a d x d one) everything is diagonal in U:

    ridge               B = V diag(s / (s^2 + l)) U'Z           l = lambda tr(X'X)/d: 0 is least squares of least norm, infinity is B = 0
    reduced rank (k)    B V_k V_k', V_k the top right singular vectors of the fitted values (Izenman 1975), augmented by the ridge rows:
                        those of diag(s^2 / (s^2 + l))^(1/2) U'Z

Truncating the coefficients' own singular values, or those of a whitened cross-covariance, solves other problems than the smallest error.

Lambda is the best of `LAMBDAS` by K-fold cross-validation in which a prompt's rows stay together. The rank is the smallest whose
cross-validated error is within one standard error of the best: the standard error of the *difference* from the best over prompts, since all
ranks are tried on the same prompts and share their difficulty. It is 0 unless the best takes off `WORTH` of rank 0's error: the best of many
tried on noise alone is often more than one standard error better than nothing, but only by a little.

When it misleads: with fewer rows than features a change outside the span of the states is invisible, and the penalty shrinks what is found: a
low cross-validated share of the change says "not seen with so few rows" as well as "not linear".
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

LAMBDAS = (0.0, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, math.inf)
"""Penalties tried, in units of tr(X'X)/d; both ends are legitimate answers."""

FOLDS = 5
SHRINK_LESS = (1.0, 0.1, 0.01)
"""A low rank shrinks by itself, so ranks are tried at the ridge's penalty and at these shares of it."""

ROUNDING = 1e-9
"""Errors that differ by less than this share of the largest are equal."""

WORTH = 0.02
"""A rank is more than 0 only if it takes off this share of the error of rank 0."""

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What a regression is fitted or judged on, row by row."""

    inputs: Float[Tensor, "row d"]
    targets: Float[Tensor, "row d_out"]
    groups: Int[Tensor, " row"]
    """Which prompt a row is of."""


@dataclass(frozen=True, kw_only=True)
class Decomposed:
    """The thin singular value decomposition of centred inputs."""

    mean: Float64[Tensor, " d"]
    singular: Float64[Tensor, " rank"]
    right: Float64[Tensor, "rank d"]
    left: Float64[Tensor, "row rank"] | None
    """None where the inputs are known by their moments only."""

    @property
    def unit(self) -> float:
        """What lambda is counted in: tr(X'X)/d."""
        return float(self.singular.square().sum() / len(self.mean))

    def shrunk(self, lam: float) -> Float64[Tensor, " rank"]:
        """s^2 / (s^2 + lambda tr(X'X)/d), by axis."""
        squared = self.singular.square()
        return torch.zeros_like(squared) if math.isinf(lam) else squared / (squared + lam * self.unit)


def decompose(inputs: Float[Tensor, "row d"]) -> Decomposed:
    """By the Gram matrix where there are fewer rows than features, else by the covariance. Axes that are rounding are left out."""
    x = inputs.double()
    mean = x.mean(0)
    centred = x - mean
    n, d = centred.shape
    if n >= d:
        return _by_covariance(mean, centred.T @ centred, centred)
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    kept = values > values[-1] * max(n, d) * _EPS
    singular, left = values[kept].flip(0).sqrt(), vectors[:, kept].flip(1)
    right = (left / singular).T @ centred
    return Decomposed(mean=mean, singular=singular, right=right, left=left)


def _by_covariance(mean: Tensor, squares: Tensor, centred: Tensor | None) -> Decomposed:
    values, vectors = torch.linalg.eigh(squares)
    kept = values > values.amax() * len(values) * _EPS if len(values) else values > 0
    singular, right = values[kept].flip(0).sqrt(), vectors[:, kept].flip(1).T
    return Decomposed(mean=mean, singular=singular, right=right, left=None if centred is None else centred @ right.T / singular)


def ridge(
    inputs: Decomposed, projected: Float64[Tensor, "rank d_out"], lam: float
) -> tuple[Float64[Tensor, "d rank"], Float64[Tensor, "rank d_out"]]:
    """The coefficients as two thin factors; `projected` is U'Z."""
    return inputs.right.T * (inputs.shrunk(lam) / inputs.singular), projected


def fitted_axes(inputs: Decomposed, projected: Float64[Tensor, "rank d_out"], lam: float) -> Float64[Tensor, "d_out axis"]:
    """The right singular vectors of the fitted values, the strongest first: orthonormal; reduced-rank regression keeps the first k."""
    return strongest_axes(inputs.shrunk(lam).sqrt()[:, None] * projected)


def strongest_axes(weighted: Float64[Tensor, "rank d_out"]) -> Float64[Tensor, "d_out axis"]:
    """The right singular vectors of a thin matrix, the strongest first, without those that are rounding."""
    values, vectors = torch.linalg.eigh(weighted @ weighted.T)
    kept = values > max(float(values[-1]), 0.0) * max(weighted.shape) * _EPS if len(values) else values > 0
    return (weighted.T @ vectors[:, kept].flip(1)) / values[kept].flip(0).sqrt()


@dataclass(frozen=True, kw_only=True)
class Validated:
    """What cross-validation chose."""

    lambda_: float
    """The best for ridge."""
    errors: Float64[Tensor, " lam"]
    """Squared error by penalty of `LAMBDAS`, the mean over rows."""
    lambda_of_ranks: float
    """The best for reduced ranks: the ridge's, or a share of it."""
    errors_by_rank: Float64[Tensor, " k"]
    """Squared error by rank from 0, the mean over prompts."""
    errors_of_prompts: Float64[Tensor, "prompt k"]
    rank_best: int
    rank_one_se: int
    """The smallest rank within one standard error of the best."""
    rank_limit: int
    """The largest rank that so few rows can show: those of the smallest fit, less one for the mean."""


def cross_validated(
    inputs: Float[Tensor, "row d"], targets: Float[Tensor, "row d_out"], groups: Int[Tensor, " row"], *, seed: int = 0,
    lambdas: Sequence[float] = LAMBDAS, uncentred: bool = False,
) -> Validated:  # fmt: skip
    """Penalty and rank chosen on these rows; a prompt's rows (of one group) are in one fold.

    `uncentred` counts the mean of the targets as one more direction that the states decide (a constant input, not penalised): a constant
    target has rank 0 without and 1 with it.
    """
    parts = [_Fold.of(inputs, targets, held, uncentred) for held in fold_rows(groups, FOLDS, seed)]
    if not parts:
        return _nothing_seen(len(lambdas))
    errors = torch.stack([sum((part.error(lam) for part in parts), torch.tensor(0.0)) for lam in lambdas]) / len(inputs)
    best = lambdas[last_least(errors)]
    tried = []
    for share in SHRINK_LESS if 0 < best < math.inf else (1.0,):
        by_row = torch.full((len(inputs), 1 + min(min(len(part.projected) for part in parts), targets.shape[1])), math.nan)
        by_row = by_row.double()
        for part in parts:
            by_row[part.held] = part.errors_by_rank(best * share, by_row.shape[1])
        tried.append((best * share, by_row))
    lam, by_row = min(tried, key=lambda one: float(one[1].mean(0).min()))
    names = groups.unique()
    by_prompt = torch.stack([by_row[groups == name].mean(0) for name in names])
    mean = by_prompt.mean(0)
    top = int((mean <= mean.min() + ROUNDING * mean.abs().max()).nonzero()[0])
    return Validated(
        lambda_=best, errors=errors, lambda_of_ranks=lam, errors_by_rank=mean, errors_of_prompts=by_prompt, rank_best=top,
        rank_one_se=one_se(by_prompt, top), rank_limit=len(inputs) - max(len(part.held) for part in parts) - 1 + uncentred,
    )  # fmt: skip


def _nothing_seen(n_lambdas: int) -> Validated:
    """With one prompt there is nothing to hold out, and no reason to believe in any map."""
    none = torch.full((1,), math.nan, dtype=torch.float64)
    return Validated(
        lambda_=math.inf, errors=none.expand(n_lambdas), lambda_of_ranks=math.inf, errors_by_rank=none, errors_of_prompts=none[None],
        rank_best=0, rank_one_se=0, rank_limit=0,
    )  # fmt: skip


def last_least(errors: Float64[Tensor, " lam"]) -> int:
    """The last of the least: where a penalty makes no difference, the largest."""
    return len(errors) - 1 - int(errors.flip(0).argmin())


def one_se(errors_of_prompts: Float64[Tensor, "prompt k"], best: int) -> int:
    """The smallest rank whose error exceeds the best one's by no more than the standard error of that difference over prompts; see `WORTH`."""
    excess = errors_of_prompts - errors_of_prompts[:, best : best + 1]
    allowed = excess.std(0) / math.sqrt(len(excess)) if len(excess) > 1 else torch.zeros(excess.shape[1]).double()
    allowed[0] = allowed[0].clamp_min(WORTH * errors_of_prompts[:, 0].mean())
    return int((excess.mean(0) <= allowed).nonzero()[0])


def fold_rows(groups: Int[Tensor, " row"], folds: int, seed: int) -> Iterator[Int[Tensor, " row"]]:
    """Row numbers of each fold; groups are dealt out at random. No more folds than groups, and with one group none is left to fit on."""
    names = groups.unique()
    order = names[torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))]
    count = min(folds, len(names)) if len(names) > 1 else 0
    return (torch.isin(groups, order[fold::count]).nonzero()[:, 0] for fold in range(count))


@dataclass(frozen=True, kw_only=True)
class _Fold:
    """One fold: fitted on all rows but `held`, and what the held-out rows need."""

    held: Tensor
    decomposed: Decomposed
    uncentred: bool
    projected: Tensor
    """U'Z of the fit rows; first the constant's, if uncentred."""
    scores: Tensor
    """Held-out inputs in the axes of the fit, over s."""
    targets: Tensor
    """Held-out targets, less the fit's mean if centred."""

    @classmethod
    def of(cls, inputs: Tensor, targets: Tensor, held: Tensor, uncentred: bool) -> "_Fold":
        rest = torch.ones(len(inputs), dtype=torch.bool)
        rest[held] = False
        decomposed, z = decompose(inputs[rest]), targets[rest].double()
        assert decomposed.left is not None
        scores = (inputs[held].double() - decomposed.mean) @ decomposed.right.T / decomposed.singular
        projected, mean, root = decomposed.left.T @ (z - z.mean(0)), z.mean(0), len(z) ** 0.5
        if uncentred:
            scores = torch.cat([torch.full((len(held), 1), 1 / root, dtype=torch.float64), scores], 1)
            projected, mean = torch.cat([root * mean[None], projected]), torch.zeros_like(mean)
        return cls(
            held=held, decomposed=decomposed, uncentred=uncentred, projected=projected, scores=scores, targets=targets[held].double() - mean
        )

    def shrunk(self, lam: float) -> Tensor:
        found = self.decomposed.shrunk(lam)
        return torch.cat([torch.ones(1, dtype=torch.float64), found]) if self.uncentred else found

    def error(self, lam: float) -> Tensor:
        return (self.targets - (self.scores * self.shrunk(lam)) @ self.projected).square().sum()

    def errors_by_rank(self, lam: float, n: int) -> Tensor:
        """`[row, n]`: squared error of each held-out row at ranks 0 to n - 1; beyond the last axis nothing changes."""
        shrunk = self.shrunk(lam)
        axes = strongest_axes(shrunk.sqrt()[:, None] * self.projected)[:, : n - 1]
        predicted = ((self.scores * shrunk) @ self.projected) @ axes
        gained = (2 * (self.targets @ axes) - predicted) * predicted
        gained = torch.nn.functional.pad(gained, (1, n - 1 - axes.shape[1]))
        return self.targets.square().sum(1, keepdim=True) - gained.cumsum(1)
