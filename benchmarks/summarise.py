"""Five million rows to summary.parquet: seconds and memory of `summarise`, in a process of its own.

python benchmarks/summarise.py                      this checkout
python benchmarks/summarise.py --beside CHECKOUT    ... and another one's, in turns in the same process: the ratio of their processor seconds
"""

import argparse
import importlib
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from mechdiff.measures.catalogue import NUMBERS
from mechdiff.rows import SCHEMA
from mechdiff.statistics.summary import summarise

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


def of_checkout(folder: Path) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """`summarise` of another checkout: its modules are imported under the same names while ours are put aside, and keep each other."""

    def ours() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] == "mechdiff"]

    aside = {name: sys.modules.pop(name) for name in ours()}
    sys.path.insert(0, str(folder / "src"))
    try:
        module = importlib.import_module("mechdiff.statistics.summary")
        assert Path(str(module.__file__)).is_relative_to(folder), f"{module.__file__} is not of {folder}"
        return module.summarise  # type: ignore[no-any-return]
    finally:
        sys.path.pop(0)
        for name in ours():
            del sys.modules[name]
        sys.modules |= aside


def in_turns(table: pl.DataFrame, other: Path, times: int = 3) -> None:
    """Both, one after the other, so many times; the least of each counts."""
    both = {"this checkout": summarise, str(other): of_checkout(other)}
    least = dict.fromkeys(both, float("inf"))
    for _ in range(times):
        for name, one in both.items():
            started = time.process_time()
            one(table)
            least[name] = min(least[name], time.process_time() - started)
    here, there = least.values()
    print(f"{len(table):,} rows: {here:.1f} s here, {there:.1f} s there, in processor seconds: {here / there:.2f} times")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="of the layers")
    asked = parser.parse_args()
    table = rows(np.random.default_rng(0))
    if asked.share < 1:
        table = table.filter(pl.col("layer").is_null() | (pl.col("layer") < round(LAYERS * asked.share)))
    if asked.beside:
        return in_turns(table, asked.beside.resolve())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    started = time.perf_counter()
    found = summarise(table, NUMBERS)
    seconds, most = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{len(table):,} rows, {len(found):,} numbers: {seconds:.1f} s, {most:.2f} GiB at most, of which {before:.2f} before")


if __name__ == "__main__":
    main()
