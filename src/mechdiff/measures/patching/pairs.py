"""What do two outputs do together beyond the sum of what each does alone? Of neighbouring blocks, and of any two of the strongest.

Effects are parts of the way between the two models' logits (overlap over total), which add where the network is linear in between, so that

    I = v(A and B) - v(A) - v(B)

is 0 of outputs that merely add; under 0 either will do (B passes on what A writes, or both write the same); over 0 they need each other (one undoes
what the other does, or something behind multiplies them). Of a divergence every pair of even parts would seem to need each other: it is a square.

Where one output lies above the other, both are what the other model has there: what the lower one causes through the upper one is in v(A), and in
v(A and B) too. The strongest outputs are those that move the logits furthest on the select prompts; interactions are of the report prompts.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from mechdiff import labels
from mechdiff.report import effect_shares
from mechdiff.report.difference import BREAKAGE, RECOVERY, STREAM, reported, site_name
from mechdiff.report.parts import Run, table
from mechdiff.report.phrasing import INTERACTION, nats, share, with_ends, with_interval
from mechdiff.rows import OVERLAP, where
from mechdiff.statistics import intervals, simulated
from mechdiff.statistics.memory import once

NEIGHBOURS = 12
"""Interactions of neighbours in the table."""
LEVEL = 0.05
LEAST = 0.01
"""Parts of the way under which an interaction is not spoken of, however sure it is."""
WRITTEN = {RECOVERY: "the base", BREAKAGE: "the tuned model"}
Triple = tuple[str, str, str]
"""The names of what is written together, and of both parts."""


@once
def of_neighbours(rows: pl.DataFrame) -> pl.DataFrame:
    """INTERACTIONS of the outputs of two neighbouring blocks, the largest first; empty without windows of two blocks."""
    found = []
    for direction in (RECOVERY, BREAKAGE):
        values = _overlaps(rows, direction).filter(pl.col("layer").is_not_null(), ~pl.col("site").is_in(STREAM))
        values = values.filter(pl.col("unit").is_null() | (pl.col("unit") == labels.window_unit(2, "decision")))
        values = values.with_columns(name=pl.concat_str(site_name(), pl.col("unit").fill_null("")))
        names = {
            (r["layer"], r["site"], r["unit"] is not None): r["name"]
            for r in values.unique("name", maintain_order=True).iter_rows(named=True)
        }
        both = [
            (name, names[layer, site, False], names[layer + 1, site, False])
            for (layer, site, wide), name in names.items()
            if wide and {(layer, site, False), (layer + 1, site, False)} <= names.keys()
        ]
        found.append(_interactions(rows, values, both, direction))
    return pl.concat(found).sort(pl.col("value").abs(), descending=True, maintain_order=True)


@once
def of_strongest(rows: pl.DataFrame) -> pl.DataFrame:
    """INTERACTIONS of every two of the strongest outputs, the largest first; empty where none were written together."""
    found = []
    for direction in (RECOVERY, BREAKAGE):
        values = _overlaps(rows, direction)
        single = values.filter(pl.col("layer").is_not_null(), pl.col("unit").is_null()).with_columns(name=site_name())
        together = values.filter(pl.col("layer").is_null(), pl.col("unit").str.contains("+", literal=True)).with_columns(name="unit")
        both: list[Triple] = [(name, *labels.set_of(name)) for name in together["name"].unique().sort()]
        found.append(_interactions(rows, pl.concat([single, together]), both, direction))
    return pl.concat(found).sort(pl.col("value").abs(), descending=True, maintain_order=True)


_NUMBERS = ("alone", "alone_low", "alone_high", "value", "low", "high", "p")
INTERACTIONS = {"direction": pl.String, "name": pl.String, **dict.fromkeys(_NUMBERS, pl.Float64)}
"""`alone`: the sum of both parts alone, `value`: what both together do beyond it; parts of the way. `p` is family-wise over all of a direction, null
where so few prompts of such skew have no test."""


def _overlaps(rows: pl.DataFrame, direction: str) -> pl.DataFrame:
    """Overlaps of the other model's activations, written at the decision position, on the reported prompts."""
    written = {"direction": direction, "arm": "identity", "control": None, "rank": None, "strength": None}
    return where(rows, measure="patching", metric=OVERLAP, split=reported(rows, "patching"), **written).filter(
        pl.col("prompt").is_not_null()
    )


def _interactions(rows: pl.DataFrame, values: pl.DataFrame, both: Sequence[Triple], direction: str) -> pl.DataFrame:
    wanted = {name for one in both for name in one}
    found = effect_shares.overlaps(rows, values.filter(pl.col("name").is_in(list(wanted)))) if both else None
    known = [one for one in both if found and set(one) <= set(found[0])]
    if found is None or not known:
        return pl.DataFrame(schema=INTERACTIONS)
    moved, total = dict(zip(found[0], found[1].T, strict=True)), found[2]
    alone = np.column_stack([moved[first] + moved[second] for _, first, second in known])
    beyond = np.column_stack([moved[together] for together, _, _ in known]) - alone
    (summed, summed_low, summed_high), (value, low, high) = (intervals.share_intervals(one, total) for one in (alone, beyond))
    p = np.full(len(known), np.nan)
    if simulated.speaks("family_p", len(total), float(simulated.cv_of(total[:, None])[0])):
        p = intervals.family_p((beyond - value * total[:, None]) / total.mean() + value)
    columns = (summed, summed_low, summed_high, value, low, high, p)
    named = {"direction": [direction] * len(known), "name": [f"{first} and {second}" for _, first, second in known]}
    return pl.DataFrame(named | dict(zip(_NUMBERS, columns, strict=True)), schema=INTERACTIONS).with_columns(
        pl.col(_NUMBERS).fill_nan(None)
    )


def parts(run: Run) -> list[dict]:
    """Both tables, of what was written together."""
    strongest, neighbours = of_strongest(run.rows), of_neighbours(run.rows)
    chosen = (
        "Every two of the strongest outputs, chosen on the select prompts: both written less each alone, as parts of the way in logits: "
    )
    chosen += INTERACTION
    title = f"Interactions of neighbouring blocks, both written less each alone, as parts of the way in logits: {INTERACTION}"
    fewer = len(neighbours) > NEIGHBOURS
    title += f"; the {NEIGHBOURS} largest of {len(neighbours)}, so somewhat overstated" if fewer else ""
    tables = ((strongest, chosen, True), (neighbours.head(NEIGHBOURS), title, False))
    return [_table(found, text, tested) for found, text, tested in tables if not found.is_empty()]


def _table(found: pl.DataFrame, title: str, tested: bool) -> dict:
    lines = []
    for r in found.iter_rows(named=True):
        sizes = with_ends(r["alone"], r["alone_low"], r["alone_high"]), with_ends(r["value"], r["low"], r["high"])
        lines.append((r["name"], WRITTEN[r["direction"]], *sizes, *([("–" if r["p"] is None else nats(r["p"]))] if tested else [])))
    columns = ("outputs", "runs", "each alone, summed (95\u00a0%)", "interaction (95\u00a0%)", *(["p (family-wise)"] if tested else []))
    return table(columns, lines, folded=title)


def lead(run: Run) -> list[str]:
    """The pairs of the strongest outputs that surely do more or less together; else that none was shown to. Nothing where none were written."""
    found = of_strongest(run.rows)
    tested = found.filter(pl.col("p").is_not_null())
    if tested.is_empty():
        return []
    sure = tested.filter(pl.col("p") < LEVEL, pl.col("value").abs() >= LEAST)
    if sure.is_empty():
        n = tested["name"].n_unique()
        return [
            f"Of {n} pairs of the strongest outputs none was shown to do {LEAST:g} of the way more or less together than the sum of both."
        ]
    first = sure.row(0, named=True)
    more = "more than the sum of both: they need each other" if first["value"] > 0 else "less than the sum of both: either will do"
    size = with_interval(abs(first["value"]), *sorted(abs(first[end]) for end in ("low", "high")), digits=2)
    others = len(sure.filter(pl.col("name") != first["name"])["name"].unique())
    beside = f"; so do {others} other pairs more or less" if others else ""
    said = f"Together {first['name']}, written into {WRITTEN[first['direction']]}, go {size} of the way in logits {more}"
    return [f"{said} ({share(first['alone'])}; family-wise p = {nats(first['p'])}{beside})."]
