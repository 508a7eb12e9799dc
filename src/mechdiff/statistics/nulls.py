"""What would a number be if there were nothing to find? Draws of a null distribution become p and q.

Draws are rows whose control ends in "#12". `permuted#i`: states of the two models paired with the wrong prompts,
or a map fitted anew on wrong pairs and held against the right ones. Which way is nearer, the metric declares (`Metric.nearer`).
"""

import numpy as np
import polars as pl
from scipy.stats import false_discovery_control

from mechdiff import labels
from mechdiff.rows import KEY

GROUP = [column for column in KEY if column != "prompt"]
"""What names one line of the summary."""
SAME = 1e-6
LEVEL = 0.05


def permutation_p(rows: pl.DataFrame, facts: pl.DataFrame) -> pl.DataFrame:
    """(1 + null draws at least as close as the real pairing) / (1 + draws), one row per group that has draws; null where it is `untestable`.

    `untestable`: not even the closest pairing of all would have p <= LEVEL, since so many draws are it. Three prompts have six pairings, four have
    six that CKA tells apart, and clusters move whole: their p is 1/6 at the least and says nothing.
    """
    key = [name for name in GROUP if name != "control"]
    drawn = facts.filter(pl.col("nearer").is_not_null()).select("measure", "metric", "nearer")
    closer = rows.join(drawn, on=["measure", "metric"], maintain_order="left").filter(pl.col("value").is_not_nan())
    real = closer.filter(pl.col("control").is_null()).select(*key, real="value")
    draws = closer.filter(labels.is_draw("permuted")).join(real, on=key, nulls_equal=True)
    sign = pl.when(pl.col("nearer") == "lower").then(-1).otherwise(1)
    # A refit that is the same map gives the same number, computed in another way: rounding must not make it smaller.
    tie = SAME * pl.max_horizontal(pl.lit(1.0), pl.col("real").abs())
    near, here = sign * pl.col("value"), (sign * pl.col("real")).first()
    closest = pl.max_horizontal(near.max(), here) - tie.first()
    at_best = (near >= closest).sum() + (here >= closest).cast(pl.UInt32)
    found = draws.group_by(key).agg(
        p=(1 + (near >= here - tie.first()).sum()) / (1 + pl.len()), untestable=at_best / (1 + pl.len()) > LEVEL * (1 + 1e-9)
    )
    return found.with_columns(p=pl.when(~pl.col("untestable")).then("p"), control=pl.lit(None, pl.String))


def with_q(table: pl.DataFrame) -> pl.DataFrame:
    """The table with `q` beside its `p`: Benjamini-Hochberg within measure, metric, direction, split and site."""
    p = table["p"].to_numpy()
    q = np.full(len(table), np.nan)
    tested = table.with_row_index("place").filter(pl.col("p").is_not_null())
    for _, family in tested.group_by("measure", "metric", "direction", "split", "site"):
        places = family["place"].to_numpy()
        q[places] = false_discovery_control(p[places])
    return table.with_columns(q=pl.Series(q).fill_nan(None))
