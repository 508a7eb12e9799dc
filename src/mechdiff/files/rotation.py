"""The rotary scaling that a GGUF file states is written as the `rope_parameters` of a transformers config.

llama.cpp keeps it in two places: keys (`llama.rope.scaling.type` linear or yarn, its factor, the length that it starts from), and tensors that
divide each frequency: `rope_freqs.weight` (Llama 3.1 and later) or `rope_factors_long.weight` and `rope_factors_short.weight` (Phi-3). transformers
reads none of them.

Of Llama 3.1 only the divisors are kept, not the four numbers that they were made from. These are found again and held against the divisors; where
no four numbers give them, the divisors themselves are used (`longrope` with one list, which is the same rotation).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mechdiff.errors import ModelError

DIVISORS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
"""Names of the tensors that divide the frequencies."""

_KEYS = {
    "type", "factor", "original_context_length", "attn_factor", "finetuned", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow",
}  # fmt: skip
"""Keys behind `rope.scaling.` that are understood."""
_LLAMA3 = (1.0, 4.0, 8192)
"""low_freq_factor, high_freq_factor and original_max_position_embeddings of every Llama that has divisors."""
_CLOSE = 1e-5
"""Divisors are stored in float32."""


def scaled(
    stated: Mapping[str, Any], divisors: Mapping[str, Sequence[float]], context: int, rotary: Mapping[str, Any]
) -> dict[str, Any] | None:
    """`rotary` (rope_theta, and what else stands there) with the scaling that a file states; None where it states none.

    `stated`: the file's keys behind "rope.", `divisors`: its tensors by name, `context`: the length that the model is said to take. ModelError where
    the file states something that no config can say.
    """
    known = {name.removeprefix("scaling."): value for name, value in stated.items() if name.startswith("scaling.")}
    if strange := sorted(known.keys() - _KEYS):
        raise ModelError(f"its rotary scaling uses rope.scaling.{strange[0]}, which no config of transformers can say.")
    kind = known.get("type", "linear" if "scale_linear" in stated else "none")
    factor = float(known.get("factor", stated.get("scale_linear", 1.0)))
    original = int(known.get("original_context_length", context))
    attention = float(known.get("attn_factor", 1.0)) * float(known.get("yarn_attn_factor", 1.0))
    base = {
        name: value
        for name, value in rotary.items()
        if name in ("rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved")
    }
    if LONG in divisors and SHORT in divisors:
        lists = {"long_factor": list(divisors[LONG]), "short_factor": list(divisors[SHORT])}
        held = {"attention_factor": attention} if "attn_factor" in known else {}
        return {**base, "rope_type": "longrope", "original_max_position_embeddings": original, **lists, **held}
    if DIVISORS in divisors:
        if kind not in ("none", "linear") or factor != 1.0:
            raise ModelError(
                f"it holds {DIVISORS} and states rope.scaling.type {kind} by {factor} beside it: only one of them can be meant."
            )
        return _by_divisors(list(divisors[DIVISORS]), context, base)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    if kind == "linear":
        return {**base, "rope_type": "linear", "factor": factor}
    if kind == "yarn":
        betas = {name: float(known[f"yarn_{name}"]) for name in ("beta_fast", "beta_slow") if f"yarn_{name}" in known}
        held = {} if attention == 1.0 else {"attention_factor": attention * (0.1 * math.log(factor) + 1)}
        return {**base, "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **betas, **held}
    raise ModelError(
        f"its rotary scaling is of the type {kind}, which is not read (linear, yarn and the tensors of Llama 3.1 and Phi-3 are)."
    )


def _by_divisors(divisors: list[float], context: int, base: dict[str, Any]) -> dict[str, Any] | None:
    if all(abs(one - 1) < _CLOSE for one in divisors):
        return None
    theta = float(base["rope_theta"])
    for factor in dict.fromkeys((round(max(divisors), 4), 8.0, 32.0)):
        low, high, original = _LLAMA3
        for four in ((factor, low, high, original), _fitted(divisors, theta, factor, original)):
            if four and _agree(divisors, _llama3(len(divisors), theta, *four)):
                names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
                return {**base, "rope_type": "llama3", **dict(zip(names, four, strict=True))}
    lists = {"long_factor": divisors, "short_factor": divisors, "attention_factor": 1.0}
    return {**base, "rope_type": "longrope", "original_max_position_embeddings": context, **lists}


def _agree(divisors: Sequence[float], others: Sequence[float]) -> bool:
    return all(abs(one - other) <= _CLOSE * other for one, other in zip(divisors, others, strict=True))


def _frequencies(n: int, theta: float) -> list[float]:
    return [theta ** (-i / n) for i in range(n)]


def _llama3(n: int, theta: float, factor: float, low: float, high: float, original: int) -> list[float]:
    """What Llama 3.1 divides each of n frequencies by: 1 above `high` turns in the original length, `factor` under `low`, between in between."""
    found = []
    for frequency in _frequencies(n, theta):
        turns = original * frequency / (2 * math.pi)
        kept = min(1.0, max(0.0, (turns - low) / (high - low)))
        found.append(1 / ((1 - kept) / factor + kept))
    return found


def _fitted(divisors: Sequence[float], theta: float, factor: float, original: int) -> tuple[float, float, float, int] | None:
    """The four numbers by which the divisors between 1 and the largest were made; None where fewer than two lie there. Only ratios are told by them,
    so the original length is taken as known."""
    points = []
    for divisor, frequency in zip(divisors, _frequencies(len(divisors), theta), strict=True):
        if 1 + 1e-4 < divisor < factor * (1 - 1e-4):
            points.append((original * frequency / (2 * math.pi), (1 / divisor - 1 / factor) / (1 - 1 / factor)))
    if len(points) < 2:
        return None
    (first, kept), (last, less) = points[0], points[-1]
    width = (first - last) / (kept - less)
    low = first - kept * width
    return factor, round(low, 4), round(low + width, 4), original
