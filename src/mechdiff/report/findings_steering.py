"""What the page says about steering: what edits along the change's directions do to D, and what they do to prompts that have nothing to do with it.

Effect, a share of D: where the base runs 1 - kl_other/D (1: it speaks like the tuned model), where the tuned model runs kl_own/D (how far it
is moved). Side effects are means over neutral prompts, edited at all positions; the perplexity ratio is exp of the mean log ratio. An edit is of
use where it has at least `WANTED` of D within the limits of the study; controls (random vectors and subspaces, swapped labels) are never.
"""

from dataclasses import dataclass

import polars as pl

from mechdiff.report import findings, findings_transport, statistics
from mechdiff.report.memory import once

DIRECTIONS = ("base<-base", "base<-tuned", "tuned<-base", "tuned<-tuned")
WANTED = 0.2
"""Share of D that an edit must have."""
EDITS = {("add", "base"): "add", ("interchange", "base"): "interchange into base", ("interchange", "tuned"): "interchange into tuned",
         ("ablate", "tuned"): "ablate", ("amplify", "tuned"): "amplify"}  # fmt: skip
SIDES = {"side_kl_nats": "side_kl", "side_top1_same": "side_top1", "side_log_perplexity_ratio_nats": "side_log_ratio"}
KEY = ["direction", "layer", "site", "arm", "rank", "strength", "control", "window"]


_ORDER = [pl.col("layer"), findings_transport.kind_place(), *(pl.col(name) for name in ("edit", "rank", "strength", "window", "control"))]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an edit may do to neutral prompts."""

    kl_nats: float = 0.05
    """KL of the edited from the unedited model, a token."""
    perplexity_ratio: float = 1.05


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
    """Every edit with `name edit everywhere window share low high`, controls among them; empty where there is no D to share.

    `everywhere` is True where the edit was made at all positions; `window` is the part of the unit that names layers ("window 3").
    """
    split = findings.reported(rows, "steering")
    of = findings_transport.totals(rows, split)
    parts = []
    for direction in DIRECTIONS:
        base = direction.startswith("base")
        values = findings_transport.written(rows, direction, statistics.effect_metric(rows, direction), measure="steering", split=split)
        found = findings_transport.shares(values.filter(pl.col("arm").is_not_null()), of, recovered=base)
        words = [EDITS.get((arm, "base" if base else "tuned"), arm) for arm in found["arm"].to_list()]
        parts.append(found.with_columns(direction=pl.lit(direction), edit=pl.Series(words, dtype=pl.String)))
    unit = pl.col("unit").fill_null("")
    return pl.concat(parts).with_columns(
        everywhere=unit.str.contains("all_pos"), window=_window(unit), control_kind=pl.col("control").str.replace(r"#\d+$", "")
    )


def _window(unit: pl.Expr) -> pl.Expr:
    return unit.str.extract(r"(window \d+)")


@once
def sides(summary: pl.DataFrame) -> pl.DataFrame:
    """`KEY side_kl side_top1 side_log_ratio side_ratio`: what each edit does to neutral prompts; null where a number was not measured."""
    found = summary.filter(pl.col("measure") == "steering", pl.col("metric").is_in(list(SIDES)), pl.col("mean").is_finite())
    found = found.with_columns(
        window=_window(pl.col("unit").fill_null("")), side=pl.col("metric").replace_strict(SIDES, return_dtype=pl.String)
    )
    groups = [pl.col("mean").filter(pl.col("side") == name).first().alias(name) for name in SIDES.values()]
    return found.group_by(KEY).agg(groups).with_columns(side_ratio=pl.col("side_log_ratio").exp())


@once
def frontier(rows: pl.DataFrame, summary: pl.DataFrame, allowed: Limits) -> pl.DataFrame:
    """Edits with effect and side effects, and `within`: are both limits kept. The effect at all positions where known, as side effects are."""
    found = effects(rows).sort("everywhere", descending=True, maintain_order=True).unique(KEY, keep="first", maintain_order=True)
    both = found.join(sides(summary), on=KEY, nulls_equal=True, maintain_order="left").filter(pl.col("side_kl").is_not_null())
    ratio = pl.col("side_ratio").fill_null(1.0) <= allowed.perplexity_ratio
    return both.with_columns(within=(pl.col("side_kl") <= allowed.kl_nats) & ratio).sort(_ORDER)


def smallest(table: pl.DataFrame) -> dict | None:
    """The edit of fewest dimensions with at least `WANTED` of D within the limits, of those with as few the strongest; None if there is none.

    One that does no more than a random or label-swapped direction (at strength 1) does not count: it has only length.
    """
    good = table.filter(pl.col("control").is_null(), "within", pl.col("share") >= WANTED)
    for edit in good.sort(["rank", "share"], descending=[False, True], maintain_order=True).iter_rows(named=True):
        beside = best_control(table, {**edit, "strength": None})
        if beside is None or edit["share"] > beside:
            return edit
    return None


def by_rank(found: pl.DataFrame) -> pl.DataFrame:
    """Effects by dimension at the decision position, at full strength, at one layer: `name edit rank share low high control_kind`."""
    return found.filter(~pl.col("everywhere") & pl.col("window").is_null() & pl.col("strength").is_null() & pl.col("rank").is_not_null())


def added(found: pl.DataFrame) -> pl.DataFrame:
    """`name s share low high`: the mean difference added at the decision position, by strength."""
    real = found.filter(pl.col("edit") == "add", ~pl.col("everywhere") & pl.col("window").is_null() & pl.col("control").is_null())
    real = real.with_columns(s=pl.col("strength").fill_null(1.0)).sort("layer", findings_transport.kind_place(), "s")
    return real.select("name", "layer", "site", "s", "share", "low", "high")


def controls(found: pl.DataFrame) -> pl.DataFrame:
    """`name edit rank everywhere window control_kind share highest draws`: the mean and the highest over the draws of each control."""
    key = ["name", "edit", "rank", "strength", "everywhere", "window", "control_kind"]
    drawn = found.filter(pl.col("control").is_not_null()).group_by(key, maintain_order=True)
    return drawn.agg(pl.col("share").mean(), highest=pl.col("share").max(), draws=pl.len())


def sites(rows: pl.DataFrame, summary: pl.DataFrame, found: pl.DataFrame) -> list[str]:
    """Sites that were steered at, the strongest output of patching first, single outputs before the stream."""
    order = (
        found.sort(pl.col("site").is_in(findings.STREAM), "layer", findings_transport.kind_place())["name"]
        .unique(maintain_order=True)
        .to_list()
    )
    ranked, _ = findings.ranked_outputs(rows, summary)
    first = [name for name in ranked["name"].to_list() if name in order] if not ranked.is_empty() else []
    return list(dict.fromkeys([*first, *order]))


def best_control(found: pl.DataFrame, edit: dict) -> float | None:
    """The highest effect of a control beside an edit: the same edit, dimensions, positions and layers, in a random or label-swapped direction.

    None where there was none, and at strengths other than 1, which controls have not.
    """
    if edit["strength"] is not None:
        return None
    same = [pl.col(name).eq_missing(pl.lit(edit[name])) for name in ("name", "edit", "rank", "everywhere", "window")]
    beside = found.filter(pl.col("control").is_not_null(), pl.col("strength").is_null(), *same)["share"]
    return None if beside.is_empty() else float(beside.to_numpy().max())
