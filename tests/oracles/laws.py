"""Next-token divergences from their definitions, in float64 numpy: slow, naive, and independent of the code they test."""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax, rel_entr, softmax


def kl_nats(reference_logits: ArrayLike, logits: ArrayLike) -> float:
    """Sum of p log(p/q) over one vocabulary, by probabilities."""
    p, q = softmax(np.asarray(reference_logits, float)), softmax(np.asarray(logits, float))
    return float(rel_entr(p, q).sum())


def kl_nats_by_logs(reference_logits: ArrayLike, logits: ArrayLike) -> float:
    """The same from log-softmaxes, token by token: no probability need be representable."""
    log_p, log_q = log_softmax(np.asarray(reference_logits, float)), log_softmax(np.asarray(logits, float))
    total = []
    for a, b in zip(log_p, log_q, strict=True):
        if a > -math.inf:
            total.append(math.inf if b == -math.inf else math.exp(a) * (a - b))
    return math.fsum(total)


def js_nats(a: ArrayLike, b: ArrayLike) -> float:
    """Half of KL(p || m) + KL(q || m), token by token from log-softmaxes."""
    total = []
    for x, y in zip(log_softmax(np.asarray(a, float)), log_softmax(np.asarray(b, float)), strict=True):
        mean = np.logaddexp(x, y) - math.log(2)
        total += [math.exp(z) * (z - mean) / 2 for z in (x, y) if z > -math.inf]
    return math.fsum(total)


def total_variation(a: ArrayLike, b: ArrayLike) -> float:
    """Half the summed absolute difference of the two laws."""
    return float(np.abs(softmax(np.asarray(a, float)) - softmax(np.asarray(b, float))).sum() / 2)


def kl_and_js_of_neighbours(reference_logits: ArrayLike, logits: ArrayLike) -> tuple[float, float]:
    """Both for laws that hardly differ, without cancellation: KL in centred form, JS as the mean of x tanh x - log cosh x over m."""
    z = np.asarray(reference_logits, float)
    p, u = softmax(z), np.asarray(logits, float) - z
    u = u - p @ u
    kl = math.log1p(p @ (np.expm1(u) - u))
    half = np.tanh((u - kl) / 2)
    return kl, float((p + p * np.exp(u - kl)) / 2 @ ((u - kl) / 2 * half + np.log1p(-(half**2)) / 2))
