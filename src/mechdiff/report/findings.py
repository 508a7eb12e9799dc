"""The numbers that the page talks about, computed from a run's rows and summary: data frames in, data frames and dataclasses out.

Nothing is chosen on the split that is reported where another split was measured: the strongest site is found on `select`
and its numbers are those of `report`.
"""

import math
from dataclasses import dataclass

import numpy as np
import polars as pl

from mechdiff import labels, shares
from mechdiff.engine.sites import KINDS, Site
from mechdiff.report import intervals, stability, statistics
from mechdiff.report.memory import once
from mechdiff.rows import where

STREAM = ("resid_pre", "resid_mid", "resid_post")
"""Sites of the residual stream: a write there carries over everything that happened upstream."""

SAME_SHAPE = 0.9995
"""CKA from which on it is 1.000 to three digits."""
BREAKAGE, RECOVERY = BOTH = labels.CROSSED


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How differently the two models continue the prompts of one split."""

    split: str
    n: int
    mean: float
    """D in nats, over prompts."""
    low: float
    high: float
    """NaN where there are too few prompts for an interval."""
    median: float
    log_mean: float | None
    """Geometric mean in nats; None where a prompt has D = 0."""
    floor: float | None
    flags: tuple[str, ...]
    other_token: int | None
    """On how many prompts the two models' first choices differ."""
    other_share: float | None = None
    """The share of prompts on which they do; a cluster of prompts counts with the share of its own."""
    mass_outside: float | None = None
    """Of two vocabularies: mean mass that the tuned model gives to tokens that the base lacks. D is then of the tokens that both have."""
    mass_outside_base: float | None = None
    """The same of the base, where it has tokens of its own."""
    js: float | None = None
    """JS of the two laws over all tokens, in nats."""
    byte: float | None = None
    """KL(tuned || base) of the next byte, in nats."""
    coverage: float | None = None
    """How often such an interval held the truth in simulations."""

    @property
    def counts(self) -> bool:
        """Whether the models differ at all: in D, or in tokens that one of them lacks."""
        return "no_effect" not in self.flags

    @property
    def divides(self) -> bool:
        """Whether there is a D to take shares of: on the tokens that both models have, where the vocabularies differ."""
        return self.counts and "outside_only" not in self.flags

    @property
    def outside(self) -> float:
        """How much of the difference is in tokens that one model lacks, in nats: -log(1 - mass outside), of the model that has more there."""
        return -math.log1p(-max(self.mass_outside or 0.0, self.mass_outside_base or 0.0))


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Where along the residual stream a share of D passes one half for the first time."""

    site: str
    earliest: str
    latest: str
    """Ends of the 95 % set."""
    after: str | None = None
    """The last site before it that was patched, where blocks between the two were not: then it lies somewhere between."""


@dataclass(frozen=True, kw_only=True)
class LeastSimilar:
    """The site whose states have the lowest CKA, by the prompts that chose it, and how it is on the reported ones."""

    name: str
    cka: float
    low: float | None
    high: float | None
    chosen_on: str | None
    """None: on the reported prompts themselves."""
    sites: int
    same: int
    """Sites whose CKA is 1.000 to three digits."""


@once
def splits(rows: pl.DataFrame, measure: str) -> list[str]:
    """Splits on which a measure was taken, the one to report first."""
    order = {"report": 0, "select": 1, "fit": 2}
    found = rows.filter(pl.col("measure") == measure)["split"].drop_nulls().unique().to_list()
    return sorted(found, key=lambda split: order.get(split, 3))


def reported(rows: pl.DataFrame, measure: str) -> str | None:
    """The split whose numbers the page gives for a measure; None where it was not taken."""
    return next(iter(splits(rows, measure)), None)


@once
def d_per_prompt(rows: pl.DataFrame) -> pl.DataFrame:
    """`prompt d same`, ascending: D in nats and whether both models choose the same token (null if not measured)."""
    measured = where(rows, measure="divergence", control=None, unit=None).filter(pl.col("prompt").is_not_null())
    measured = measured.filter(pl.col("split").eq_missing(reported(rows, "divergence")))
    d = measured.filter(pl.col("metric") == statistics.d_metric(rows)).select("prompt", d="value")
    same = measured.filter(pl.col("metric") == "top1_same").select("prompt", same=pl.col("value") > 0.5)
    return d.join(same, on="prompt", how="left").sort("d", "prompt")


@once
def difference(rows: pl.DataFrame, summary: pl.DataFrame) -> Difference | None:
    """D and its relatives; None where divergence was not measured."""
    found = _plain(summary).filter(pl.col("measure") == "divergence", pl.col("split").eq_missing(reported(rows, "divergence")))
    d = found.filter(pl.col("metric") == statistics.d_metric(rows))
    if d.is_empty():
        return None
    one = d.row(0, named=True)
    same = found.filter(pl.col("metric") == "top1_same")
    means = dict(found.select("metric", "mean").iter_rows())
    return Difference(
        split=one["split"],
        n=one["n"] or 0,
        mean=one["mean"],
        low=float("nan") if one["ci_low"] is None else one["ci_low"],
        high=float("nan") if one["ci_high"] is None else one["ci_high"],
        coverage=one.get("coverage"),
        median=one["median"],
        log_mean=one["log_mean"],
        floor=one["floor"],
        flags=tuple((one["flag"] or "").split(";")) if one["flag"] else (),
        other_token=None if same.is_empty() else round((1 - same["mean"][0]) * same["n"][0]),
        other_share=None if same.is_empty() else 1 - same["mean"][0],
        mass_outside=means.get("mass_outside"),
        mass_outside_base=means.get("mass_outside_base"),
        js=means.get("js_nats"),
        byte=means.get("kl_byte_nats"),
    )


@once
def site_shares(
    rows: pl.DataFrame, summary: pl.DataFrame, *, split: str | None = None, arm: str = "identity", unit: str | None = None
) -> pl.DataFrame:
    """`direction layer site share low high nats floor counts flag`: one row per site written with one arm, both directions.

    `nats` is what the share is of (kl_own, or D - kl_other); `counts` is False under three noise floors. Shares are null
    where there is no effect to share.
    """
    split = split or reported(rows, "patching")
    where = [
        pl.col("split").eq_missing(split),
        pl.col("arm") == arm,
        pl.col("unit").eq_missing(unit),
        pl.col("rank").is_null(),
        pl.col("strength").is_null(),
    ]
    cells = _plain(summary, unit=unit).filter(pl.col("measure") == "patching", *where)
    parts = []
    for direction in BOTH:
        metric = statistics.effect_metric(rows, direction)
        of_metric = cells.filter(pl.col("direction") == direction, pl.col("metric") == metric)
        if of_metric.is_empty():
            continue
        values = rows.filter(pl.col("measure") == "patching", pl.col("control").is_null(), *where)
        values = values.filter(pl.col("direction") == direction, pl.col("metric") == metric)
        parts.append(of_metric.join(_intervals(values, _totals(rows, split), direction), on=["layer", "site"], how="left"))
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


@once
def steadiness(rows: pl.DataFrame, split: str | None) -> str:
    """How often two halves of the prompts that ranked the outputs choose the same strongest one, in words; empty where it is not known."""
    total = _totals(rows, split)
    names: list[str] = []
    effects: list[np.ndarray] = []
    for direction in BOTH:
        written = where(
            rows, measure="patching", direction=direction, metric=statistics.effect_metric(rows, direction), split=split, arm="identity"
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
def peak(rows: pl.DataFrame, direction: str, *, unit: str | None = None) -> tuple[str, list[str]] | None:
    """The output whose write does most in one direction, and the set of outputs that holds the strongest with 95 %; None without outputs."""
    split = reported(rows, "patching")
    values = where(
        rows,
        measure="patching",
        direction=direction,
        metric=statistics.effect_metric(rows, direction),
        split=split,
        unit=unit,
        arm="identity",
    ).filter(
        *(pl.col(name).is_null() for name in ("control", "rank", "strength")), ~pl.col("site").is_in(STREAM), pl.col("layer").is_not_null()
    )
    aligned = _aligned(values, _totals(rows, split))
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
        pl.col("direction") == RECOVERY, pl.col("metric") == statistics.effect_metric(rows, RECOVERY), pl.col("share").is_not_null()
    )
    return ranked["name"][0], dict(here.select("arm", "share").iter_rows())


def site_cells(rows: pl.DataFrame, summary: pl.DataFrame, *, layer: int, site: str) -> pl.DataFrame:
    """The summary of all arms written at one site, on the reported split."""
    return where(_plain(summary), measure="patching", split=reported(rows, "patching"), site=site, rank=None, strength=None).filter(
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


def site_name() -> pl.Expr:
    return pl.format("L{}.{}", "layer", "site")


@once
def half_way(rows: pl.DataFrame, direction: str) -> Crossing | None:
    """The first site of the residual stream, in the order of computation, whose share of D passes one half."""
    split = reported(rows, "patching")
    written = where(
        rows,
        measure="patching",
        split=split,
        direction=direction,
        metric=statistics.effect_metric(rows, direction),
        arm="identity",
        site=STREAM,
        unit=None,
        control=None,
        strength=None,
    )
    aligned = _aligned(written, _totals(rows, split))
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
def similarity_by_site(rows: pl.DataFrame, summary: pl.DataFrame, *, split: str | None = None) -> pl.DataFrame:
    """`layer site cka low high p q flag`, in the order of computation; empty where similarity was not measured."""
    split = split or reported(rows, "similarity")
    found = where(_plain(summary), measure="similarity", metric="cka", split=split)
    order = pl.col("site").replace_strict({kind: place for place, kind in enumerate(KINDS)}, default=len(KINDS), return_dtype=pl.Int64)
    found = found.filter(pl.col("layer").is_not_null()).sort("layer", order)
    return found.select("layer", "site", "n", "p", "q", "flag", cka="mean", low="ci_low", high="ci_high").with_columns(name=site_name())


def least_similar(rows: pl.DataFrame, summary: pl.DataFrame) -> LeastSimilar | None:
    """Chosen on `select` where CKA was measured there, because the lowest of many is low by chance too; None without CKA."""
    table = similarity_by_site(rows, summary).filter(pl.col("cka").is_not_nan())
    if table.is_empty():
        return None
    chooser = similarity_by_site(rows, summary, split="select").filter(
        pl.col("cka").is_not_nan(), pl.col("name").is_in(table["name"].implode())
    )
    own = reported(rows, "similarity") == "select" or chooser.is_empty()
    name = (table if own else chooser).sort("cka", maintain_order=True)["name"][0]
    lowest = table.filter(pl.col("name") == name).row(0, named=True)
    return LeastSimilar(name=name, cka=lowest["cka"], low=lowest["low"], high=lowest["high"], chosen_on=None if own else "select",
                        sites=len(table), same=len(table.filter(pl.col("cka") >= SAME_SHAPE)))  # fmt: skip


@once
def similarity_against_effect(rows: pl.DataFrame, summary: pl.DataFrame) -> pl.DataFrame:
    """`name layer site cka share direction` of every site with both: breakage, or recovery where only that was measured."""
    shares = site_shares(rows, summary).filter(pl.col("share").is_not_null())
    direction = BREAKAGE if (shares["direction"] == BREAKAGE).any() else RECOVERY
    shares = shares.filter(pl.col("direction") == direction)
    cka = similarity_by_site(rows, summary).filter(pl.col("cka").is_not_nan()).select("name", "layer", "site", "cka")
    return cka.join(shares.select("layer", "site", "share", "direction"), on=["layer", "site"], maintain_order="left")


@once
def null_band(rows: pl.DataFrame) -> pl.DataFrame:
    """`layer low high draws`: the middle 95 % of CKA with the row pairing permuted, the widest over the sites of a layer."""
    split = reported(rows, "similarity")
    draws = where(rows, metric="cka", split=split, unit=None).filter(labels.is_draw("permuted"), pl.col("value").is_not_nan())
    each = draws.group_by("layer", "site").agg(
        low=pl.col("value").quantile(0.025, "linear"), high=pl.col("value").quantile(0.975, "linear"), draws=pl.len()
    )
    return each.group_by("layer").agg(pl.col("low").min(), pl.col("high").max(), pl.col("draws").min()).sort("layer")


@once
def units(rows: pl.DataFrame) -> list[str]:
    """Units other than one layer's whole site that were patched with the identity arm, such as "window 2"."""
    found = rows.filter(
        pl.col("measure") == "patching", pl.col("arm") == "identity", pl.col("unit").is_not_null(), pl.col("layer").is_not_null()
    )
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


def _plain(summary: pl.DataFrame, unit: str | None = None) -> pl.DataFrame:
    """The real thing: no control, no map."""
    return summary.filter(pl.col("control").is_null() & pl.col("unit").eq_missing(unit))


@once
def _totals(rows: pl.DataFrame, split: str | None) -> pl.DataFrame:
    """`prompt total of`: D of each prompt, and the metric that it is."""
    chosen = where(rows, measure="divergence", split=split, control=None, unit=None).filter(pl.col("metric") == statistics.d_metric(rows))
    return chosen.filter(pl.col("prompt").is_not_null()).select("prompt", total="value", of="metric").sort("prompt")


def _aligned(values: pl.DataFrame, totals: pl.DataFrame) -> tuple[list[str], np.ndarray, np.ndarray] | None:
    """Site names, values [prompt, site] and D [prompt] over the prompts that have both; None if there are none."""
    shares.refuse_two_supports(values["metric"].unique(), totals["of"].unique())
    both = values.with_columns(name=site_name()).join(totals, on="prompt", how="semi")
    if both.is_empty() or not totals["total"].is_finite().all():
        return None
    prompts, names, table = statistics.prompt_matrix(both, by="name")
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
