"""Similarities are computed once more from whole forward passes."""

import math

import numpy as np

from mechdiff.architectures.sites import Site
from mechdiff.audit.distributions import NotRecomputed, Row
from mechdiff.audit.rerun import Rerun
from mechdiff.rows import WITHOUT


def again(run: Rerun, row: Row) -> float:
    """From the definitions, with N x N matrices, on states of whole passes."""
    if row["control"] is not None:
        raise NotRecomputed("random pairings are draws")
    if row["unit"] is not None:
        raise NotRecomputed("activations pooled over words")
    names, site = run.names(row["split"]), Site(row["layer"], row["site"])
    x, y = (np.stack([run.state(side, row["split"], name, site)[-1].double().numpy() for name in names]) for side in ("base", "tuned"))
    metric = row["metric"].removesuffix(WITHOUT)
    kept = [i for i, name in enumerate(names) if metric == row["metric"] or name != row["prompt"]]
    if metric == "cka":
        return cka(x[kept], y[kept])
    if metric == "cka_without_top3":
        shares = [np.var(states, axis=0) / np.var(states, axis=0).sum() for states in (x, y)]
        shares = [shares[0] + shares[1]] * 2 if x.shape == y.shape else shares
        x, y = (np.delete(states, np.argsort(-share, kind="stable")[:3], 1) for states, share in zip((x, y), shares, strict=True))
        return cka(x[kept], y[kept])
    if metric == "cka_normed":
        return cka(*(run.after_norm(side, row["split"], site)[kept] for side in ("base", "tuned")))
    if metric == "same_basis_change":
        return float(np.mean(np.linalg.norm(y - x, axis=1) / np.linalg.norm(x, axis=1)))
    x, y = x - x.mean(0), y - y.mean(0)
    if metric == "cka_biased":
        return float(np.sum((x.T @ y) ** 2) / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)) if x.any() and y.any() else math.nan
    if metric.startswith("participation_ratio"):
        values = np.linalg.svd(x if metric.endswith("base") else y, compute_uv=False) ** 2
        return float(values.sum() ** 2 / (values**2).sum()) if values.any() else math.nan
    if metric == "procrustes_distance":
        if not (x.any() and y.any()):
            return math.nan
        u, _, vt = np.linalg.svd((x / np.linalg.norm(x)).T @ (y / np.linalg.norm(y)), full_matrices=False)
        return float(np.linalg.norm((x / np.linalg.norm(x)) @ (u @ vt) - y / np.linalg.norm(y)))
    raise NotRecomputed("neighbours may be tied")


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Debiased, by HSIC1's three terms (Nguyen 2021, equation 3); NaN below four prompts, of which it is not defined."""
    if len(x) < 4:
        return math.nan

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        n = len(a)
        a, b = a - np.diag(np.diag(a)), b - np.diag(np.diag(b))
        cross = a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (a.sum(0) @ b.sum(0))
        return float((np.sum(a * b) + cross) / (n * (n - 3)))

    x, y = x - x.mean(0), y - y.mean(0)  # the value does not hang on it, its digits do
    k, l = x @ x.T, y @ y.T  # noqa: E741
    return hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l))
