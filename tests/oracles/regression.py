"""Reduced-rank regression in plain d x d matrices, in any metric of the targets."""

import math

import torch
from torch import Tensor


def coefficients(inputs: Tensor, targets: Tensor, penalty: float, rank: int, metric: Tensor | None = None) -> Tensor:
    """The d x d_out matrix B of at most `rank` with the least |(Z - X B) F^(1/2)|^2 + penalty |B F^(1/2)|^2, both sides centred.

    Least squares on rows sqrt(penalty) I added to X, then projected on the right singular vectors of what it fits.
    """
    d = inputs.shape[1]
    x = torch.cat([inputs - inputs.mean(0), math.sqrt(penalty) * torch.eye(d, dtype=torch.float64)])
    z = torch.cat([targets - targets.mean(0), torch.zeros(d, targets.shape[1], dtype=torch.float64)])
    values, vectors = torch.linalg.eigh(torch.eye(targets.shape[1], dtype=torch.float64) if metric is None else metric)
    root = (vectors * values.sqrt()) @ vectors.T
    b = torch.linalg.lstsq(x, z @ root, driver="gelsd").solution
    axes = torch.linalg.svd(x @ b).Vh[:rank].T
    return b @ axes @ axes.T @ torch.linalg.inv(root)
