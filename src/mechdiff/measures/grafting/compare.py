"""Grafts are compared between runs."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import polars as pl

from mechdiff import labels
from mechdiff.comparison import additive, charts
from mechdiff.comparison.comparable import Loaded
from mechdiff.comparison.compared import Compared, differences, own, said
from mechdiff.comparison.effects import Table, table
from mechdiff.comparison.local import lacking
from mechdiff.comparison.quantity import Main, Quantity, by_divergence, crossing, number
from mechdiff.measures.grafting import findings
from mechdiff.measures.grafting.findings import WANTED
from mechdiff.measures.weights import compare as weights_compare
from mechdiff.measures.weights import findings as weights_findings
from mechdiff.report import difference
from mechdiff.report.parts import Drawn, Section
from mechdiff.rows import OVERLAP
from mechdiff.statistics import spread


def grafted(run: Loaded, arm: str, by: pl.Expr, *where: pl.Expr) -> Table | None:
    """What grafts of one arm recover, in nats, on each prompt; names are the values of `by`, ascending."""
    rows = run.content.rows
    values = findings.scores(rows, difference.reported(rows, "grafting")).filter(pl.col("arm") == arm, *where)
    return table(run, values.with_columns(name=by), recovered=True) if len(values) else None


def grafted_overlaps(run: Loaded, arm: str, by: pl.Expr, *where: pl.Expr) -> Table | None:
    """The same as overlaps, which add."""
    rows = run.content.rows
    values = findings.scores(rows, difference.reported(rows, "grafting"), OVERLAP).filter(pl.col("arm") == arm, *where)
    return additive.table(run, values.with_columns(name=by)) if len(values) else None


ALONE = Main(
    axis="weights", name="effective modules, grafted alone", of="parts", noun="effective number of modules, grafted alone", leads=True
)  # fmt: skip
DIMENSIONS = Main(
    axis="rank",
    name="participation ratio of the weights' gains by direction",
    of="directions",
    noun="effective number of directions of the weights' change (participation ratio), in a module",
    leads=True,
)
MODULES = "modules for 0.9 of D, added greedily"


def quantities(run: Loaded) -> Iterator[Quantity]:
    """Tuned weights put into the base: over how many modules, of what rank."""
    modules, _ = weights_findings.modules(run.content.summary)
    alone = grafted_overlaps(run, "alone", findings.module_name())
    by_kl = grafted(run, "alone", findings.module_name())
    if alone is not None:
        yield replace(number(*ALONE.key, alone, parts=max(len(modules), len(alone.names))), main=ALONE)
    if by_kl is not None:
        yield by_divergence("weights", "effective modules by KL, grafted alone", by_kl, parts=max(len(modules), len(by_kl.names)))
    sets = grafted(run, "greedy", pl.col("rank"))
    if sets is not None:
        sizes = [float(k) for k in sets.names]
        yield crossing("weights", MODULES, sets, [*sizes, sizes[-1] + 1], "modules", threshold=findings.WANTED)
    cut = grafted_overlaps(run, "truncate", pl.col("rank"), pl.col("unit") == labels.ALL)
    if cut is not None and len(cut.names) > 1:
        known = [int(rank) for rank in cut.names]
        found = spread.estimate(cut.values, lambda means: spread.effective_rank(means, known), cut.prompts, ends=(1, max(known)))
        yield Quantity(axis=DIMENSIONS.axis, name=DIMENSIONS.name, estimate=found, unit="parts", parts=max(known), main=DIMENSIONS)


def truncated_along(runs: Sequence[Loaded]) -> pl.DataFrame:
    """`line rank value low high`: what the change recovers when every module is cut to k directions."""
    parts = []
    for run in runs:
        cut = findings.truncated(run.content.rows) if run.counts else None
        if cut is not None and not cut.is_empty():
            parts.append(cut.filter(pl.col("name") == "all modules").select("rank", "low", "high", line=pl.lit(run.name), value="share"))
    return pl.concat(parts) if parts else pl.DataFrame()


def axis(of: Compared) -> Section:
    """How much of the network changed, and how many modules it takes."""
    keys = of.of_axis("weights")
    sizes = weights_compare.weights_along(of.runs)
    caption = f"Size of each block's change against its weights, exact. Tensors changed: {said(of, ('weights', 'tensors changed'))}. "
    greedy = said(of, ("weights", MODULES))
    caption += f"Modules for {WANTED} of D, added greedily: {greedy}." if greedy else ""
    options = {"table": sizes, "names": of.names}
    drawn = Drawn(name="compare_weights", chart=charts.sizes, options=options, caption=caption, reading="compare_weights")
    parts = [drawn] if not sizes.is_empty() else []
    return Section(
        id="weights",
        title="Which weights?",
        parts=[*parts, *own(of, keys), *differences(of, keys), *lacking(of, "weights", "weights or grafts")],
    )
