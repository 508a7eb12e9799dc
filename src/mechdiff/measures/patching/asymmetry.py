"""Does patching the base's activation into the tuned model do more than the reverse? One number a site, comparable across directions.

    A = (J_breakage - J_recovery) / (J_breakage + J_recovery)

with J the mean Jensen-Shannon divergence of the edited run from its own unedited one, over the same prompts: of the tuned model with the
base's state (breakage), of the base with the tuned state (recovery). 1: only the tuned model is moved; -1: only the base; 0: both alike.
Jensen-Shannon because it is symmetric and bounded: shares of D have different references and cannot be compared. The interval is a paired
bootstrap over prompts. No index where J_breakage + J_recovery is under three noise floors. Where the vocabularies differ
both J are on the tokens that both models have.
"""

import numpy as np
import polars as pl

from mechdiff import shares, terms
from mechdiff.architectures.sites import KINDS, Site
from mechdiff.measures.patching import findings
from mechdiff.report import difference
from mechdiff.report.difference import BREAKAGE, RECOVERY
from mechdiff.report.parts import Run, note, table
from mechdiff.report.phrasing import nats, shown, with_interval
from mechdiff.rows import where
from mechdiff.statistics import floors as statistics_floors
from mechdiff.statistics import intervals
from mechdiff.statistics import summary as statistics_summary

TOP = 10
"""Sites that are listed."""
_SCHEMA = {
    "layer": pl.Int64,
    "site": pl.String,
    "name": pl.String,
    "index": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "nats": pl.Float64,
    "n": pl.Int64,
}


def by_site(rows: pl.DataFrame, summary: pl.DataFrame) -> pl.DataFrame:
    """`layer site name index low high nats n` in the order of computation: A with its interval, null under three floors.

    `nats` is the sum of both J.
    """
    written = (
        where(
            rows,
            measure="patching",
            metric=shares.own_js(shared=statistics_floors.on_shared(rows)),
            arm="identity",
            split=difference.reported(rows, "patching"),
        )
        .filter(
            pl.col("layer").is_not_null(),
            pl.col("value").is_finite(),
            pl.col("prompt").is_not_null(),
            *(pl.col(name).is_null() for name in ("unit", "control", "rank", "strength")),
        )
        .with_columns(name=difference.site_name())
    )
    sides = [written.filter(pl.col("direction") == direction) for direction in (BREAKAGE, RECOVERY)]
    both = sides[0].join(sides[1], on=["name", "prompt"], how="semi"), sides[1].join(sides[0], on=["name", "prompt"], how="semi")
    if both[0].is_empty():
        return pl.DataFrame(schema=_SCHEMA)
    (prompts, names, one), (_, _, other) = (statistics_summary.prompt_matrix(side, by="name") for side in both)
    total = (one + other).mean(axis=0)
    counts = total > statistics_floors.FLOORS * _floor(rows)
    content = np.full((3, len(names)), np.nan)
    if len(prompts) and counts.any():
        content[:, counts] = intervals.asymmetry_intervals(one[:, counts], other[:, counts])
    sites = [Site.parse(name) for name in names]
    columns = [[s.layer for s in sites], [s.kind for s in sites], names, *content, total, [len(prompts)] * len(names)]
    found = pl.DataFrame(dict(zip(_SCHEMA, columns, strict=True)), schema=_SCHEMA).with_columns(
        pl.col("index", "low", "high").fill_nan(None)
    )
    order = pl.col("site").replace_strict({kind: place for place, kind in enumerate(KINDS)}, default=len(KINDS), return_dtype=pl.Int64)
    return found.sort("layer", order)


def _floor(rows: pl.DataFrame) -> float:
    """The larger of both models' floors of JS; of KL where only that was stored; 0 without either."""
    floors, shared = statistics_floors.noise_floors(rows), statistics_floors.on_shared(rows)
    for metric in (shares.own_js(shared=shared), shares.own(shared=shared)):
        found = floors.filter(pl.col("metric") == metric)["floor"]
        if len(found):
            return float(found.to_numpy().max())
    return 0.0


def parts(run: Run) -> list[dict]:
    """What the index is and a table of the strongest sites, for the section on patching; nothing where it was not measured in both directions."""
    found = by_site(run.rows, run.summary)
    known = found.filter(pl.col("index").is_not_null())
    if known.is_empty():
        return []
    caption = f"Asymmetry index A at {len(known)} sites"
    caption += f", {len(found) - len(known)} others are below 3 × numerical noise. " if len(known) < len(found) else ". "
    ranked, chosen_on = findings.ranked_outputs(run.rows, run.summary)
    first = ranked.select("name").join(known, on="name", maintain_order="left").head(1) if len(ranked) else ranked
    for strongest in first.iter_rows(named=True):
        value = with_interval(strongest["index"], strongest["low"], strongest["high"], decimals=2)
        caption += (
            f"At {strongest['name']}, the site where both patches together do most on the {terms.of_split(chosen_on)} prompts, A = {value}."
        )
    most = known.sort("nats", descending=True, maintain_order=True).head(TOP)
    lines = [(r["name"], shown(r["index"], r["low"], r["high"], r["n"], decimals=2), nats(r["nats"])) for r in most.iter_rows(named=True)]
    title = "Asymmetry index A: 1 where only the tuned model is moved, −1 only the base; the sites that move both most"
    return [note(caption), table(("site", "A", "JS of both, nats"), lines, folded=title)]
