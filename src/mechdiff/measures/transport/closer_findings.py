"""The numbers on maps at the layers looked at more closely are strengths, misplaced maps and over-fitting.

With s the strength of a write, KL(s) = c s^2 near 0 for any map, right or wrong: c is read off the smallest strength, and KL(1) / c says how
far the square holds. A map that knows its layer comes closer there than the map of any other layer (the diagonal of a square wins). A drop that
is larger on the prompts of the fit than on others is over-fitting.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from mechdiff import labels
from mechdiff.measures.transport.findings import CLOSENESS, TRANSPORT, least_closeness
from mechdiff.report import difference, spoken
from mechdiff.report.effect_shares import arm_place, cells, kind_place, plain, shares, totals, written
from mechdiff.rows import where
from mechdiff.statistics import intervals
from mechdiff.statistics import summary as statistics_summary


def quadratic(rows: pl.DataFrame) -> pl.DataFrame:
    """`name layer site arm curvature at_one ratio low high`: c of KL(s) = c s^2 through the smallest strength, KL(1), KL(1) / c with its interval."""
    values = written(rows, CLOSENESS, "kl_own_nats", measure="transport").filter(pl.col("control").is_null() & pl.col("unit").is_null())
    values = values.with_columns(name=difference.site_name(), s=pl.col("strength").fill_null(1.0)).filter(pl.col("s") > 0)
    found = []
    for (name, layer, site, arm), part in values.group_by("name", "layer", "site", "arm", maintain_order=True):
        _, strengths, table = statistics_summary.prompt_matrix(part, by="s")
        if len(strengths) < 2 or 1.0 not in strengths or strengths[0] >= 1 or not len(table) or table[:, 0].mean() <= 0:
            continue
        one, small = table[:, strengths.index(1.0)], table[:, 0] / strengths[0] ** 2
        ratio, low, high = (ends[0] for ends in intervals.share_intervals(one[:, None], small))
        found.append((name, layer, site, arm, small.mean(), one.mean(), ratio, low, high))
    numbers = dict.fromkeys(("curvature", "at_one", "ratio", "low", "high"), pl.Float64)
    schema = {"name": pl.String, "layer": pl.Int64, "site": pl.String, "arm": pl.String, **numbers}
    law = pl.DataFrame(found, schema=schema, orient="row").with_columns(pl.col("ratio", "low", "high").fill_nan(None))
    return law.sort("layer", kind_place(), arm_place())


def rows_of_strength(rows: pl.DataFrame, direction: str, metric: str, split: str | None = None) -> pl.DataFrame:
    """`name layer site arm s value low high`: means over prompts by strength, 1 for the full map, of arms that have such a curve.

    `value` is in nats for closeness, and a share of D for transport proper.
    """
    split = split or difference.reported(rows, "transport")
    values = written(rows, direction, metric, measure="transport", split=split).filter(
        pl.col("control").is_null() & pl.col("unit").is_null()
    )
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
    found = bogus_values(rows, arm, site).group_by("patched", "fitted").agg(nats=pl.col("value").mean()).sort("patched", "fitted")
    return found.with_columns(own=pl.col("patched") == pl.col("fitted"))


def bogus_values(rows: pl.DataFrame, arm: str, site: str) -> pl.DataFrame:
    """The rows of that square, per prompt, with `fitted` and `patched`."""
    values = where(written(rows, CLOSENESS, "kl_own_nats", measure="transport"), arm=arm, site=site, strength=None, unit=None)
    other = labels.other_layer_column()
    values = values.with_columns(other=other).filter(pl.col("control").is_null() | pl.col("other").is_not_null())
    crossed = values.filter(pl.col("other").is_not_null())["layer"].unique().to_list()
    return values.filter(pl.col("layer").is_in(crossed)).with_columns(fitted=pl.coalesce("other", "layer"), patched="layer")


def bogus_drops(rows: pl.DataFrame, arm: str, site: str) -> pl.DataFrame:
    """`patched fitted own raw nats drop low high`: that square as drops 1 - KL_mapped / KL_raw.

    KL_raw is of the base's own state at the patched layer; where it is not above three noise floors there is no drop.
    """
    least = least_closeness(rows, difference.reported(rows, "transport"))
    values = bogus_values(rows, arm, site)
    plain_raw = plain(written(rows, CLOSENESS, "kl_own_nats", measure="transport"))
    raw = where(plain_raw, arm="identity", site=site).select("prompt", patched="layer", raw="value")
    found = []
    for (patched, fitted), part in (
        values.join(raw, on=["patched", "prompt"]).sort("patched", "fitted", "prompt").group_by("patched", "fitted", maintain_order=True)
    ):
        mapped, unmapped = part["value"].to_numpy(), part["raw"].to_numpy()
        ends: list[float | None] = [None, None, None]
        if unmapped.mean() > least:
            ends = [float(end[0]) for end in intervals.share_intervals((unmapped - mapped)[:, None], unmapped)]
        found.append((patched, fitted, patched == fitted, unmapped.mean(), mapped.mean(), *ends))
    schema = {
        "patched": pl.Int64,
        "fitted": pl.Int64,
        "own": pl.Boolean,
        **dict.fromkeys(("raw", "nats", "drop", "low", "high"), pl.Float64),
    }
    return pl.DataFrame(found, schema=schema, orient="row").with_columns(pl.col("low", "high").fill_nan(None))


def diagonal_wins(rows: pl.DataFrame, arm: str, site: str, layers: Sequence[int]) -> tuple[list[int], list[int]]:
    """Patched layers where their own map comes significantly closer than that of every other layer, and those where another's comes closer.

    All pairs of a layer's own map and another's are one family (max-t); the rest of the layers are undecided.
    """
    values = bogus_values(rows, arm, site).filter(pl.col("patched").is_in(list(layers)))
    cells = values.select("patched", "fitted").unique().sort("patched", "fitted").with_row_index("cell")
    _, _, table = statistics_summary.prompt_matrix(values.join(cells, on=["patched", "fitted"]), by="cell")
    places = {(p, f): i for i, p, f in cells.iter_rows()}
    pairs = [(p, f) for p, f in places if p != f and (p, p) in places]
    if not pairs or len(table) < intervals.FEWEST:
        return [], []
    apart = np.column_stack([table[:, places[p, f]] - table[:, places[p, p]] for p, f in pairs])
    sure, further = spoken.family_p(rows, apart) <= 1 - intervals.LEVEL, apart.mean(axis=0) > 0
    of = {layer: [i for i, (p, _) in enumerate(pairs) if p == layer] for layer in dict.fromkeys(p for p, _ in pairs)}
    wins = [layer for layer, here in of.items() if all(sure[i] and further[i] for i in here)]
    return wins, [layer for layer, here in of.items() if any(sure[i] and not further[i] for i in here)]


def correlation_with_cosine(rows: pl.DataFrame) -> pl.DataFrame:
    """`name arm rho n`: rank correlation over prompts of closeness in nats with the cosine of mapped and tuned state."""
    kl = plain(written(rows, CLOSENESS, "kl_own_nats", measure="transport")).select("layer", "site", "arm", "prompt", kl="value")
    cosine = plain(written(rows, CLOSENESS, "cosine", measure="transport")).select("layer", "site", "arm", "prompt", cosine="value")
    both = kl.join(cosine, on=["layer", "site", "arm", "prompt"]).filter(pl.col("kl").is_finite(), pl.col("cosine").is_finite())
    varies = (pl.col("kl").n_unique() > 2) & (pl.col("cosine").n_unique() > 2)
    found = both.group_by("layer", "site", "arm", maintain_order=True).agg(
        varies=varies, rho=pl.corr("kl", "cosine", method="spearman"), n=pl.len().cast(pl.Int64)
    )
    return found.filter("varies").select(difference.site_name().alias("name"), "arm", "rho", "n")


def drop_by_split(rows: pl.DataFrame, summary: pl.DataFrame) -> pl.DataFrame:
    """`name arm split drop`: the drop on the prompts that maps were fitted on beside that on the reported ones, where both are known."""
    found = where(summary, measure="transport", direction=CLOSENESS, metric="kl_own_nats").filter(pl.col("drop").is_not_null())
    found = plain(found).with_columns(name=difference.site_name()).sort("layer", kind_place(), arm_place())
    both = found.group_by("name", "arm").agg(pl.col("split").n_unique().alias("splits")).filter(pl.col("splits") > 1)
    return found.join(both, on=["name", "arm"], how="semi", maintain_order="left").select("name", "arm", "split", "drop")


def swept(rows: pl.DataFrame, direction: str, metric: str, split: str | None = None) -> pl.DataFrame:
    """The rows of the sweep over cuts, per prompt, with `name`, `cut` as a study says it, `k` (null: full), the strength `s`, and `itself`."""
    values = written(rows, direction, metric, measure="transport", split=split).with_columns(cut=labels.cut_words())
    return values.filter(pl.col("cut").is_not_null()).with_columns(
        name=difference.site_name(),
        k=pl.col("cut").cast(pl.Int64, strict=False),
        s=pl.col("strength").fill_null(1.0),
        itself=pl.col("control").is_not_null(),
    )


LAST = "last_"
"""What a study's word for several last positions begins with."""
PLACE = ("name", "layer", "site", "arm", "cut", "k", "s")
"""What tells one write of the sweep from another."""


def sweep(rows: pl.DataFrame, summary: pl.DataFrame) -> pl.DataFrame:
    """One row per site, map, cut and strength: `... raw kl drop low high itself apart apart_low apart_high p fit_kl fit_drop moved moved_itself`.

    Closeness: `kl` in nats on the reported prompts, `raw` with the base's own state, `drop` = 1 - kl/raw with its interval; `itself` with the
    same cut between the tuned model and itself, `apart` = kl - itself with its interval and its p (all of the sweep one family: max-t); `fit_kl`
    and `fit_drop` on the prompts of the fit. Transport proper: `moved`, the share of D that the base recovers, and what its own cut does.
    There is no drop where `raw` is not above three noise floors, and no share where D is not.
    """
    split = difference.reported(rows, "transport")
    values = swept(rows, CLOSENESS, "kl_own_nats", split)
    order = [pl.col("layer"), kind_place(), arm_place(), pl.col("k").fill_null(np.iinfo(np.int64).max), pl.col("s")]
    found = values.select(PLACE).unique().sort(order).with_row_index("cell")
    numbered = values.join(found, on=PLACE, nulls_equal=True)
    tables = {itself: statistics_summary.prompt_matrix(part, by="cell") for (itself,), part in numbered.group_by("itself")}
    if set(tables) != {True, False}:
        return found.clear().drop("cell")
    kl, itself = tables[False][2], tables[True][2]
    raw = _raw(rows, found, tables[False][0], split)
    drops, known = np.full((3, len(found)), np.nan), raw.mean(axis=0) > least_closeness(rows, split)
    if known.any():
        drops[:, known] = intervals.share_intervals((raw - kl)[:, known], raw[:, known])
    columns = dict(zip(("drop", "low", "high"), drops, strict=True))
    columns |= {"raw": raw.mean(axis=0), "kl": kl.mean(axis=0), "itself": itself.mean(axis=0), "apart": (kl - itself).mean(axis=0)}
    columns |= dict(zip(("apart_low", "apart_high"), intervals.mean_intervals(kl - itself), strict=True))
    columns["p"] = spoken.family_p(rows, kl - itself)
    found = found.with_columns(pl.Series(name, column, dtype=pl.Float64).fill_nan(None) for name, column in columns.items())
    on_fit = swept(rows, CLOSENESS, "kl_own_nats", "fit").group_by(PLACE).agg(fit_kl=pl.col("value").mean())
    fit_raw = where(written(rows, CLOSENESS, "kl_own_nats", measure="transport", split="fit"), arm="identity", control=None, unit=None)
    fit_raw = fit_raw.group_by("layer", "site").agg(fit_raw=pl.col("value").mean())
    found = found.join(on_fit, on=PLACE, how="left", nulls_equal=True).join(fit_raw, on=["layer", "site"], how="left")
    found = found.with_columns(
        fit_drop=pl.when(pl.col("fit_raw") > least_closeness(rows, "fit")).then(1 - pl.col("fit_kl") / pl.col("fit_raw"))
    )
    total, moved = totals(rows, split), swept(rows, TRANSPORT, "kl_other_nats", split)
    for name, part in (("moved", moved.filter(~pl.col("itself"))), ("moved_itself", moved.filter("itself"))):
        of_d = shares(part, total).with_columns(cut=labels.cut_words(), s=pl.col("strength").fill_null(1.0))
        found = found.join(of_d.select("name", "arm", "cut", "s", pl.col("share").alias(name)), on=["name", "arm", "cut", "s"], how="left")
    return _of_d(found, ("moved", "moved_itself"), rows, summary).sort("cell").drop("cell", "fit_raw")


def _of_d(found: pl.DataFrame, shares_of_d: Sequence[str], rows: pl.DataFrame, summary: pl.DataFrame) -> pl.DataFrame:
    """Without these shares where there is no D to take them of."""
    known = difference.difference(rows, summary)
    return found if known and known.divides else found.with_columns(pl.lit(None, pl.Float64).alias(name) for name in shares_of_d)


def _raw(rows: pl.DataFrame, found: pl.DataFrame, prompts: Sequence[str], split: str | None) -> np.ndarray:
    """`[prompt, write]`: KL with the base's own state at the site of each write."""
    own = where(plain(written(rows, CLOSENESS, "kl_own_nats", measure="transport", split=split)), arm="identity")
    sites = found.select("layer", "site").unique(maintain_order=True).with_row_index("at")
    named, places, table = statistics_summary.prompt_matrix(own.join(sites, on=["layer", "site"]), by="at")
    of = found.join(sites, on=["layer", "site"], maintain_order="left")["at"].to_list()
    return table[np.ix_([list(named).index(name) for name in prompts], [list(places).index(place) for place in of])]


def at_positions(rows: pl.DataFrame, summary: pl.DataFrame) -> pl.DataFrame:
    """`name layer site arm unit kl here_kl moved low high here_moved`: mapped states at several positions, beside the decision position alone.

    `kl` is closeness in nats; `moved` the share of D that the base recovers with its own mapped states, with its interval.
    """
    split = difference.reported(rows, "transport")
    key = ["layer", "site", "arm"]
    close = where(written(rows, CLOSENESS, "kl_own_nats", measure="transport", split=split), control=None, strength=None)
    found = close.with_columns(name=difference.site_name()).group_by("name", *key, "unit").agg(kl=pl.col("value").mean())
    several = pl.col("unit").is_in([unit for unit in found["unit"].unique().drop_nulls() if unit.startswith(LAST)])
    here = found.filter(pl.col("unit").is_null()).select(*key, here_kl="kl")
    mapped = where(written(rows, TRANSPORT, "kl_other_nats", measure="transport", split=split), control=None, strength=None)
    moved = shares(mapped, totals(rows, split))
    here_moved = moved.filter(pl.col("unit").is_null()).select(*key, here_moved="share")
    found = found.filter(several).join(here, on=key, how="left").join(here_moved, on=key, how="left")
    found = found.join(moved.select(*key, "unit", "low", "high", moved="share"), on=[*key, "unit"], how="left")
    found = _of_d(found, ("moved", "low", "high", "here_moved"), rows, summary)
    return found.sort("layer", kind_place(), arm_place(), "unit")
