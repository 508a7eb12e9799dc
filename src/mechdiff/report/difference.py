"""Every section refers to the divergence of the two models in one way: D, whether it can be told from rounding, and on which prompts."""

import math
from dataclasses import dataclass

import polars as pl

from mechdiff import labels, shares
from mechdiff.rows import where
from mechdiff.statistics import floors
from mechdiff.statistics.memory import once

STREAM = ("resid_pre", "resid_mid", "resid_post")
"""Sites of the residual stream: a write there carries over everything that happened upstream."""

SAME_SHAPE = 0.9995
"""CKA from which on it is 1.000 to three digits."""
BREAKAGE, RECOVERY = BOTH = labels.CROSSED
WORDS = {BREAKAGE: "breakage", RECOVERY: "recovery"}
"""Columns and figures of the two directions; SAID: what they are called."""
SAID = {BREAKAGE: "KL increase", RECOVERY: "recovery"}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How differently the two models continue the prompts of one split."""

    split: str
    n: int
    mean: float
    """D in nats, over prompts."""
    low: float
    high: float
    """NaN where there are too few prompts for an interval."""
    median: float
    log_mean: float | None
    """Geometric mean in nats; None where a prompt has D = 0."""
    floor: float | None
    flags: tuple[str, ...]
    other_token: int | None
    """On how many prompts the two models' first choices differ."""
    other_share: float | None = None
    """The share of prompts on which they do; a cluster of prompts counts with the share of its own."""
    mass_outside: float | None = None
    """Of two vocabularies: mean mass that the tuned model gives to tokens that the base lacks. D is then of the tokens that both have."""
    mass_outside_base: float | None = None
    """The same of the base, where it has tokens of its own."""
    js: float | None = None
    """JS of the two laws over all tokens, in nats."""
    byte: float | None = None
    """KL(tuned || base) of the next byte, in nats."""
    coverage: float | None = None
    """How often such an interval held the truth in simulations."""

    @property
    def counts(self) -> bool:
        """Whether the models differ at all: in D, or in tokens that one of them lacks."""
        return "no_effect" not in self.flags

    @property
    def divides(self) -> bool:
        """Whether there is a D to take shares of: on the tokens that both models have, where the vocabularies differ."""
        return self.counts and "outside_only" not in self.flags

    @property
    def outside(self) -> float:
        """How much of the difference is in tokens that one model lacks, in nats: -log(1 - mass outside), of the model that has more there."""
        return -math.log1p(-max(self.mass_outside or 0.0, self.mass_outside_base or 0.0))


@once
def splits(rows: pl.DataFrame, measure: str) -> list[str]:
    """Splits on which a measure was taken, the one to report first."""
    order = {"report": 0, "select": 1, "fit": 2}
    found = where(rows, measure=measure)["split"].drop_nulls().unique().to_list()
    return sorted(found, key=lambda split: order.get(split, 3))


def reported(rows: pl.DataFrame, measure: str) -> str | None:
    """The split whose numbers the page gives for a measure; None where it was not taken."""
    return next(iter(splits(rows, measure)), None)


@once
def d_per_prompt(rows: pl.DataFrame) -> pl.DataFrame:
    """`prompt d same`, ascending: D in nats and whether both models choose the same token (null if not measured)."""
    measured = where(rows, measure=shares.OF_THE_PAIR, control=None, unit=None).filter(pl.col("prompt").is_not_null())
    measured = measured.filter(pl.col("split").eq_missing(reported(rows, shares.OF_THE_PAIR)))
    d = measured.filter(pl.col("metric") == floors.d_metric(rows)).select("prompt", d="value")
    same = measured.filter(pl.col("metric") == "top1_same").select("prompt", same=pl.col("value") > 0.5)
    return d.join(same, on="prompt", how="left").sort("d", "prompt")


@once
def difference(rows: pl.DataFrame, summary: pl.DataFrame) -> Difference | None:
    """D and its relatives; None where divergence was not measured."""
    found = where(plain(summary), measure=shares.OF_THE_PAIR).filter(pl.col("split").eq_missing(reported(rows, shares.OF_THE_PAIR)))
    d = found.filter(pl.col("metric") == floors.d_metric(rows))
    if d.is_empty():
        return None
    one = d.row(0, named=True)
    same = found.filter(pl.col("metric") == "top1_same")
    means = dict(found.select("metric", "mean").iter_rows())
    return Difference(
        split=one["split"],
        n=one["n"] or 0,
        mean=one["mean"],
        low=float("nan") if one["ci_low"] is None else one["ci_low"],
        high=float("nan") if one["ci_high"] is None else one["ci_high"],
        coverage=one.get("coverage"),
        median=one["median"],
        log_mean=one["log_mean"],
        floor=one["floor"],
        flags=tuple((one["flag"] or "").split(";")) if one["flag"] else (),
        other_token=None if same.is_empty() else round((1 - same["mean"][0]) * same["n"][0]),
        other_share=None if same.is_empty() else 1 - same["mean"][0],
        mass_outside=means.get("mass_outside"),
        mass_outside_base=means.get("mass_outside_base"),
        js=means.get("js_nats"),
        byte=means.get("kl_byte_nats"),
    )


def site_name() -> pl.Expr:
    return pl.format("L{}.{}", "layer", "site")


@once
def plain(summary: pl.DataFrame, unit: str | None = None) -> pl.DataFrame:
    """The real thing: no control, no map."""
    return summary.filter(pl.col("control").is_null() & pl.col("unit").eq_missing(unit))


@once
def totals(rows: pl.DataFrame, split: str | None, what: str | None = None) -> pl.DataFrame:
    """`prompt total of`: D of each prompt, and the metric that it is; `what`: over its answer, where it is known (one of `shares.OVER`)."""
    metric = floors.d_metric(rows, what)
    chosen = where(rows, measure=shares.OF_THE_PAIR, split=split, control=None, unit=None).filter(pl.col("metric") == metric)
    known = chosen.filter(pl.col("prompt").is_not_null(), pl.col("value").is_not_nan())
    return known.select("prompt", total="value", of="metric").sort("prompt")
