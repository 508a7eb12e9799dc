"""The numbers of a patched run are computed once more here: by whole forward passes, from the definitions, in float64.

A function takes the run and a row and returns the number, or raises `NotRecomputed` with the reason why this row is not computed another way (a
random draw, a fit that was not kept).
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.audit import whole
from mechdiff.audit.rerun import Rerun
from mechdiff.audit.whole import Put

Row = dict[str, Any]
SecondWay = Callable[[Rerun, Row], float]
"""Of one measure: a row's value once more, or NotRecomputed."""


class NotRecomputed(Exception):
    """A row that is not computed another way; its text says why."""


# ---- the law of a run ------------------------------------------------------------------------------------------------------------------


def of_law(run: Rerun, row: Row, logits: Tensor) -> float:
    """A metric of a counterfactual run."""
    own = labels.runner(row["direction"])
    split, prompt, metric = row["split"], row["prompt"], row["metric"]
    base, tuned = (run.law(side, split, prompt) for side in ("base", "tuned"))
    mine, other = (tuned, base) if own == "tuned" else (base, tuned)
    n_shared = run.prepared.tokens.n_shared
    if metric == "kl_own_nats":
        return whole.kl(mine, logits)
    if metric == "js_own_nats":
        return whole.js(mine, logits)
    if metric == "kl_own_shared_nats":
        return whole.kl(mine[:n_shared], logits[:n_shared])
    if metric == "js_own_shared_nats":
        return whole.js(mine[:n_shared], logits[:n_shared])
    if metric == "kl_other_nats":
        return whole.kl(other[:n_shared], logits[:n_shared])
    if metric == "top1_same":
        top = int(mine.argmax())
        return top1(logits, top)
    if metric == "logit_diff_divergent":
        return divergent(logits[:n_shared], base[:n_shared], tuned[:n_shared])
    if metric == "fisher_overlap_nats":
        return whole.overlap(mine[:n_shared], other[:n_shared], logits[:n_shared])
    raise NotRecomputed(f"the metric {metric} is a fit or a draw")


def top1(logits: Tensor, top: int) -> float:
    """1 where the token has the highest logit; 0.5 where it is too near to tell (rounding decides), which no row can contradict."""
    gap = float(logits.max() - logits[top])
    return 1.0 if gap == 0 else 0.5 if gap < 1e-4 else 0.0


def divergent(logits: Tensor, base: Tensor, tuned: Tensor) -> float:
    first, second = int(tuned.argmax()), int(base.argmax())
    return math.nan if first == second else float(logits[first] - logits[second])


def window(unit: str | None) -> tuple[int, int | None]:
    """Blocks and positions (None: all) that a unit of patching names."""
    width, position = labels.window_of(unit)
    return width, labels.n_positions(position)


def run_with(run: Rerun, row: Row, puts: Callable[[], dict[Site, Put]]) -> Tensor:
    """The law of a row's run; rows that differ in the metric alone share it."""
    key = tuple(
        row[name] for name in ("measure", "direction", "split", "layer", "site", "unit", "arm", "rank", "strength", "control", "prompt")
    )
    if key not in run.cached:
        run.cached[key] = run.run(labels.runner(row["direction"]), row["split"], row["prompt"], puts())
    return run.cached[key]


def between(run: Rerun, metric: str, base: Tensor, tuned: Tensor) -> float:
    """A divergence of two laws."""
    shared = run.prepared.tokens.n_shared
    if metric == "kl_tuned_base_nats":
        return whole.kl(tuned, base)
    if metric == "kl_base_tuned_nats":
        return whole.kl(base, tuned)
    if metric == "js_nats":
        return whole.js(base, tuned)
    if metric == "top1_same":
        return top1(tuned, int(base.argmax()))
    if metric == "kl_shared_nats":
        return whole.kl(tuned[:shared], base[:shared])
    if metric == "kl_shared_base_tuned_nats":
        return whole.kl(base[:shared], tuned[:shared])
    if metric == "fisher_total_nats":
        return whole.overlap(base[:shared], tuned[:shared], tuned[:shared])
    if metric in ("mass_outside", "mass_outside_base"):
        return float((tuned if metric == "mass_outside" else base).softmax(-1)[shared:].sum())
    if metric == "kl_byte_nats":
        first = run.prepared.tokens.first_bytes
        laws = [np.bincount(first, weights=law.softmax(-1).numpy(), minlength=257) for law in (tuned, base)]
        return float(sum(p * math.log(p / q) for p, q in zip(*laws, strict=True) if p > 0))
    raise NotRecomputed(f"the metric {metric}")


LOGITS_APART = 20
"""Logits may be so many times sqrt(2 floor) apart."""
