"""Five million rows to summary.parquet: seconds and memory of `summarise`, in a process of its own.

python benchmarks/summarise.py
"""

import resource
import time

import numpy as np
import polars as pl

from mechdiff.report.statistics import summarise
from mechdiff.rows import SCHEMA

PROMPTS, LAYERS, SITES, ARMS = 140, 32, ("attn_out", "mlp_out", "resid_mid", "resid_post"), ("identity", "shift", "mean", "resample")
METRICS = ("kl_own_nats", "kl_other_nats", "js_own_nats", "top1_same", "logit_diff_divergent")
DIRECTIONS, STRENGTHS = ("tuned<-base", "base<-tuned"), (None, 0.25, 0.5, 0.75, 1.5, 2.0, 3.0)


def rows(rng: np.random.Generator) -> pl.DataFrame:
    """Patching of a deep model, 5,017,600 rows, and its divergence."""
    names = pl.DataFrame({"prompt": [f"p{i:04d}" for i in range(PROMPTS)]})
    grid = pl.DataFrame({"measure": ["patching"], "split": ["report"]})
    columns = {"direction": DIRECTIONS, "layer": range(LAYERS), "site": SITES, "arm": ARMS, "strength": STRENGTHS, "metric": METRICS}
    for name, values in columns.items():
        grid = grid.join(pl.DataFrame({name: list(values)}, schema={name: SCHEMA[name]}), how="cross")
    patched = grid.join(names, how="cross")
    d = names.with_columns(measure=pl.lit("divergence"), split=pl.lit("report"), metric=pl.lit("kl_tuned_base_nats"))
    every = pl.concat([patched, d], how="diagonal")
    drawn = pl.Series(rng.lognormal(0, 1, len(every)))
    every = every.with_columns(value=pl.when(pl.col("metric") == "top1_same").then(drawn > 1).otherwise(drawn))
    missing = [pl.lit(None, kind).alias(name) for name, kind in SCHEMA.items() if name not in every.columns]
    return every.with_columns(missing).select([pl.col(name).cast(kind) for name, kind in SCHEMA.items()])


def main() -> None:
    table = rows(np.random.default_rng(0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    started = time.perf_counter()
    found = summarise(table)
    seconds, most = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{len(table):,} rows, {len(found):,} numbers: {seconds:.1f} s, {most:.2f} GiB at most, of which {before:.2f} before")


if __name__ == "__main__":
    main()
