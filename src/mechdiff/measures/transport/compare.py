"""Maps are compared between runs."""

from collections.abc import Iterator, Sequence

import polars as pl

from mechdiff.comparison import charts, effects
from mechdiff.comparison.comparable import Loaded
from mechdiff.comparison.compared import Compared, differences, own, said
from mechdiff.comparison.local import lacking
from mechdiff.comparison.profiles import SCHEMA
from mechdiff.comparison.quantity import Quantity, ratio
from mechdiff.measures.transport import findings
from mechdiff.measures.transport.findings import TRANSPORT
from mechdiff.report import difference, effect_shares
from mechdiff.report.parts import Drawn, Section


def quantities(run: Loaded) -> Iterator[Quantity]:
    """The best map at the run's own strongest site, against what learns nothing of the single prompt."""
    rows = run.content.rows
    carried = findings.carried(rows, run.content.summary)
    if carried is None:
        return
    arms = [carried.arm, *([carried.trivial.arm] if carried.trivial else [])]
    values = effect_shares.plain(effect_shares.written(rows, TRANSPORT, "kl_other_nats", measure="transport"))
    here = values.filter(difference.site_name() == carried.name, pl.col("arm").is_in(arms))
    of = effects.table(run, here.with_columns(name=pl.col("arm")), recovered=True)
    if of is None or of.total.mean() <= 0:
        return
    gained = {arm: of.values[:, of.names.index(arm)] for arm in arms}
    best, at = gained[carried.arm], f"at {carried.name}"
    found = [("recovered by the best map", best, f"{carried.arm} {at}")]
    if carried.trivial:
        simple = gained[carried.trivial.arm]
        found.append(("recovered by the best of shift and mean", simple, f"{carried.trivial.arm} {at}"))
        found.append(("best map, less the best of shift and mean", best - simple, at))
    for name, gain, how in found:
        estimate = ratio(gain, of.total, of.prompts)
        yield Quantity(axis="transport", name=name, estimate=estimate, unit="share", where=how, layer=carried.layer)


def maps_along(runs: Sequence[Loaded]) -> pl.DataFrame:
    """`panel line layer value low high`: what each run's best map recovers at each layer, by kind of site that all runs mapped.

    The map is the one that was best at the run's strongest site on its select prompts; intervals are of each layer alone.
    """
    parts = []
    for run in runs:
        carried = findings.carried(run.content.rows, run.content.summary) if run.counts else None
        if carried is not None:
            here = findings.recovered(run.content.rows).filter(pl.col("arm") == carried.arm)
            n = pl.col("n").cast(pl.String)
            parts.append(
                here.select(
                    "layer",
                    "low",
                    "high",
                    panel="site",
                    line=pl.lit(run.name),
                    value="share",
                    n=n,
                    against=pl.lit(None, pl.String),
                    x=pl.col("layer").cast(pl.Float64),
                )
            )
    if len(parts) < 2:
        return pl.DataFrame(schema=SCHEMA)
    common = set.intersection(*(set(part["panel"]) for part in parts))
    return pl.concat([part.filter(pl.col("panel").is_in(list(common))).select(list(SCHEMA)) for part in parts]).cast(SCHEMA)  # type: ignore[arg-type]


def axis(of: Compared) -> Section:
    """Can a map carry each of them?"""
    keys = of.of_axis("transport")
    along = maps_along(of.runs)
    caption = (
        f"What the best map of each run recovers when the base gets its own mapped activation. At each run's strongest site: {said(of, keys[0])}."
        if keys
        else ""
    )
    options = {"table": along, "names": of.names, "title": ": share of D recovered by the best map"}
    drawn = Drawn(name="compare_transport", chart=charts.along, options=options, caption=caption, reading="compare_transport")
    parts = [drawn] if keys and not along.is_empty() else []
    return Section(
        id="transport",
        title="Can a linear map carry it?",
        parts=[*parts, *own(of, keys), *differences(of, keys), *lacking(of, "transport", "maps")],
    )
