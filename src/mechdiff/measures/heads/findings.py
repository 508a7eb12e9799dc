"""The numbers on heads are the causal map of all of them, and the games of sets of heads at the closer layers and across the network.

v of a set, per prompt in nats: kl_own where the tuned model runs (breakage), D - kl_other where the base runs (recovery), both on the tokens of D.
All ratios of v are made in coverage.py. Orders of heads are those of the record, chosen on the select prompts; values are those of the reported ones.
"""

from collections.abc import Mapping, Sequence

import polars as pl

from mechdiff import labels
from mechdiff.report import difference, effect_shares
from mechdiff.report.difference import BOTH, BREAKAGE, RECOVERY, WORDS
from mechdiff.rows import OVERLAP, where
from mechdiff.statistics import floors, stability
from mechdiff.statistics import summary as statistics_summary
from mechdiff.statistics.memory import once


@once
def map_of_heads(rows: pl.DataFrame, summary: pl.DataFrame) -> pl.DataFrame:
    """`direction layer site unit arm share low high nats counts head`: heads, groups, all heads of a layer, MLPs, as shares of D; also by arm.

    `head` is the head's number, null for the others; `counts` is False under three noise floors.
    """
    split = difference.reported(rows, "heads")
    of = effect_shares.totals(rows, split)
    parts = []
    metrics = {direction: floors.effect_metric(rows, direction) for direction in BOTH}
    for direction, metric in metrics.items():
        values = effect_shares.written(rows, direction, metric, measure="heads", split=split)
        values = where(values, control=None, strength=None, rank=None).filter(~labels.is_several_heads())
        parts.append(effect_shares.shares(values, of, recovered=direction == RECOVERY).with_columns(direction=pl.lit(direction)))
    flags = where(summary, measure="heads", split=split, control=None)
    key = ["direction", "layer", "site", "unit", "arm"]
    quiet = flags.filter(pl.col("flag").fill_null("").str.contains("below_floor"))
    quiet = quiet.filter(pl.col("metric") == pl.col("direction").replace_strict(metrics, default="", return_dtype=pl.String))
    quiet = quiet.select(key).unique().with_columns(counts=pl.lit(False))
    found = pl.concat(parts).join(quiet, on=key, how="left", nulls_equal=True, maintain_order="left")
    return found.with_columns(pl.col("counts").fill_null(True), head=labels.head_number())


@once
def way(rows: pl.DataFrame, direction: str) -> pl.DataFrame:
    """`name additive additive_low additive_high`: the part of the way to the other model's logits that each head alone goes; shares that add."""
    here = where(rows, measure="heads", direction=direction, metric=OVERLAP, split=difference.reported(rows, "heads"), arm="contribution",
                 site="attn_proj", control=None, strength=None)  # fmt: skip
    return effect_shares.additive(rows, here.filter(labels.is_head()).with_columns(name=pl.format("L{}.{}", "layer", "unit")))


Ends = tuple[float, float | None, float | None]
"""A share and the ends of its interval."""


def of_d(rows: pl.DataFrame, summary: pl.DataFrame, direction: str, layer: int) -> Ends | None:
    """The share of D that all heads of a layer have together; None where D has no share."""
    found = where(map_of_heads(rows, summary), direction=direction, unit=labels.ALL, arm="contribution").filter(pl.col("layer") == layer)
    return None if found.is_empty() else found.select("share", "low", "high").row(0)


def of_way(rows: pl.DataFrame, direction: str, layer: int) -> Ends | None:
    """The part of the way to the other model's logits that all heads of a layer go together; None where it was not measured."""
    here = where(rows, measure="heads", direction=direction, split=difference.reported(rows, "heads"), unit=labels.ALL, arm="contribution",
                 site="attn_proj", metric=OVERLAP, control=None, strength=None).filter(pl.col("layer") == layer)  # fmt: skip
    found = effect_shares.additive(rows, here.with_columns(name="unit"))
    return None if found.is_empty() else found.select("additive", "additive_low", "additive_high").row(0)


def arms_of_all(rows: pl.DataFrame) -> pl.DataFrame:
    """`direction layer site arm strength rank share low high`: all heads of a closer layer by every arm that was run, mapped heads among them.

    `base<-base`: the base writes its own heads as a map of z makes them, a share of D that it recovers.
    """
    split = difference.reported(rows, "heads")
    of = effect_shares.totals(rows, split)
    parts = []
    for direction in (*BOTH, labels.WITHIN[0]):
        values = effect_shares.written(rows, direction, floors.effect_metric(rows, direction), measure="heads", split=split)
        values = values.filter(pl.col("unit") == labels.ALL, pl.col("control").is_null(), pl.col("arm").is_not_null())
        found = effect_shares.shares(values, of, recovered=direction != BREAKAGE)
        parts.append(found.with_columns(direction=pl.lit(direction)))
    found = pl.concat(parts)
    several = found.filter(pl.col("arm") != "contribution").select("layer").unique()
    return found.join(several, on="layer", how="semi", maintain_order="left")


def groups(found: pl.DataFrame) -> dict[tuple[str, int, int], float]:
    """Of `map_of_heads`, by (direction, layer, group): the share of D that a key-value group's heads have together."""
    named = found.filter(pl.col("arm") == "contribution").select("direction", "layer", "unit", "share").iter_rows()
    return {(d, layer, group): one for d, layer, unit, one in named if (group := labels.group_of(unit)) is not None}


def closer_layers(manifest: Mapping) -> list[int]:
    return list((manifest.get("heads") or {}).get("closer_layers") or [])


def measured_layers(rows: pl.DataFrame, manifest: Mapping) -> list[int]:
    """Those of which it is known what all heads together break: not of older runs of two vocabularies."""
    return [layer for layer in closer_layers(manifest) if not _of_layers(rows, [layer]).is_empty()]


def strongest_layer(rows: pl.DataFrame, layers: Sequence[int]) -> tuple[int, str | None]:
    """The layer whose heads break most together, and the split that says so: `select` where that was run."""
    whole = _of_layers(rows, layers)
    split = next(one for one in ("select", difference.reported(rows, "heads")) if one is None or one in whole["split"])
    means = whole.filter(pl.col("split").eq_missing(split)).group_by("layer").agg(pl.col("value").mean())
    return int(means.sort("value", "layer", descending=[True, False])["layer"][0]), split


def _of_layers(rows: pl.DataFrame, layers: Sequence[int]) -> pl.DataFrame:
    """What all heads of each layer break together, per prompt."""
    metric = floors.effect_metric(rows, BREAKAGE)
    return where(
        rows, measure="heads", direction=BREAKAGE, metric=metric, unit=labels.ALL, arm="contribution", control=None, layer=list(layers)
    )


def steadiness(rows: pl.DataFrame, layers: Sequence[int]) -> str:
    """How often two halves of the prompts that chose the strongest layer choose the same, in words."""
    _, split = strongest_layer(rows, layers)
    whole = _of_layers(rows, layers).filter(pl.col("split").eq_missing(split))
    return stability.said(statistics_summary.prompt_matrix(whole, by="layer")[2])


def attention_js(summary: pl.DataFrame) -> dict[str, float]:
    """The mean JS of the two models' attention, by the head's name."""
    found = where(summary, measure="heads", metric="attention_js_nats")
    return {f"L{layer}.{unit}": mean for layer, unit, mean in found.select("layer", "unit", "mean").iter_rows()}


def strongest(found: pl.DataFrame, n: int) -> pl.DataFrame:
    """`name layer head breakage recovery ...`: the heads with the largest effect in either direction, the largest first; none under the floor."""
    heads = found.filter(pl.col("head").is_not_null(), pl.col("arm") == "contribution")
    heads = heads.filter(pl.col("counts").any().over("layer", "head"))
    sides = []
    for direction, word in WORDS.items():
        side = heads.filter(pl.col("direction") == direction)
        sides.append(
            side.select("layer", "head", *(pl.col(a).alias(f"{word}{b}") for a, b in (("share", ""), ("low", "_low"), ("high", "_high"))))
        )
    both = sides[0].join(sides[1], on=["layer", "head"], how="full", coalesce=True)
    largest = pl.max_horizontal(pl.col("breakage").abs(), pl.col("recovery").abs())
    both = both.with_columns(name=pl.format("L{}.head {}", "layer", "head"), largest=largest)
    return both.sort("largest", "layer", "head", descending=[True, False, False]).head(n)
