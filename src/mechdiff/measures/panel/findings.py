"""The numbers on the panel say of each group of texts how far the two models are apart, and which scores changed, corrected over all of them.

Tables in, tables out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from mechdiff import labels
from mechdiff.measures.panel.plan import ALSO, GROUPS
from mechdiff.rows import where
from mechdiff.shares import BETWEEN
from mechdiff.statistics import intervals, simulated
from mechdiff.statistics.memory import once

KL = BETWEEN["base"]
SCORES = {"loss": "loss_change_nats", "right": "right_change", "refusal": "refusal_change"}
"""What is tested of each group, by name."""
SURE = 0.05


@dataclass(frozen=True, kw_only=True)
class Change:
    """One score of one group in both models."""

    group: str
    score: str
    """loss, right, refusal."""
    base: float
    tuned: float
    change: float
    low: float | None
    high: float | None
    n: int
    p: float
    """Family-wise over all groups and scores (Holm); NaN: too few texts for a test."""

    @property
    def found(self) -> bool:
        """Whether the change is there at 5 %, over all groups and scores."""
        return self.p <= SURE


def of_panel(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows (of a summary, or one a text) on the panel, with their `group`."""
    return where(frame, measure="panel").with_columns(group=labels.texts_group())


def kl(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows of KL(tuned || base), on the tokens that both have."""
    return (
        of_panel(frame)
        .filter(pl.col("metric").is_in(KL))
        .unique(["group", "prompt"] if "prompt" in frame.columns else ["group"], keep="last", maintain_order=True)
    )


def groups(summary: pl.DataFrame) -> pl.DataFrame:
    """`group n kl low high floor top1`: in the panel's order, the user's own last."""
    found = of_panel(summary)
    top1 = found.filter(metric="top1_same").select("group", top1="mean", top1_low="ci_low", top1_high="ci_high")
    order = {name: place for place, name in enumerate([*GROUPS, ALSO])}
    table = kl(summary).select("group", "n", "floor", kl="mean", low="ci_low", high="ci_high").join(top1, on="group", how="left")
    return table.sort(pl.col("group").replace_strict(order, default=len(order), return_dtype=pl.Int64))


def on_shared(frame: pl.DataFrame) -> bool:
    """Whether the two vocabularies differ, so that KL is of the tokens that both have."""
    return bool(of_panel(frame)["metric"].is_in(["kl_shared_nats"]).any())


def overall(rows: pl.DataFrame) -> dict[str, tuple[float, float | None, float | None, int]]:
    """ "kl" and "top1": mean over all shipped groups' texts, its interval, and how many texts."""
    found = {}
    tables = {"kl": kl(rows), "top1": of_panel(rows).filter(metric="top1_same")}
    for name, table in tables.items():
        values = table.filter(pl.col("group") != ALSO, pl.col("value").is_finite())["value"].to_numpy()
        if len(values):
            low, high = (float(end[0]) for end in intervals.mean_intervals(values[:, None]))
            found[name] = (float(values.mean()), None if np.isnan(low) else low, None if np.isnan(high) else high, len(values))
    return found


@once
def changes(rows: pl.DataFrame, summary: pl.DataFrame) -> list[Change]:
    """Every score of every group, in the panel's order; p family-wise over all of them."""
    table = of_panel(summary)
    by = {(r["group"], r["metric"]): r for r in table.iter_rows(named=True)}
    listed = []
    for group in groups(summary)["group"].to_list():
        for score, metric in SCORES.items():
            suffix = "_nats" if score == "loss" else ""
            one, base, tuned = (by.get((group, name)) for name in (metric, f"{score}_base{suffix}", f"{score}_tuned{suffix}"))
            if one and base and tuned:
                listed.append((group, score, base, tuned, one))
    raw = np.array([_p(rows, group, score, one) for group, score, _, _, one in listed], dtype=float)
    least = np.array([0.0 if score == "loss" else intervals.mcnemar(0, one["n"]) for _, score, _, _, one in listed])
    raw[least * np.count_nonzero(~np.isnan(raw)) > SURE] = np.nan  # nothing that so few texts show would be found among so many scores
    return [
        Change(
            group=group, score=score, base=base["mean"], tuned=tuned["mean"], change=one["mean"], low=one["ci_low"], high=one["ci_high"],
            n=one["n"], p=float(p),
        )
        for (group, score, base, tuned, one), p in zip(listed, intervals.holm(raw), strict=True)
    ]  # fmt: skip


def _p(rows: pl.DataFrame, group: str, score: str, one: Mapping[str, Any]) -> float:
    """Of one score alone: McNemar's exact test where each text is right or wrong, else the bootstrap-t test of the mean."""
    if score == "loss":
        apart = kl(rows).filter(pl.col("group") == group)["value"].to_numpy()
        skew = float(simulated.cv_of(apart[:, None])[0])
        speaks = simulated.speaks("mean_p", len(apart), 0.0 if np.isnan(skew) else skew)  # nan: the two say the same everywhere
        return float("nan") if one["p"] is None or not speaks else float(one["p"])
    mine = of_panel(rows).filter((pl.col("group") == group) & (pl.col("metric") == SCORES[score]))
    values = mine.filter(pl.col("value").is_finite())["value"].to_numpy()
    if len(values) < intervals.FEWEST:
        return float("nan")
    return intervals.mcnemar(int((values > 0).sum()), int((values < 0).sum()))
