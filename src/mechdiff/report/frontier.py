"""What does steering gain, and what does it cost? Effects on the study's prompts held against side effects on neutral ones.

Both are of the same edit, at all positions. **Effect** is the share of D: 1 - kl_other/D where the base is steered (1: it behaves like the tuned
model), kl_own/D where the tuned model is (how far it is moved). An edit is *on the frontier* of its direction where no other edit there has as large
an effect at as small a cost, one of both better. The *smallest k* is the first dimension at which an effect of a fifth of D comes within the user's
limits; null where none does. No torch here.
"""

import polars as pl

LEAST_SHARE = 0.2
"""Of D: less is not called an effect."""

EDIT = ["direction", "layer", "site", "unit", "arm", "rank", "strength", "control"]
COSTS = {"side_kl_nats": "side_kl_nats", "side_top1_same": "top1_same", "side_log_perplexity_ratio_nats": "log_perplexity_ratio_nats"}


def frontier(summary: pl.DataFrame) -> pl.DataFrame:
    """One row an edit: its key columns, `effect` (share of D), `side_kl_nats`, `top1_same`, `perplexity_ratio`, `on_frontier`.

    Controls have rows too, and are never on the frontier.
    """
    steering = summary.filter(pl.col("measure") == "steering", pl.col("unit").str.contains("all_pos"))
    scored_by = pl.when(pl.col("direction").str.starts_with("base")).then(pl.lit("kl_other_nats")).otherwise(pl.lit("kl_own_nats"))
    table = steering.filter(pl.col("split") == "report", pl.col("metric") == scored_by).select(*EDIT, effect="share")
    for metric, name in COSTS.items():
        cost = steering.filter(pl.col("metric") == metric).select(*EDIT, pl.col("mean").alias(name))
        table = table.join(cost, on=EDIT, how="left", nulls_equal=True)
    table = table.with_columns(perplexity_ratio=pl.col("log_perplexity_ratio_nats").exp()).drop("log_perplexity_ratio_nats")
    return table.with_columns(on_frontier=pl.Series(_undominated(table), dtype=pl.Boolean))


def _undominated(table: pl.DataFrame) -> list[bool]:
    points = list(table.select("direction", "effect", "side_kl_nats", "control").iter_rows())
    real = [(way, gain, cost) for way, gain, cost, control in points if control is None and gain is not None and cost is not None]

    def beaten(way: str, gain: float, cost: float) -> bool:
        return any(w == way and g >= gain and c <= cost and (g, c) != (gain, cost) for w, g, c in real)

    return [
        control is None and gain is not None and cost is not None and not beaten(way, gain, cost) for way, gain, cost, control in points
    ]


def smallest(table: pl.DataFrame, *, max_side_kl_nats: float, max_perplexity_ratio: float, least: float = LEAST_SHARE) -> pl.DataFrame:
    """For each direction, layer, site, unit and arm: `rank`, the smallest that is of use within the limits, or null, and `largest_within`, the
    largest effect within them."""
    place = ["direction", "layer", "site", "unit", "arm"]
    real = table.filter(pl.col("control").is_null())
    within = (pl.col("side_kl_nats") <= max_side_kl_nats) & (pl.col("perplexity_ratio") <= max_perplexity_ratio)
    return real.group_by(place, maintain_order=True).agg(
        rank=pl.col("rank").filter(within & (pl.col("effect") >= least)).min(),
        largest_within=pl.col("effect").filter(within).max(),
    )
