"""Effects per prompt, as tables that two runs can be held against each other by: what a write, a swap or a graft does, in nats.

What a write breaks is kl_own, what it recovers D - kl_other, both on the tokens of D; so are the effects of grafts. Where both directions were
run their mean is taken: breakage hides what self-repair makes good, recovery what needs a partner, and neither alone is the change. Prompts go by
the hash of their text, which is the same in every run that read it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float
from numpy import ndarray

from mechdiff.report import findings, findings_grafting, findings_transport, statistics
from mechdiff.report.comparable import Loaded
from mechdiff.report.findings import BREAKAGE, RECOVERY
from mechdiff.shares import refuse_two_supports

WRITES = ("attn_out", "mlp_out")
"""What blocks write: the parts that localisation counts."""
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
    split = findings.reported(run.content.rows, "divergence")
    of = findings_transport.totals(run.content.rows, split).filter(pl.col("total").is_finite())
    refuse_two_supports(values["metric"].unique(), of["of"].unique())
    prompts, names, matrix = statistics.prompt_matrix(values.filter(pl.col("value").is_finite()).join(of, on="prompt", how="semi"), by=by)
    if not len(prompts):
        return None
    total = of.filter(pl.col("prompt").is_in(prompts)).sort("prompt")["total"].to_numpy()
    keys = [run.key(split, prompt) for prompt in prompts]
    return Table(names=names, prompts=keys, values=total[:, None] - matrix if recovered else matrix, total=total)


def patched(run: Loaded, direction: str, kinds: Sequence[str]) -> Table | None:
    """Effects of the other model's state, written at each layer's sites of these kinds; names are (layer, site)."""
    return _written(run, "patching", direction, pl.col("site").is_in(list(kinds)), pl.col("arm") == "identity", plain=PLAIN)


def heads_alone(run: Loaded, direction: str) -> Table | None:
    """Effects of every head of the network, swapped alone; names are (layer, head)."""
    single = pl.col("unit").str.contains(r"^head \d+$")
    return _written(
        run, "heads", direction, pl.col("site") == "attn_proj", single, pl.col("arm") == "contribution", plain=["control", "strength"]
    )


def _written(run: Loaded, measure: str, direction: str, *where: pl.Expr, plain: Sequence[str]) -> Table | None:
    rows = run.content.rows
    metric = statistics.effect_metric(rows, direction)
    found = findings_transport.written(rows, direction, metric, measure=measure).filter(*where, *(pl.col(name).is_null() for name in plain))
    named = found.with_columns(name=pl.format("{}.{}", pl.col("layer").cast(pl.String).str.zfill(5), pl.coalesce("unit", "site")))
    effects = table(run, named, recovered=direction == RECOVERY)
    if effects is None:
        return None
    parted = [name.partition(".") for name in effects.names]
    return Table(names=[(int(a), b) for a, _, b in parted], prompts=effects.prompts, values=effects.values, total=effects.total)


def both(make: Callable[[str], Table | None]) -> Table | None:
    """The mean of the two directions' effects over the parts and prompts that both have; one direction's where the other was not run."""
    sides = [side for side in (make(BREAKAGE), make(RECOVERY)) if side is not None]
    if len(sides) < 2:
        return sides[0] if sides else None
    names = [name for name in sides[0].names if name in sides[1].names]
    prompts = [prompt for prompt in sides[0].prompts if prompt in sides[1].prompts]
    if not names or not prompts:
        return None
    cut = [s.values[np.ix_([s.prompts.index(p) for p in prompts], [s.names.index(n) for n in names])] for s in sides]
    total = sides[0].total[[sides[0].prompts.index(p) for p in prompts]]
    return Table(names=names, prompts=prompts, values=(cut[0] + cut[1]) / 2, total=total)


def grafted(run: Loaded, arm: str, by: pl.Expr, *where: pl.Expr) -> Table | None:
    """What grafts of one arm recover, in nats, on each prompt; names are the values of `by`, ascending."""
    rows = run.content.rows
    values = findings_grafting.scores(rows, findings.reported(rows, "grafting")).filter(pl.col("arm") == arm, *where)
    return table(run, values.with_columns(name=by), recovered=True) if len(values) else None


def shapley(run: Loaded, direction: str, layer: int) -> Table | None:
    """Shapley values of one block's heads, on each prompt; names are units."""
    of_layer = _of_block(run, direction, layer).filter(pl.col("metric") == "shapley_nats", pl.col("unit").str.contains(r"^head \d+$"))
    return table(run, of_layer.with_columns(name=pl.col("unit")), recovered=False)


def head_prompts(run: Loaded, direction: str, layer: int) -> list[str]:
    """What the prompts are called across runs on which sets of one block's heads were swapped, by their own names."""
    split = findings.reported(run.content.rows, "heads")
    every = _of_block(run, direction, layer).filter(
        pl.col("unit") == "all", pl.col("metric") == statistics.effect_metric(run.content.rows, direction), pl.col("strength").is_null()
    )
    return [run.key(split, prompt) for prompt in every["prompt"].unique().sort()]


def _of_block(run: Loaded, direction: str, layer: int) -> pl.DataFrame:
    rows = run.content.rows
    return rows.filter(
        pl.col("measure") == "heads", pl.col("direction") == direction, pl.col("layer") == layer, pl.col("site") == "attn_proj",
        pl.col("split").eq_missing(findings.reported(rows, "heads")), pl.col("arm") == "contribution", pl.col("control").is_null(),
        pl.col("prompt").is_not_null(),
    )  # fmt: skip
