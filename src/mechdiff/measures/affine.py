"""What every fitted map is: an affine function of states, kept as a diagonal and a product of two thin matrices.

    T(x) = mean_out + (x - mean_in) * diagonal + ((x - mean_in) @ left) @ right

A map anchored at the identity has diagonal 1, and its product is the learned change: at most as many dimensions as rows it was fitted on, so no
d x d matrix is ever made. A map that is not anchored has no diagonal; then the two widths may differ.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor


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

    def rank_of_change(self) -> int:
        """The measured rank of T - I (of T's linear part, where the widths differ), by singular values above rounding."""
        d_in, d_out = len(self.mean_in), len(self.mean_out)
        if d_in != d_out:
            return _product_rank(self.left, self.right)
        diagonal = -torch.ones(d_out, dtype=torch.float64) if self.diagonal is None else self.diagonal - 1
        if not diagonal.any():
            return _product_rank(self.left, self.right)
        return int(torch.linalg.matrix_rank(torch.diag(diagonal) + self.left @ self.right))


def shifted(mean_in: Float64[Tensor, " d"], mean_out: Float64[Tensor, " d"]) -> Affine:
    """x + (mean_out - mean_in)."""
    return Affine(
        mean_in=mean_in, mean_out=mean_out, diagonal=torch.ones_like(mean_in), left=mean_in.new_zeros(len(mean_in), 0),
        right=mean_in.new_zeros(0, len(mean_in)),
    )  # fmt: skip


def _product_rank(left: Float64[Tensor, "d_in rank"], right: Float64[Tensor, "rank d_out"]) -> int:
    """The rank of left @ right from small factors: singular values above the rounding of a product of that size."""
    if not left.shape[1] or not left.any() or not right.any():
        return 0
    if left.shape[1] >= min(len(left), right.shape[1]):
        return int(torch.linalg.matrix_rank(left @ right))
    core = torch.linalg.qr(left, mode="r").R @ torch.linalg.qr(right.T, mode="r").R.T
    values = torch.linalg.svdvals(core)
    return int((values > values[0] * max(len(left), right.shape[1]) * torch.finfo(torch.float64).eps).sum())
