"""Do later blocks undo what one output writes?

One model runs, and at the last prompt token the output of one block's attention or MLP is replaced by the other model's. Two runs (McGrath 2023,
arXiv 2307.15771; Rushing & Nanda 2024, arXiv 2402.15390):

    total    everything behind the site computes on from it, as in a patch
    direct   every output of attention and MLP behind the site stays what it is in the unedited run: the patch reaches the logits through the residual
             stream alone, and through the final norm, which is computed anew

In both the logits move a part of the way to the other model's (overlap over its total, `engine/overlap.py`), and

    repaired_nats = overlap(direct) - overlap(total)

is what later blocks take off. Over 0 where direct is over 0: they undo what was written (self-repair). Under 0: they add to it. 0: they do nothing
about it, as behind the last output by construction.

When it misleads: the final norm divides a longer stream by more, which is counted as direct; what later outputs do may be an answer to the patch, or
the change that the fine-tune made to them (compare both directions: where the base runs, later blocks are the base's); and a state that no run has
ever had may be met by anything.
"""

from collections.abc import Mapping

import polars as pl
from jaxtyping import Float
from torch import Tensor

from mechdiff.architectures.sites import Site
from mechdiff.engine.replay import Variant, Write
from mechdiff.measures.self_repair.plan import DIRECT, OUTPUTS, TOTAL
from mechdiff.rows import COLUMNS, KEY, OVERLAP

Outputs = Mapping[str, Float[Tensor, "layer prompt pos d"]]
"""By kind of site, of all layers."""


def behind(layer: int, kind: str, n_layers: int) -> list[Site]:
    """The outputs that are computed after a site."""
    return [
        Site(one, output)
        for one in range(layer, n_layers)
        for output in OUTPUTS
        if (one, OUTPUTS.index(output)) > (layer, OUTPUTS.index(kind))
    ]


def variants(layer: int, kind: str, own: Outputs, other: Outputs) -> dict[str, Variant]:
    """Both arms of one site: the other model's output there, and with it the running model's own outputs behind it."""
    written = {Site(layer, kind): Write(value=other[kind][layer])}
    held = {site: Write(value=own[site.kind][site.layer]) for site in behind(layer, kind, len(own[kind]))}
    return {TOTAL: written, DIRECT: written | held}


def repaired(found: pl.DataFrame) -> pl.DataFrame:
    """Rows of what later blocks take off, from the rows of both arms."""
    key = [name for name in KEY if name not in ("arm", "metric")]
    sides = {arm: found.filter(pl.col("metric") == OVERLAP, pl.col("arm") == arm, pl.col("control").is_null()) for arm in (DIRECT, TOTAL)}
    both = sides[DIRECT].join(sides[TOTAL].select(*key, total="value"), on=key, nulls_equal=True, validate="1:1")
    both = both.with_columns(arm=pl.lit(None, pl.String), metric=pl.lit("repaired_nats"), value=pl.col("value") - pl.col("total"))
    return both.select(COLUMNS)
