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
from mechdiff.rows import OVERLAP, TOTAL, where
from mechdiff.statistics import floors, intervals, spread, stability
from mechdiff.statistics import summary as statistics_summary
from mechdiff.statistics.memory import once


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Where along the residual stream half of the way in logits, or of D, is passed for the first time."""

    in_logits: bool
    """Whether it is the way in logits, a share that adds; else D."""
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
    here = [
        pl.col("split").eq_missing(split),
        pl.col("arm") == arm,
        pl.col("unit").eq_missing(unit),
        pl.col("rank").is_null(),
        pl.col("strength").is_null(),
    ]
    cells = where(plain(summary, unit=unit), measure="patching").filter(*here)
    parts = []
    for direction in BOTH:
        metric = floors.effect_metric(rows, direction, what)
        of_metric = cells.filter(pl.col("direction") == direction, pl.col("metric") == metric)
        if of_metric.is_empty():
            continue
        values = where(rows, measure="patching").filter(pl.col("control").is_null(), *here)
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


def ways(rows: pl.DataFrame, split: str | None, what: str | None = None) -> pl.DataFrame:
    """`prompt total of`: the whole way between the two models' logits on each prompt, which overlaps are parts of."""
    metric = mechdiff_shares.over(TOTAL, what) if what else TOTAL
    known = where(rows, measure=mechdiff_shares.OF_THE_PAIR, metric=metric, split=split, control=None, unit=None)
    known = known.filter(pl.col("prompt").is_not_null(), pl.col("value").is_not_nan())
    return known.select("prompt", total="value", of="metric").sort("prompt")


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
def half_way(
    rows: pl.DataFrame, direction: str, *, unit: str | None = None, what: str | None = None, of_kl: bool = False, threshold: float = 0.5
) -> Crossing | None:
    """The first site of the residual stream, in the order of computation, that moves the running model more than half of the way in logits.

    Where that was not measured, or `of_kl`: whose share of D passes one half. `threshold`: another part than half.
    """
    split = reported(rows, "patching")
    written = where(
        rows,
        measure="patching",
        split=split,
        direction=direction,
        arm="identity",
        site=STREAM,
        unit=unit,
        control=None,
        strength=None,
    )
    overlaps = written.filter(pl.col("metric") == (mechdiff_shares.over(OVERLAP, what) if what else OVERLAP))
    in_logits = not of_kl and not overlaps.is_empty()
    if in_logits:
        aligned = _aligned(overlaps, ways(rows, split, what))
    else:
        aligned = _aligned(written.filter(pl.col("metric") == floors.effect_metric(rows, direction, what)), totals(rows, split, what))
    if aligned is None:
        return None
    names, values, total = aligned
    order = sorted(range(len(names)), key=lambda i: Site.parse(names[i]))
    effect = values if in_logits or direction == BREAKAGE else total[:, None] - values
    past = intervals.first_past(effect[:, order], total, threshold=threshold)
    if past is None:
        return None
    point, low, high = (names[order[i]] if i < len(order) else "nowhere" for i in past)
    before = names[order[past[0] - 1]] if past[0] else None
    apart = before is not None and Site.parse(point).layer - Site.parse(before).layer > 1
    return Crossing(in_logits=in_logits, site=point, earliest=low, latest=high, after=before if apart else None)


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
    found = where(rows, measure="patching").filter(
        pl.col("arm") == "identity", pl.col("unit").is_not_null(), pl.col("layer").is_not_null(),
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
