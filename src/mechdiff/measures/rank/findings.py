"""The numbers on rank are of reduced-rank regression by rank, and of what maps of each rank do.

`rank_chosen` is the smallest rank within one standard error of the best cross-validated one; `rank_uncentred` that of the change with its
mean left in (a constant shift: 0 in the first, 1 in the second). Causal curves write the map of rank k: closeness (`tuned<-base`, nats) and transport
proper (`base<-base`, share of D). `k` at 50 and 90 %: the smallest rank with so much of the gain from rank 0 to the largest rank.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import polars as pl

from mechdiff import labels, terms
from mechdiff.measures.patching import findings as patching_findings
from mechdiff.measures.transport import findings as transport_findings
from mechdiff.measures.transport.findings import CLOSENESS, TRANSPORT
from mechdiff.report import difference, effect_shares
from mechdiff.rows import where
from mechdiff.statistics import intervals
from mechdiff.statistics import summary as statistics_summary
from mechdiff.statistics.memory import once

CHOSEN = {"rank_chosen": "centred", "rank_uncentred": "uncentred"}
SERIES = ("rrr", "rank_truncated", "fisher", "random subspace")
HALF, MOST = 0.5, 0.9
SITES = 3
"""Sites whose curves are drawn."""
SAME = 1e-9
"""Relative difference under which two written states did the same."""
ENOUGH = 4
"""Fit prompts for each dimension under which no rank is said to be that of the change."""
EXPLAINS = 0.3
"""R2 of the change on the reported prompts under which its rank is not spoken of."""
NEAR = 2
"""A rank within so many of the largest that the prompts can show is the prompts'."""
CONVERGED = 0.9
"""Agreement of the Fisher metrics of two halves of the prompts under which the metric has not converged."""
CONSTANT = 0.05
"""Share of the squared change that may vary, at the upper end of its interval, where the change is said to be the same on every prompt."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What so many fit prompts say of the rank of the change at one site."""

    name: str
    layer: int
    rank: int
    uncentred: int | None
    prompts: int
    limit: int
    """The largest rank that so many prompts can show."""
    r2: float | None
    """On the reported prompts, of the regression of this rank."""
    split: str
    says: Literal["rank", "at least", "nothing", "unseen"]
    """`rank`: so many dimensions are seen; `at least`: as many as the prompts can show, or nearly; `nothing`: too few prompts to
    tell; `unseen`: rank 0, no dimension that the base's state predicts."""
    varies: tuple[float, float, float] | None
    """Share of the squared change that varies from prompt to prompt, with its interval; None where it was not measured."""

    @property
    def constant(self) -> bool:
        """Whether the change is the same on every prompt, as far as an interval can say so."""
        return self.varies is not None and self.varies[2] <= CONSTANT


def seen(rows: pl.DataFrame, summary: pl.DataFrame, name: str) -> Seen | None:
    """What the fit prompts say of the rank at one site; None where it was not measured."""
    here = chosen(summary).filter(pl.col("name") == name, pl.col("rank_chosen").is_not_null())
    if here.is_empty():
        return None
    one = here.row(0, named=True)
    curves = r2_curves(rows, summary, name)
    tried = curves.filter(pl.col("curve") == "cross-validated")["rank"].to_list()
    limit = one["rank_limit"] if one["rank_limit"] is not None else max(tried, default=0)
    prompts = one["rank_prompts"] or len(effect_shares.totals(rows, "fit"))
    split = difference.reported(rows, "rank") or "report"
    held = curves.filter(pl.col("curve") == f"{terms.of_split(split)} prompts", pl.col("rank") <= one["rank_chosen"]).sort("rank")
    r2, rank, best = (held["value"][-1] if len(held) else None), one["rank_chosen"], one["rank_best"] or 0
    says: Literal["rank", "at least", "nothing", "unseen"] = "rank"
    if rank == 0:
        says = "unseen"
    elif r2 is None or r2 < EXPLAINS:
        says = "nothing"
    elif max(rank, best) >= limit - NEAR:
        says = "at least"
    elif prompts < ENOUGH * rank:
        says = "nothing"
    return Seen(
        name=name, layer=one["layer"], rank=rank, uncentred=one["rank_uncentred"], prompts=prompts, limit=limit, r2=r2, split=split, says=says,
        varies=varying(rows, name),
    )  # fmt: skip


@once
def varying(rows: pl.DataFrame, name: str) -> tuple[float, float, float] | None:
    """Share of the squared change at one site that varies from prompt to prompt, with its interval; None where it cannot be given."""
    _, names, table = statistics_summary.prompt_matrix(_squares(rows).filter(pl.col("name") == name), by="metric")
    if len(names) < 2 or len(table) < intervals.FEWEST or table[:, 0].mean() <= 0:
        return None
    share, low, high = intervals.share_intervals(table[:, 1:], table[:, 0])
    return float(share[0]), float(low[0]), float(high[0])


@once
def _squares(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of the squared change and of what of it varies, on the reported prompts, with the `name` of their site."""
    found = where(rows, measure="rank").filter(pl.col("metric").is_in(["change_squared", "change_varying_squared"]))
    return found.filter(pl.col("split").eq_missing(difference.reported(rows, "rank"))).with_columns(name=difference.site_name())


@once
def chosen(summary: pl.DataFrame) -> pl.DataFrame:
    """`name layer site rank_chosen rank_uncentred rank_best rank_limit rank_prompts` by site, null where one was not measured."""
    names = (*CHOSEN, "rank_best", "rank_limit", "rank_prompts")
    found = where(summary, measure="rank").filter(pl.col("metric").is_in(names), pl.col("layer").is_not_null(), pl.col("mean").is_finite())
    if found.is_empty():
        return pl.DataFrame(schema={"name": pl.String, "layer": pl.Int64, "site": pl.String, **dict.fromkeys(names, pl.Int64)})
    wide = found.pivot(on="metric", index=["layer", "site"], values="mean", aggregate_function="first")
    missing = [pl.lit(None, pl.Float64).alias(name) for name in names if name not in wide.columns]
    wide = wide.with_columns(missing).with_columns(name=difference.site_name()).sort("layer", effect_shares.kind_place())
    return wide.select("name", "layer", "site", *(pl.col(name).cast(pl.Int64) for name in names))


def r2_curves(rows: pl.DataFrame, summary: pl.DataFrame, name: str) -> pl.DataFrame:
    """`rank curve value low high` at one site: `fit prompts`, `cross-validated` (with its standard error) and the reported prompts."""
    return _curves(rows, summary).get(name, pl.DataFrame(schema=CURVE))


CURVE = {"rank": pl.Int64, "curve": pl.String, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64}


@once
def _curves(rows: pl.DataFrame, summary: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """The same by name of every site."""
    split = difference.reported(rows, "rank")
    found = where(summary, measure="rank", control=None, unit=None).filter(pl.col("rank").is_not_null(), pl.col("mean").is_finite())
    means: dict[str, dict[tuple[str, str | None], dict[int, float]]] = {}
    for name, metric, of, rank, mean in found.select(difference.site_name(), "metric", "split", "rank", "mean").iter_rows():
        means.setdefault(name, {}).setdefault((metric, of), {}).setdefault(rank, mean)
    return {
        name: pl.DataFrame(sorted(_lines(of_site, split), key=lambda row: (row[1], row[0])), schema=CURVE, orient="row")
        for name, of_site in means.items()
    }


def _lines(of_site: Mapping[tuple[str, str | None], Mapping[int, float]], split: str | None) -> Iterator[tuple]:
    """Rows of one site's curves."""
    errors = {rank: mean for (metric, _), ranks in of_site.items() if metric == "r2_change_cv_se" for rank, mean in ranks.items()}
    for metric, of, curve in (
        ("r2_change", "fit", "training prompts"),
        ("r2_change_cv", "fit", "cross-validated"),
        ("r2_change", split, f"{terms.of_split(split)} prompts"),
    ):
        for rank, mean in of_site.get((metric, of), {}).items():
            error = errors.get(rank) if metric == "r2_change_cv" else None
            yield (rank, curve, mean, *((None, None) if error is None else (mean - error, mean + error)))


@once
def curve_sites(rows: pl.DataFrame, summary: pl.DataFrame) -> list[str]:
    """Sites with causal curves: the strongest output first, then single outputs before the stream, in network order."""
    found = where(rows, measure="rank").filter(pl.col("metric").is_in(["kl_own_nats", "kl_other_nats"]), pl.col("layer").is_not_null())
    found = found.filter(pl.col("rank").is_not_null()).with_columns(name=difference.site_name()).unique(["layer", "site"])
    order = found.sort(pl.col("site").is_in(difference.STREAM), "layer", effect_shares.kind_place())["name"].to_list()
    ranked, _ = patching_findings.ranked_outputs(rows, summary)
    first = [name for name in ranked["name"].to_list() if name in order] if not ranked.is_empty() else []
    return list(dict.fromkeys([*first, *order]))


@once
def causal(rows: pl.DataFrame, name: str, direction: str) -> pl.DataFrame:
    """`series rank value low high draws` at one site and full strength: nats of closeness, or the share of D recovered.

    Series are arms of maps, `fisher` for the Fisher-weighted one, and `random subspace`: the mean over draws, with their least and
    greatest as its ends.
    """
    values, of = _values(rows, name, direction, pl.col("strength").is_null())
    found, matrix, total = effect_shares.cells(values, of)
    if found.is_empty() or (of is not None and total.mean() <= 0):
        return pl.DataFrame(schema=_CURVE)
    if of is None:
        value = matrix.mean(axis=0)
        low, high = intervals.mean_intervals(matrix)
    else:
        value, low, high = intervals.share_intervals(total[:, None] - matrix, total)
    random = labels.is_draw("random_subspace")
    series = pl.when(random).then(pl.lit(SERIES[3])).when(pl.col("unit") == "fisher").then(pl.lit("fisher")).otherwise("arm")
    numbers = [pl.Series(n, column, dtype=pl.Float64) for n, column in (("value", value), ("low", low), ("high", high))]
    table = found.with_columns(*numbers, series=series).filter(pl.col("control").is_null() | random)
    table = table.with_columns(low=pl.when(random).then("value").otherwise("low"), high=pl.when(random).then("value").otherwise("high"))
    merged = table.group_by("series", "rank", maintain_order=True).agg(
        pl.col("value").mean(), pl.col("low").min(), pl.col("high").max(), draws=pl.len()
    )
    place = pl.col("series").replace_strict({s: i for i, s in enumerate(SERIES)}, default=len(SERIES), return_dtype=pl.Int64)
    return (
        merged.with_columns(pl.col("low", "high").fill_nan(None))
        .sort(place, "series", "rank")
        .select(pl.col(n).cast(t) for n, t in _CURVE.items())
    )


def needed(curve: pl.DataFrame, direction: str, parts: Sequence[float] = (HALF, MOST)) -> dict[float, int] | None:
    """The smallest rank with at least this part of the gain from rank 0 to the largest; None where the largest rank gains nothing.

    It gains nothing where its interval holds the value of rank 0.
    """
    of_rrr = curve.filter(pl.col("series") == "rrr").sort("rank")
    if len(of_rrr) < 2 or of_rrr["rank"][0] != 0:
        return None
    sign = -1 if direction == CLOSENESS else 1
    first, last = of_rrr.row(0, named=True), of_rrr.row(-1, named=True)
    whole = sign * (last["value"] - first["value"])
    near = last["high"] if direction == CLOSENESS else last["low"]
    if whole <= 0 or (near is not None and sign * (near - first["value"]) <= 0):
        return None
    gains = [(r["rank"], sign * (r["value"] - first["value"]) / whole) for r in of_rrr.iter_rows(named=True)]
    return {part: next(rank for rank, gain in gains if gain >= part - 1e-12) for part in parts}


def same_at_all_ranks(rows: pl.DataFrame) -> pl.DataFrame:
    """`name direction unit ranks` where maps of different ranks above 0 did the same on every prompt: the rank was not applied.

    Also where a change has no more directions; so it is said, and left to the reader with `rank_chosen` beside it.
    """
    values = (
        where(rows, measure="rank", metric="kl_own_nats", arm="rrr", strength=None, control=None)
        .filter(pl.col("rank") > 0, pl.col("layer").is_not_null(), pl.col("prompt").is_not_null())
        .with_columns(name=difference.site_name())
    )
    spread = values.group_by("layer", "site", "name", "direction", "unit", "prompt").agg(
        apart=(pl.col("value").max() - pl.col("value").min()), most=pl.col("value").abs().max(), ranks=pl.col("rank").n_unique()
    )
    found = spread.filter(pl.col("ranks") > 1).group_by("layer", "site", "name", "direction", "unit").agg(
        same=(pl.col("apart") <= SAME * pl.col("most")).all(), ranks=pl.col("ranks").max(), moved=(pl.col("most") > 0).any()
    )  # fmt: skip
    found = found.filter("same", "moved").sort("layer", effect_shares.kind_place(), "direction", "unit")
    return found.select("name", "direction", "unit", "ranks")


@once
def by_strength(rows: pl.DataFrame, name: str, direction: str) -> pl.DataFrame:
    """`rank s value` of the arm rrr at one site: every rank at every strength, 1 the full map."""
    values, of = _values(rows, name, direction, pl.col("arm") == "rrr")
    values = values.filter(pl.col("control").is_null() & pl.col("unit").is_null())
    if values["strength"].drop_nulls().is_empty():
        return pl.DataFrame(schema={"rank": pl.Int64, "s": pl.Float64, "value": pl.Float64})
    found, matrix, total = effect_shares.cells(values, of)
    if found.is_empty() or (of is not None and total.mean() <= 0):
        return pl.DataFrame(schema={"rank": pl.Int64, "s": pl.Float64, "value": pl.Float64})
    value = matrix.mean(axis=0) if of is None else 1 - matrix.mean(axis=0) / total.mean()
    table = found.with_columns(s=pl.col("strength").fill_null(1.0), value=pl.Series(value, dtype=pl.Float64))
    return table.select("rank", "s", "value").sort("rank", "s")


def drop_by_strength(summary: pl.DataFrame, name: str) -> pl.DataFrame:
    """`rank s value` at one site: the drop 1 - KL(map of rank k at strength s) / KL(identity at strength s), of the arm rrr."""
    cells = (
        where(summary, measure="rank", direction=CLOSENESS, metric="kl_own_nats", arm="rrr", control=None, unit=None)
        .filter(pl.col("drop").is_not_null(), pl.col("layer").is_not_null())
        .filter(difference.site_name() == name)
    )
    return cells.select("rank", s=pl.col("strength").fill_null(1.0), value="drop").sort("rank", "s")


def fisher_agreement(rows: pl.DataFrame, names: Sequence[str]) -> dict[str, float]:
    """By site: the cosine of the Fisher metrics of two halves of the fit prompts; under `CONVERGED` the Fisher-weighted curve is one of chance."""
    found = where(rows, measure="rank").filter(pl.col("metric") == "fisher_agreement", pl.col("value").is_finite())
    found = found.with_columns(name=difference.site_name()).filter(pl.col("name").is_in(list(names)))
    return dict(found.select("name", "value").iter_rows())


@once
def strongest(rows: pl.DataFrame, summary: pl.DataFrame) -> Seen | None:
    """The rank at the site that sentences on maps speak of, else at patching's strongest output or the first causal curve.

    Never at the last block's output, from which the logits are read, where there is another site.
    """
    names = chosen(summary).filter(pl.col("rank_chosen").is_not_null())["name"].to_list()
    if not names:
        return None
    ranked, _ = patching_findings.ranked_outputs(rows, summary)
    mapped = transport_findings.strongest_site(rows, summary)
    order = [
        *([mapped[0]] if mapped else []),
        *(ranked["name"].to_list() if not ranked.is_empty() else []),
        *curve_sites(rows, summary),
        *names,
    ]
    order = [name for name in order if name in names]
    last = transport_findings.readout_site(rows)
    return seen(rows, summary, next((name for name in order if name != last), order[0]))


@once
def sites_of_curves(rows: pl.DataFrame, summary: pl.DataFrame) -> list[str]:
    """Sites whose R2 curves are drawn: those with causal curves first, then in the order of the ranks found."""
    names = [*curve_sites(rows, summary), *chosen(summary)["name"].to_list()]
    known = (name for name in dict.fromkeys(names) if not r2_curves(rows, summary, name).is_empty())
    return list(islice(known, SITES))


@once
def site_of_strengths(rows: pl.DataFrame, summary: pl.DataFrame) -> str:
    """The first site with several strengths of each rank; empty without one."""
    found = (name for name in curve_sites(rows, summary) if len(by_strength(rows, name, CLOSENESS)))
    return next(found, "")


def _values(rows: pl.DataFrame, name: str, direction: str, where: pl.Expr) -> tuple[pl.DataFrame, pl.DataFrame | None]:
    """Rows of one site and direction, and what shares are of."""
    split = difference.reported(rows, "rank")
    metric = "kl_own_nats" if direction == CLOSENESS else "kl_other_nats"
    values = effect_shares.written(rows, direction, metric, measure="rank", split=split)
    values = values.filter(difference.site_name() == name, pl.col("rank").is_not_null(), where)
    return values, effect_shares.totals(rows, split) if direction == TRANSPORT else None


_CURVE = {"series": pl.String, "rank": pl.Int64, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64, "draws": pl.Int64}
