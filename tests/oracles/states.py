"""Similarities of two sets of states from their definitions, in float64 numpy: loops, full matrices, no shared code with what they test."""

import math
from itertools import combinations, permutations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes

States = NDArray[np.float64]


def hsic_u_statistic(k: States, l: States) -> float:  # noqa: E741
    """HSIC1 as the U-statistic of order 4: the kernel averaged over every set of four rows and every order of it (Song 2012, theorem 3)."""
    values = []
    for four in combinations(range(len(k)), 4):
        for t, u, v, w in permutations(four):
            values.append(k[t, u] * (l[t, u] + l[v, w] - 2 * l[t, v]))
    return math.fsum(values) / len(values)


def hsic_three_terms(k: States, l: States) -> float:  # noqa: E741
    """HSIC1 by Nguyen 2021, equation 3, as printed."""
    n, one = len(k), np.ones(len(k))
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    terms = np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ l @ one)
    return float(terms / (n * (n - 3)))


def hsic_biased(k: States, l: States) -> float:  # noqa: E741
    """tr(KHLH)/(N-1)^2."""
    n = len(k)
    h = np.eye(n) - np.ones((n, n)) / n
    return float(np.trace(k @ h @ l @ h) / (n - 1) ** 2)


def cka(x: States, y: States, hsic: object = hsic_three_terms) -> float:
    """HSIC(K,L)/sqrt(HSIC(K,K) HSIC(L,L)) on uncentred Gram matrices."""
    assert callable(hsic)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    return float(hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l)))


def cka_of_features(x: States, y: States) -> float:
    """Debiased linear CKA by Kornblith's form in feature space: d x d matrices, no Gram matrix."""
    x, y = x - x.mean(0), y - y.mean(0)

    def dot(a: States, b: States) -> float:
        n = len(a)
        own_a, own_b = (a**2).sum(1), (b**2).sum(1)
        return float(np.linalg.norm(b.T @ a) ** 2 - n / (n - 2) * (own_a @ own_b) + own_a.sum() * own_b.sum() / ((n - 1) * (n - 2)))

    return dot(x, y) / math.sqrt(dot(x, x) * dot(y, y))


def participation_ratio(x: States) -> float:
    """(sum of eigenvalues)^2 / sum of their squares, from the d x d covariance."""
    values = np.linalg.eigvalsh(np.cov(x.T))
    return float(values.sum() ** 2 / (values**2).sum())


def procrustes_distance(x: States, y: States) -> float:
    """The rotation by scipy, in the full d x d space, and what it leaves."""
    x, y = x - x.mean(0), y - y.mean(0)
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    rotation, _ = orthogonal_procrustes(x, y)
    return float(np.linalg.norm(x @ rotation - y))


def mutual_knn(x: States, y: States, k: int) -> float:
    """Row by row: sort the others by cosine, keep k, count those in common."""

    def nearest(z: States, i: int) -> set[int]:
        z = z - z.mean(0)
        cosine = {j: z[i] @ z[j] / (np.linalg.norm(z[i]) * np.linalg.norm(z[j])) for j in range(len(z)) if j != i}
        return set(sorted(cosine, key=lambda j: -cosine[j])[:k])

    return float(np.mean([len(nearest(x, i) & nearest(y, i)) / k for i in range(len(x))]))
