"""The numbers on steering say what edits along the change's directions do to D, and to prompts that have nothing to do with it.

Effect, a share of the way to the other model: where the base runs 1 - KL(p_tuned || run)/D (1: it behaves like the tuned model), where the tuned
model runs 1 - KL(p_base || run)/KL(p_base || p_tuned) (1: it behaves like the base); damage alone has none. Side effects are means over neutral
prompts, edited at all positions; the perplexity ratio is exp of the mean log ratio. Two edits are tested, each at the largest dose that neutral
prompts allow (measures/steering/doses.py), against random directions of that dose; of all others the effect is given, and nothing said.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from mechdiff import labels
from mechdiff.measures.patching import findings as patching_findings
from mechdiff.measures.steering import doses
from mechdiff.report import difference, effect_shares
from mechdiff.rows import where
from mechdiff.statistics import intervals
from mechdiff.statistics.memory import once

DIRECTIONS = ("base<-base", "base<-tuned", "tuned<-base", "tuned<-tuned")
LEVEL = 0.05
EDITS = {("add", "base"): "add", ("interchange", "base"): "interchange into base", ("interchange", "tuned"): "interchange into tuned",
         ("ablate", "tuned"): "ablate", ("amplify", "tuned"): "amplify"}  # fmt: skip
SIDES = {"side_kl_nats": "side_kl", "side_top1_same": "side_top1", "side_log_perplexity_ratio_nats": "side_log_ratio"}
KEY = ["direction", "layer", "site", "arm", "rank", "strength", "control", "window"]


_ORDER = [pl.col("layer"), effect_shares.kind_place(), *(pl.col(name) for name in ("edit", "rank", "strength", "window", "control"))]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an edit may do to neutral prompts."""

    kl_nats: float = 0.05
    """KL of the edited from the unedited model, a token."""
    perplexity_ratio: float = 1.05


@dataclass(frozen=True, kw_only=True)
class Tested:
    """One edit at the largest dose that neutral prompts allow, against random directions of that dose, on the reported prompts."""

    direction: str
    edit: str
    name: str
    rank: int
    strength: float
    share: float
    """Of the way to the other model."""
    low: float | None
    high: float | None
    n: int
    draws: int
    typical: float
    """The mean share of the random directions."""
    highest: float
    p: float
    """(1 + draws that go as far) / (1 + draws), corrected (Holm) for the questions that were tested."""
    side_kl: float
    side_ratio: float | None
    neutral: int

    @property
    def obeys(self) -> bool:
        """Further than random directions of its size, and further than nowhere."""
        return self.p <= LEVEL and self.low is not None and self.low > 0


def limits(manifest: dict) -> Limits:
    """The study's limits, or the defaults where it names none."""
    given = (manifest.get("steering") or {}).get("limits") or {}
    standard = Limits()
    return Limits(
        kl_nats=float(given.get("max_side_kl_nats", standard.kl_nats)),
        perplexity_ratio=float(given.get("max_perplexity_ratio", standard.perplexity_ratio)),
    )


@once
def effects(rows: pl.DataFrame) -> pl.DataFrame:
    """Every edit with `name edit everywhere window share low high n`, controls among them; empty where there is no D to share.

    `everywhere` is True where the edit was made at all positions; `window` is the part of the unit that names layers ("window 3").
    """
    split = difference.reported(rows, "steering")
    parts = []
    for direction in DIRECTIONS:
        runner = labels.runner(direction)
        values = effect_shares.written(rows, direction, "kl_other_nats", measure="steering", split=split)
        found = effect_shares.shares(values.filter(pl.col("arm").is_not_null()), effect_shares.totals(rows, split, runner))
        words = [EDITS.get((arm, runner), arm) for arm in found["arm"].to_list()]
        parts.append(found.with_columns(direction=pl.lit(direction), edit=pl.Series(words, dtype=pl.String)))
    return pl.concat(parts).with_columns(
        everywhere=labels.is_everywhere(), window=labels.window_words(), control_kind=labels.control_kind_column()
    )


@once
def sides(summary: pl.DataFrame) -> pl.DataFrame:
    """`KEY side_kl side_top1 side_log_ratio side_ratio`: what each edit does to neutral prompts; null where a number was not measured."""
    found = where(summary, measure="steering").filter(pl.col("metric").is_in(list(SIDES)), pl.col("mean").is_finite())
    found = found.with_columns(window=labels.window_words(), side=pl.col("metric").replace_strict(SIDES, return_dtype=pl.String))
    groups = [pl.col("mean").filter(pl.col("side") == name).first().alias(name) for name in SIDES.values()]
    return found.group_by(KEY).agg(groups).with_columns(side_ratio=pl.col("side_log_ratio").exp())


@once
def frontier(rows: pl.DataFrame, summary: pl.DataFrame, allowed: Limits) -> pl.DataFrame:
    """Edits with effect and side effects, and `within`: are both limits kept. The effect at all positions where known, as side effects are."""
    found = effects(rows).sort("everywhere", descending=True, maintain_order=True).unique(KEY, keep="first", maintain_order=True)
    both = found.join(sides(summary), on=KEY, nulls_equal=True, maintain_order="left").filter(pl.col("side_kl").is_not_null())
    ratio = pl.col("side_ratio").fill_null(1.0) <= allowed.perplexity_ratio
    return both.with_columns(within=(pl.col("side_kl") <= allowed.kl_nats) & ratio).sort(_ORDER)


def tried(rows: pl.DataFrame) -> pl.DataFrame:
    """`direction layer site arm rank strength side_kl side_ratio n name`: every dose of the two questions whose side effects were measured."""
    parts = [doses.doses(rows, direction).with_columns(direction=pl.lit(direction)) for direction in doses.QUESTIONS]
    return pl.concat(parts).with_columns(name=difference.site_name())


@once
def tested(rows: pl.DataFrame, allowed: Limits) -> list[Tested]:
    """What became of each question whose dose was held against enough random directions."""
    found = effects(rows)
    all_ = [one for direction in doses.QUESTIONS if (one := _tested(rows, found, direction, allowed)) is not None]
    corrected = intervals.holm(np.array([one["p"] for one in all_], dtype=float))
    return [Tested(**one | {"p": float(p)}) for one, p in zip(all_, corrected, strict=True)]


def _tested(rows: pl.DataFrame, found: pl.DataFrame, direction: str, allowed: Limits) -> dict | None:
    """The fields of `Tested`, its p uncorrected; None without a dose within the limits, or with too few draws to reach the level."""
    dose = doses.dose(rows, direction, max_kl_nats=allowed.kl_nats, max_perplexity_ratio=allowed.perplexity_ratio)
    if dose is None:
        return None
    same = [pl.col(name).eq_missing(pl.lit(dose[name])) for name in ("layer", "site", "arm", "rank", "strength")]
    here = found.filter(pl.col("direction") == direction, "everywhere", pl.col("window").is_null(), *same)
    real = here.filter(pl.col("control").is_null())
    random = here.filter(labels.is_random_edit())["share"].to_numpy()
    if len(real) != 1 or (1 + len(random)) * LEVEL < len(doses.QUESTIONS):
        return None
    one = real.row(0, named=True)
    p = float((1 + (random >= one["share"]).sum()) / (1 + len(random)))
    return {
        "direction": direction, "edit": one["edit"], "name": one["name"], "rank": one["rank"], "strength": one["strength"] or 1.0,
        **{name: one[name] for name in ("share", "low", "high", "n")}, "draws": len(random), "typical": float(random.mean()),
        "highest": float(random.max()), "p": p, "side_kl": dose["side_kl"], "side_ratio": dose["side_ratio"], "neutral": dose["n"],
    }  # fmt: skip


def by_rank(found: pl.DataFrame) -> pl.DataFrame:
    """Effects by dimension at the decision position, at full strength, at one layer: `name edit rank share low high control_kind`."""
    return found.filter(~pl.col("everywhere") & pl.col("window").is_null() & pl.col("strength").is_null() & pl.col("rank").is_not_null())


def added(found: pl.DataFrame) -> pl.DataFrame:
    """`name s share low high`: the mean difference added at the decision position, by strength."""
    real = found.filter(pl.col("edit") == "add", ~pl.col("everywhere") & pl.col("window").is_null() & pl.col("control").is_null())
    real = real.with_columns(s=pl.col("strength").fill_null(1.0)).sort("layer", effect_shares.kind_place(), "s")
    return real.select("name", "layer", "site", "s", "share", "low", "high")


def controls(found: pl.DataFrame) -> pl.DataFrame:
    """`name edit rank everywhere window control_kind share highest draws`: the mean and the highest over the draws of each control."""
    key = ["name", "edit", "rank", "strength", "everywhere", "window", "control_kind"]
    drawn = found.filter(pl.col("control").is_not_null()).group_by(key, maintain_order=True)
    return drawn.agg(pl.col("share").mean(), highest=pl.col("share").max(), draws=pl.len())


def sites(rows: pl.DataFrame, summary: pl.DataFrame, found: pl.DataFrame) -> list[str]:
    """Sites that were steered at, the strongest output of patching first, single outputs before the stream."""
    order = (
        found.sort(pl.col("site").is_in(difference.STREAM), "layer", effect_shares.kind_place())["name"]
        .unique(maintain_order=True)
        .to_list()
    )
    ranked, _ = patching_findings.ranked_outputs(rows, summary)
    first = [name for name in ranked["name"].to_list() if name in order] if not ranked.is_empty() else []
    return list(dict.fromkeys([*first, *order]))


def beside(found: pl.DataFrame, edit: dict) -> pl.Series:
    """Effects of random directions of an edit's own dose: the same arm, dimensions, strength, positions and layers. Empty where none was run."""
    same = [pl.col(name).eq_missing(pl.lit(edit[name])) for name in ("name", "edit", "rank", "strength", "everywhere", "window")]
    return found.filter(labels.is_random_edit(), *same)["share"]
