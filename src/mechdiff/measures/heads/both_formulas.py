"""Coverage stands beside its inverse, because the study that mechdiff grew from printed one on one pair of models and the other on the next.

    coverage   c(S) = mean v(S) / mean v(all)          inverted   1 - c(S)

Both were called coverage there. The inverted figure is 100 % for heads that do nothing, and ranks first those that do least.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from mechdiff import labels
from mechdiff.measures.heads import coverage
from mechdiff.measures.heads.sets import Game
from mechdiff.report.difference import SAID
from mechdiff.report.parts import table
from mechdiff.report.phrasing import heads_called, nats, share, shown

AT_EACH_END = 4
"""Single heads of the largest coverage that are listed, and as many of the smallest."""
SIZES = (2, 4, 8)
"""Sizes of the greedy sets that are listed."""


def figures(one: Game, sets: Sequence[Sequence[int]]) -> pl.DataFrame:
    """`unit nats share low high inverted`: v(S), c(S) and 1 - c(S) of each set that was run, in the order given."""
    known = [
        (labels.ALL if len(chosen) == one.n else heads_called(one.layer, chosen), values)
        for chosen in sets
        if (values := one.value(chosen)) is not None
    ]
    matrix = np.column_stack([values for _, values in known]) if known else np.zeros((len(one.whole.values), 0))
    found = coverage.coverage(matrix, one.whole)
    columns = {"nats": matrix.mean(axis=0), "share": found.share, "low": found.low, "high": found.high, "inverted": 1 - found.share}
    return pl.DataFrame({"unit": pl.Series([unit for unit, _ in known], dtype=pl.String), **columns})


def side_by_side(one: Game, order: Sequence[int]) -> list[dict]:
    """A folded table of single heads, those of most and of least coverage, and of the first heads of an order; none where nothing is covered."""
    alone = figures(one, [[head] for head in range(one.n)]).sort("share", descending=True, maintain_order=True)
    if alone.is_empty() or not one.whole.counts:
        return []
    ends = alone if len(alone) <= 2 * AT_EACH_END else pl.concat([alone.head(AT_EACH_END), alone.tail(AT_EACH_END)])
    first = figures(one, [order[:k] for k in SIZES if k <= len(order) and k < one.n])
    lines = [
        (r["unit"], nats(r["nats"]), shown(r["share"], r["low"], r["high"], digits=2), share(r["inverted"]))
        for r in pl.concat([ends, first, figures(one, [range(one.n)])]).iter_rows(named=True)
    ]
    columns = ("heads", "v, nats", "coverage, v / v(all)", "inverted, 1 − v / v(all)")
    title = f"{SAID[one.direction][0].upper()}{SAID[one.direction][1:]} at L{one.layer}: coverage beside the inverted formula of the original study"
    return [table(columns, lines, folded=title)]
