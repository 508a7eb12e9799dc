"""Noise floors say how far an unedited run strays by rounding, and which metric is the divergence of the pair itself."""

import polars as pl

from mechdiff import labels, shares
from mechdiff.rows import OVERLAP, where
from mechdiff.statistics.memory import once

FLOORS = 3
"""A number counts above three noise floors."""


TOTALS = ("total", "total_reverse")
"""What effects are held against: D, and the divergence the other way round (see `between_models`)."""

OVER = (None, *shares.OVER)
"""What a metric is of: the decision position, an answer, the position where the two models part."""


def totals_of(what: str | None) -> tuple[str, str]:
    """TOTALS of one of OVER, as names of columns."""
    return (TOTALS[0], TOTALS[1]) if what is None else (f"{TOTALS[0]}_{what}", f"{TOTALS[1]}_{what}")


@once
def on_shared(rows: pl.DataFrame) -> bool:
    """Whether the vocabularies differ, so that D and all shares of it are on the tokens that both models have."""
    return shares.on_shared(set(rows["metric"].unique()))


def between_models(rows: pl.DataFrame, what: str | None = None) -> dict[str, str]:
    """The metric that `kl_other_nats` of an unedited run has, by the model that runs; the base's is D, as shares of an effect mean it.

    `what`: one of OVER, here and below.
    """
    return {side: shares.total(side, shared=on_shared(rows), what=what) for side in shares.BETWEEN}


def d_metric(rows: pl.DataFrame, what: str | None = None) -> str:
    """The metric that is D."""
    return between_models(rows, what)["base"]


def effect_metric(rows: pl.DataFrame, direction: str, what: str | None = None) -> str:
    """The metric whose share of D says what a write in this direction does; it is on the tokens of D."""
    return shares.effect(direction, shared=on_shared(rows), what=what)


@once
def noise_floors(rows: pl.DataFrame) -> pl.DataFrame:
    """How far an unedited replayed row strays: one row per running model, split and metric (`runner split metric floor`).

    For distances from the running model's own law the largest value over prompts. `kl_other_nats` of an unedited row is not 0 but the
    divergence of the two models (D where the base runs, KL(p_base || p_tuned) where the tuned model runs), and rounding moves
    it to first order: its floor is the largest distance from there.
    """
    clean = of_the_pair(rows).select("split", "prompt", pl.col("metric").alias("between"), clean="value")
    unedited = rows.filter(pl.col("control") == "no_op").with_columns(labels.runner_column())
    between = {
        side: {_named(shares.OTHER, what): name for what in OVER for name in [between_models(rows, what)[side]]} for side in shares.BETWEEN
    }
    of_side = [pl.when(pl.col("runner") == side).then(pl.col("metric").replace_strict(names, default=None, return_dtype=pl.String))
               for side, names in between.items()]  # fmt: skip
    unedited = unedited.with_columns(between=pl.coalesce(of_side)).join(clean, on=["split", "prompt", "between"], how="left")
    own = pl.col("metric").is_in([*shares.OWN, *shares.OWN_JS, *(_named(shares.OWN[0], what) for what in OVER)])
    other, size = (pl.col("metric").is_in([_named(name, what) for what in OVER]) for name in (shares.OTHER, OVERLAP))
    strays = pl.when(own).then("value").when(size).then(pl.col("value").abs())
    strays = strays.when(other).then((pl.col("value") - pl.col("clean")).abs())
    found = unedited.with_columns(floor=strays).filter(pl.col("floor").is_finite())
    return found.group_by("runner", "split", "metric").agg(pl.col("floor").max()).sort("runner", "split", "metric")


def _named(metric: str, what: str | None) -> str:
    return shares.over(metric, what) if what else metric


def differs_outside(table: pl.DataFrame) -> list[str]:
    """Splits on which two models with two vocabularies differ, whatever D is on the tokens that both have: an effect is there if any of these is.

    - JS of the two laws over all tokens, above its floor;
    - -log(1 - m), m the mean mass that one model gives to tokens that the other lacks. It is what KL(p_base || p_tuned) has above its part on
      shared tokens (and KL(p_tuned || p_base), of the base's own tokens), so it is held against the floor of a KL over all tokens.
    """
    plain = where(table, measure=shares.OF_THE_PAIR, control=None, unit=None)
    if not shares.on_shared(set(plain["metric"])):
        return []
    outside = pl.col("metric").str.starts_with("mass_outside")
    size = pl.when(outside).then(-(1 - pl.col("mean")).log()).when(pl.col("metric") == "js_nats").then("mean")
    kl_floor = pl.col("floor").filter(pl.col("metric") == "kl_base_tuned_nats").first().over("split")
    floor = pl.when(outside).then(kl_floor).otherwise("floor").fill_null(0)
    return plain.filter(size > FLOORS * floor)["split"].drop_nulls().unique().sort().to_list()


def of_the_pair(rows: pl.DataFrame) -> pl.DataFrame:
    """Divergence of the pair itself at the study's position, per prompt."""
    plain = [pl.col(name).is_null() for name in ("control", "unit")]
    return where(rows, measure=shares.OF_THE_PAIR).filter(pl.col("prompt").is_not_null(), *plain)
