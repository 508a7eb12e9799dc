"""Is what a patch carries over the same on every prompt? The tuned model's own activation held against one constant vector, at the strongest output.

own: the base runs with this prompt's tuned activation. constant: it runs with its own activation plus the mean difference (`shift`), or with the mean
tuned activation (`mean`), whichever goes further on these very prompts (constants are patched on no others): where both were patched, sentences say
so, and p is family-wise over both. Own and constant go a part of the way to the tuned model's logits on the same prompts (in
older runs, recover nats of D), so

    fraction    mean(constant) / mean(own): how much of what the patch does is one constant vector
    p           of mean(own - constant) = 0: only a small p says that the rest depends on the prompt; a large one leaves it open
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from mechdiff.measures.patching import findings
from mechdiff.report import difference, effect_shares, spoken
from mechdiff.report.difference import RECOVERY
from mechdiff.rows import OVERLAP, where
from mechdiff.statistics import floors, intervals
from mechdiff.statistics.memory import once

CONSTANTS = ("shift", "mean")
LEAST_TO_SPLIT = 0.1
"""Part of the way (or share of D) gone at the strongest output under which nobody asks what it depends on."""
WRONG = 0.05


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The constant that does most at one site, beside this prompt's own activation."""

    name: str
    arm: str
    in_logits: bool
    """Whether shares are parts of the way in logits; else of D."""
    own: float
    """The share that the prompt's own tuned activation goes."""
    arms: Mapping[str, float]
    """The shares of all constants."""
    recovers: bool
    """Whether the interval of `own` leaves 0 out: of what may be nothing no fraction is given."""
    share: float
    """The share that the constant goes."""
    fraction: float
    """Of what the own activation does, what the constant does; may be negative, or above 1."""
    low: float
    high: float
    """Ends of its 95 % interval; NaN with fewer than FEWEST prompts."""
    p: float
    """Paired, family-wise over all constants; NaN where so few prompts of this skew have no test."""
    n: int

    @property
    def chosen(self) -> bool:
        """Whether it is the better of several on the prompts that it is given for."""
        return len(self.arms) > 1

    @property
    def exceeds(self) -> bool:
        """Whether it is shown that the constant does more than the own activation."""
        return self.p <= WRONG and self.fraction > 1

    @property
    def depends(self) -> bool:
        """Whether it is shown that the own activation does more than the constant."""
        return self.p <= WRONG and self.fraction < 1


@once
def constant(rows: pl.DataFrame, summary: pl.DataFrame) -> Constant | None:
    """None where no constant was patched at the strongest output, or the own activation recovers less than LEAST_TO_SPLIT there."""
    ranked, _ = findings.ranked_outputs(rows, summary)
    if ranked.is_empty():
        return None
    layer, site = ranked["layer"][0], ranked["site"][0]
    found, in_logits = _gained(rows, difference.reported(rows, "patching"), layer, site)
    arms = [arm for arm in CONSTANTS if arm in found]
    if not arms or "identity" not in found:
        return None
    own, total = found["identity"], found["total"]
    if own.mean() < LEAST_TO_SPLIT * total.mean():
        return None
    arm = max(arms, key=lambda one: found[one].mean())
    taken = found[arm]
    least = float(intervals.share_intervals(own[:, None], total)[1][0])
    fraction, low, high = (float(end[0]) for end in intervals.share_intervals(taken[:, None], own))
    return Constant(
        name=ranked["name"][0],
        arm=arm,
        in_logits=in_logits,
        arms={one: float(found[one].mean() / total.mean()) for one in arms},
        own=float(own.mean() / total.mean()),
        recovers=not least <= 0,
        share=float(taken.mean() / total.mean()),
        fraction=fraction,
        low=low,
        high=high,
        p=_p(rows, np.stack([own - found[one] for one in arms], axis=1), arms.index(arm)),
        n=len(own),
    )


def _p(rows: pl.DataFrame, left: np.ndarray, taken: int) -> float:
    """Of what one constant leaves, `[prompt, constant]`: family-wise over all where it was chosen among several."""
    return float(spoken.family_p(rows, left)[taken]) if left.shape[1] > 1 else spoken.mean_p(rows, left[:, 0])


def _gained(rows: pl.DataFrame, split: str | None, layer: int, site: str) -> tuple[dict[str, np.ndarray], bool]:
    """By arm, how far the base goes on the way to the tuned logits on each prompt, and `total`, the whole way, over the prompts that have them all.

    And whether that is so; where it was not measured, nats of D that it recovers. Empty without either.
    """
    written = where(rows, measure="patching", split=split, direction=RECOVERY, site=site, arm=["identity", *CONSTANTS]).filter(
        pl.col("layer") == layer, pl.all_horizontal(pl.col("unit", "control", "rank", "strength").is_null()), pl.col("value").is_finite()
    )
    in_logits = OVERLAP in written["metric"]
    metric, totals = (
        (OVERLAP, findings.ways(rows, split)) if in_logits else (floors.effect_metric(rows, RECOVERY), effect_shares.totals(rows, split))
    )
    written = written.filter(pl.col("metric") == metric)
    if written.is_empty():
        return {}, in_logits
    wide = written.pivot(on="arm", index="prompt", values="value").join(totals, on="prompt").drop_nulls().sort("prompt")
    total = wide["total"].to_numpy()
    if not len(total) or not np.isfinite(total).all() or total.mean() <= 0:
        return {}, in_logits
    moved = {arm: wide[arm].to_numpy() for arm in ("identity", *CONSTANTS) if arm in wide.columns}
    return {"total": total, **{arm: one if in_logits else total - one for arm, one in moved.items()}}, in_logits
