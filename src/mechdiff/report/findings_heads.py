"""What the page says about heads: the causal map of all of them, and the games of sets of heads at the closer layers and across the network.

v of a set, per prompt in nats: kl_own where the tuned model runs (breakage), D - kl_other where the base runs (recovery), both on the tokens of D.
All ratios of v are made in coverage.py. Orders of heads are those of the record, chosen on the select prompts; values are those of the reported ones.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from jaxtyping import Float
from numpy import ndarray

from mechdiff import labels
from mechdiff.report import coverage, findings, findings_transport, intervals, spoken, spread, stability, statistics
from mechdiff.report.coverage import Covered, Whole
from mechdiff.report.findings import BOTH, BREAKAGE, RECOVERY
from mechdiff.report.memory import once
from mechdiff.rows import where
from mechdiff.shares import refuse_two_supports

ORDERS = ("greedy", "single", "attribution")
WORDS = {BREAKAGE: "breakage", RECOVERY: "recovery"}
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

    def value(self, heads: Sequence[int]) -> Float[ndarray, " prompt"] | None:
        """v of a set of one block's heads, where it was run."""
        chosen = sorted(heads)
        if not chosen:
            return np.zeros_like(self.whole.values)
        return self.sets.get(labels.heads_unit(chosen, self.n))


@once
def map_of_heads(rows: pl.DataFrame, summary: pl.DataFrame) -> pl.DataFrame:
    """`direction layer site unit arm share low high nats counts head`: heads, groups, all heads of a layer, MLPs, as shares of D; also by arm.

    `head` is the head's number, null for the others; `counts` is False under three noise floors.
    """
    split = findings.reported(rows, "heads")
    of = findings_transport.totals(rows, split)
    parts = []
    metrics = {direction: statistics.effect_metric(rows, direction) for direction in BOTH}
    for direction, metric in metrics.items():
        values = findings_transport.written(rows, direction, metric, measure="heads", split=split)
        values = where(values, control=None, strength=None, rank=None).filter(~labels.is_several_heads())
        parts.append(findings_transport.shares(values, of, recovered=direction == RECOVERY).with_columns(direction=pl.lit(direction)))
    flags = where(summary, measure="heads", split=split, control=None)
    key = ["direction", "layer", "site", "unit", "arm"]
    quiet = flags.filter(pl.col("flag").fill_null("").str.contains("below_floor"))
    quiet = quiet.filter(pl.col("metric") == pl.col("direction").replace_strict(metrics, default="", return_dtype=pl.String))
    quiet = quiet.select(key).unique().with_columns(counts=pl.lit(False))
    found = pl.concat(parts).join(quiet, on=key, how="left", nulls_equal=True, maintain_order="left")
    return found.with_columns(pl.col("counts").fill_null(True), head=labels.head_number())


def arms_of_all(rows: pl.DataFrame) -> pl.DataFrame:
    """`direction layer site arm strength rank share low high`: all heads of a closer layer by every arm that was run, mapped heads among them.

    `base<-base`: the base writes its own heads as a map of z makes them, a share of D that it recovers.
    """
    split = findings.reported(rows, "heads")
    of = findings_transport.totals(rows, split)
    parts = []
    for direction in (*BOTH, labels.WITHIN[0]):
        values = findings_transport.written(rows, direction, statistics.effect_metric(rows, direction), measure="heads", split=split)
        values = values.filter(pl.col("unit") == labels.ALL, pl.col("control").is_null(), pl.col("arm").is_not_null())
        found = findings_transport.shares(values, of, recovered=direction != BREAKAGE)
        parts.append(found.with_columns(direction=pl.lit(direction)))
    found = pl.concat(parts)
    several = found.filter(pl.col("arm") != "contribution").select("layer").unique()
    return found.join(several, on="layer", how="semi", maintain_order="left")


def groups(found: pl.DataFrame) -> dict[tuple[str, int, int], float]:
    """Of `map_of_heads`, by (direction, layer, group): the share of D that a key-value group's heads have together."""
    named = found.filter(pl.col("arm") == "contribution").select("direction", "layer", "unit", "share").iter_rows()
    return {(d, layer, group): one for d, layer, unit, one in named if (group := labels.group_of(unit)) is not None}


def closer_layers(manifest: Mapping) -> list[int]:
    return list((manifest.get("heads") or {}).get("closer_layers") or [])


def strongest_layer(rows: pl.DataFrame, layers: Sequence[int]) -> tuple[int, str | None]:
    """The layer whose heads break most together, and the split that says so: `select` where that was run."""
    whole = _of_layers(rows, layers)
    split = next(one for one in ("select", findings.reported(rows, "heads")) if one is None or one in whole["split"])
    means = whole.filter(pl.col("split").eq_missing(split)).group_by("layer").agg(pl.col("value").mean())
    return int(means.sort("value", "layer", descending=[True, False])["layer"][0]), split


def _of_layers(rows: pl.DataFrame, layers: Sequence[int]) -> pl.DataFrame:
    """What all heads of each layer break together, per prompt."""
    metric = statistics.effect_metric(rows, BREAKAGE)
    return where(
        rows, measure="heads", direction=BREAKAGE, metric=metric, unit=labels.ALL, arm="contribution", control=None, layer=list(layers)
    )


@once
def game(
    rows: pl.DataFrame,
    summary: pl.DataFrame,
    direction: str,
    layer: int | None,
    *,
    site: str | None = "attn_proj",
    split: str | None = None,
) -> Game | None:
    """The sets that were run at one layer, or across the network (layer None; site None: with MLPs among the players); None without.

    On the reported split, unless another is named: on `select` those that were run to choose.
    """
    split, metric = split or findings.reported(rows, "heads"), statistics.effect_metric(rows, direction)
    where = [
        pl.col("measure") == "heads",
        pl.col("direction") == direction,
        pl.col("split").eq_missing(split),
        pl.col("arm") == "contribution",
    ]
    where += [pl.col("layer").eq_missing(pl.lit(layer, dtype=pl.Int64)), pl.col("site").eq_missing(pl.lit(site, dtype=pl.String))]
    values = rows.filter(*where, pl.col("metric") == metric, pl.col("prompt").is_not_null(), pl.col("strength").is_null())
    d = findings_transport.totals(rows, split)
    refuse_two_supports([metric], d["of"].unique())
    values = values.join(d, on="prompt").with_columns(v=pl.col("value") if direction == BREAKAGE else pl.col("total") - pl.col("value"))
    plain = values.filter(pl.col("control").is_null())
    if plain.filter(pl.col("unit") == labels.ALL).is_empty():
        return None
    sets = {str(unit): np.array(v) for unit, v in _together(plain, "unit")}
    draws: dict[int, list[ndarray]] = {}
    for rank, _, v in _together(values.filter(labels.is_draw("random_set")), "rank", "control"):
        draws.setdefault(rank, []).append(np.array(v))
    cell = summary.filter(*where, pl.col("unit") == labels.ALL, pl.col("metric") == metric, pl.col("control").is_null())
    floor = cell["floor"].fill_null(0.0).to_list()
    whole = Whole(values=sets[labels.ALL], floor=float(floor[0]) if floor else 0.0)
    n = sum(labels.head_of(name) is not None for name in sets) if layer is not None else 0
    return Game(direction=direction, layer=layer, n=n, whole=whole, sets=sets, drawn={k: np.column_stack(v) for k, v in draws.items()})


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
    reported = findings.reported(rows, "heads")
    there = None if reported == "select" else game(rows, summary, one.direction, one.layer, split="select")
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


def of_d(rows: pl.DataFrame, summary: pl.DataFrame, one: Game) -> tuple[float, float | None, float | None] | None:
    """The share of D that all heads of a game's layer have together, and the ends of its interval; None where D has no share."""
    found = where(map_of_heads(rows, summary), direction=one.direction, unit=labels.ALL, arm="contribution").filter(
        pl.col("layer") == one.layer
    )
    return None if found.is_empty() else found.select("share", "low", "high").row(0)


def steadiness(rows: pl.DataFrame, layers: Sequence[int]) -> str:
    """How often two halves of the prompts that chose the strongest layer choose the same, in words."""
    _, split = strongest_layer(rows, layers)
    whole = _of_layers(rows, layers).filter(pl.col("split").eq_missing(split))
    return stability.said(statistics.prompt_matrix(whole, by="layer")[2])


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
    fisher: Float[ndarray, " head"]
    """Fisher-projected coverage; NaN where all heads together move nothing."""
    effective: tuple[float, float, float]
    """Number of heads that share the effect, and its interval."""
    silent: str
    """Why no sentence may be made of that number; empty where one may."""
    null: tuple[float, float, int] | None
    """The same of random edits of this size: least, greatest, how many."""

    @property
    def fisher_sum(self) -> float:
        return float(self.fisher.sum())


@once
def head_shares(rows: pl.DataFrame, one: Game) -> Shares | None:
    """None where Shapley values were not computed."""
    here = where(
        rows,
        measure="heads",
        direction=one.direction,
        control=None,
        split=findings.reported(rows, "heads"),
        arm="contribution",
        site="attn_proj",
    ).filter(pl.col("layer") == one.layer)
    phi = _by_head(here.filter(pl.col("metric") == "shapley_nats"), one.n)
    if phi is None:
        return None
    projected = here.filter(pl.col("metric") == "fisher_nats")
    of_heads, of_all = _by_head(projected, one.n), projected.filter(pl.col("unit") == labels.ALL)["value"].to_numpy()
    enough = of_heads is not None and len(of_all) and of_all.mean() > coverage.FLOORS * one.whole.floor and of_all.mean() > 0
    fisher = of_heads.mean(0) / of_all.mean() if enough and of_heads is not None else np.full(one.n, np.nan)
    amount = spread.number_of_parts(phi, [str(i) for i in range(len(phi))])
    return Shares(
        shapley=coverage.coverage(phi, one.whole),
        fisher=fisher,
        effective=(amount.value, amount.low, amount.high) if one.whole.counts else (float("nan"),) * 3,
        silent=spread.silence(phi, skew=spoken.skew(rows)) if one.whole.counts else "all heads together have no effect",
        null=_null(rows, one),
    )


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


def _null(rows: pl.DataFrame, one: Game) -> tuple[float, float, int] | None:
    """The effective number of heads of random edits, by the two-point formula."""
    drawn = where(rows, measure="heads", direction=one.direction, metric=statistics.effect_metric(rows, one.direction)).filter(
        pl.col("layer") == one.layer, labels.is_draw("random_vector")
    )
    numbers = []
    for _, part in drawn.group_by("control", maintain_order=True):
        wide = part.sort("prompt").pivot(on="unit", index="prompt", values="value")
        rest = [[other for other in range(one.n) if other != head] for head in range(one.n)]
        names = [labels.heads_unit(others, one.n) for others in rest]
        alone = wide.select([labels.head_unit(head) for head in range(one.n)]).to_numpy()
        phi = coverage.two_point(alone, wide.select([pl.col(name).alias(f"without {i}") for i, name in enumerate(names)]).to_numpy(),
                                 wide[labels.ALL].to_numpy())  # fmt: skip
        numbers.append(spread.number_of_parts(phi, wide["prompt"].to_list()).value)
    return (min(numbers), max(numbers), len(numbers)) if numbers else None


def interactions(one: Game, top: Sequence[int]) -> pl.DataFrame:
    """`i j value low high alone`: v(ij) - v(i) - v(j) as a share of v(all), the largest first; negative: either will do. `alone`: v(i) + v(j)."""
    lines = []
    for place, j in enumerate(top):
        for i in top[:place]:
            both, first, second = one.value([i, j]), one.value([i]), one.value([j])
            if both is not None and first is not None and second is not None and one.whole.counts:
                share, low, high = intervals.share_intervals((both - first - second)[:, None], one.whole.values)
                alone = float((first + second).mean() / one.whole.mean)
                lines.append({"i": min(i, j), "j": max(i, j), "value": share[0], "low": low[0], "high": high[0], "alone": alone})
    schema = {"i": pl.Int64, "j": pl.Int64, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64, "alone": pl.Float64}
    table = pl.DataFrame(lines, schema=schema).with_columns(pl.col("low", "high").fill_nan(None))
    return table.sort(pl.col("value").abs(), descending=True, maintain_order=True)


def attention_js(summary: pl.DataFrame) -> dict[str, float]:
    """The mean JS of the two models' attention, by the head's name."""
    found = summary.filter(pl.col("metric") == "attention_js_nats", pl.col("measure") == "heads")
    return {f"L{layer}.{unit}": mean for layer, unit, mean in found.select("layer", "unit", "mean").iter_rows()}


def strongest(found: pl.DataFrame, n: int) -> pl.DataFrame:
    """`name layer head breakage recovery ...`: the heads with the largest effect in either direction, the largest first; none under the floor."""
    heads = found.filter(pl.col("head").is_not_null(), pl.col("arm") == "contribution")
    heads = heads.filter(pl.col("counts").any().over("layer", "head"))
    sides = []
    for direction, word in WORDS.items():
        side = heads.filter(pl.col("direction") == direction)
        sides.append(
            side.select("layer", "head", *(pl.col(a).alias(f"{word}{b}") for a, b in (("share", ""), ("low", "_low"), ("high", "_high"))))
        )
    both = sides[0].join(sides[1], on=["layer", "head"], how="full", coalesce=True)
    largest = pl.max_horizontal(pl.col("breakage").abs(), pl.col("recovery").abs())
    both = both.with_columns(name=pl.format("L{}.head {}", "layer", "head"), largest=largest)
    return both.sort("largest", "layer", "head", descending=[True, False, False]).head(n)


def alone(one: Game, head: int) -> float:
    """v(h) / v(all) of one head."""
    values = one.value([head])
    return float(coverage.coverage(values[:, None], one.whole).share[0]) if values is not None else float("nan")
