"""The numbers on templates are D of each model behind its own one, and what of it is the template's and what the weights'."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from mechdiff.report import difference, spoken
from mechdiff.rows import where
from mechdiff.statistics import intervals, summary
from mechdiff.statistics.memory import once

EFFECTS = ("template_effect", "weights_effect", "interaction")
MEASURE = "chat_template"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over prompts; NaN for ends that too few prompts give."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Split:
    """What each of the two changes does, of what both do."""

    n: int
    whole: Estimate
    """D, or KL(tt || bb) + KL(bb || tt) in the linear score, in nats."""
    shares: dict[str, Estimate]
    """Of the whole, by effect."""
    p: float
    """Of the interaction against 0."""


@once
def split(rows: pl.DataFrame, score: str = "linear_nats") -> Split | None:
    """Template, weights and interaction as shares of the whole, in `nats` of KL or `linear_nats`; None where there is no whole above 0."""
    here = where(rows, measure=MEASURE, control=None, split=difference.reported(rows, MEASURE))
    names = [f"{name}_{score}" for name in EFFECTS]
    prompts, found, table = summary.prompt_matrix(here.filter(pl.col("metric").is_in(names)), by="metric")
    if len(found) < len(names) or not prompts or not np.isfinite(table).all():
        return None
    columns = [table[:, found.index(name)] for name in names]
    whole = columns[0] + columns[1]
    if whole.mean() <= 0:
        return None
    low, high = intervals.mean_intervals(whole[:, None])
    share, share_low, share_high = intervals.share_intervals(np.stack(columns, 1), whole)
    shares = {name: Estimate(mean=float(share[i]), low=float(share_low[i]), high=float(share_high[i])) for i, name in enumerate(EFFECTS)}
    return Split(
        n=len(prompts), whole=Estimate(mean=float(whole.mean()), low=float(low[0]), high=float(high[0])), shares=shares,
        p=float(spoken.mean_p(rows, columns[2])),
    )  # fmt: skip


def estimates(table: pl.DataFrame, metric: str) -> dict[str | None, dict]:
    """The lines of the summary that have this metric, by arm."""
    return {row["arm"]: row for row in where(table, measure=MEASURE, metric=metric, control=None).iter_rows(named=True)}


def differs(table: pl.DataFrame) -> bool:
    """Whether D of each model behind its own template is above three times the noise floor."""
    d = estimates(table, "kl_tuned_nats").get("bb")
    return d is not None and d["mean"] > 0 and "below_floor" not in (d["flag"] or "")
