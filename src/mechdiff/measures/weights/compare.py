"""Changes of weights are compared between runs."""

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from mechdiff.comparison.comparable import Loaded
from mechdiff.comparison.profiles import SCHEMA
from mechdiff.comparison.quantity import Quantity, exact
from mechdiff.measures.weights import findings
from mechdiff.statistics import spread

ENERGY = {50: "energy_rank_50", 90: "energy_rank_90"}


def quantities(run: Loaded) -> Iterator[Quantity]:
    """Exact, from the files: how many tensors changed, of what rank, in how many modules."""
    summary = run.content.summary
    changed = findings.how_many(summary)
    if changed is None:
        return
    part, of = exact(changed.changed / changed.tensors), f"{changed.changed} of {changed.tensors}"
    yield Quantity(axis="weights", name="tensors changed", estimate=part, unit="share", where=of)
    tensors = findings.tensors(summary).filter(pl.col("relative_norm") > 0)
    for percent, metric in ENERGY.items():
        if metric in tensors.columns and len(known := tensors[metric].drop_nulls()):
            name = f"directions with {percent} % of a tensor's squared change"
            middle, of = exact(float(np.median(known.to_numpy()))), f"median of {len(known)} tensors"
            yield Quantity(axis="weights", name=name, estimate=middle, unit="dimensions", where=of)
    modules, _ = findings.modules(summary)
    if len(modules) and "share" in modules.columns and not modules["share"].null_count():
        amount = exact(float(spread.effective(modules["share"].to_numpy()[None])[0]))
        yield Quantity(axis="weights", name="effective modules, by squared change", estimate=amount, unit="parts", parts=len(modules))


# ---- other things along layers or ranks ----------------------------------------------------------------------------------------------


def weights_along(runs: Sequence[Loaded]) -> pl.DataFrame:
    """`panel line layer value`: the relative change of each block's attention and MLP, exact."""
    lines = []
    for run in runs:
        modules, _ = findings.modules(run.content.summary)
        for row in modules.filter(pl.col("layer").is_not_null(), pl.col("site").is_in(["attn", "mlp"])).iter_rows(named=True):
            lines.append((row["site"], run.name, None, row["layer"], float(row["layer"]), row["change"] or 0.0, None, None, None))
    return pl.DataFrame(lines, schema=SCHEMA, orient="row")
