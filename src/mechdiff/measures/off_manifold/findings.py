"""The numbers on writes off the manifold say how many written states are further out than the running model's own ones. Data frames in and out."""

import math
from typing import Any

import numpy as np
import polars as pl

from mechdiff import labels, shares
from mechdiff.report import difference
from mechdiff.rows import where
from mechdiff.shares import ANSWER
from mechdiff.statistics import floors, intervals
from mechdiff.statistics.memory import once

LEVEL = 0.99
"""Of own states: a write is beyond where it is further out than so many of them, if there are enough to know."""
FEWEST_OWN = 19
"""Prompts (clusters of them) with own states under which nothing is called beyond: with so many a like state is further out than all in 1 of 20."""
SITE = ["runner", "layer", "site"]
EDIT = ["direction", "arm", "of", "rank", "strength"]
"""`of`: how many of a block's heads were swapped, "one" or "all"; null for other writes."""
METRICS = {None: ("mahalanobis_sd", "norm_ratio"), ANSWER: ("mahalanobis_answer_sd", "norm_ratio_answer")}
"""Distance and norm ratio: at the decision position, and as means along an answer."""


@once
def limits(rows: pl.DataFrame, manifest: dict, what: str | None = None) -> pl.DataFrame:
    """`runner layer site own own_clusters limit`: how many own states there are, of how many clusters, and the distance that LEVEL of them keep.

    Of fewer than 99 clusters: all of them. `what`: one of METRICS; of answers, own ones count once each.
    """
    own = where(rows, measure="off_manifold", metric=METRICS[what][0], arm="oracle").filter(pl.col("value").is_not_nan())
    kept = (
        _in_clusters(own, manifest)
        .with_columns(labels.runner_column())
        .group_by(SITE, maintain_order=True)
        .agg(pl.col("value").sort(), own=pl.len(), own_clusters=pl.col("cluster").n_unique())
    )
    limit = pl.struct("value", "own_clusters").map_elements(
        lambda one: one["value"][_kept(len(one["value"]), one["own_clusters"]) - 1], return_dtype=pl.Float64
    )
    return kept.select(*SITE, "own", "own_clusters", limit=limit)


def _kept(n: int, clusters: int) -> int:
    """Of n own distances, how many a like state is within, with the probability LEVEL or, of few clusters, clusters / (clusters + 1)."""
    return n if by_chance(clusters) > 1 - LEVEL else min(n, math.ceil(LEVEL * (n + 1) - 1e-9))


def by_chance(clusters: int) -> float:
    """The share of states like own ones of so many clusters that are called beyond, at most."""
    return max(1 - LEVEL, 1 / (clusters + 1))


def _in_clusters(rows: pl.DataFrame, manifest: dict) -> pl.DataFrame:
    """Rows of prompts, each with its `cluster`: the name of those that it shares one with, of any split as far as the run says so, or its own."""
    spanning = (manifest.get("off_manifold") or {}).get("clusters")
    if spanning:
        numbered = [(split, prompt, f"cluster {number}") for split, of in spanning.items() for prompt, number in of.items()]
    shared = (
        numbered
        if spanning
        else [(split, prompt, unit) for split, units in manifest.get("units", {}).items() for prompt, unit in units.items()]
    )
    named = pl.DataFrame(shared, schema=dict.fromkeys(["split", "prompt", "cluster"], pl.String), orient="row")
    joined = rows.join(named, on=["split", "prompt"], how="left", maintain_order="left")
    return joined.with_columns(pl.coalesce("cluster", pl.format("{} {}", "split", "prompt")))


@once
def writes(rows: pl.DataFrame, manifest: dict, what: str | None = None) -> pl.DataFrame:
    """A line a write, site and prompt: EDIT, `layer site unit prompt cluster distance ratio own own_clusters limit beyond`; `what`: one of METRICS.

    `rows` are of prompts, not of their clusters, for a mean distance is no state's. `beyond` is null with too few own states; `rank` is of
    steering alone, since a map's is measured at each layer.
    """
    here = where(rows, measure="off_manifold", split=difference.reported(rows, "off_manifold")).filter(pl.col("arm") != "oracle")
    here = here.with_columns(of=pl.when(labels.is_head()).then(pl.lit("one")).when(pl.col("unit") == labels.ALL).then(pl.lit("all")))
    key = [*EDIT, "layer", "site", "unit", "prompt"]
    distance, ratio = (here.filter(pl.col("metric") == metric).select(*key, value) for metric, value in (
        (METRICS[what][0], pl.col("value").alias("distance")), (METRICS[what][1], pl.col("value").alias("ratio"))
    ))  # fmt: skip
    both = distance.join(ratio, on=key, nulls_equal=True, maintain_order="left").with_columns(labels.runner_column())
    both = both.join(limits(rows, manifest, what), on=SITE, maintain_order="left").filter(pl.col("distance").is_not_nan())
    both = _in_clusters(both.with_columns(split=pl.lit(here["split"].first(), pl.String)), manifest).drop("split")
    enough = pl.col("own_clusters") >= FEWEST_OWN
    return both.with_columns(
        beyond=pl.when(enough).then(pl.col("distance") > pl.col("limit")), rank=pl.when(~pl.col("arm").is_in(labels.MAPS)).then("rank")
    )


@once
def by_edit(rows: pl.DataFrame, manifest: dict, what: str | None = None) -> pl.DataFrame:
    """A line an edit: EDIT, `writes prompts clusters sites beyond part low high ratio far own own_clusters`, `part` of the writes being beyond.

    `ratio` and `far` are medians: of the norm over the own norm, and of the distance over the limit. Ends are over clusters of prompts.
    """
    return _counted(writes(rows, manifest, what), EDIT)


@once
def by_window(rows: pl.DataFrame, manifest: dict) -> pl.DataFrame:
    """The same a direction and `width` of windows of blocks into which the other model's states were written: beyond where any of them is.

    `far` is of the furthest block, `ratio` of the one whose norm is furthest from the own norm.
    """
    written = where(rows, measure="patching", arm="identity").filter(pl.col("unit") == labels.window_words())  # at the decision position
    written = written.select("direction", "site", "unit", first="layer").unique(maintain_order=True)
    written = written.with_columns(width=pl.col("unit").map_elements(lambda one: labels.window_of(one).width, return_dtype=pl.Int64))
    blocks = written.with_columns(layer=pl.int_ranges("first", pl.col("first") + pl.col("width"))).explode("layer")
    single = writes(rows, manifest).filter(pl.col("arm") == "identity", pl.col("unit").is_null())
    joined = blocks.join(single.drop("unit"), on=["direction", "site", "layer"], how="inner", maintain_order="left")
    by_prompt = joined.group_by("direction", "width", "site", "first", "prompt", "cluster", maintain_order=True)
    together = by_prompt.agg(
        pl.col("beyond").any(ignore_nulls=False), (pl.col("distance") / pl.col("limit")).max().alias("distance"),
        pl.col("ratio").sort_by(pl.col("ratio").log().abs()).last(), pl.col("own", "own_clusters").min(), n=pl.len(),
    )  # fmt: skip
    whole = together.filter(pl.col("n") == pl.col("width")).rename({"first": "layer"}).with_columns(limit=pl.lit(1.0))
    return _counted(whole, ["direction", "width"])


@once
def patches(rows: pl.DataFrame, manifest: dict) -> dict[str, Any] | None:
    """The same of the other model's states, each written at its own place, in both directions together; None where there are none."""
    found = writes(rows, manifest).filter(pl.col("arm") == "identity").with_columns(pl.lit("both").alias("of"))
    counted = _counted(found, ["of"])
    return None if counted.is_empty() else counted.row(0, named=True)


def _counted(found: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    """Writes counted by some columns, with the interval of the share beyond."""
    lines: list[dict[str, Any]] = []
    for key, group in found.group_by(by, maintain_order=True):
        beyond, known = group["beyond"], group["beyond"].null_count() == 0
        low, high = _ends(group) if known else (np.nan, np.nan)
        said = {
            "writes": len(group), "prompts": group["prompt"].n_unique(), "clusters": group["cluster"].n_unique(),
            "sites": group.select("direction", "layer", "site").n_unique(),
            "beyond": int(beyond.sum()) if known else None, "part": float(beyond.mean()) if known else None,  # type: ignore[arg-type]
            "low": low, "high": high, "ratio": group["ratio"].median(), "far": (group["distance"] / group["limit"]).median(),
            "own": group["own"].min(), "own_clusters": group["own_clusters"].min(),
        }  # fmt: skip
        lines.append(dict(zip(by, key, strict=True)) | said)
    return pl.DataFrame(lines, infer_schema_length=None).with_columns(pl.col("low", "high").fill_nan(None)) if lines else pl.DataFrame()


def _ends(group: pl.DataFrame) -> tuple[float, float]:
    """Of the share of these writes that is beyond, over clusters; where no cluster differs from another (all of them, or none) Wilson's."""
    counts = group.group_by("cluster", maintain_order=True).agg(pl.col("beyond").sum(), of=pl.len())
    beyond, of = (counts[name].to_numpy().astype(float) for name in ("beyond", "of"))
    if len(counts) < intervals.FEWEST:
        return np.nan, np.nan
    if np.ptp(beyond / of) == 0:
        low, high = intervals.wilson(beyond[:1] / of[:1], len(counts))
    else:
        _, low, high = intervals.share_intervals(beyond[:, None], of)
    return float(low[0]), float(high[0])


@once
def by_site(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> pl.DataFrame:
    """A line a site and direction of the other model's states: `share` of D that the write breaks or recovers, `beyond` of `writes`, `ratio far`.

    The largest share first.
    """
    found = writes(rows, manifest).filter(pl.col("arm") == "identity")
    key = ["direction", "layer", "site"]
    held = found.group_by(key, maintain_order=True).agg(
        pl.col("beyond").sum(), pl.col("ratio").median(), writes=pl.len(), far=(pl.col("distance") / pl.col("limit")).median()
    )
    shared = floors.d_metric(rows) == shares.BETWEEN["base"][1]
    plain = where(difference.plain(summary), measure="patching").filter(pl.col("arm") == "identity", pl.col("split") == "report")
    of = {direction: shares.effect(direction, shared=shared) for direction in labels.CROSSED}
    effect = pl.concat([plain.filter(pl.col("direction") == direction, pl.col("metric") == metric) for direction, metric in of.items()])
    joined = held.join(effect.select(*key, "share"), on=key, how="left", maintain_order="left")
    return joined.sort(pl.col("share").abs(), descending=True, nulls_last=True, maintain_order=True)
