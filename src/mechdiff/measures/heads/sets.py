"""How much do the first k heads of an order break or recover?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from jaxtyping import Float
from numpy import ndarray

from mechdiff import labels
from mechdiff.measures.heads import coverage
from mechdiff.measures.heads.coverage import Covered, Whole
from mechdiff.report import difference, effect_shares, spoken
from mechdiff.report.difference import BREAKAGE
from mechdiff.rows import OVERLAP, where
from mechdiff.shares import refuse_two_supports
from mechdiff.statistics import floors, intervals, spread
from mechdiff.statistics.memory import once

ORDERS = ("greedy", "single", "attribution")


ORDER_WORDS = {"greedy": "greedy order", "single": "by single effect", "attribution": "by attribution"}


@dataclass(frozen=True, kw_only=True)
class Game:
    """The sets of one block's heads (or of the network's) that were run in one direction."""

    direction: str
    layer: int | None
    n: int
    """Players."""
    whole: Whole
    sets: Mapping[str, Float[ndarray, " prompt"]] = field(repr=False)
    """v by the rows' unit."""
    drawn: Mapping[int, Float[ndarray, "prompt draw"]] = field(repr=False)
    """v of random sets, by size."""
    in_logits: bool = False
    """Whether v is how far the logits are moved, in a currency that adds; else nats of KL, which bend."""

    def value(self, heads: Sequence[int]) -> Float[ndarray, " prompt"] | None:
        """v of a set of one block's heads, where it was run."""
        chosen = sorted(heads)
        if not chosen:
            return np.zeros_like(self.whole.values)
        return self.sets.get(labels.heads_unit(chosen, self.n))


def way_metric(direction: str, layer: int | None) -> str:
    """The metric of sets of heads in a currency that adds."""
    return OVERLAP if layer is None or direction != BREAKAGE else "fisher_nats"


@once
def game(
    rows: pl.DataFrame,
    summary: pl.DataFrame,
    direction: str,
    layer: int | None,
    *,
    site: str | None = "attn_proj",
    split: str | None = None,
    added: bool = False,
) -> Game | None:
    """The sets that were run at one layer, or across the network (layer None; site None: with MLPs among the players); None without.

    On the reported split, unless another is named: on `select` those that were run to choose. `added`: in the currency that adds, of one layer how
    far each set moves the tuned model's logits the way that all its heads do (`fisher_nats`); of the base, and of the network, how far the way to the
    other model's (overlap).
    """
    split, metric = split or difference.reported(rows, "heads"), floors.effect_metric(rows, direction)
    place = [pl.col("direction") == direction, pl.col("arm") == "contribution"]
    place += [pl.col("layer").eq_missing(pl.lit(layer, dtype=pl.Int64)), pl.col("site").eq_missing(pl.lit(site, dtype=pl.String))]
    every = where(rows, measure="heads").filter(*place, pl.col("prompt").is_not_null(), pl.col("strength").is_null())
    here = [*place, pl.col("split").eq_missing(split)]
    kept = every.filter(here[-1])
    if added:
        values = kept.filter(pl.col("metric") == way_metric(direction, layer)).with_columns(v=pl.col("value"))
    else:
        d = effect_shares.totals(rows, split)
        refuse_two_supports([metric], d["of"].unique())
        values = kept.filter(pl.col("metric") == metric).join(d, on="prompt")
        values = values.with_columns(v=pl.col("value") if direction == BREAKAGE else pl.col("total") - pl.col("value"))
    plain = values.filter(pl.col("control").is_null())
    if plain.filter(pl.col("unit") == labels.ALL).is_empty():
        return None
    sets = {str(unit): np.array(v) for unit, v in _together(plain, "unit")}
    draws: dict[int, list[ndarray]] = {}
    for rank, _, v in _together(values.filter(labels.is_draw("random_set")), "rank", "control"):
        draws.setdefault(rank, []).append(np.array(v))
    cell = where(summary, measure="heads").filter(
        *here, pl.col("unit") == labels.ALL, pl.col("metric") == metric, pl.col("control").is_null()
    )
    floor = cell["floor"].fill_null(0.0).to_list()
    whole = Whole(values=sets[labels.ALL], floor=float(floor[0]) if floor else 0.0)
    # of all splits and metrics: on select single heads are run by KL alone, and in the currency that adds only the first 1, 2, ... of an order
    n = every.filter(labels.is_head())["unit"].n_unique() if layer is not None else 0
    drawn = {k: np.column_stack(v) for k, v in draws.items()}
    return Game(direction=direction, layer=layer, n=n, whole=whole, sets=sets, drawn=drawn, in_logits=added)


def spoken_of(
    rows: pl.DataFrame, summary: pl.DataFrame, direction: str, layer: int | None, *, site: str | None = "attn_proj"
) -> Game | None:
    """The same in the currency that adds; where that was not measured, in KL."""
    one = game(rows, summary, direction, layer, site=site, added=True)
    return one or game(rows, summary, direction, layer, site=site)


def _together(values: pl.DataFrame, *by: str) -> Iterator[tuple]:
    """For each group its names and v by prompt, in the order of the prompts' names: every set was run on the same ones."""
    return values.sort(*by, "prompt").group_by(by, maintain_order=True).agg("v").iter_rows()


def curve(one: Game, order: Sequence[int]) -> pl.DataFrame:
    """`k share low high necessity`: coverage by the first k heads of an order of one block's heads, and 1 - coverage without them."""
    prefixes = [list(order[:k]) if k < one.n else list(range(one.n)) for k in range(1, one.n + 1)]
    known = {k: values for k, chosen in enumerate(prefixes, start=1) if len(chosen) == k and (values := one.value(chosen)) is not None}
    without = {k: one.value([head for head in range(one.n) if head not in prefixes[k - 1]]) for k in known}
    needed = {k: values for k, values in without.items() if values is not None}
    necessity = dict(zip(needed, coverage.necessity(_side_by_side(one, needed), one.whole).share.tolist(), strict=True))
    return _points(one, known).with_columns(necessity=pl.Series([necessity.get(k) for k in known], dtype=pl.Float64))


def _points(one: Game, known: Mapping[int, Float[ndarray, " prompt"]]) -> pl.DataFrame:
    """`k share low high`: coverage by the set of each size."""
    found = coverage.coverage(_side_by_side(one, known), one.whole)
    table = pl.DataFrame({"k": pl.Series(list(known), dtype=pl.Int64), "share": found.share, "low": found.low, "high": found.high})
    return table.with_columns(pl.col("low", "high").fill_nan(None))


def _side_by_side(one: Game, sets: Mapping[int, Float[ndarray, " prompt"]]) -> Float[ndarray, "prompt set"]:
    return np.column_stack(list(sets.values())) if sets else np.zeros((len(one.whole.values), 0))


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """The first heads of the greedy order that have half of what all heads of a layer have."""

    heads: list[int]
    share: float
    low: float | None
    high: float | None
    """Of v(all), on the reported prompts."""
    chosen_on: str | None
    """The split that chose how many; None: the reported prompts themselves."""


def half(rows: pl.DataFrame, summary: pl.DataFrame, one: Game, order: Sequence[int], threshold: float = 0.5) -> Prefix | None:
    """How many heads are named is decided on `select` where their sets were run there; None where the order ends before half."""
    reported = difference.reported(rows, "heads")
    there = None if reported == "select" else game(rows, summary, one.direction, one.layer, split="select", added=one.in_logits)
    sizes = range(1, min(len(order), one.n - 1) + 1)
    if there is not None and there.whole.mean > 0 and all(there.value(order[:k]) is not None for k in sizes):
        share = [float(values.mean()) / there.whole.mean for k in sizes if (values := there.value(order[:k])) is not None]
        k, chosen_on = coverage.first_to(np.array(share), list(sizes), threshold), "select"
    else:
        found = curve(one, order)
        k, chosen_on = coverage.first_to(found["share"].to_numpy(), found["k"].to_list(), threshold), None
    if k is None or k > len(order):  # all heads always reach it, and were not picked
        return None
    at = curve(one, order).filter(pl.col("k") == k)
    if at.is_empty():
        return None
    return Prefix(heads=list(order[:k]), share=at["share"][0], low=at["low"][0], high=at["high"][0], chosen_on=chosen_on)


@once
def band(one: Game) -> pl.DataFrame:
    """`k mean low high draws`: coverage by random sets of k players: mean and the middle 95 % over the sets."""
    lines = []
    for k, values in sorted(one.drawn.items()):
        share = coverage.coverage(values, one.whole).share
        low, high = np.quantile(share, [0.025, 0.975]) if np.isfinite(share).all() else (np.nan, np.nan)
        lines.append({"k": k, "mean": float(share.mean()), "low": float(low), "high": float(high), "draws": len(share)})
    return pl.DataFrame(lines, schema={"k": pl.Int64, "mean": pl.Float64, "low": pl.Float64, "high": pl.Float64, "draws": pl.Int64})


def network_curve(one: Game, order: Sequence[str]) -> pl.DataFrame:
    """`k share low high`: coverage by the first k players of an order of the network's, where that set was run."""
    by_set = {frozenset(labels.set_of(name)): values for name, values in one.sets.items()}
    sets = {k: by_set.get(frozenset(order[:k])) if k < len(order) else one.whole.values for k in range(1, len(order) + 1)}
    return _points(one, {k: values for k, values in sets.items() if values is not None})


def orders(manifest: Mapping, direction: str, layer: int) -> dict[str, list[int]]:
    """By way of ordering, the heads of one layer, the first first."""
    said = manifest.get("heads") or {}
    found = {way: ((said.get(way) or {}).get(direction) or {}).get(str(layer)) or [] for way in ORDERS}
    return {way: list(order) for way, order in found.items() if order}


def network_orders(manifest: Mapping, direction: str, *, only_heads: bool) -> dict[str, list[str]]:
    """By way of ordering, the names of the network's players."""
    said = ((manifest.get("heads") or {}).get("orders") or {}).get(direction) or {}
    return {way: [name for name in names if not (only_heads and labels.player_of(name)[1] is None)] for way, names in said.items() if names}


# ---- single heads at the closer layers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What each head of one layer is given of the whole."""

    shapley: Covered
    """Shapley values as shares of v(all)."""
    fisher: Covered
    """Fisher-projected coverage, which adds; NaN where all heads together move nothing."""
    effective: tuple[float, float, float]
    """Number of heads that share the effect, and its interval: by shares that add, or where these were not measured by Shapley values of KL."""
    by_kl: tuple[float, float, float]
    """The same by Shapley values of KL."""
    in_logits: bool
    silent: str
    """Why no sentence may be made of that number; empty where one may."""
    null: tuple[float, float, int] | None
    """The same of random edits of this size: least, greatest, how many."""

    @property
    def fisher_sum(self) -> float:
        return float(self.fisher.share.sum())


@once
def projected(rows: pl.DataFrame, one: Game) -> Game | None:
    """The same sets in a currency that adds (see `game`); None without."""
    here = where(rows, measure="heads", direction=one.direction, control=None, split=difference.reported(rows, "heads"), arm="contribution",
                 site="attn_proj", metric=way_metric(one.direction, one.layer), strength=None).filter(pl.col("layer") == one.layer)  # fmt: skip
    sets = {str(unit): np.array(v) for unit, v in _together(here.with_columns(v=pl.col("value")), "unit")}
    if labels.ALL not in sets:
        return None
    whole = Whole(values=sets[labels.ALL], floor=one.whole.floor)
    return Game(direction=one.direction, layer=one.layer, n=one.n, whole=whole, sets=sets, drawn={}, in_logits=True)


@once
def head_shares(rows: pl.DataFrame, one: Game) -> Shares | None:
    """None where Shapley values were not computed."""
    here = where(
        rows,
        measure="heads",
        direction=one.direction,
        control=None,
        split=difference.reported(rows, "heads"),
        arm="contribution",
        site="attn_proj",
    ).filter(pl.col("layer") == one.layer)
    phi = _by_head(here.filter(pl.col("metric") == "shapley_nats"), one.n)
    if phi is None:
        return None
    ways, moved = (
        projected(rows, one),
        _by_head(here.filter(pl.col("metric") == way_metric(one.direction, one.layer), pl.col("strength").is_null()), one.n),
    )
    nothing = np.full(one.n, np.nan)
    fisher = coverage.coverage(moved, ways.whole) if ways and moved is not None else Covered(share=nothing, low=nothing, high=nothing)
    in_logits = moved is not None
    parts = phi if moved is None else moved
    return Shares(
        shapley=coverage.coverage(phi, one.whole),
        fisher=fisher,
        effective=_number(parts) if one.whole.counts else (float("nan"),) * 3,
        by_kl=_number(phi) if one.whole.counts else (float("nan"),) * 3,
        in_logits=in_logits,
        silent=spread.silence(parts, skew=spoken.skew(rows)) if one.whole.counts else "all heads together have no effect",
        null=_null(rows, one, added=in_logits),
    )


def _number(parts: Float[ndarray, "prompt head"]) -> tuple[float, float, float]:
    amount = spread.number_of_parts(parts, [str(i) for i in range(len(parts))])
    return amount.value, amount.low, amount.high


def needed(one: Game) -> Covered | None:
    """Necessity of each head of one layer: how far the effect of all falls without it; None where that was not run."""
    without = [one.value([other for other in range(one.n) if other != head]) for head in range(one.n)]
    known = [values for values in without if values is not None]
    return coverage.necessity(np.column_stack(known), one.whole) if known and len(known) == one.n else None


def _by_head(rows: pl.DataFrame, n: int) -> Float[ndarray, "prompt head"] | None:
    heads = rows.filter(labels.is_head())
    if heads.is_empty():
        return None
    wide = heads.sort("prompt").pivot(on="unit", index="prompt", values="value")
    return wide.select([labels.head_unit(head) for head in range(n)]).to_numpy()


def _null(rows: pl.DataFrame, one: Game, *, added: bool) -> tuple[float, float, int] | None:
    """The effective number of heads of random edits: by shares that add, or by the two-point formula of KL."""
    metric = way_metric(one.direction, one.layer) if added else floors.effect_metric(rows, one.direction)
    drawn = where(rows, measure="heads", direction=one.direction, metric=metric).filter(
        pl.col("layer") == one.layer, labels.is_draw("random_vector")
    )
    numbers = []
    for _, part in drawn.group_by("control", maintain_order=True):
        wide = part.sort("prompt").pivot(on="unit", index="prompt", values="value")
        parts = wide.select([labels.head_unit(head) for head in range(one.n)]).to_numpy()
        if not added:
            rest = [[other for other in range(one.n) if other != head] for head in range(one.n)]
            without = wide.select([pl.col(labels.heads_unit(others, one.n)).alias(f"without {i}") for i, others in enumerate(rest)])
            parts = coverage.two_point(parts, without.to_numpy(), wide[labels.ALL].to_numpy())
        numbers.append(spread.number_of_parts(parts, wide["prompt"].to_list()).value)
    return (min(numbers), max(numbers), len(numbers)) if numbers else None


def interactions(one: Game, top: Sequence[int]) -> pl.DataFrame:
    """`i j value low high v_i v_j`: v(ij) - v(i) - v(j) as a share of v(all), the largest first; `v_i`, `v_j`: the share of each alone."""
    lines = []
    for place, j in enumerate(top):
        for i, k in (sorted((other, j)) for other in top[:place]):
            both, first, second = one.value([i, k]), one.value([i]), one.value([k])
            if both is not None and first is not None and second is not None and one.whole.counts:
                share, low, high = intervals.share_intervals((both - first - second)[:, None], one.whole.values)
                alone = {name: float(v.mean() / one.whole.mean) for name, v in (("v_i", first), ("v_j", second))}
                lines.append({"i": i, "j": k, "value": share[0], "low": low[0], "high": high[0], **alone})
    schema = dict.fromkeys(("i", "j"), pl.Int64) | dict.fromkeys(("value", "low", "high", "v_i", "v_j"), pl.Float64)
    table = pl.DataFrame(lines, schema=schema).with_columns(pl.col("low", "high").fill_nan(None))
    return table.sort(pl.col("value").abs(), descending=True, maintain_order=True)


def both_interactions(rows: pl.DataFrame, one: Game, top: Sequence[int]) -> pl.DataFrame:
    """`interactions` in the currency that adds, the largest first, with `kl kl_low kl_high kl_i kl_j`, those of KL, beside.

    A divergence grows as the square of what is done, so of two heads that add in the logits it says that they need each other.
    """
    ways = projected(rows, one)
    of_kl = interactions(one, top).rename({"value": "kl", "low": "kl_low", "high": "kl_high", "v_i": "kl_i", "v_j": "kl_j"})
    added = interactions(ways, top) if ways is not None else interactions(one, top).clear()
    both = of_kl.join(added, on=["i", "j"], how="left", maintain_order="left")
    return both.sort(pl.col("value").abs(), descending=True, nulls_last=True, maintain_order=True)


def alone(one: Game, head: int) -> float:
    """v(h) / v(all) of one head."""
    values = one.value([head])
    return float(coverage.coverage(values[:, None], one.whole).share[0]) if values is not None else float("nan")
