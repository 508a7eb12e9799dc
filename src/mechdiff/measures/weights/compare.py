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
    yield exact("weights", "tensors changed", changed.changed / changed.tensors, "share", where=f"{changed.changed} of {changed.tensors}")
    tensors = findings.tensors(summary).filter(pl.col("relative_norm") > 0)
    for part, metric in ENERGY.items():
        if metric in tensors.columns and len(known := tensors[metric].drop_nulls()):
            name = f"directions with {part} % of a tensor's squared change"
            yield exact("weights", name, float(np.median(known.to_numpy())), "dimensions", where=f"median of {len(known)} tensors")
    modules, _ = findings.modules(summary)
    if len(modules) and "share" in modules.columns and not modules["share"].null_count():
        amount = float(spread.effective(modules["share"].to_numpy()[None])[0])
        yield exact("weights", "effective modules, by squared change", amount, "parts", parts=len(modules))


# ---- other things along layers or ranks ----------------------------------------------------------------------------------------------


def weights_along(runs: Sequence[Loaded]) -> pl.DataFrame:
    """`panel line layer value`: the relative change of each block's attention and MLP, exact."""
    lines = []
    for run in runs:
        modules, _ = findings.modules(run.content.summary)
        for row in modules.filter(pl.col("layer").is_not_null(), pl.col("site").is_in(["attn", "mlp"])).iter_rows(named=True):
            lines.append((row["site"], run.name, None, row["layer"], float(row["layer"]), row["change"] or 0.0, None, None, None))
    return pl.DataFrame(lines, schema=SCHEMA, orient="row")
