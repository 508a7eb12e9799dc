"""What the page says about maps of states: how close a mapped state comes, and what it makes the other model do. Two scores, never mixed.

    closeness, tuned<-base         KL(p_tuned || p_tuned[T(base's state)])     0: the map found the tuned state; KL_raw is the identity arm
    transport proper, base<-base   1 - KL(p_tuned || p_base[T(own state)]) / D   1: the base, mapped, speaks like the tuned model
    removal, tuned<-tuned          1 - KL(p_base || p_tuned[T_back(own state)]) / KL(p_base || p_tuned)

The ceiling of transport is the tuned state itself, written into the base. A map has found something only if it beats the best of the maps that
learn nothing about the single prompt: identity, shift, mean. Intervals are bootstraps of ratios of means over prompts. Sites and arms that
sentences speak of are chosen on `select` where that was run.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from mechdiff.engine.sites import KINDS
from mechdiff.report import findings, intervals, statistics
from mechdiff.report.memory import once
from mechdiff.shares import refuse_two_supports

CLOSENESS, TRANSPORT, REMOVAL, CEILING = "tuned<-base", "base<-base", "tuned<-tuned", "base<-tuned"
TRIVIAL = ("identity", "shift", "mean")
"""Arms that learn nothing about the single prompt."""
ARMS = ("identity", "shift", "mean", "resample", "diag_affine", "anchored_ridge", "anchored_procrustes", "rrr", "ridge", "pca", "procrustes",
        "whitened_procrustes", "logit_subspace", "logit_subspace_joint", "per_cluster", "rank_truncated", "rescaled", "norm_matched")  # fmt: skip
"""All arms, in the order in which they are named."""
LEARNED = ARMS[4:]
WORTH = 0.05
"""Share of D that the tuned state itself must recover at a site before maps are counted there."""
BREAKS = 0.01
"""Share of D that writing the base's state must break at a site before its maps are ranked, or held against misplaced ones."""
CELL = ("layer", "site", "unit", "arm", "rank", "strength", "control")


@dataclass(frozen=True, kw_only=True)
class Carried:
    """The best learned map at the strongest site, beside what needs no map. Shares of D that the base recovers."""

    name: str
    layer: int
    site: str
    arm: str
    share: float
    low: float
    high: float
    trivial: str | None
    """The better of shift and mean; None where neither was run."""
    trivial_share: float | None
    ceiling: float | None
    chosen_on: str


@dataclass(frozen=True, kw_only=True)
class Beaten:
    """At how many sites the best learned map recovers more than the best of shift and mean: p of all sites together (max-t)."""

    sites: int
    """Sites where the tuned state itself recovers at least `WORTH` of D."""
    better: int
    best: dict | None
    """The site with the largest difference: `name arm gain low high`, in shares of D."""


@once
def written(rows: pl.DataFrame, direction: str, metric: str, *, measure: str = "transport", split: str | None = None) -> pl.DataFrame:
    """Rows of patches of one direction: per prompt, on the reported split unless another is named, controls and strengths among them."""
    return rows.filter(
        pl.col("measure") == measure,
        pl.col("direction") == direction,
        pl.col("metric") == metric,
        pl.col("split").eq_missing(split or findings.reported(rows, measure)),
        pl.col("layer").is_not_null() & pl.col("prompt").is_not_null(),
    )


def plain(table: pl.DataFrame) -> pl.DataFrame:
    """The real maps at full strength."""
    return table.filter(pl.col("control").is_null() & pl.col("strength").is_null() & pl.col("unit").is_null())


@once
def totals(rows: pl.DataFrame, split: str | None, runner: str = "base") -> pl.DataFrame:
    """`prompt total of`: the other model's clean divergence from the one that runs: D, or KL(p_base || p_tuned) where the tuned model runs.

    `of` is the metric that this is."""
    found = rows.filter(
        pl.col("measure") == "divergence",
        pl.col("metric") == statistics.between_models(rows)[runner],
        pl.col("split").eq_missing(split),
        pl.col("control").is_null() & pl.col("unit").is_null() & pl.col("prompt").is_not_null(),
    )
    return found.select("prompt", total="value", of="metric")


def cells(values: pl.DataFrame, of: pl.DataFrame | None = None) -> tuple[pl.DataFrame, np.ndarray, np.ndarray]:
    """The cells there are, in network order, their values [prompt, cell], and each prompt's total [prompt] (1 without `of`).

    Cells with a value that is not finite are left out, and prompts that a cell or `of` lacks.
    """
    if of is not None:
        refuse_two_supports(values["metric"].unique(), of["of"].unique())
    finite = values.group_by(CELL).agg(whole=pl.col("value").is_finite().all()).filter("whole").drop("whole")
    order = [
        pl.col("layer"),
        kind_place(),
        pl.col("unit"),
        arm_place(),
        pl.col("arm"),
        pl.col("rank"),
        pl.col("strength"),
        pl.col("control"),
    ]
    found = finite.sort(order, nulls_last=False).with_row_index("cell")
    coded = values.join(found, on=CELL, nulls_equal=True)
    if of is not None:
        coded = coded.join(of.filter(pl.col("total").is_finite()), on="prompt")
    prompts, _, matrix = statistics.prompt_matrix(coded, by="cell")
    found = found.drop("cell").with_columns(name=findings.site_name())
    if not len(prompts):
        return found.clear(), np.zeros((0, 0)), np.zeros(0)
    total = np.ones(len(prompts)) if of is None else of.filter(pl.col("prompt").is_in(prompts)).sort("prompt")["total"].to_numpy()
    return found, matrix, total


def kind_place() -> pl.Expr:
    return pl.col("site").replace_strict({kind: i for i, kind in enumerate(KINDS)}, default=len(KINDS), return_dtype=pl.Int64)


def arm_place() -> pl.Expr:
    return pl.col("arm").replace_strict({arm: i for i, arm in enumerate(ARMS)}, default=len(ARMS), return_dtype=pl.Int64)


def shares(values: pl.DataFrame, of: pl.DataFrame, *, recovered: bool = True) -> pl.DataFrame:
    """The cells with `share low high nats n`: 1 - mean(values) / mean(of), or mean(values) / mean(of); empty where `of` is not above 0."""
    found, matrix, total = cells(values, of)
    if found.is_empty() or total.mean() <= 0:
        return found.clear().with_columns(**{name: pl.lit(0.0) for name in ("share", "low", "high", "nats")}, n=pl.lit(0))
    effect = total[:, None] - matrix if recovered else matrix
    share, low, high = intervals.share_intervals(effect, total)
    columns = {"share": share, "low": low, "high": high, "nats": effect.mean(axis=0)}
    filled = found.with_columns(pl.Series(name, column, dtype=pl.Float64) for name, column in columns.items())
    return filled.with_columns(pl.col("low", "high").fill_nan(None), n=pl.lit(len(total)))


@once
def recovered(
    rows: pl.DataFrame, direction: str = TRANSPORT, *, measure: str = "transport", split: str | None = None, controls: bool = False
) -> pl.DataFrame:
    """Shares recovered by the maps of one direction at full strength (see `shares`), or by their `controls`."""
    split = split or findings.reported(rows, measure)
    values = written(rows, direction, "kl_other_nats", measure=measure, split=split)
    values = values.filter(pl.col("control").is_not_null()) if controls else plain(values)
    return shares(values, totals(rows, split, direction.partition("<-")[0]))


@once
def ceiling(rows: pl.DataFrame, measure: str = "transport") -> pl.DataFrame:
    """`layer site name share low high ...`: what the tuned state itself recovers in the base."""
    return recovered(rows, CEILING, measure=measure).filter(pl.col("arm") == "identity")


def closeness(rows: pl.DataFrame, *, split: str | None = None) -> pl.DataFrame:
    """One row per site and arm at full strength: `name arm rank kl raw drop low high trivial gain gain_low gain_high counts`.

    `kl` and `raw` (identity) in nats; `drop` = 1 - kl/raw with its interval; `gain` = 1 - kl/kl(trivial) for learned maps, `trivial` being the
    arm of `TRIVIAL` that comes closest at the site. `counts` is False, and no ratio given, where the divisor is not above three noise floors.
    """
    split = split or findings.reported(rows, "transport")
    found, matrix, _ = cells(plain(written(rows, CLOSENESS, "kl_own_nats", split=split)))
    floors = statistics.noise_floors(rows).filter(
        pl.col("runner") == "tuned", pl.col("split").eq_missing(split), pl.col("metric") == "kl_own_nats"
    )
    least = statistics.FLOORS * (float(floors["floor"][0]) if len(floors) else 0.0)
    numbers = np.full((6, len(found)), np.nan)
    mean = matrix.mean(axis=0) if matrix.size else np.zeros(0)
    names, arms = found["name"].to_list(), found["arm"].to_list()
    raw, best = np.full(len(found), -1), np.full(len(found), -1)
    at = {(name, arm): i for i, (name, arm) in enumerate(zip(names, arms, strict=True))}
    for i, (name, arm) in enumerate(zip(names, arms, strict=True)):
        raw[i] = at.get((name, "identity"), -1)
        simple = [at[name, one] for one in TRIVIAL if (name, one) in at]
        best[i] = min(simple, key=lambda j: mean[j]) if simple and arm in LEARNED else -1
    for first, against in ((0, raw), (3, best)):
        known = (against >= 0) & (mean[against] > least) if len(found) else np.zeros(0, bool)
        if known.any():
            of = matrix[:, against[known]]
            numbers[first : first + 3, known] = intervals.share_intervals(of - matrix[:, known], of)
    columns = dict(zip(("drop", "low", "high", "gain", "gain_low", "gain_high"), numbers, strict=True))
    content = [pl.Series(name, column, dtype=pl.Float64).fill_nan(None) for name, column in columns.items()]
    content += [pl.Series("kl", mean, dtype=pl.Float64), pl.Series("raw", [mean[i] if i >= 0 else None for i in raw], dtype=pl.Float64)]
    trivial = pl.Series("trivial", [arms[i] if i >= 0 else None for i in best], dtype=pl.String)
    return found.with_columns(*content, trivial, counts=pl.Series(mean > least if len(found) else [], dtype=pl.Boolean))


def worth_mapping(rows: pl.DataFrame, summary: pl.DataFrame) -> list[str]:
    """Sites where writing the base's state breaks at least `BREAKS` of D (at all, where there is no D to share), in network order."""
    found = findings.difference(rows, summary)
    raw = closeness(rows).filter(pl.col("arm") == "identity", pl.col("counts"))
    if not (found and found.divides):
        return raw["name"].to_list()
    split = findings.reported(rows, "transport")
    broken = plain(written(rows, CLOSENESS, statistics.effect_metric(rows, CLOSENESS), split=split)).filter(pl.col("arm") == "identity")
    enough = shares(broken, totals(rows, split), recovered=False).filter(pl.col("share") >= BREAKS)["name"].to_list()
    return [name for name in raw["name"].to_list() if name in enough]


def fit_quality(rows: pl.DataFrame, summary: pl.DataFrame, metrics: tuple[str, ...], direction: str = CLOSENESS) -> pl.DataFrame:
    """`name layer site arm rank metric split mean p q`: how well maps fit, on the prompts they were fitted on and on the reported ones."""
    found = summary.filter(
        pl.col("measure") == "transport",
        pl.col("direction") == direction,
        pl.col("metric").is_in(list(metrics)),
        pl.col("split").is_in(["fit", findings.reported(rows, "transport") or "report"]),
        pl.col("mean").is_finite() & pl.col("layer").is_not_null(),
    )
    found = plain(found).with_columns(name=findings.site_name()).sort("layer", kind_place(), arm_place(), "split")
    return found.select("name", "layer", "site", "arm", "rank", "metric", "split", "mean", "p", "q")


def n_refits(rows: pl.DataFrame) -> int:
    """The largest number of refits on permuted pairs that a map was held against."""
    draws = rows.filter(
        pl.col("measure") == "transport", pl.col("metric") == "r2_change", pl.col("control").str.starts_with("permuted#").fill_null(False)
    )
    return 0 if draws.is_empty() else max(draws.group_by("layer", "site", "arm", "direction", "split").len()["len"].to_list())


@once
def strongest_site(rows: pl.DataFrame, summary: pl.DataFrame) -> tuple[str, str] | None:
    """The site that sentences speak of, and the split that chose it: the strongest output of patching, else the highest ceiling."""
    here = recovered(rows)
    names = set(here.filter(pl.col("arm").is_in(LEARNED))["name"])
    ranked, ranking = findings.ranked_outputs(rows, summary)
    if ranking and not ranked.is_empty():
        for name in ranked["name"].to_list():
            if name in names:
                return name, ranking
    best = ceiling(rows).filter(pl.col("name").is_in(list(names)))
    best = here.filter(pl.col("name").is_in(list(names))) if best.is_empty() else best
    single = best.filter(~pl.col("site").is_in(findings.STREAM))
    best = (best if single.is_empty() else single).sort("share", descending=True, maintain_order=True)
    return None if best.is_empty() else (best["name"][0], findings.reported(rows, "transport") or "report")


@once
def carried(rows: pl.DataFrame, summary: pl.DataFrame) -> Carried | None:
    """The best learned map at the strongest site, chosen on `select` where that was run; None without a share to speak of."""
    site = strongest_site(rows, summary)
    if site is None:
        return None
    at = pl.col("name") == site[0]
    here, top = recovered(rows).filter(at), ceiling(rows).filter(at)
    on = recovered(rows, split="select").filter(at, pl.col("arm").is_in(LEARNED))
    chosen = on if not on.is_empty() else here.filter(pl.col("arm").is_in(LEARNED))
    arm = chosen.sort("share", descending=True, maintain_order=True)["arm"][0]
    found = here.filter(pl.col("arm") == arm)
    simple = here.filter(pl.col("arm").is_in(TRIVIAL[1:]), pl.col("share") > 0).sort("share", descending=True, maintain_order=True)
    if found.is_empty():
        return None
    one = found.row(0, named=True)
    return Carried(
        name=site[0], layer=one["layer"], site=one["site"], arm=arm, share=one["share"],
        low=one["share"] if one["low"] is None else one["low"], high=one["share"] if one["high"] is None else one["high"],
        trivial=None if simple.is_empty() else simple["arm"][0], trivial_share=None if simple.is_empty() else simple["share"][0],
        ceiling=None if top.is_empty() else top["share"][0],
        chosen_on="select" if not on.is_empty() else findings.reported(rows, "transport") or "report",
    )  # fmt: skip


@once
def beaten(rows: pl.DataFrame) -> Beaten | None:
    """Where learned maps recover more than the best of nothing, shift and mean; None without such arms or shares, or from a single prompt."""
    split = findings.reported(rows, "transport")
    found, matrix, total = cells(plain(written(rows, TRANSPORT, "kl_other_nats", split=split)), totals(rows, split))
    if len(total) < 2 or total.mean() <= 0:
        return None
    top = ceiling(rows)
    worth = top.filter(pl.col("share") >= WORTH)["name"].to_list()
    matrix = np.column_stack([matrix, total])  # the last: the base's own state, which recovers nothing
    pairs = []
    for (name,), part in found.with_row_index("i").group_by("name", maintain_order=True):
        simple, learned = (part.filter(pl.col("arm").is_in(list(arms)))["i"].to_list() for arms in (TRIVIAL[1:], LEARNED))
        if simple and learned and (top.is_empty() or name in worth):
            pairs.append([min(group, key=lambda i: matrix[:, i].mean()) for group in ([*simple, len(found)], learned)])
    if not pairs:
        return None
    simple, learned = np.array(pairs).T
    apart = matrix[:, simple] - matrix[:, learned]
    gain, low, high = intervals.share_intervals(apart, total)
    sure = (gain > 0) & (intervals.family_p(apart) <= 1 - intervals.LEVEL)
    most = int(np.argmax(gain))
    one = found.row(int(learned[most]), named=True)
    best = {"name": one["name"], "arm": one["arm"], "gain": float(gain[most]), "low": float(low[most]), "high": float(high[most])}
    return Beaten(sites=len(pairs), better=int(sure.sum()), best=best)
