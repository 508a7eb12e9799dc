"""The numbers on grafts say how much of D the tuned weights of some modules recover when they are put into the base.

v(S) is KL(p_tuned || p_{base + dW_S}) in nats; the recovered share is 1 - v(S) / v(nothing), a ratio of means over the same prompts.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from mechdiff import labels
from mechdiff.report import difference, effect_shares
from mechdiff.rows import OVERLAP, where
from mechdiff.shares import ANSWER, OTHER, over
from mechdiff.statistics import floors, intervals, stability, summary
from mechdiff.statistics.memory import once

KINDS = ("attn", "mlp", "norm")
ORDER = {"embed": (-1, 0), "final_norm": (10**6, 0), "head": (10**6, 1)}
WANTED = 0.9
"""The share that a small set is asked for."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Did the two ends of the lattice hold?"""

    none_from_d: float | None
    """Largest distance of v(nothing) from D over the prompts, in nats; None where D was not measured."""
    largest_all: float | None
    """Largest v(everything) over the prompts, in nats."""


def module_name() -> pl.Expr:
    """ "L3.attn", "embed"."""
    return pl.when(pl.col("layer").is_null()).then(pl.col("site")).otherwise(pl.format("L{}.{}", "layer", "site"))


def place(layer: int | None, site: str) -> tuple[int, int]:
    """Where a module stands in the network, for sorting."""
    return ORDER.get(site, (layer if layer is not None else -2, KINDS.index(site) if site in KINDS else len(KINDS)))


@once
def shares(rows: pl.DataFrame, arm: str, *, split: str | None = None, what: str | None = None) -> pl.DataFrame:
    """`name layer site unit rank share low high nats`: recovered shares of an arm's sets, in network order.

    Empty where the arm was not run or D is not above 0. `nats` is what is recovered. `what`: at the next token, or over answers (of `shares.OVER`).
    """
    split = split or difference.reported(rows, "grafting")
    metric = over(OTHER, what) if what else OTHER
    values = scores(rows, split, metric).filter(pl.col("arm") == arm)
    total = _nothing(rows, split, metric)
    key = ["layer", "site", "unit", "rank"]
    cells = values.select(key).unique().sort(key, nulls_last=True).with_row_index("cell")
    coded = values.join(cells, on=key, nulls_equal=True).join(total, on="prompt")
    wide = coded.sort("cell", "prompt").pivot(on="cell", index=["prompt", "total"], values="value").drop_nulls().sort("prompt")
    d = wide["total"].to_numpy()
    if not len(wide) or not np.isfinite(d).all() or d.mean() <= 0:
        return pl.DataFrame(schema=_SCHEMA)
    v = wide.drop("prompt", "total").to_numpy()
    share, low, high = intervals.share_intervals(d[:, None] - v, d)
    numbers = {"share": share, "low": low, "high": high, "nats": (d[:, None] - v).mean(axis=0)}
    found = cells.with_columns(pl.Series(name, column) for name, column in numbers.items()).with_columns(
        name=module_name(), n=pl.lit(len(d))
    )
    found = found.with_columns(pl.col("low", "high").fill_nan(None))
    order = [(*place(row["layer"], row["site"] or ""), row["rank"] or 0) for row in found.iter_rows(named=True)]
    found = found.with_columns(order=pl.Series(order, dtype=pl.List(pl.Int64)))
    return found.sort("order", "unit").select(pl.col(name).cast(kind) for name, kind in _SCHEMA.items())


@once
def ranked(rows: pl.DataFrame) -> tuple[pl.DataFrame, str | None]:
    """Modules alone, the one that recovers most first, and the split that ranked them: `select` where it was run there."""
    available = difference.splits(rows, "grafting")
    alone = shares(rows, "alone")
    if alone.is_empty():
        return alone, None
    ranking = next((split for split in ("select", *available) if not shares(rows, "alone", split=split).is_empty()), available[0])
    by = shares(rows, "alone", split=ranking).select("name", by="share")
    joined = alone.join(by, on="name", how="left", maintain_order="left").sort("by", descending=True, nulls_last=True, maintain_order=True)
    return joined.drop("by"), ranking


@once
def greedy(rows: pl.DataFrame) -> pl.DataFrame:
    """`rank unit added share low high`: the greedy sets by size, and the module that each adds."""
    found = shares(rows, "greedy").sort("rank")
    sets = [labels.set_of(unit) for unit in found["unit"].to_list()]
    before = [[], *sets[:-1]]
    added = [labels.set_unit(name for name in now if name not in then) for now, then in zip(sets, before, strict=True)] if sets else []
    return found.with_columns(added=pl.Series(added, dtype=pl.String))


@dataclass(frozen=True, kw_only=True)
class Needed:
    """The greedy set that is spoken of."""

    row: dict
    """Its line of `greedy`, of the reported prompts."""
    enough: bool
    """Whether it is the smallest that recovered WANTED of D on the prompts that chose its size; else it is the largest that was tried."""
    chosen_on: str | None
    at_budget: bool
    """Whether the search stopped there with modules left to add."""


def needed(rows: pl.DataFrame, wanted: float = WANTED) -> Needed | None:
    """The set whose size the select prompts chose (the reported ones, where the sets were not run there), as it does on the reported ones."""
    sets = greedy(rows)
    if sets.is_empty():
        return None
    on = next(
        (split for split in ("select", *difference.splits(rows, "grafting")) if not shares(rows, "greedy", split=split).is_empty()), None
    )
    chooser = shares(rows, "greedy", split=on).sort("rank")
    sizes = chooser.filter(pl.col("share") >= wanted)["rank"].to_list()
    size = sizes[0] if sizes else sets["rank"][-1]
    row = sets.filter(pl.col("rank") == size).row(0, named=True)
    return Needed(row=row, enough=bool(sizes), chosen_on=on, at_budget=not sizes and size < len(shares(rows, "alone")))


def steadiness(rows: pl.DataFrame, split: str | None) -> str:
    """How often two halves of the prompts that chose the strongest module choose the same, in words."""
    alone = scores(rows, split).filter(pl.col("arm") == "alone").with_columns(name=module_name())
    prompts, _, v = summary.prompt_matrix(alone, by="name")
    return stability.said(-v) if prompts else ""


def truncated(rows: pl.DataFrame, most: int = 5) -> pl.DataFrame:
    """`name rank share low high` by rank: all changed modules together first, then the `most` that recover most at full rank."""
    found = shares(rows, "truncate").with_columns(
        name=pl.when(pl.col("unit") == "all").then(pl.lit("all modules")).otherwise("name"), first=pl.col("unit").eq_missing("all")
    )
    if found.is_empty():
        return found
    best = found.group_by("name").agg(pl.col("first").first(), best=pl.col("share").sort_by("rank").last())
    best = best.sort(["first", "best", "name"], descending=[True, True, False]).head(most + 1).with_row_index("place")
    return found.join(best.select("name", "place"), on="name").sort("place", "rank")


def checked(rows: pl.DataFrame) -> Checked:
    """How far v(nothing) lies from D and v(everything) from 0, at most."""
    split = difference.reported(rows, "grafting")
    of_split = scores(rows, split)
    none = of_split.filter(pl.col("arm") == "none").select("prompt", "value")
    d = where(rows, measure="divergence", metric=floors.d_metric(rows), split=split, unit=None, control=None)
    away = none.join(d.select("prompt", d="value"), on="prompt").select((pl.col("value") - pl.col("d")).abs()).to_series()
    every = of_split.filter(pl.col("arm") == "all")["value"]
    largest = [float(found.to_numpy().max()) if len(found) else None for found in (away, every)]
    return Checked(none_from_d=largest[0], largest_all=largest[1])


@once
def first_and_answer(rows: pl.DataFrame) -> pl.DataFrame:
    """`name first answer low high additive n`: what each module alone recovers at the next token and over answers, on the same prompts."""
    answer = shares(rows, "alone", what=ANSWER)
    if answer.is_empty():
        return pl.DataFrame()
    split = difference.reported(rows, "grafting")
    answered = scores(rows, split, over(OTHER, ANSWER)).select("prompt").unique()
    first = shares(rows.join(answered, on="prompt"), "alone", split=split).select("name", first="share")
    overlaps = scores(rows, split, over(OVERLAP, ANSWER)).filter(pl.col("arm") == "alone").with_columns(name=module_name())
    joined = answer.select("name", "low", "high", "n", answer="share").join(first, on="name", how="left")
    joined = joined.join(effect_shares.additive(rows, overlaps, ANSWER).select("name", "additive"), on="name", how="left")
    return joined.sort("answer", "name", descending=[True, False])


INTO_BASE = {labels.CROSSED[1]: "tuned weights into base"}
"""The one way in which weights are copied, in words."""


def over_answers(rows: pl.DataFrame, direction: str, metric: str, what: str | None) -> pl.DataFrame:
    """Rows of each module alone by a metric over answers, with its `name`."""
    return scores(rows, difference.reported(rows, "grafting"), metric).filter(pl.col("arm") == "alone").with_columns(name=module_name())


@once
def way(rows: pl.DataFrame) -> pl.DataFrame:
    """`name additive additive_low additive_high`: the part of the way to the tuned logits that each module's weights alone move the base."""
    alone = scores(rows, difference.reported(rows, "grafting"), OVERLAP).filter(pl.col("arm") == "alone")
    return effect_shares.additive(rows, alone.with_columns(name=module_name()))


def on_the_way(rows: pl.DataFrame, name: str) -> dict | None:
    """The line of `way` for one module; None where there is none."""
    return next(way(rows).filter(pl.col("name") == name).iter_rows(named=True), None)


def set_on_the_way(rows: pl.DataFrame, unit: str) -> dict | None:
    """The same of a greedy set of modules, by its name."""
    greedily = scores(rows, difference.reported(rows, "grafting"), OVERLAP).filter(pl.col("arm") == "greedy", pl.col("unit") == unit)
    return next(effect_shares.additive(rows, greedily.with_columns(name="unit")).iter_rows(named=True), None)


def _nothing(rows: pl.DataFrame, split: str | None, metric: str = OTHER) -> pl.DataFrame:
    """`prompt total`: v(nothing), or D itself, which it is, where that set was not run."""
    none = scores(rows, split, metric).filter(pl.col("arm") == "none").select("prompt", total="value")
    return none if not none.is_empty() else effect_shares.totals(rows, split)


def scores(rows: pl.DataFrame, split: str | None, metric: str = "kl_other_nats") -> pl.DataFrame:
    """v of every set on every prompt of a split, or another metric of it."""
    plain = where(rows, measure="grafting", metric=metric, control=None)
    return plain.filter(pl.col("split").eq_missing(split), pl.col("prompt").is_not_null(), pl.col("value").is_not_nan())


_SCHEMA = {
    "name": pl.String,
    "layer": pl.Int64,
    "site": pl.String,
    "unit": pl.String,
    "rank": pl.Int64,
    "share": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "nats": pl.Float64,
    "n": pl.Int64,
}
