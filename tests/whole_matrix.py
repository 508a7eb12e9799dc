"""The coefficients of a regression are made one matrix of its factors, for tests that hold it against other formulas."""

from torch import Tensor

from mechdiff.maps.regression import decompose, fitted_axes, ridge


def coefficients(inputs: Tensor, targets: Tensor, lam: float, rank: int | None = None) -> Tensor:
    """The whole d x d_out matrix, from the factors."""
    found = decompose(inputs)
    assert found.left is not None
    projected = found.left.T @ (targets - targets.mean(0))
    left, right = ridge(found, projected, lam)
    if rank is None:
        return left @ right
    axes = fitted_axes(found, projected, lam)[:, :rank]
    return left @ right @ axes @ axes.T
