"""A fitted map is an affine function of activations, kept as a diagonal and a product of two thin matrices.

    T(x) = mean_out + (x - mean_in) * diagonal + ((x - mean_in) @ left) @ right

A map anchored at the identity has diagonal 1, and its product is the learned change: at most as many dimensions as rows it was fitted on, so no
d x d matrix is ever made. A map that is not anchored has diagonal 0, and its two widths may differ.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

ROUNDING = 1e-6
"""What is smaller than this share of its surroundings is rounding of float32."""

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, kw_only=True)
class Affine:
    """T(x) = mean_out + (x - mean_in) * diagonal + ((x - mean_in) @ left) @ right, in float64."""

    mean_in: Float64[Tensor, " d_in"]
    mean_out: Float64[Tensor, " d_out"]
    diagonal: Float64[Tensor, " d_out"] | None
    """None: the learned product is all there is."""
    left: Float64[Tensor, "d_in rank"]
    right: Float64[Tensor, "rank d_out"]

    def __call__(self, states: Tensor) -> Tensor:
        """`[*row, d_in]` -> `[*row, d_out]`, computed in float64, in the dtype of `states`."""
        centred = states.double() - self.mean_in
        moved = self.mean_out + (centred @ self.left) @ self.right
        return (moved if self.diagonal is None else moved + centred * self.diagonal).to(states.dtype)

    def laid_out(self) -> "Affine":
        """The same map as a file gives it back, each part by rows: another order in memory is another order of summing."""
        return replace(self, left=self.left.contiguous(), right=self.right.contiguous())

    def rank_of_change(self) -> int:
        """The measured rank of T - I (of T's linear part, where the widths differ): singular values above rounding."""
        d_in, d_out = len(self.mean_in), len(self.mean_out)
        if d_in != d_out:
            return rank_of(torch.linalg.svdvals(_core(self.left, self.right)))
        diagonal = -torch.ones(d_out, dtype=torch.float64) if self.diagonal is None else self.diagonal - 1
        if not self.left.any() or not self.right.any():
            return int((diagonal != 0).sum())
        if (diagonal == diagonal[0]).all():
            return _rank_with_multiple_of_identity(float(diagonal[0]), self.left, self.right)
        return rank_of(torch.linalg.svdvals(torch.diag(diagonal) + self.left @ self.right))

    def embedded(self, kept_in: Bool[Tensor, " d"], kept_out: Bool[Tensor, " d"], mean_in: Tensor, mean_out: Tensor) -> "Affine":
        """The map of all features, where this one is of the kept ones: the others, of these means, move by the mean difference alone."""
        left = self.left.new_zeros(len(kept_in), self.left.shape[1])
        right = self.right.new_zeros(self.right.shape[0], len(kept_out))
        left[kept_in], right[:, kept_out] = self.left, self.right
        diagonal = None
        if self.diagonal is not None:
            diagonal = torch.ones(len(kept_out), dtype=torch.float64)
            diagonal[kept_out] = self.diagonal
        mean_in, mean_out = mean_in.clone(), mean_out.clone()
        mean_in[kept_in], mean_out[kept_out] = self.mean_in, self.mean_out
        return Affine(mean_in=mean_in, mean_out=mean_out, diagonal=diagonal, left=left, right=right)


def rank_of(values: Float64[Tensor, " value"], scale: float = 0.0) -> int:
    """How many singular values are above rounding: that of the float32 states which a map was fitted on, as a share of the largest value.

    `scale`: the size of numbers that may have cancelled in the matrix.
    """
    largest = max(float(values.max()), scale) if len(values) else 0.0
    return int((values > largest * ROUNDING).sum())


def _core(left: Tensor, right: Tensor) -> Tensor:
    """A small matrix with the singular values of left @ right."""
    return torch.linalg.qr(left, mode="r").R @ torch.linalg.qr(right.T, mode="r").R.T


def _span(left: Tensor, right: Tensor) -> Tensor:
    """Orthonormal columns that span both factors: those of `left` alone, where `right` stays inside (rotations do)."""
    d, rank = left.shape
    if rank >= d:
        return torch.eye(d, dtype=torch.float64)
    one = torch.linalg.qr(left).Q
    rest = right.T - one @ (one.T @ right.T)
    if rest.norm() <= 64 * _EPS * right.norm():
        return one
    return torch.linalg.qr(torch.cat([left, right.T], 1)).Q if 2 * rank < d else torch.eye(d, dtype=torch.float64)


def _rank_with_multiple_of_identity(c: float, left: Tensor, right: Tensor) -> int:
    """The rank of c I + left @ right: c outside the span of both factors, and inside it a small matrix."""
    if c == 0:
        return rank_of(torch.linalg.svdvals(_core(left, right)))
    d = len(left)
    basis = _span(left, right)
    inside = c * torch.eye(basis.shape[1], dtype=torch.float64) + (basis.T @ left) @ (right @ basis)
    return d - basis.shape[1] + rank_of(torch.linalg.svdvals(inside), abs(c))
