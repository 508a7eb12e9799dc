"""Shares of D are read from the rows of patched runs here: by site, by condition, with intervals."""

import numpy as np
import polars as pl

from mechdiff import labels
from mechdiff.architectures.sites import KINDS
from mechdiff.report import difference
from mechdiff.rows import TOTAL, where
from mechdiff.shares import OF_THE_PAIR, over, refuse_two_supports
from mechdiff.statistics import floors, intervals, summary
from mechdiff.statistics.memory import once

ARMS = (*labels.PATCHES, *labels.MAPS)
"""All arms, in the order in which they are named."""


CELL = ("layer", "site", "unit", "arm", "rank", "strength", "control")


@once
def written(rows: pl.DataFrame, direction: str, metric: str, *, measure: str, split: str | None = None) -> pl.DataFrame:
    """Rows of patches of one direction: per prompt, on the reported split unless another is named, controls and strengths among them."""
    return where(rows, measure=measure, direction=direction, metric=metric, split=split or difference.reported(rows, measure)).filter(
        pl.col("layer").is_not_null(), pl.col("prompt").is_not_null()
    )


def plain(table: pl.DataFrame) -> pl.DataFrame:
    """The real maps at full strength."""
    return where(table, control=None, strength=None, unit=None)


@once
def totals(rows: pl.DataFrame, split: str | None, runner: str = "base") -> pl.DataFrame:
    """`prompt total of`: the other model's clean divergence from the one that runs: D, or KL(p_base || p_tuned) where the tuned model runs.

    `of` is the metric that this is."""
    found = where(rows, measure=OF_THE_PAIR, metric=floors.between_models(rows)[runner], split=split, control=None, unit=None).filter(
        pl.col("prompt").is_not_null()
    )
    return found.select("prompt", total="value", of="metric")


def cells(values: pl.DataFrame, of: pl.DataFrame | None = None) -> tuple[pl.DataFrame, np.ndarray, np.ndarray]:
    """The cells there are, in network order, their values [prompt, cell], and each prompt's total [prompt] (1 without `of`).

    Cells with a value that is not finite are left out, and prompts that a cell or `of` lacks.
    """
    if of is not None:
        refuse_two_supports(values["metric"].unique(), of["of"].unique())
    finite = values.group_by(CELL).agg(whole=pl.col("value").is_finite().all()).filter("whole").drop("whole")
    order = [
        pl.col("layer"),
        kind_place(),
        pl.col("unit"),
        arm_place(),
        pl.col("arm"),
        pl.col("rank"),
        pl.col("strength"),
        pl.col("control"),
    ]
    found = finite.sort(order, nulls_last=False).with_row_index("cell")
    coded = values.join(found, on=CELL, nulls_equal=True)
    if of is not None:
        coded = coded.join(of.filter(pl.col("total").is_finite()), on="prompt")
    prompts, _, matrix = summary.prompt_matrix(coded, by="cell")
    found = found.drop("cell").with_columns(name=difference.site_name())
    if not len(prompts):
        return found.clear(), np.zeros((0, 0)), np.zeros(0)
    total = np.ones(len(prompts)) if of is None else of.filter(pl.col("prompt").is_in(prompts)).sort("prompt")["total"].to_numpy()
    return found, matrix, total


@once
def additive(rows: pl.DataFrame, values: pl.DataFrame, what: str | None = None) -> pl.DataFrame:
    """`name additive additive_low additive_high`: the mean of overlaps (`values`, with a column `name`) over the mean of their total.

    On the same prompts; shares that add to first order, each the part of the way from one model's logits to the other's. Ends are null under FEWEST.
    `what`: at the next token, or over answers (one of `shares.OVER`).
    """
    found = overlaps(rows, values, what)
    if found is None:
        return pl.DataFrame(schema={"name": pl.String, "additive": pl.Float64, "additive_low": pl.Float64, "additive_high": pl.Float64})
    names, matrix, total = found
    share, low, high = intervals.share_intervals(matrix, total)
    table = pl.DataFrame({"name": names, "additive": share, "additive_low": low, "additive_high": high})
    return table.with_columns(pl.col("additive_low", "additive_high").fill_nan(None))


def overlaps(rows: pl.DataFrame, values: pl.DataFrame, what: str | None = None) -> tuple[list[str], np.ndarray, np.ndarray] | None:
    """Names, overlaps [prompt, name] and each prompt's total [prompt], as `additive` takes them; None where no prompt has all, or the total is 0."""
    metric = over(TOTAL, what) if what else TOTAL
    of = where(rows, measure=OF_THE_PAIR, metric=metric, control=None, unit=None).select("prompt", "split", of="value")
    both = values.join(of, on=["prompt", "split"]).filter(pl.col("value").is_finite(), pl.col("of").is_finite())
    prompts, names, matrix = summary.prompt_matrix(both, by="name")
    if not prompts:
        return None
    total = both.filter(pl.col("prompt").is_in(prompts)).unique("prompt").sort("prompt")["of"].to_numpy()
    return (names, matrix, total) if total.mean() > 0 else None


def kind_place() -> pl.Expr:
    return pl.col("site").replace_strict({kind: i for i, kind in enumerate(KINDS)}, default=len(KINDS), return_dtype=pl.Int64)


def arm_place() -> pl.Expr:
    return pl.col("arm").replace_strict({arm: i for i, arm in enumerate(ARMS)}, default=len(ARMS), return_dtype=pl.Int64)


def shares(values: pl.DataFrame, of: pl.DataFrame, *, recovered: bool = True) -> pl.DataFrame:
    """The cells with `share low high nats n`: 1 - mean(values) / mean(of), or mean(values) / mean(of); empty where `of` is not above 0."""
    found, matrix, total = cells(values, of)
    if found.is_empty() or total.mean() <= 0:
        return found.clear().with_columns(**{name: pl.lit(0.0) for name in ("share", "low", "high", "nats")}, n=pl.lit(0))
    effect = total[:, None] - matrix if recovered else matrix
    share, low, high = intervals.share_intervals(effect, total)
    columns = {"share": share, "low": low, "high": high, "nats": effect.mean(axis=0)}
    filled = found.with_columns(pl.Series(name, column, dtype=pl.Float64) for name, column in columns.items())
    return filled.with_columns(pl.col("low", "high").fill_nan(None), n=pl.lit(len(total)))
