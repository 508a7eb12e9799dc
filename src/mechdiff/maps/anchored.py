"""The default maps learn a change of the activation, anchored at the identity; the trivial ones that they must beat stand beside them.

Two identical models give the identity whatever the number of rows, and what is not seen is left as it is:

    identity             x
    shift                x + mean(Y) - mean(X)
    mean                 mean(Y), whatever x is
    diag_affine          each feature scaled and shifted; the slope is shrunk towards 1
    anchored_ridge       ridge regression of the change on the state (regression.py)
    anchored_procrustes  argmin_Q |XQ - Y|^2 + lambda |Q - I|^2 over rotations: Q = UV' of the singular value decomposition of X'Y + lambda I; then a
                         scale of its own. Exact on a rotation only as lambda goes to 0: its relative error is about lambda
    rrr                  reduced-rank regression of the change, of the rank that cross-validation chose

Lambda is in units of tr(X'X)/d. Features that do not vary on the fit split, in either model, are left out on both sides: they move by the mean
difference. One `Pairs` holds what several maps of one site share: the decomposition of the states, and what cross-validation chose.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from mechdiff.errors import StudyError
from mechdiff.maps.affine import ROUNDING, Affine
from mechdiff.maps.regression import FOLDS, LAMBDAS, Decomposed, Validated, cross_validated, decompose, fitted_axes, fold_rows, ridge

PROCRUSTES_LAMBDAS = (0.0, 0.1, 10.0)
SAME = 1e-11
"""A rotation or a scale that differs from none by less is rounding."""

Rows = tuple[Float[Tensor, "row d_source"], Float[Tensor, "row d_target"]]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Source and target states row by row, in float64, without the features that do not vary; and what maps of them share."""

    source: Float64[Tensor, "row d_source"]
    target: Float64[Tensor, "row d_target"]
    groups: Int[Tensor, " row"]
    select: tuple[Tensor, Tensor] | None
    kept: tuple[Bool[Tensor, " d_source"], Bool[Tensor, " d_target"]]
    means: tuple[Tensor, Tensor]
    """Of all features."""
    norms: tuple[float, float]
    """Mean norm of the whole states."""
    seed: int = 0
    """Of the folds."""

    @classmethod
    def of(cls, source: Tensor, target: Tensor, groups: Tensor | None = None, select: Rows | None = None, *, seed: int = 0) -> "Pairs":
        x, y = source.double(), target.double()
        if len(x) != len(y) or not len(x):
            raise StudyError(f"a map is fitted on pairs of activations: given {len(x)} rows of the source and {len(y)} of the target.")
        kept = (_varies(x), _varies(y))
        if x.shape[1] == y.shape[1]:
            kept = (kept[0] & kept[1],) * 2
        chosen = None if select is None else (select[0].double()[:, kept[0]], select[1].double()[:, kept[1]])
        groups = torch.arange(len(x)) if groups is None else groups
        return cls(
            source=x[:, kept[0]],
            target=y[:, kept[1]],
            groups=groups,
            select=chosen,
            kept=kept,
            means=(x.mean(0), y.mean(0)),
            norms=(float(x.norm(dim=1).mean()), float(y.norm(dim=1).mean())),
            seed=seed,
        )

    @property
    def same_width(self) -> bool:
        return len(self.kept[0]) == len(self.kept[1])

    @cached_property
    def mean_source(self) -> Tensor:
        return self.source.mean(0)

    @cached_property
    def mean_target(self) -> Tensor:
        return self.target.mean(0)

    @cached_property
    def change(self) -> Tensor:
        """Y - X; its mean, where it differs from row to row by no more than rounding."""
        change = self.target - self.source
        return change if differs(change, self.target) else change.mean(0).expand_as(change)

    @cached_property
    def varying(self) -> Tensor:
        """What varies of the change: exactly 0 where nothing does, whatever a mean of equal numbers is rounded to."""
        return self.change - self.change.mean(0) if differs(self.change, self.target) else torch.zeros_like(self.change)

    @cached_property
    def decomposed(self) -> Decomposed:
        return decompose(self.source)

    @cached_property
    def projected(self) -> Tensor:
        """U'Z of the change."""
        assert self.decomposed.left is not None
        return self.decomposed.left.T @ self.varying

    @cached_property
    def validated(self) -> Validated:
        """What cross-validation chooses for regressions of the change."""
        return cross_validated(self.source, self.varying, self.groups, seed=self.seed)


def differs(change: Float64[Tensor, "row d"], states: Float64[Tensor, "row d"]) -> bool:
    """Whether the change of these states differs from row to row by more than the rounding of float32."""
    return bool((change - change.mean(0)).norm() > ROUNDING * states.norm())


def _varies(states: Float64[Tensor, "row d"]) -> Bool[Tensor, " d"]:
    return states.std(0, correction=0) > ROUNDING * states.square().mean(0).sqrt()


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a family found: one affine map, or one for each cluster of source states."""

    affines: tuple[Affine, ...]
    lam: float | None = None
    centres: Float64[Tensor, "cluster d_source"] | None = None
    norm_ratio: float | None = None
    """Written states get the norm |x| times this."""
    warnings: tuple[str, ...] = ()
    identical_score: float | None = None
    """Held-out R2 of this estimator between the source and itself: 1 for one that can be believed with so few rows."""


def anchored(pairs: Pairs, left: Tensor, right: Tensor, scale: float = 1.0) -> Affine:
    """mean(Y) + (x - mean(X)) (scale I + left right)."""
    diagonal = torch.full((pairs.source.shape[1],), scale, dtype=torch.float64)
    return Affine(mean_in=pairs.mean_source, mean_out=pairs.mean_target, diagonal=diagonal, left=left, right=right)


def _nothing(pairs: Pairs) -> tuple[Tensor, Tensor]:
    return torch.zeros(pairs.source.shape[1], 0, dtype=torch.float64), torch.zeros(0, pairs.target.shape[1], dtype=torch.float64)


def identity(pairs: Pairs) -> Fit:
    d = len(pairs.kept[0])
    zero, none = torch.zeros(d, dtype=torch.float64), torch.zeros(d, 0, dtype=torch.float64)
    return Fit(affines=(Affine(mean_in=zero, mean_out=zero, diagonal=torch.ones_like(zero), left=none, right=none.T),))


def shift(pairs: Pairs) -> Fit:
    return Fit(affines=(anchored(pairs, *_nothing(pairs)),))


def mean(pairs: Pairs) -> Fit:
    left, right = _nothing(pairs)
    return Fit(affines=(Affine(mean_in=pairs.mean_source, mean_out=pairs.mean_target, diagonal=None, left=left, right=right),))


def diag_affine(pairs: Pairs, lam: float | None = None) -> Fit:
    """Slope of each feature: 1 + cov(x, y - x) / (var x + lambda mean var)."""

    x, change = pairs.source - pairs.mean_source, pairs.varying

    def sums(rows: Tensor) -> tuple[Tensor, Tensor]:
        centred = x[rows] - x[rows].mean(0)
        return centred.square().sum(0), (centred * change[rows]).sum(0)

    def slopes(squares: Tensor, products: Tensor, penalty: float) -> Tensor:
        return products / (squares + penalty * squares.mean()).clamp_min(torch.finfo(torch.float64).tiny)

    parts = [] if lam is not None else [
        (*sums(rest), x[held] - x[rest].mean(0), change[held] - change[rest].mean(0)) for held, rest in folds(pairs)
    ]  # fmt: skip

    def error(penalty: float) -> float:
        return sum(float((z - inputs * slopes(squares, products, penalty)).square().sum()) for squares, products, inputs, z in parts)

    lam = least(error, LAMBDAS) if lam is None else lam
    one = anchored(pairs, *_nothing(pairs))
    diagonal = 1 + slopes(*sums(torch.arange(len(x))), lam)
    return Fit(affines=(Affine(mean_in=one.mean_in, mean_out=one.mean_out, diagonal=diagonal, left=one.left, right=one.right),), lam=lam)


def folds(pairs: Pairs) -> list[tuple[Tensor, Tensor]]:
    """Held-out rows and the rest, of each fold."""
    every = torch.arange(len(pairs.source))
    return [(held, every[~torch.isin(every, held)]) for held in fold_rows(pairs.groups, FOLDS, pairs.seed)]


def least(error: Callable[[float], float], tried: Sequence[float]) -> float:
    """The penalty of the least error; the largest, where it makes no difference."""
    return min(reversed(tried), key=error)


def anchored_ridge(pairs: Pairs, lam: float | None = None) -> Fit:
    """Ridge regression of the change."""
    lam = pairs.validated.lambda_ if lam is None else lam
    return Fit(affines=(anchored(pairs, *ridge(pairs.decomposed, pairs.projected, lam)),), lam=lam, warnings=few_rows(pairs))


def reduced_rank(pairs: Pairs, rank: int | None = None, lam: float | None = None) -> Fit:
    lam = pairs.validated.lambda_of_ranks if lam is None else lam
    rank = pairs.validated.rank_one_se if rank is None else rank
    left, right = ridge(pairs.decomposed, pairs.projected, lam)
    axes = fitted_axes(pairs.decomposed, pairs.projected, lam)[:, :rank]
    return Fit(affines=(anchored(pairs, left @ (right @ axes), axes.T),), lam=lam, warnings=few_rows(pairs))


def anchored_procrustes(pairs: Pairs, lam: float | None = None) -> Fit:
    if lam is None and pairs.select is not None:
        x, y = pairs.select
        lam = least(lambda tried: float((_turned(pairs, tried)(x) - y).square().sum()), PROCRUSTES_LAMBDAS)
    elif lam is None:
        lam = least(lambda tried: sum(_held_out_error(pairs, held, rest, tried) for held, rest in folds(pairs)), PROCRUSTES_LAMBDAS)
    return Fit(affines=(_turned(pairs, lam),), lam=lam, warnings=few_rows(pairs))


def _held_out_error(pairs: Pairs, held: Tensor, rest: Tensor, lam: float) -> float:
    part = Pairs.of(pairs.source[rest], pairs.target[rest])
    turned = _turned(part, lam).embedded(*part.kept, *part.means)
    return float((turned(pairs.source[held]) - pairs.target[held]).square().sum())


def _turned(pairs: Pairs, lam: float) -> Affine:
    """The rotation and scale, solved on the span of both models' states: outside it the nearest rotation to the identity is the identity."""
    x, y = pairs.source - pairs.mean_source, pairs.target - pairs.mean_target
    n, d = x.shape
    size = float(x.square().sum())
    if size == 0:
        return anchored(pairs, *_nothing(pairs))
    basis = torch.linalg.qr(torch.cat([x, y]).T).Q if 2 * n < d else torch.eye(d, dtype=torch.float64)
    x, y = x @ basis, y @ basis
    turned = nearest_rotation(x.T @ y, lam * size / d)
    scale = float(((x @ turned) * y).sum() / size)
    change = scale * (turned - torch.eye(len(turned), dtype=torch.float64))
    if change.norm() < SAME:
        change, scale = torch.zeros_like(change), 1.0 if abs(scale - 1) < SAME else scale
    return anchored(pairs, basis, change @ basis.T, scale)


def nearest_rotation(cross: Float64[Tensor, "d d"], penalty: float) -> Float64[Tensor, "d d"]:
    """argmax over rotations Q of <Q, X'Y> + penalty tr(Q); where both say nothing (penalty 0, few rows), the one nearest to the identity."""
    eye = torch.eye(len(cross), dtype=torch.float64)
    if penalty == float("inf"):
        return eye
    u, values, vh = torch.linalg.svd(cross + penalty * eye)
    seen = values > values[0] * len(cross) * torch.finfo(torch.float64).eps
    left, right = u[:, ~seen], vh[~seen].T
    p, _, qh = torch.linalg.svd(left.T @ right)
    return u[:, seen] @ vh[seen] + left @ (p @ qh) @ right.T


def few_rows(pairs: Pairs) -> tuple[str, ...]:
    n, d = pairs.source.shape
    said = f"{n} rows for {d} features: the map is learned on the span of these rows alone and leaves the rest of each activation as it is"
    return (said,) if n < d else ()
