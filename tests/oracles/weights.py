"""The formulas of the weight measures, naively: numpy, whole matrices, full decompositions."""

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.floating]


def singular_values(change: Matrix) -> Matrix:
    return np.linalg.svd(change.astype(np.float64), compute_uv=False)


def energy_rank(change: Matrix, percent: float) -> int:
    energy = np.cumsum(singular_values(change) ** 2)
    return int(np.argmax(energy >= percent / 100 * energy[-1] * (1 - 1e-12))) + 1


def stable_rank(change: Matrix) -> float:
    return float(np.linalg.norm(change, "fro") ** 2 / np.linalg.norm(change, 2) ** 2)


def intruders(base: Matrix, tuned: Matrix, k: int, epsilon: float) -> int:
    ours = np.linalg.svd(base.astype(np.float64), full_matrices=False)[0]
    theirs = np.linalg.svd(tuned.astype(np.float64), full_matrices=False)[0][:, :k]
    return int(sum(max(abs(ours[:, j] @ theirs[:, i]) for j in range(ours.shape[1])) < epsilon for i in range(theirs.shape[1])))


def product_change(left_base: Matrix, right_base: Matrix, left_tuned: Matrix, right_tuned: Matrix) -> float:
    """With the d x d products in hand."""
    before, after = left_base @ right_base, left_tuned @ right_tuned
    return float(np.linalg.norm(after - before) / np.linalg.norm(before))


def data_weighted(change: Matrix, base: Matrix, states: Matrix) -> float:
    """||dW C^(1/2)||_F / ||W C^(1/2)||_F with C the second moment of the states."""
    values, vectors = np.linalg.eigh(states.T @ states / len(states))
    root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    return float(np.linalg.norm(change @ root) / np.linalg.norm(base @ root))
