"""What the page says about maps at the layers that were looked at more closely: strengths, misplaced maps, over-fitting.

With s the strength of a write, KL(s) = c s^2 near 0 for any map, right or wrong: c is read off the smallest strength, and KL(1) / c says how
far the square holds. A map that knows its layer comes closer there than the map of any other layer (the diagonal of a square wins). A drop that
is larger on the prompts of the fit than on others is over-fitting.
"""

import numpy as np
import polars as pl
from scipy.stats import spearmanr

from mechdiff.report import findings, intervals
from mechdiff.report.findings_transport import CLOSENESS, arm_place, cells, kind_place, plain, shares, totals, written


def quadratic(rows: pl.DataFrame) -> pl.DataFrame:
    """`name layer site arm curvature at_one ratio`: KL(s) = c s^2 through the smallest strength above 0, KL(1), and KL(1) / c."""
    found = rows_of_strength(rows, CLOSENESS, "kl_own_nats").filter(pl.col("s") > 0)
    small = found.filter(pl.col("s") == pl.col("s").min().over("name", "arm"), pl.col("s") < 1)
    small = small.select("name", "arm", curvature=pl.col("value") / pl.col("s") ** 2)
    one = found.filter(pl.col("s") == 1).select("name", "layer", "site", "arm", at_one="value")
    return one.join(small, on=["name", "arm"], maintain_order="left").with_columns(ratio=pl.col("at_one") / pl.col("curvature"))


def rows_of_strength(rows: pl.DataFrame, direction: str, metric: str, split: str | None = None) -> pl.DataFrame:
    """`name layer site arm s value low high`: means over prompts by strength, 1 for the full map, of arms that have such a curve.

    `value` is in nats for closeness, and a share of D for transport proper.
    """
    split = split or findings.reported(rows, "transport")
    values = written(rows, direction, metric, split=split).filter(pl.col("control").is_null() & pl.col("unit").is_null())
    curves = values.filter(pl.col("strength").is_not_null()).select("layer", "site", "arm").unique()
    values = values.join(curves, on=["layer", "site", "arm"], how="semi")
    if metric == "kl_other_nats":
        found = shares(values, totals(rows, split)).rename({"share": "value"})
    else:
        found, matrix, _ = cells(values)
        low, high = intervals.mean_intervals(matrix) if len(found) else (np.zeros(0), np.zeros(0))
        mean = matrix.mean(axis=0) if len(found) else np.zeros(0)
        found = found.with_columns(pl.Series(n, c, dtype=pl.Float64) for n, c in (("value", mean), ("low", low), ("high", high)))
    found = found.with_columns(s=pl.col("strength").fill_null(1.0))
    return found.sort("layer", kind_place(), arm_place(), "s").select("name", "layer", "site", "arm", "s", "value", "low", "high")


def bogus_square(rows: pl.DataFrame, arm: str, site: str) -> pl.DataFrame:
    """`fitted patched nats own`: KL of the tuned model with a map fitted at one layer and written at another; `own`: fitted there."""
    values = written(rows, CLOSENESS, "kl_own_nats").filter(
        pl.col("arm") == arm, pl.col("site") == site, pl.col("strength").is_null() & pl.col("unit").is_null()
    )
    other = pl.col("control").str.extract(r"^bogus_map:L(\d+)$").cast(pl.Int64)
    values = values.with_columns(other=other).filter(pl.col("control").is_null() | pl.col("other").is_not_null())
    crossed = values.filter(pl.col("other").is_not_null())["layer"].unique().to_list()
    values = values.filter(pl.col("layer").is_in(crossed)).with_columns(fitted=pl.coalesce("other", "layer"), patched="layer")
    found = values.group_by("patched", "fitted").agg(nats=pl.col("value").mean()).sort("patched", "fitted")
    return found.with_columns(own=pl.col("patched") == pl.col("fitted"))


def diagonal_wins(square: pl.DataFrame) -> tuple[list[int], list[int]]:
    """Patched layers where their own map comes closest, and those where another layer's map comes closer."""
    best = square.sort("nats", maintain_order=True).group_by("patched", maintain_order=True).first().sort("patched")
    return best.filter("own")["patched"].to_list(), best.filter(~pl.col("own"))["patched"].to_list()


def correlation_with_cosine(rows: pl.DataFrame) -> pl.DataFrame:
    """`name arm rho n`: rank correlation over prompts of closeness in nats with the cosine of mapped and tuned state."""
    kl = plain(written(rows, CLOSENESS, "kl_own_nats")).select("layer", "site", "arm", "prompt", kl="value")
    cosine = plain(written(rows, CLOSENESS, "cosine")).select("layer", "site", "arm", "prompt", cosine="value")
    both = kl.join(cosine, on=["layer", "site", "arm", "prompt"]).filter(pl.col("kl").is_finite(), pl.col("cosine").is_finite())
    found = []
    for (layer, site, arm), part in both.group_by("layer", "site", "arm", maintain_order=True):
        if part["kl"].n_unique() > 2 and part["cosine"].n_unique() > 2:
            rho = float(spearmanr(part["kl"].to_numpy(), part["cosine"].to_numpy()).statistic)
            found.append({"name": f"L{layer}.{site}", "arm": arm, "rho": rho, "n": len(part)})
    return pl.DataFrame(found, schema={"name": pl.String, "arm": pl.String, "rho": pl.Float64, "n": pl.Int64})


def drop_by_split(rows: pl.DataFrame, summary: pl.DataFrame) -> pl.DataFrame:
    """`name arm split drop`: the drop on the prompts that maps were fitted on beside that on the reported ones, where both are known."""
    found = summary.filter(
        pl.col("measure") == "transport", pl.col("direction") == CLOSENESS, pl.col("metric") == "kl_own_nats", pl.col("drop").is_not_null()
    )
    found = plain(found).with_columns(name=findings.site_name()).sort("layer", kind_place(), arm_place())
    both = found.group_by("name", "arm").agg(pl.col("split").n_unique().alias("splits")).filter(pl.col("splits") > 1)
    return found.join(both, on=["name", "arm"], how="semi", maintain_order="left").select("name", "arm", "split", "drop")
