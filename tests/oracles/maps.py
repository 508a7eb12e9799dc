"""Maps of states by their textbook formulas, with d x d matrices and no decomposition shared."""

import torch
from torch import Tensor


def apply(x: Tensor, mean_in: Tensor, matrix: Tensor, mean_out: Tensor) -> Tensor:
    """mean_out + (x - mean_in) matrix"""
    return mean_out + (x - mean_in) @ matrix


def ridge_of_change(source: Tensor, target: Tensor, lam: float) -> Tensor:
    """I + (X'X + lambda tr(X'X)/d I)^-1 X'(Y - X), all centred."""
    x, change = source - source.mean(0), (target - source) - (target - source).mean(0)
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    return eye + torch.linalg.solve(x.T @ x + lam * x.square().sum() / x.shape[1] * eye, x.T @ change)


def reduced_rank_of_change(source: Tensor, target: Tensor, lam: float, rank: int) -> Tensor:
    """The ridge's coefficients, projected on the strongest directions of what it fits, ridge rows included."""
    x = source - source.mean(0)
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    coefficients = ridge_of_change(source, target, lam) - eye
    augmented = torch.cat([x, (lam * x.square().sum() / x.shape[1]).sqrt() * eye])
    axes = torch.linalg.svd(augmented @ coefficients, full_matrices=False).Vh[:rank].T
    return eye + coefficients @ axes @ axes.T


def anchored_procrustes(source: Tensor, target: Tensor, lam: float) -> Tensor:
    """Scale times the rotation U V' of the singular value decomposition of X'Y + lambda tr(X'X)/d I."""
    x, y = source - source.mean(0), target - target.mean(0)
    size = x.square().sum()
    u, _, vh = torch.linalg.svd(x.T @ y + lam * size / x.shape[1] * torch.eye(x.shape[1], dtype=x.dtype))
    return u @ vh * ((x @ u @ vh) * y).sum() / size
