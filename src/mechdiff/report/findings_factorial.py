"""What the page says about the factorial: blocks up to L from one model, those above from the other, in all four pairings.

With KL(p_tuned || run) as the cost of a run: what turning the upstream half from base to tuned takes off it (`upstream_effect`, the
mean over both downstream halves), the same for the downstream half, and what both together take off beyond the sum (`interaction`).
The two effects sum to D.
"""

import polars as pl

from mechdiff.report import findings
from mechdiff.report.memory import once

EFFECTS = {"upstream_effect": "upstream", "downstream_effect": "downstream", "interaction": "interaction"}
UNITS = {None: "the decision position", "all_pos": "all positions"}


@once
def effects(rows: pl.DataFrame, summary: pl.DataFrame, unit: str | None, metric: str = "nats") -> pl.DataFrame:
    """`layer effect mean low high p q n counts`: the three effects at each split point, on the reported split, in the order of `EFFECTS`."""
    names = {f"{name}_{metric}": word for name, word in EFFECTS.items()}
    found = summary.filter(
        pl.col("measure") == "factorial",
        pl.col("metric").is_in(list(names)),
        pl.col("split").eq_missing(findings.reported(rows, "factorial")),
        pl.col("unit").eq_missing(unit),
        pl.col("control").is_null() & pl.col("arm").is_null() & pl.col("layer").is_not_null(),
        pl.col("mean").is_finite(),
    )
    found = found.with_columns(effect=pl.col("metric").replace_strict(names, return_dtype=pl.Enum(list(EFFECTS.values()))))
    found = found.sort("effect", "layer").with_columns(pl.col("effect").cast(pl.String))
    return found.select(
        "layer", "effect", "mean", pl.coalesce("ci_low", "mean").alias("low"), pl.coalesce("ci_high", "mean").alias("high"), "p", "q", "n",
        counts=~pl.col("flag").fill_null("").str.contains("below_floor"),
    )  # fmt: skip


@once
def units(rows: pl.DataFrame, summary: pl.DataFrame) -> list[str | None]:
    """The positions that were exchanged: `None` for the decision position alone, then `all_pos`."""
    return [unit for unit in UNITS if not effects(rows, summary, unit).is_empty()]


def swap_band(rows: pl.DataFrame, unit: str | None) -> pl.DataFrame:
    """`layer of low high draws`: the middle 95 % of the label swaps, `of` the interaction and, the wider one, of the two halves, in nats."""
    draws = rows.filter(
        pl.col("measure") == "factorial",
        pl.col("control").str.starts_with("label_swap#").fill_null(False),
        pl.col("metric").is_in([f"{name}_nats" for name in EFFECTS]),
        pl.col("unit").eq_missing(unit),
        pl.col("split").eq_missing(findings.reported(rows, "factorial")),
        pl.col("value").is_finite(),
    )
    of = pl.when(pl.col("metric") == "interaction_nats").then(pl.lit("interaction")).otherwise(pl.lit("halves"))
    each = draws.group_by("layer", "metric", of=of).agg(
        low=pl.col("value").quantile(0.025, "linear"), high=pl.col("value").quantile(0.975, "linear"), draws=pl.len()
    )
    return each.group_by("layer", "of").agg(pl.col("low").min(), pl.col("high").max(), pl.col("draws").min()).sort("of", "layer")


def crossing(table: pl.DataFrame) -> int | None:
    """The first split point from which on the upstream half does more than the downstream half."""
    wide = table.filter(pl.col("effect") != "interaction").pivot(on="effect", index="layer", values="mean").sort("layer")
    if not {"upstream", "downstream"} <= set(wide.columns):
        return None
    above = wide.filter(pl.col("upstream") > pl.col("downstream"))
    below = wide.filter(pl.col("upstream") <= pl.col("downstream"))
    if above.is_empty() or below.is_empty():
        return None
    last = below["layer"].to_list()[-1]
    return next((layer for layer in above["layer"].to_list() if layer > last), None)


def strongest_interaction(table: pl.DataFrame) -> dict | None:
    """The split point with the largest interaction by size, as one row of `effects`; None where none is above three noise floors."""
    only = table.filter(pl.col("effect") == "interaction", pl.col("counts")).sort(
        pl.col("mean").abs(), descending=True, maintain_order=True
    )
    return None if only.is_empty() else only.row(0, named=True)
