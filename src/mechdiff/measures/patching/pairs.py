"""What do two outputs do together beyond the sum of what each does alone? Of neighbouring blocks, and of any two of the strongest.

Effects are parts of the way between the two models' logits (overlap over total), which add where the network is linear in between, so that

    I = v(A and B) - v(A) - v(B)

is 0 of outputs that merely add. Its sign alone says only whether both go further or less far than the sum: over 0 also where one alone goes all of
the way and the other back, under 0 also where one alone does all that both do, or both go back. So v(A) and v(B) stand beside it; either will do
where each alone goes about as far as both, and they need each other where each alone goes hardly anywhere. Of a divergence every pair of even parts
would seem to need each other: it is a square.

Where one output lies above the other, both are what the other model has there: what the lower one causes through the upper one is in v(A), and in
v(A and B) too. The strongest outputs are those that move the logits furthest on the select prompts; interactions are of the report prompts.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from mechdiff import labels
from mechdiff.report import effect_shares
from mechdiff.report.difference import BREAKAGE, RECOVERY, STREAM, reported, site_name
from mechdiff.report.parts import Run, table
from mechdiff.report.phrasing import INTERACTION, nats, share, shown, with_interval
from mechdiff.rows import OVERLAP, where
from mechdiff.statistics import intervals, simulated
from mechdiff.statistics.memory import once

NEIGHBOURS = 12
"""Interactions of neighbours in the table."""
LEVEL = 0.05
ABOUT, HARDLY = 0.8, 0.2
"""Parts of what two outputs do together: one that alone goes so far goes about as far as both, or hardly anywhere."""
LEAST = 0.01
"""Parts of the way under which an interaction is not spoken of, however sure it is."""
WRITTEN = {RECOVERY: "the base", BREAKAGE: "the tuned model"}
Triple = tuple[str, str, str]
"""The names of what is written together, and of both parts."""


@once
def of_neighbours(rows: pl.DataFrame) -> pl.DataFrame:
    """INTERACTIONS of the outputs of two neighbouring blocks, the largest first; empty without windows of two blocks."""
    found = {}
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
        found[direction] = values, both
    return _interactions(rows, found)


@once
def of_strongest(rows: pl.DataFrame) -> pl.DataFrame:
    """INTERACTIONS of every two of the strongest outputs, the largest first; empty where none were written together."""
    found = {}
    for direction in (RECOVERY, BREAKAGE):
        values = _overlaps(rows, direction)
        single = values.filter(pl.col("layer").is_not_null(), pl.col("unit").is_null()).with_columns(name=site_name())
        together = values.filter(pl.col("layer").is_null(), pl.col("unit").str.contains("+", literal=True)).with_columns(name="unit")
        both: list[Triple] = [(name, *labels.set_of(name)) for name in together["name"].unique().sort()]
        found[direction] = pl.concat([single, together]), both
    return _interactions(rows, found)


_NUMBERS = tuple(f"{what}{end}" for what in ("first", "second", "together", "value") for end in ("", "_low", "_high"))
INTERACTIONS = dict.fromkeys(("direction", "name", "a", "b"), pl.String) | dict.fromkeys((*_NUMBERS, "p"), pl.Float64)
"""`first` and `second`: each of `a` and `b` alone, `together`: both, `value`: both beyond the sum of each; parts of the way. `p` is family-wise over
all pairs of both directions, on the prompts that all have; null where so few prompts of such skew have no test."""


def _overlaps(rows: pl.DataFrame, direction: str) -> pl.DataFrame:
    """Overlaps of the other model's activations, written at the decision position, on the reported prompts."""
    written = {"direction": direction, "arm": "identity", "control": None, "rank": None, "strength": None}
    return where(rows, measure="patching", metric=OVERLAP, split=reported(rows, "patching"), **written).filter(
        pl.col("prompt").is_not_null()
    )


def _interactions(rows: pl.DataFrame, by_direction: Mapping[str, tuple[pl.DataFrame, Sequence[Triple]]]) -> pl.DataFrame:
    """INTERACTIONS of the named triples of both directions, which are one family."""
    frames = []
    for direction, (values, both) in by_direction.items():
        wanted = list({name for one in both for name in one})
        frames.append(values.filter(pl.col("name").is_in(wanted)).with_columns(name=pl.lit(f"{direction} ") + pl.col("name")))
    found = effect_shares.overlaps(rows, pl.concat(frames))
    if found is None:
        return pl.DataFrame(schema=INTERACTIONS)
    moved, total = dict(zip(found[0], found[1].T, strict=True)), found[2]
    known = [(way, *one) for way, (_, both) in by_direction.items() for one in both if {f"{way} {name}" for name in one} <= moved.keys()]
    if not known:
        return pl.DataFrame(schema=INTERACTIONS)
    together, first, second = (np.column_stack([moved[f"{one[0]} {one[place]}"] for one in known]) for place in (1, 2, 3))
    beyond = together - first - second
    columns = [end for effect in (first, second, together, beyond) for end in intervals.share_intervals(effect, total)]
    p = np.full(len(known), np.nan)
    if simulated.speaks("family_p", len(total), float(simulated.cv_of(total[:, None])[0])):
        value = beyond.mean(0) / total.mean()
        p = intervals.family_p((beyond - value * total[:, None]) / total.mean() + value)
    named = {"direction": [one[0] for one in known], "name": [f"{one[2]} and {one[3]}" for one in known]}
    named |= {"a": [one[2] for one in known], "b": [one[3] for one in known]}
    table = pl.DataFrame(named | dict(zip((*_NUMBERS, "p"), [*columns, p], strict=True)), schema=INTERACTIONS)
    return table.with_columns(pl.col(*_NUMBERS, "p").fill_nan(None)).sort(pl.col("value").abs(), descending=True, maintain_order=True)


def parts(run: Run) -> list[dict]:
    """Both tables, of what was written together."""
    strongest, neighbours = of_strongest(run.rows), of_neighbours(run.rows)
    chosen = "Every two of the strongest outputs, chosen on the validation prompts: both patched in less each alone, as parts of the way in logits: "
    chosen += INTERACTION
    title = f"Interactions of neighbouring blocks, both patched in less each alone, as parts of the way in logits: {INTERACTION}"
    fewer = len(neighbours) > NEIGHBOURS
    title += f"; the {NEIGHBOURS} largest of {len(neighbours)}, so somewhat overstated" if fewer else ""
    tables = ((strongest, chosen, True), (neighbours.head(NEIGHBOURS), title, False))
    return [_table(found, text, tested) for found, text, tested in tables if not found.is_empty()]


def _table(found: pl.DataFrame, title: str, tested: bool) -> dict:
    lines = []
    for r in found.iter_rows(named=True):
        sizes = (shown(r[name], r[f"{name}_low"], r[f"{name}_high"], digits=2) for name in ("first", "second", "together", "value"))
        lines.append((r["name"], WRITTEN[r["direction"]], *sizes, *([("–" if r["p"] is None else nats(r["p"]))] if tested else [])))
    columns = ("outputs", "runs", "first alone", "second alone", "together", "interaction")
    return table([*columns, *(["p (family-wise)"] if tested else [])], lines, folded=title)


def lead(run: Run) -> list[str]:
    """The pair of the strongest outputs that surely does more or less together, beside each alone; else that none was shown to. Nothing where none
    were written."""
    found = of_strongest(run.rows)
    tested = found.filter(pl.col("p").is_not_null())
    if tested.is_empty():
        return []
    sure, n = tested.filter(pl.col("p") < LEVEL, pl.col("value").abs() >= LEAST), tested["name"].n_unique()
    if sure.is_empty():
        return [
            f"Of {n} pairs of the strongest outputs none was shown to do {share(LEAST)} of the way more or less together than the sum of both."
        ]
    first = sure.row(0, named=True)
    alone = [
        f"{first[name]} {'alone goes ' if name == 'a' else ''}{_size(first, part)}" for name, part in (("a", "first"), ("b", "second"))
    ]
    way = 1 if first["value"] > 0 else -1
    ends = (None, None) if first["value_low"] is None else sorted(way * first[end] for end in ("value_low", "value_high"))
    size = with_interval(way * first["value"], *ends, digits=2)
    others = len(sure.filter(pl.col("name") != first["name"])["name"].unique())
    beside = f"; so do {others} other pairs more or less" if others else ""
    said = (
        f"Patched into {WRITTEN[first['direction']]}, {alone[0]} of the way in logits, {alone[1]}, both together {_size(first, 'together')}"
    )
    more = f"{size} {'more' if way > 0 else 'less'} than the sum of both{gloss(first)}"
    return [f"{said}: {more} (family-wise p = {nats(first['p'])}, {len(tested)} tested{beside})."]


def _size(pair: Mapping, part: str) -> str:
    return with_interval(pair[part], pair[f"{part}_low"], pair[f"{part}_high"], digits=2)


def gloss(pair: Mapping) -> str:
    """What a sure interaction means, where both single effects show it: ", so either will do", ", so they need each other", or nothing.

    Either will do where each alone has surely the sign of both together and goes at least ABOUT as far. They need each other where each alone surely
    goes no further than HARDLY of what both do, one way or the other.
    """
    both = pair["together"]
    ends = [(pair[f"{part}_low"], pair[f"{part}_high"]) for part in ("first", "second")]
    if not both or any(end is None for one in ends for end in one):
        return ""
    parts = [sorted((low / both, high / both)) for low, high in ends]
    if pair["value"] / both < 0 and all(low > 0 for low, _ in parts) and min(pair["first"] / both, pair["second"] / both) >= ABOUT:
        return ", so either will do"
    if pair["value"] / both > 0 and all(low >= -HARDLY and high <= HARDLY for low, high in parts):
        return ", so they need each other"
    return ""
