"""The numbers on maps say how close a mapped activation comes, and what it makes the other model do. Two scores, never mixed.

    closeness, tuned<-base         KL(p_tuned || p_tuned[T(base's state)])     0: the map found the tuned state; KL_raw is the identity arm
    transport proper, base<-base   1 - KL(p_tuned || p_base[T(own state)]) / D   1: the base, mapped, speaks like the tuned model
    removal, tuned<-tuned          1 - KL(p_base || p_tuned[T_back(own state)]) / KL(p_base || p_tuned)

The ceiling of transport is the tuned state itself, written into the base. A map has found something only if it beats the best of the maps that
learn nothing about the single prompt: identity, shift, mean. Intervals are bootstraps of ratios of means over prompts. Sites and arms that
sentences speak of are chosen on `select` where that was run; the last block's output, where everything is carried by construction, is never one of
them.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from mechdiff import labels
from mechdiff.report import difference, spoken
from mechdiff.report.effect_shares import arm_place, cells, kind_place, plain, shares, totals, written
from mechdiff.rows import where
from mechdiff.statistics import floors as statistics_floors
from mechdiff.statistics import intervals
from mechdiff.statistics.memory import once

(CLOSENESS, CEILING), (TRANSPORT, REMOVAL) = labels.CROSSED, labels.WITHIN
TRIVIAL = labels.PATCHES[:3]
"""Arms that learn nothing about the single prompt."""


LEARNED = labels.MAPS
WORTH = 0.05
"""Share of D that the tuned state itself must recover at a site before maps are counted there."""
BREAKS = 0.01
"""Share of D that writing the base's state must break at a site before its maps are ranked, or held against misplaced ones."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A share of D that the base recovers, with its interval."""

    arm: str
    share: float
    low: float | None
    high: float | None


@once
def ceiling(rows: pl.DataFrame, measure: str = "transport") -> pl.DataFrame:
    """`layer site name share low high ...`: what the tuned state itself recovers in the base."""
    return recovered(rows, CEILING, measure=measure).filter(pl.col("arm") == "identity")


@dataclass(frozen=True, kw_only=True)
class Carried:
    """The best learned map at the site that sentences speak of, beside one fixed vector, which needs no map, and the patch itself."""

    name: str
    layer: int
    site: str
    best: Part
    """The learned map."""
    trivial: Part | None
    """The better of shift and mean; None where neither was run."""
    gain: Part | None
    """How much more the map recovers than that, pairwise on the same prompts."""
    gain_p: float | None
    ceiling: Part | None
    """The tuned state itself, written into the base."""
    chosen_on: str
    """The split whose prompts chose the site, the map and the better constant."""
    n: int

    @property
    def arm(self) -> str:
        return self.best.arm


@dataclass(frozen=True, kw_only=True)
class Beaten:
    """At how many sites a learned map does better than the best of what learns nothing: p of all maps at all sites together (max-t)."""

    sites: int
    maps: int
    """Tests: every learned map at every site."""
    better: int
    """Sites where some map's p is at most 5 %."""
    tested: bool
    """Whether so many prompts of this skew have such a test (`spoken.py`)."""
    best: dict | None
    """The map with the largest difference: `name arm gain low high`, as a share of the total; a band over all tests."""


@once
def recovered(
    rows: pl.DataFrame, direction: str = TRANSPORT, *, measure: str = "transport", split: str | None = None, controls: bool = False
) -> pl.DataFrame:
    """Shares recovered by the maps of one direction at full strength (see `shares`), or by their `controls`."""
    split = split or difference.reported(rows, measure)
    values = written(rows, direction, "kl_other_nats", measure=measure, split=split)
    values = values.filter(pl.col("control").is_not_null()) if controls else plain(values)
    return shares(values, totals(rows, split, labels.runner(direction)))


def closeness(rows: pl.DataFrame, *, split: str | None = None) -> pl.DataFrame:
    """One row per site and arm at full strength: `name arm rank kl raw drop low high trivial gain gain_low gain_high counts`.

    `kl` and `raw` (identity) in nats; `drop` = 1 - kl/raw with its interval; `gain` = 1 - kl/kl(trivial) for learned maps, `trivial` being the
    arm of `TRIVIAL` that comes closest at the site. `counts` is False, and no ratio given, where the divisor is not above three noise floors.
    """
    split = split or difference.reported(rows, "transport")
    found, matrix, _ = cells(plain(written(rows, CLOSENESS, "kl_own_nats", measure="transport", split=split)))
    least = least_closeness(rows, split)
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


def least_closeness(rows: pl.DataFrame, split: str | None) -> float:
    """What a KL must be above to be divided by: three noise floors of a split, or the largest of any where it has none of its own."""
    found = statistics_floors.noise_floors(rows).filter(pl.col("runner") == "tuned", pl.col("metric") == "kl_own_nats")
    here = found.filter(pl.col("split").eq_missing(split))
    return statistics_floors.FLOORS * max((here if len(here) else found)["floor"].to_list(), default=0.0)


def worth_mapping(rows: pl.DataFrame, summary: pl.DataFrame) -> list[str]:
    """Sites where writing the base's state breaks at least `BREAKS` of D (at all, where there is no D to share), in network order."""
    found = difference.difference(rows, summary)
    raw = closeness(rows).filter(pl.col("arm") == "identity", pl.col("counts"))
    if not (found and found.divides):
        return raw["name"].to_list()
    split = difference.reported(rows, "transport")
    broken = plain(written(rows, CLOSENESS, statistics_floors.effect_metric(rows, CLOSENESS), measure="transport", split=split)).filter(
        pl.col("arm") == "identity"
    )
    enough = shares(broken, totals(rows, split), recovered=False).filter(pl.col("share") >= BREAKS)["name"].to_list()
    return [name for name in raw["name"].to_list() if name in enough]


def fit_quality(rows: pl.DataFrame, summary: pl.DataFrame, metrics: tuple[str, ...], direction: str = CLOSENESS) -> pl.DataFrame:
    """`name layer site arm rank metric split mean p q flag`: how well maps fit, on the prompts they were fitted on and on the reported ones."""
    found = where(
        summary,
        measure="transport",
        direction=direction,
        metric=list(metrics),
        split=["fit", difference.reported(rows, "transport") or "report"],
    ).filter(pl.col("mean").is_finite(), pl.col("layer").is_not_null())
    found = plain(found).with_columns(name=difference.site_name()).sort("layer", kind_place(), arm_place(), "split")
    return found.select("name", "layer", "site", "arm", "rank", "metric", "split", "mean", "p", "q", "flag")


def n_refits(rows: pl.DataFrame) -> int:
    """The largest number of refits on permuted pairs that a map was held against."""
    draws = where(rows, measure="transport").filter(pl.col("metric") == "r2_change", labels.is_draw("permuted"))
    return 0 if draws.is_empty() else max(draws.group_by("layer", "site", "arm", "direction", "split").len()["len"].to_list())


@once
def readout_site(rows: pl.DataFrame) -> str:
    """The last block's output, from which the logits are read: whatever is written there, all of it passes, of any two models."""
    return f"L{max(rows['layer'].drop_nulls().to_list(), default=0)}.resid_post"


@once
def strongest_site(rows: pl.DataFrame, summary: pl.DataFrame) -> tuple[str, str] | None:
    """The site that sentences on maps speak of, and the split that chose it.

    Where a constant (shift or mean) recovers most on the select prompts; without those, where the tuned state recovers most on the reported ones.
    Never the last block's output, where everything is carried by construction.
    """
    here = recovered(rows).filter(pl.col("arm").is_in(LEARNED))
    names = [name for name in here["name"].unique(maintain_order=True).to_list() if name != readout_site(rows)]
    on = recovered(rows, split="select").filter(pl.col("arm").is_in(TRIVIAL[1:]))
    reported = difference.reported(rows, "transport") or "report"
    for table, split in ((on, "select"), (ceiling(rows), reported), (here, reported)):
        best = table.filter(pl.col("name").is_in(names)).sort("share", descending=True, maintain_order=True)
        if not best.is_empty():
            return best["name"][0], split
    return None


@once
def carried(rows: pl.DataFrame, summary: pl.DataFrame) -> Carried | None:
    """The best learned map and the best constant at that site, chosen on `select` where that was run; None without a share to speak of."""
    site = strongest_site(rows, summary)
    if site is None:
        return None
    split = difference.reported(rows, "transport")
    values = plain(written(rows, TRANSPORT, "kl_other_nats", measure="transport", split=split)).filter(difference.site_name() == site[0])
    found, matrix, total = cells(values, totals(rows, split))
    if found.is_empty() or total.mean() <= 0:
        return None
    effect, arms = total[:, None] - matrix, found["arm"].to_list()
    on = recovered(rows, split="select").filter(pl.col("name") == site[0])
    order = (one.sort("share", descending=True, maintain_order=True)["arm"].to_list() for one in (on, shares(values, totals(rows, split))))
    ranked = [arm for by in order for arm in by if arm in arms]
    learned, simple = (next((arms.index(arm) for arm in ranked if arm in group), None) for group in (LEARNED, TRIVIAL[1:]))
    if learned is None:
        return None

    def part(arm: str, gained: np.ndarray) -> Part:
        share, low, high = (float(ends[0]) for ends in intervals.share_intervals(gained[:, None], total))
        return Part(arm=arm, share=share, low=None if np.isnan(low) else low, high=None if np.isnan(high) else high)

    apart = None if simple is None else effect[:, learned] - effect[:, simple]
    top = ceiling(rows).filter(pl.col("name") == site[0])
    return Carried(
        name=site[0], layer=found["layer"][learned], site=found["site"][learned], best=part(arms[learned], effect[:, learned]), n=len(total),
        trivial=None if simple is None else part(arms[simple], effect[:, simple]),
        gain=None if apart is None else part(arms[learned], apart),
        gain_p=None if apart is None or len(apart) < intervals.FEWEST else spoken.mean_p(rows, apart),
        ceiling=None if top.is_empty() else Part(arm="identity", share=top["share"][0], low=top["low"][0], high=top["high"][0]),
        chosen_on="select" if not on.is_empty() else split or "report",
    )  # fmt: skip


@once
def beaten(rows: pl.DataFrame) -> Beaten | None:
    """Where learned maps recover more than the best of nothing, shift and mean; at sites where the tuned state itself recovers `WORTH` of D.

    None without such arms or shares, or with fewer than `intervals.FEWEST` prompts.
    """
    split = difference.reported(rows, "transport")
    found, matrix, total = cells(plain(written(rows, TRANSPORT, "kl_other_nats", measure="transport", split=split)), totals(rows, split))
    if len(total) < intervals.FEWEST or total.mean() <= 0:
        return None
    top = ceiling(rows)
    worth = found["name"].to_list() if top.is_empty() else top.filter(pl.col("share") >= WORTH)["name"].to_list()
    nothing = dict.fromkeys(worth, total)
    return _better(rows, found.with_row_index("i").filter(pl.col("name").is_in(worth)), matrix, total, TRIVIAL[1:], nothing)


@once
def closer(rows: pl.DataFrame) -> Beaten | None:
    """Where learned maps come closer to the tuned state than the best of identity, shift and mean, as a share of what that leaves."""
    split = difference.reported(rows, "transport")
    found, matrix, _ = cells(plain(written(rows, CLOSENESS, "kl_own_nats", measure="transport", split=split)))
    if len(matrix) < intervals.FEWEST:
        return None
    counts = closeness(rows).filter("counts")["name"].to_list()
    return _better(rows, found.with_row_index("i").filter(pl.col("name").is_in(counts)), matrix, None, TRIVIAL, {})


def _better(
    rows: pl.DataFrame,
    found: pl.DataFrame,
    matrix: np.ndarray,
    total: np.ndarray | None,
    simple: tuple[str, ...],
    nothing: dict[str, np.ndarray],
) -> Beaten | None:
    """Every learned map against the best constant of its site, all tests as one family. Gains are shares of `total`; without, of the constant's nats.

    The constant that does best on these very prompts is taken, which can only hide a gain.
    """
    columns, names, arms, of = [], [], [], []
    for (name,), part in found.group_by("name", maintain_order=True):
        known = [matrix[:, i] for i in part.filter(pl.col("arm").is_in(list(simple)))["i"].to_list()]
        against = min([*known, *([nothing[name]] if name in nothing else [])], key=np.mean, default=None) if known else None
        whole = against if total is None else total
        if against is None or whole is None or not whole.mean():  # where a constant leaves nothing there is no share to gain
            continue
        for i, arm in part.filter(pl.col("arm").is_in(LEARNED)).select("i", "arm").iter_rows():
            columns.append(against - matrix[:, i])
            names.append(name)
            arms.append(arm)
            of.append(whole)
    if not columns:
        return None
    apart, divisor = np.array(columns).T, np.array(of).T.mean(axis=0)
    p, gain = spoken.family_p(rows, apart), apart.mean(axis=0) / divisor
    low, high = intervals.simultaneous_bands((apart - gain * np.array(of).T) / divisor)
    sure, most = (gain > 0) & (p <= 1 - intervals.LEVEL), int(np.argmax(gain))
    best = {
        "name": names[most],
        "arm": arms[most],
        "gain": float(gain[most]),
        "low": float(gain[most] + low[most]),
        "high": float(gain[most] + high[most]),
    }
    return Beaten(
        sites=len(set(names)),
        maps=len(names),
        better=len({names[i] for i in np.flatnonzero(sure)}),
        tested=not np.isnan(p).any(),
        best=best,
    )
