"""Ranks are compared between runs."""

from collections.abc import Iterator
from typing import Any

import polars as pl

from mechdiff.comparison import additive, charts, effects, profiles
from mechdiff.comparison.comparable import Loaded
from mechdiff.comparison.compared import Compared, differences, own, said
from mechdiff.comparison.effects import Table
from mechdiff.comparison.local import lacking
from mechdiff.comparison.profiles import shares_along
from mechdiff.comparison.quantity import Main, Plain, Quantity, exact, mean_of
from mechdiff.measures.grafting import compare as grafting_compare
from mechdiff.measures.rank import findings
from mechdiff.measures.transport.findings import CLOSENESS, TRANSPORT
from mechdiff.report import difference, effect_shares
from mechdiff.report.parts import Drawn, Section
from mechdiff.rows import OVERLAP
from mechdiff.statistics import spread

MORE = Plain(
    says="{high}'s change takes more directions of its activations than {low}'s: about {a} against {b}.",
    order="How many directions of activations it takes",
)
DIMENSIONS = Main(
    axis="rank",
    name="participation ratio of the activations' gains by direction, the mean included",
    of="directions",
    noun="effective number of directions of the activations' change (participation ratio, the mean difference counted)",
    leads=True,
)


def quantities(run: Loaded) -> Iterator[Quantity]:
    """Dimensions of the states' change at the run's own strongest site."""
    rows, summary = run.content.rows, run.content.summary
    top = findings.strongest(rows, summary)
    if top is not None and top.says == "rank":
        for words, rank in (("the shift apart", top.rank), ("the shift counted", top.uncentred)):
            if rank is not None:
                name, at = f"rank chosen by cross-validation, {words}", f"at {top.name}"
                yield Quantity(axis="rank", name=name, estimate=exact(float(rank)), unit="dimensions", where=at, layer=top.layer)
    site = next(iter(findings.curve_sites(rows, summary)), "")
    curve = rank_gains(run, site)
    if curve is None:
        return
    known = [int(rank) for rank in curve.names]
    ends = (1, max(known) + 1)
    found = spread.estimate(curve.values, lambda means: spread.effective_rank(means, known, shift=True), curve.prompts, ends=ends)
    at = f"at {site}"
    if recovers(curve):
        yield Quantity(
            axis=DIMENSIONS.axis, name=DIMENSIONS.name, estimate=found, unit="parts", parts=ends[1], where=at, main=DIMENSIONS, plain=MORE
        )
    for direction, words in ((TRANSPORT, "transport"), (CLOSENESS, "closeness")):
        needed = findings.needed(findings.causal(rows, site, direction), direction) or {}
        for part, k in needed.items():
            name = f"rank for {100 * part:.0f} % of the gain over a shift, {words}"
            yield Quantity(axis="rank", name=name, estimate=exact(float(k)), unit="dimensions", where=at)


def recovers(curve: Table) -> bool:
    """Whether the maps of some rank, a shift among them, recover anything: without, a rank of what they gain is one of noise."""
    best = int(curve.values.mean(axis=0).argmax())
    return spread.estimate(curve.values[:, [best]], mean_of, curve.prompts).low > 0


def rank_curve(run: Loaded, site: str) -> Table | None:
    """What maps of each rank recover at one site, in nats; None without rank 0 and another."""
    return _from_rank_0(effects.table(run, _of_ranks(run, site, "kl_other_nats"), recovered=True))


def rank_gains(run: Loaded, site: str) -> Table | None:
    """The same as overlaps, which add."""
    return _from_rank_0(additive.table(run, _of_ranks(run, site, OVERLAP)))


def _of_ranks(run: Loaded, site: str, metric: str) -> pl.DataFrame:
    values = effect_shares.written(run.content.rows, TRANSPORT, metric, measure="rank")
    values = values.filter(difference.site_name() == site, pl.col("arm") == "rrr", pl.col("rank").is_not_null())
    return values.filter(pl.all_horizontal(pl.col("control", "unit", "strength").is_null())).with_columns(name=pl.col("rank"))


def _from_rank_0(of: Table | None) -> Table | None:
    return of if of is not None and len(of.names) > 1 and of.names[0] == 0 else None


def axis(of: Compared) -> Section:
    """How many dimensions has each?"""
    keys = of.of_axis("rank")
    cut = grafting_compare.truncated_along(of.runs)
    curves = [cut.with_columns(panel=pl.lit("Share of D: weights cut to k directions"))] if not cut.is_empty() else []
    curves += _state_curves(of)
    table = pl.concat([part.select("panel", "line", "rank", "value", "low", "high") for part in curves]) if curves else pl.DataFrame()
    told = said(of, grafting_compare.DIMENSIONS.key)
    caption = "What the first k directions of each change recover: of every module's weights at once, of the activations at one site. "
    caption += f"Participation ratio of what the directions of the weights' change gain, in a module: {told}." if told else ""
    options = {"table": table, "names": of.names, "title": "directions kept"}
    drawn = Drawn(name="compare_ranks", chart=charts.by_rank, options=options, caption=caption, reading="compare_ranks")
    parts: list[Any] = [drawn] if not table.is_empty() else []
    return Section(
        id="rank", title="How many dimensions?", parts=[*parts, *own(of, keys), *differences(of, keys), *lacking(of, "rank", "ranks")]
    )


def _state_curves(of: Compared) -> list[pl.DataFrame]:
    """What maps of each rank recover, at each run's strongest site that has them."""
    parts = []
    for run in of.runs:
        site = next(iter(findings.curve_sites(run.content.rows, run.content.summary)), "") if run.counts else ""
        curve = rank_curve(run, site) if site else None
        if curve is None:
            continue
        shares = shares_along(run, "Share of D: maps of the activations", curve, [int(k) for k in curve.names])
        if shares is not None:
            parts.append(profiles.along([shares]).with_columns(rank="layer"))
    return parts
