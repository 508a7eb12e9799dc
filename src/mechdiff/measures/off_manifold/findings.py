"""The numbers on writes off the manifold say how many written states are further out than the running model's own ones. Data frames in and out."""

import math
from typing import Any

import numpy as np
import polars as pl

from mechdiff import labels, shares
from mechdiff.report import difference
from mechdiff.rows import where
from mechdiff.statistics import floors, intervals
from mechdiff.statistics.memory import once

LEVEL = 0.99
"""Of own states: a write is beyond where it is further out than so many of them, if there are enough to know."""
FEWEST_OWN = 19
"""Own states under which nothing is called beyond: with so many a like state is further out than all in 1 of 20 prompts."""
SITE = ["runner", "layer", "site"]
EDIT = ["direction", "arm", "rank", "strength"]


@once
def limits(rows: pl.DataFrame) -> pl.DataFrame:
    """`runner layer site own limit`: how many own states there are, and the distance that LEVEL of them keep (of fewer than 99: all of them)."""
    own = where(rows, measure="off_manifold", metric="mahalanobis_sd", arm="oracle").filter(pl.col("value").is_not_nan())
    kept = own.with_columns(labels.runner_column()).group_by(SITE, maintain_order=True).agg(pl.col("value").sort(), own=pl.len())
    limit = pl.struct("value", "own").map_elements(lambda one: one["value"][_kept(one["own"]) - 1], return_dtype=pl.Float64)
    return kept.select(*SITE, "own", limit=limit)


def _kept(n: int) -> int:
    """Of n own distances, how many a like state is within, with the probability LEVEL or, of few, n / (n + 1)."""
    return min(n, math.ceil(LEVEL * (n + 1) - 1e-9))


@once
def writes(rows: pl.DataFrame) -> pl.DataFrame:
    """A line a write, site and prompt: EDIT, `layer site prompt distance ratio own limit beyond`; `beyond` is null with too few own states."""
    here = where(rows, measure="off_manifold", split=difference.reported(rows, "off_manifold")).filter(pl.col("arm") != "oracle")
    key = [*EDIT, "layer", "site", "prompt"]
    distance = here.filter(pl.col("metric") == "mahalanobis_sd").select(*key, distance="value")
    ratio = here.filter(pl.col("metric") == "norm_ratio").select(*key, ratio="value")
    both = distance.join(ratio, on=key, nulls_equal=True, maintain_order="left").with_columns(labels.runner_column())
    both = both.join(limits(rows), on=SITE, maintain_order="left").filter(pl.col("distance").is_not_nan())
    enough = pl.col("own") >= FEWEST_OWN
    return both.with_columns(beyond=pl.when(enough).then(pl.col("distance") > pl.col("limit")))


@once
def by_edit(rows: pl.DataFrame) -> pl.DataFrame:
    """A line an edit: EDIT, `writes prompts sites beyond part low high ratio far own`, `part` being the share of writes that are beyond.

    `ratio` and `far` are medians: of the norm over the own norm, and of the distance over the limit. Ends are over prompts.
    """
    return _counted(writes(rows), EDIT)


@once
def patches(rows: pl.DataFrame) -> dict[str, Any] | None:
    """The same of the other model's states, each written at its own place, in both directions together; None where there are none."""
    found = writes(rows).filter(pl.col("arm") == "identity").with_columns(pl.lit("both").alias("of"))
    counted = _counted(found, ["of"])
    return None if counted.is_empty() else counted.row(0, named=True)


def _counted(found: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    """Writes counted by some columns, with the interval of the share beyond."""
    lines: list[dict[str, Any]] = []
    for key, group in found.group_by(by, maintain_order=True):
        beyond, by_prompt = group["beyond"], group.group_by("prompt", maintain_order=True).agg(pl.col("beyond").mean())["beyond"]
        known = beyond.null_count() == 0
        low, high = intervals.mean_intervals(by_prompt.to_numpy()[:, None]) if known else (np.array([np.nan]),) * 2
        said = {
            "writes": len(group), "prompts": len(by_prompt), "sites": group.select("direction", "layer", "site").n_unique(),
            "beyond": int(beyond.sum()) if known else None, "part": float(beyond.mean()) if known else None,  # type: ignore[arg-type]
            "low": float(low[0]), "high": float(high[0]), "ratio": group["ratio"].median(),
            "far": (group["distance"] / group["limit"]).median(), "own": group["own"].min(),
        }  # fmt: skip
        lines.append(dict(zip(by, key, strict=True)) | said)
    return pl.DataFrame(lines, infer_schema_length=None).with_columns(pl.col("low", "high").fill_nan(None)) if lines else pl.DataFrame()


@once
def by_site(rows: pl.DataFrame, summary: pl.DataFrame) -> pl.DataFrame:
    """A line a site and direction of the other model's states: `share` of D that the write breaks or recovers, `beyond` of `writes`, `ratio far`.

    The largest share first.
    """
    found = writes(rows).filter(pl.col("arm") == "identity")
    key = ["direction", "layer", "site"]
    held = found.group_by(key, maintain_order=True).agg(
        pl.col("beyond").sum(), pl.col("ratio").median(), writes=pl.len(), far=(pl.col("distance") / pl.col("limit")).median()
    )
    shared = floors.d_metric(rows) == shares.BETWEEN["base"][1]
    plain = difference.plain(summary).filter(pl.col("measure") == "patching", pl.col("arm") == "identity", pl.col("split") == "report")
    of = {direction: shares.effect(direction, shared=shared) for direction in labels.CROSSED}
    effect = pl.concat([plain.filter(pl.col("direction") == direction, pl.col("metric") == metric) for direction, metric in of.items()])
    joined = held.join(effect.select(*key, "share"), on=key, how="left", maintain_order="left")
    return joined.sort(pl.col("share").abs(), descending=True, nulls_last=True, maintain_order=True)
