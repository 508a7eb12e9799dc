"""Which dose of a steering edit is put to the test? The largest that neutral prompts allow.

Two questions are asked, one of each model: `add` the mean difference to the base, and `ablate` the change's directions in the tuned model. A dose is
the strength of the first (up to 1, the mean difference as it is: more would overshoot the change), the number of dimensions of the second, at all
positions of the layer that the study steers. The largest dose whose mean side effects keep both limits is tested. The choice looks at neutral
prompts alone, never at an effect: so there is no best of several to be flattered by, and random directions, chosen by the same rule, pass the test
as often as its level says. No torch here.
"""

import math
from typing import Any

import polars as pl

from mechdiff import labels
from mechdiff.rows import where

QUESTIONS = {"base<-base": "add", "tuned<-tuned": "ablate"}
"""The arm that is tested, by direction."""


def dose(rows: pl.DataFrame, direction: str, *, max_kl_nats: float, max_perplexity_ratio: float) -> dict[str, Any] | None:
    """`layer site arm rank strength side_kl side_ratio n` of the largest dose within the limits; None if none is, or none was measured.

    `rows` are side effects per neutral prompt; of several layers and kinds of site the one with the most doses within the limits is not sought: the
    first in network order that has one is taken.
    """
    tried = doses(rows, direction)
    within = tried.filter(pl.col("side_kl") <= max_kl_nats, pl.col("side_ratio").fill_null(1.0).fill_nan(math.inf) <= max_perplexity_ratio)
    if within.is_empty():
        return None
    first = within.sort("layer", "site").select("layer", "site").row(0, named=True)
    here = within.filter(pl.col("layer") == first["layer"], pl.col("site") == first["site"])
    return here.sort("rank", pl.col("strength").fill_null(1.0), descending=True).row(0, named=True)


def doses(rows: pl.DataFrame, direction: str) -> pl.DataFrame:
    """`layer site arm rank strength side_kl side_ratio n`: mean side effects of every dose of a direction's question."""
    found = where(rows, measure="steering", direction=direction, control=None, unit=labels.ALL_POSITIONS).filter(
        pl.col("arm") == QUESTIONS[direction], pl.col("metric").str.starts_with("side_"), pl.col("strength").fill_null(1.0) <= 1
    )
    key = ["layer", "site", "arm", "rank", "strength"]

    def mean(metric: str) -> pl.Expr:
        return pl.col("value").filter(pl.col("metric") == metric).mean()

    return found.group_by(key).agg(
        side_kl=mean("side_kl_nats"), side_ratio=mean("side_log_perplexity_ratio_nats").exp(), n=pl.col("prompt").n_unique()
    ).filter(pl.col("rank") > 0, pl.col("side_kl").is_finite()).sort("layer", "site", "rank", pl.col("strength").fill_null(1.0))  # fmt: skip
