"""The numbers on similarity say how alike the two models' activations are."""

from dataclasses import dataclass

import polars as pl

from mechdiff import labels
from mechdiff.architectures.sites import KINDS
from mechdiff.report.difference import SAME_SHAPE, plain, reported, site_name
from mechdiff.rows import where
from mechdiff.statistics import intervals
from mechdiff.statistics.clusters import delete_one, whole_metric
from mechdiff.statistics.memory import once


@dataclass(frozen=True, kw_only=True)
class LeastSimilar:
    """The site whose states have the lowest CKA, by the prompts that chose it, and how it is on the reported ones."""

    name: str
    cka: float
    low: float | None
    high: float | None
    chosen_on: str | None
    """None: on the reported prompts themselves."""
    sites: int
    same: int
    """Sites whose CKA is 1.000 to three digits."""


@once
def similarity_by_site(rows: pl.DataFrame, summary: pl.DataFrame, *, split: str | None = None) -> pl.DataFrame:
    """`layer site cka low high p q flag`, in the order of computation; empty where similarity was not measured."""
    split = split or reported(rows, "similarity")
    found = where(plain(summary), measure="similarity", metric="cka", split=split)
    order = pl.col("site").replace_strict({kind: place for place, kind in enumerate(KINDS)}, default=len(KINDS), return_dtype=pl.Int64)
    found = found.filter(pl.col("layer").is_not_null()).sort("layer", order)
    return found.select("layer", "site", "n", "p", "q", "flag", cka="mean", low="ci_low", high="ci_high").with_columns(name=site_name())


def least_similar(rows: pl.DataFrame, summary: pl.DataFrame) -> LeastSimilar | None:
    """Chosen on `select` where CKA was measured there, because the lowest of many is low by chance too; None without CKA."""
    table = similarity_by_site(rows, summary).filter(pl.col("cka").is_not_nan())
    if table.is_empty():
        return None
    chooser = similarity_by_site(rows, summary, split="select").filter(
        pl.col("cka").is_not_nan(), pl.col("name").is_in(table["name"].implode())
    )
    own = reported(rows, "similarity") == "select" or chooser.is_empty()
    name = (table if own else chooser).sort("cka", maintain_order=True)["name"][0]
    lowest = table.filter(pl.col("name") == name).row(0, named=True)
    return LeastSimilar(name=name, cka=lowest["cka"], low=lowest["low"], high=lowest["high"], chosen_on=None if own else "select",
                        sites=len(table), same=len(table.filter(pl.col("cka") >= SAME_SHAPE)))  # fmt: skip


@once
def null_band(rows: pl.DataFrame) -> pl.DataFrame:
    """`layer low high draws`: the middle 95 % of CKA with the row pairing permuted, the widest over the sites of a layer."""
    split = reported(rows, "similarity")
    draws = where(rows, metric="cka", split=split, unit=None).filter(labels.is_draw("permuted"), pl.col("value").is_not_nan())
    each = draws.group_by("layer", "site").agg(
        low=pl.col("value").quantile(0.025, "linear"), high=pl.col("value").quantile(0.975, "linear"), draws=pl.len()
    )
    return each.group_by("layer").agg(pl.col("low").min(), pl.col("high").max(), pl.col("draws").min()).sort("layer")


def with_jackknife(summary: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """The summary with the jackknife intervals of CKA, without three dimensions and after the norm too; and n of the whole-set values."""
    place = ["split", "layer", "site", "unit", "control"]
    without = where(rows, measure="similarity").filter(delete_one()).sort("prompt").with_columns(metric=whole_metric())
    without = without.group_by("measure", *place, "metric").agg(
        n_states=pl.len(), spread=pl.col("value").std()
    )  # an undefined one: no interval
    counts = without.group_by("measure", *place).agg(pl.col("n_states").max())
    key = ["measure", *place, "metric"]
    table = summary.join(without.drop("n_states"), on=key, how="left", nulls_equal=True, maintain_order="left")
    table = table.join(counts, on=["measure", *place], how="left", nulls_equal=True, maintain_order="left")
    table = table.with_columns(n=pl.when(pl.col("measure") == "similarity").then(pl.coalesce("n", "n_states")).otherwise("n"))
    cka = (pl.col("spread").is_not_null() & pl.col("mean").is_not_nan()).fill_null(False)
    filled = table.select(pl.col("mean", "spread", "n_states").cast(pl.Float64).fill_null(float("nan")))
    low, high = intervals.jackknife_below_1(*(filled[name].to_numpy() for name in ("mean", "spread", "n_states")))
    return table.with_columns(
        ci_low=pl.when(cka).then(pl.Series(low).fill_nan(None)).otherwise("ci_low"),
        ci_high=pl.when(cka).then(pl.Series(high).fill_nan(None)).otherwise("ci_high"),
    )
