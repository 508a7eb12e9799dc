"""The numbers on patching are computed from a run's rows and summary: data frames in, data frames and dataclasses out.

Nothing is chosen on the split that is reported where another split was measured: the strongest site is found on `select`
and its numbers are those of `report`.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from mechdiff import labels
from mechdiff import shares as mechdiff_shares
from mechdiff.architectures.sites import KINDS, Site
from mechdiff.measures.similarity.findings import similarity_by_site
from mechdiff.report import effect_shares
from mechdiff.report.difference import BOTH, BREAKAGE, RECOVERY, STREAM, plain, reported, site_name, splits, totals
from mechdiff.rows import OVERLAP, where
from mechdiff.statistics import floors, intervals, spread, stability
from mechdiff.statistics import summary as statistics_summary
from mechdiff.statistics.memory import once


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Where along the residual stream a share of D passes one half for the first time."""

    site: str
    earliest: str
    latest: str
    """Ends of the 95 % set."""
    after: str | None = None
    """The last site before it that was patched, where blocks between the two were not: then it lies somewhere between."""


@once
def site_shares(
    rows: pl.DataFrame,
    summary: pl.DataFrame,
    *,
    split: str | None = None,
    arm: str = "identity",
    unit: str | None = None,
    what: str | None = None,
) -> pl.DataFrame:
    """`direction layer site share low high nats floor counts flag`: one row per site written with one arm, both directions.

    `nats` is what the share is of (kl_own, or D - kl_other); `counts` is False under three noise floors. Shares are null
    where there is no effect to share. `what`: of the next token, or over an answer (one of `shares.OVER`).
    """
    split = split or reported(rows, "patching")
    where = [
        pl.col("split").eq_missing(split),
        pl.col("arm") == arm,
        pl.col("unit").eq_missing(unit),
        pl.col("rank").is_null(),
        pl.col("strength").is_null(),
    ]
    cells = plain(summary, unit=unit).filter(pl.col("measure") == "patching", *where)
    parts = []
    for direction in BOTH:
        metric = floors.effect_metric(rows, direction, what)
        of_metric = cells.filter(pl.col("direction") == direction, pl.col("metric") == metric)
        if of_metric.is_empty():
            continue
        values = rows.filter(pl.col("measure") == "patching", pl.col("control").is_null(), *where)
        values = values.filter(pl.col("direction") == direction, pl.col("metric") == metric)
        parts.append(of_metric.join(_intervals(values, totals(rows, split, what), direction), on=["layer", "site"], how="left"))
    if not parts:
        return pl.DataFrame(schema=_SHARES)
    flags = pl.col("flag").fill_null("")
    joined = pl.concat(parts).with_columns(
        counts=~flags.str.contains("below_floor|no_effect|outside_only"),
        nats=pl.when(pl.col("direction") == BREAKAGE).then("mean").otherwise("gained"),
    )
    kept = pl.col("share").is_not_null()
    joined = joined.with_columns(low=pl.when(kept).then("low"), high=pl.when(kept).then("high"))
    order = pl.col("site").replace_strict({kind: place for place, kind in enumerate(KINDS)}, default=len(KINDS), return_dtype=pl.Int64)
    return joined.sort(pl.col("direction") != BREAKAGE, "layer", order).select(pl.col(name).cast(kind) for name, kind in _SHARES.items())


@once
def ranked_outputs(rows: pl.DataFrame, summary: pl.DataFrame) -> tuple[pl.DataFrame, str | None]:
    """Sites outside the residual stream (all sites if there are none), the strongest first, and the split that ranked them.

    `site breakage breakage_low breakage_high recovery recovery_low recovery_high`: ranked by the mean of the shares there are.
    """
    available = splits(rows, "patching")
    if not available:
        return pl.DataFrame(), None
    reported = wide_shares(site_shares(rows, summary, split=available[0]))
    ranking = "select" if "select" in available else available[0]
    ranker = wide_shares(site_shares(rows, summary, split=ranking))
    ranker = ranker.select("name", rank=pl.mean_horizontal(pl.col("^(breakage|recovery)$")))
    joined = reported.join(ranker, on="name", how="left", maintain_order="left").filter(pl.col("rank").is_not_null())
    single = joined.filter(~pl.col("site").is_in(STREAM))
    joined = joined if single.is_empty() else single
    return joined.sort("rank", descending=True, maintain_order=True), ranking


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Over how many outputs of attention and MLPs the way from the base's logits to the tuned model's is spread, where the base runs."""

    number: spread.Estimate
    of: int
    total: float
    """What the shares of all sum to."""
    silent: str
    """Why no sentence is made of the number; empty where one may be."""


@once
def way(rows: pl.DataFrame, direction: str) -> pl.DataFrame:
    """`name additive additive_low additive_high`: the part of the way between the two models' logits that the other model's activation at each site
    moves the model that runs. Shares that add, where those of a divergence bend (`engine/overlap.py`)."""
    return effect_shares.additive(rows, _overlaps(rows, direction))


@once
def spread_of_outputs(rows: pl.DataFrame) -> Spread | None:
    """The effective number of outputs, by shares that add; None where they were not measured."""
    found = effect_shares.overlaps(rows, _overlaps(rows, RECOVERY).filter(~pl.col("site").is_in(STREAM)))
    if found is None or len(found[0]) < 2:
        return None
    names, matrix, total = found
    number = spread.number_of_parts(matrix, [str(i) for i in range(len(matrix))], level=spread.COVERAGE)
    return Spread(number=number, of=len(names), total=float(matrix.sum(axis=1).mean() / total.mean()), silent=spread.silence(matrix))


def _overlaps(rows: pl.DataFrame, direction: str) -> pl.DataFrame:
    """Overlaps of one whole site's patch at the next token, on the reported prompts, with the site's `name`."""
    plain = {"unit": None, "control": None, "rank": None, "strength": None}
    found = where(rows, measure="patching", metric=OVERLAP, direction=direction, split=reported(rows, "patching"), arm="identity", **plain)
    return found.filter(pl.col("layer").is_not_null(), pl.col("prompt").is_not_null()).with_columns(name=site_name())


@once
def of_neighbours(rows: pl.DataFrame) -> pl.DataFrame:
    """`direction name alone alone_low alone_high value low high`: what the outputs of two neighbouring blocks do together beyond the sum of both.

    Parts of the way in logits, which add where the network is linear in between: `alone` is that sum, `value` overlap(both) - overlap(L) -
    overlap(L + 1) over the total, the largest first. Under 0: either will do; over 0: they need each other. Empty without windows of two blocks.
    """
    lines = []
    for direction in (RECOVERY, BREAKAGE):
        written = {"direction": direction, "arm": "identity", "control": None, "split": reported(rows, "patching")}
        values = where(rows, measure="patching", metric=OVERLAP, **written).filter(~pl.col("site").is_in(STREAM))
        values = values.filter(pl.col("unit").is_null() | (pl.col("unit") == labels.window_unit(2, "decision")))
        values = values.with_columns(name=pl.concat_str(site_name(), pl.col("unit").fill_null("")))
        found = effect_shares.overlaps(rows, values)
        if found is None:
            continue
        moved, total = dict(zip(found[0], found[1].T, strict=True)), found[2]
        names = {
            (r["layer"], r["site"], r["unit"] is not None): r["name"]
            for r in values.unique("name", maintain_order=True).iter_rows(named=True)
        }
        for (layer, site, both), together in names.items():
            alone = [names[block, site, False] for block in (layer, layer + 1) if (block, site, False) in names]
            if both and len(alone) == 2 and {together, *alone} <= moved.keys():
                summed = moved[alone[0]] + moved[alone[1]]
                share, low, high = intervals.share_intervals(np.column_stack([summed, moved[together] - summed]), total)
                lines.append((direction, " and ".join(alone), *(float(end[i]) for i in (0, 1) for end in (share, low, high))))
    numbers = ("alone", "alone_low", "alone_high", "value", "low", "high")
    schema = {"direction": pl.String, "name": pl.String, **dict.fromkeys(numbers, pl.Float64)}
    table = pl.DataFrame(lines, schema=schema, orient="row").with_columns(pl.col(numbers).fill_nan(None))
    return table.sort(pl.col("value").abs(), descending=True, maintain_order=True)


@once
def steadiness(rows: pl.DataFrame, split: str | None) -> str:
    """How often two halves of the prompts that ranked the outputs choose the same strongest one, in words; empty where it is not known."""
    total = totals(rows, split)
    names: list[str] = []
    effects: list[np.ndarray] = []
    for direction in BOTH:
        written = where(
            rows, measure="patching", direction=direction, metric=floors.effect_metric(rows, direction), split=split, arm="identity"
        ).filter(
            pl.all_horizontal(pl.col("unit", "control", "rank", "strength").is_null()),
            ~pl.col("site").is_in(STREAM),
            pl.col("layer").is_not_null(),
        )
        if (aligned := _aligned(written, total)) is not None and (not names or aligned[0] == names):
            names = aligned[0]
            effects.append(aligned[1] if direction == BREAKAGE else aligned[2][:, None] - aligned[1])
    same = effects and all(len(one) == len(effects[0]) for one in effects)
    return stability.said(np.mean(effects, axis=0)) if same else ""


@once
def peak(rows: pl.DataFrame, direction: str, *, unit: str | None = None, what: str | None = None) -> tuple[str, list[str]] | None:
    """The output whose write does most in one direction, and the set of outputs that holds the strongest with 95 %; None without outputs."""
    split = reported(rows, "patching")
    values = where(
        rows,
        measure="patching",
        direction=direction,
        metric=floors.effect_metric(rows, direction, what),
        split=split,
        unit=unit,
        arm="identity",
    ).filter(
        *(pl.col(name).is_null() for name in ("control", "rank", "strength")), ~pl.col("site").is_in(STREAM), pl.col("layer").is_not_null()
    )
    aligned = _aligned(values, totals(rows, split, what))
    if aligned is None:
        return None
    names, table, total = aligned
    best, held = intervals.peak_set(table if direction == BREAKAGE else total[:, None] - table)
    return names[best], [names[place] for place in held]


def recovery_by_arm(rows: pl.DataFrame, summary: pl.DataFrame) -> tuple[str, dict[str, float]]:
    """The strongest output, and the share of D that each arm recovers there, where it was measured and is a number."""
    ranked, _ = ranked_outputs(rows, summary)
    if ranked.is_empty():
        return "", {}
    here = site_cells(rows, summary, layer=ranked["layer"][0], site=ranked["site"][0])
    here = here.filter(
        pl.col("direction") == RECOVERY, pl.col("metric") == floors.effect_metric(rows, RECOVERY), pl.col("share").is_not_null()
    )
    return ranked["name"][0], dict(here.select("arm", "share").iter_rows())


def site_cells(rows: pl.DataFrame, summary: pl.DataFrame, *, layer: int, site: str) -> pl.DataFrame:
    """The summary of all arms written at one site, on the reported split."""
    return where(plain(summary), measure="patching", split=reported(rows, "patching"), site=site, rank=None, strength=None).filter(
        pl.col("layer") == layer
    )


def wide_shares(shares: pl.DataFrame) -> pl.DataFrame:
    """One row per site, with the columns of both directions side by side, and its `name` such as L26.attn_out."""
    sides = []
    for direction, word in ((BREAKAGE, "breakage"), (RECOVERY, "recovery")):
        side = shares.filter(pl.col("direction") == direction)
        sides.append(
            side.select(
                "layer", "site", pl.col("share").alias(word), pl.col("low").alias(f"{word}_low"), pl.col("high").alias(f"{word}_high")
            )
        )
    both = sides[0].join(sides[1], on=["layer", "site"], how="full", coalesce=True)
    return both.with_columns(name=site_name()).sort("layer", "site")


@once
def half_way(rows: pl.DataFrame, direction: str, *, unit: str | None = None, what: str | None = None) -> Crossing | None:
    """The first site of the residual stream, in the order of computation, whose share of D passes one half."""
    split = reported(rows, "patching")
    written = where(
        rows,
        measure="patching",
        split=split,
        direction=direction,
        metric=floors.effect_metric(rows, direction, what),
        arm="identity",
        site=STREAM,
        unit=unit,
        control=None,
        strength=None,
    )
    aligned = _aligned(written, totals(rows, split, what))
    if aligned is None:
        return None
    names, values, total = aligned
    order = sorted(range(len(names)), key=lambda i: Site.parse(names[i]))
    effect = values if direction == BREAKAGE else total[:, None] - values
    past = intervals.first_past(effect[:, order], total)
    if past is None:
        return None
    point, low, high = (names[order[i]] if i < len(order) else "nowhere" for i in past)
    before = names[order[past[0] - 1]] if past[0] else None
    apart = before is not None and Site.parse(point).layer - Site.parse(before).layer > 1
    return Crossing(site=point, earliest=low, latest=high, after=before if apart else None)


@once
def similarity_against_effect(rows: pl.DataFrame, summary: pl.DataFrame) -> pl.DataFrame:
    """`name layer site cka share direction` of every site with both: breakage, or recovery where only that was measured."""
    shares = site_shares(rows, summary).filter(pl.col("share").is_not_null())
    direction = BREAKAGE if (shares["direction"] == BREAKAGE).any() else RECOVERY
    shares = shares.filter(pl.col("direction") == direction)
    cka = similarity_by_site(rows, summary).filter(pl.col("cka").is_not_nan()).select("name", "layer", "site", "cka")
    return cka.join(shares.select("layer", "site", "share", "direction"), on=["layer", "site"], maintain_order="left")


@once
def units(rows: pl.DataFrame) -> list[str]:
    """Units other than one layer's whole site that were patched with the identity arm, such as "window 2"; scored at the next token."""
    found = rows.filter(
        pl.col("measure") == "patching", pl.col("arm") == "identity", pl.col("unit").is_not_null(), pl.col("layer").is_not_null(),
        ~labels.is_over_answer(), ~labels.is_position(),
    )  # fmt: skip
    return found["unit"].unique().sort().to_list()


_SHARES = {
    "direction": pl.String,
    "layer": pl.Int64,
    "site": pl.String,
    "share": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "nats": pl.Float64,
    "floor": pl.Float64,
    "counts": pl.Boolean,
    "flag": pl.String,
}


def _aligned(values: pl.DataFrame, totals: pl.DataFrame) -> tuple[list[str], np.ndarray, np.ndarray] | None:
    """Site names, values [prompt, site] and D [prompt] over the prompts that have both; None if there are none."""
    mechdiff_shares.refuse_two_supports(values["metric"].unique(), totals["of"].unique())
    both = values.with_columns(name=site_name()).join(totals, on="prompt", how="semi")
    if both.is_empty() or not totals["total"].is_finite().all():
        return None
    prompts, names, table = statistics_summary.prompt_matrix(both, by="name")
    total = totals.filter(pl.col("prompt").is_in(prompts))["total"].to_numpy()
    if not len(prompts) or total.mean() <= 0:
        return None
    return names, table, total


def _intervals(values: pl.DataFrame, totals: pl.DataFrame, direction: str) -> pl.DataFrame:
    """`layer site low high gained` of the share of each site."""
    aligned = _aligned(values, totals)
    schema = {"layer": pl.Int64, "site": pl.String, "low": pl.Float64, "high": pl.Float64, "gained": pl.Float64}
    if aligned is None:
        return pl.DataFrame(schema=schema)
    names, table, total = aligned
    effect = table if direction == BREAKAGE else total[:, None] - table
    _, low, high = intervals.share_intervals(effect, total)
    sites = [Site.parse(name) for name in names]
    content = [[site.layer for site in sites], [site.kind for site in sites], low, high, effect.mean(axis=0)]
    return pl.DataFrame(dict(zip(schema, content, strict=True)), schema=schema)
