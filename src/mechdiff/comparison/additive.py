"""Effects that add, prompt by prompt, are made into tables that two runs can be compared by: overlaps with the difference of the models.

An overlap (engine/overlap.py) is linear in a run's logits, so that what each part has of the sum does not hang on how large the fine-tune is, as a
share of a divergence does. The base runs throughout: it is the network that two fine-tunes of it share, and with a tuned model that has gone far
from it what one site does hangs on what all the others have become. What was measured before there were overlaps has none (`lacking`).
"""

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from mechdiff.comparison import effects
from mechdiff.comparison.comparable import Loaded
from mechdiff.comparison.effects import Table
from mechdiff.report import difference, effect_shares
from mechdiff.rows import OVERLAP, TOTAL, where
from mechdiff.shares import OF_THE_PAIR
from mechdiff.statistics import summary


def lacking(run: Loaded, locating: Sequence[str]) -> bool:
    """Whether a run says where its change is, by the measures that locate it, and only by divergences: it was made before shares that add were."""
    located = run.content.rows.filter(pl.col("measure").is_in(list(locating)))
    return not located.is_empty() and not (located["metric"] == OVERLAP).any()


def table(run: Loaded, values: pl.DataFrame, *, by: str = "name") -> Table | None:
    """Overlaps with a column `by`, as [prompt, part] beside each prompt's total; None without prompts that have all."""
    rows = run.content.rows
    split = difference.reported(rows, OF_THE_PAIR)
    plain = [pl.col(name).is_null() for name in ("control", "unit")]
    of = where(rows, measure=OF_THE_PAIR, metric=TOTAL, split=split).filter(*plain)
    of = of.filter(pl.col("value").is_finite()).select("prompt", total="value")
    prompts, names, matrix = summary.prompt_matrix(values.filter(pl.col("value").is_finite()).join(of, on="prompt", how="semi"), by=by)
    if not prompts:
        return None
    total = of.filter(pl.col("prompt").is_in(prompts)).sort("prompt")["total"].to_numpy()
    return Table(names=names, prompts=[run.key(split, prompt) for prompt in prompts], values=matrix, total=total)


def of_parts(run: Loaded, measure: str, direction: str, *where: pl.Expr, plain: Sequence[str]) -> Table | None:
    """Of a measure's writes at single parts, those with null in the columns `plain`; names are (layer, unit or site)."""
    found = effect_shares.written(run.content.rows, direction, OVERLAP, measure=measure)
    found = found.filter(*where, *(pl.col(name).is_null() for name in plain))
    named = found.with_columns(name=pl.format("{}.{}", pl.col("layer").cast(pl.String).str.zfill(5), pl.coalesce("unit", "site")))
    return effects.placed(table(run, named))


def summed(of: Table, key: Callable[[tuple], object]) -> Table:
    """The sum of all parts that have one key: overlaps add."""
    keys = sorted({key(name) for name in of.names})  # type: ignore[type-var]
    sums = [of.values[:, [i for i, name in enumerate(of.names) if key(name) == one]].sum(axis=1) for one in keys]
    return Table(names=keys, prompts=of.prompts, values=np.column_stack(sums), total=of.total)
