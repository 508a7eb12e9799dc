"""Effects on each prompt are made into tables that two runs can be compared by: what a patch, a swap or a graft does, in nats.

What a write breaks is kl_own, what it recovers D - kl_other, both on the tokens of D; so are the effects of grafts. Breakage hides what self-repair
makes good, recovery what needs a partner: they are two questions, and their mean answers none, so each stands alone. As shares of D both hang on how
large D is (a divergence is quadratic in a small edit and bends for a large one): how distributed a change is, is read from shares that add
(additive.py). Prompts go by the hash of their text, which is the same in every run that read it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
from jaxtyping import Float
from numpy import ndarray

from mechdiff.comparison.comparable import Loaded
from mechdiff.report import difference, effect_shares
from mechdiff.report.difference import RECOVERY
from mechdiff.shares import OF_THE_PAIR, refuse_two_supports
from mechdiff.statistics import floors, summary

PLAIN = ("control", "unit", "rank", "strength")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Effects per prompt, on the prompts that have all of them."""

    names: list
    """Of the parts: (layer, site), (layer, head), a module, a rank."""
    prompts: list[str]
    """What the prompts are called across runs."""
    values: Float[ndarray, "prompt part"]
    total: Float[ndarray, " prompt"]
    """D of each prompt, in nats."""


def table(run: Loaded, values: pl.DataFrame, *, recovered: bool, by: str = "name") -> Table | None:
    """Rows with a column `by` as effects [prompt, part], beside each prompt's D; None without prompts that have all."""
    split = difference.reported(run.content.rows, OF_THE_PAIR)
    of = effect_shares.totals(run.content.rows, split).filter(pl.col("total").is_finite())
    refuse_two_supports(values["metric"].unique(), of["of"].unique())
    prompts, names, matrix = summary.prompt_matrix(values.filter(pl.col("value").is_finite()).join(of, on="prompt", how="semi"), by=by)
    if not len(prompts):
        return None
    total = of.filter(pl.col("prompt").is_in(prompts)).sort("prompt")["total"].to_numpy()
    keys = [run.key(split, prompt) for prompt in prompts]
    return Table(names=names, prompts=keys, values=total[:, None] - matrix if recovered else matrix, total=total)


def of_parts(run: Loaded, measure: str, direction: str, *where: pl.Expr, plain: Sequence[str]) -> Table | None:
    """Effects of a measure's writes at single parts, those with null in the columns `plain`; names are (layer, unit or site)."""
    rows = run.content.rows
    metric = floors.effect_metric(rows, direction)
    found = effect_shares.written(rows, direction, metric, measure=measure).filter(*where, *(pl.col(name).is_null() for name in plain))
    named = found.with_columns(name=pl.format("{}.{}", pl.col("layer").cast(pl.String).str.zfill(5), pl.coalesce("unit", "site")))
    return placed(table(run, named, recovered=direction == RECOVERY))


def placed(of: Table | None) -> Table | None:
    """The same with names such as "00004.attn_out" taken apart, as (4, "attn_out")."""
    if of is None:
        return None
    parted = [name.partition(".") for name in of.names]
    return Table(names=[(int(a), b) for a, _, b in parted], prompts=of.prompts, values=of.values, total=of.total)
