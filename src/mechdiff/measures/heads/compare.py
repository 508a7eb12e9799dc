"""Heads are compared between runs."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import polars as pl

from mechdiff import labels
from mechdiff.comparison import additive, charts, effects
from mechdiff.comparison.comparable import Loaded
from mechdiff.comparison.compared import Compared, differences, own, said
from mechdiff.comparison.effects import Table, table
from mechdiff.comparison.local import lacking
from mechdiff.comparison.quantity import Main, Plain, Quantity, by_divergence, number, ratio
from mechdiff.measures.heads import findings, sets
from mechdiff.report import difference
from mechdiff.report.difference import BREAKAGE, RECOVERY, WORDS
from mechdiff.report.parts import Drawn, Section
from mechdiff.rows import where
from mechdiff.statistics import floors

SINGLE = (pl.col("site") == "attn_proj", labels.is_head(), pl.col("arm") == "contribution")
"""Rows of heads swapped alone."""
HEADS = Plain(says="{high}'s change goes through more heads than {low}'s: about {a} against {b}.", order="Through how many heads it goes")
NETWORK = Main(axis="heads", name="effective heads of the network", of="parts", noun="effective number of heads")


def head_overlaps(run: Loaded, direction: str = RECOVERY) -> Table | None:
    """Overlaps of every head of the network, swapped alone; names are (layer, head)."""
    return additive.of_parts(run, "heads", direction, *SINGLE, plain=["control", "strength"])


def heads_alone(run: Loaded, direction: str) -> Table | None:
    """Effects of the same, in nats of KL."""
    return effects.of_parts(run, "heads", direction, *SINGLE, plain=["control", "strength"])


def shapley(run: Loaded, direction: str, layer: int) -> Table | None:
    """Shapley values of one block's heads, on each prompt; names are units."""
    of_layer = _of_block(run, direction, layer).filter(pl.col("metric") == "shapley_nats", labels.is_head())
    return table(run, of_layer.with_columns(name=pl.col("unit")), recovered=False)


def along_the_way(run: Loaded, direction: str, layer: int) -> Table | None:
    """How far each head of a block goes the way of all, on each prompt: shares that add; names are units."""
    of_layer = _of_block(run, direction, layer).filter(pl.col("metric") == sets.way_metric(direction, layer), labels.is_head())
    return table(run, of_layer.with_columns(name=pl.col("unit")), recovered=False)


def head_prompts(run: Loaded, direction: str, layer: int) -> list[str]:
    """What the prompts are called across runs on which sets of one block's heads were swapped, by their own names."""
    split = difference.reported(run.content.rows, "heads")
    every = where(_of_block(run, direction, layer), unit="all", metric=floors.effect_metric(run.content.rows, direction), strength=None)
    return [run.key(split, prompt) for prompt in every["prompt"].unique().sort()]


def _of_block(run: Loaded, direction: str, layer: int) -> pl.DataFrame:
    rows = run.content.rows
    return where(
        rows,
        measure="heads",
        direction=direction,
        site="attn_proj",
        split=difference.reported(rows, "heads"),
        arm="contribution",
        control=None,
    ).filter(pl.col("layer") == layer, pl.col("prompt").is_not_null())


TOPS = (1, 3, 5)
"""Sizes of the sets of heads whose coverage is given."""


def quantities(run: Loaded) -> Iterator[Quantity]:
    """Heads of the network, each alone; and the heads of the strongest layer, together."""
    singles = head_overlaps(run)
    if singles is not None:
        yield replace(number(*NETWORK.key, singles, null=True), main=NETWORK, plain=HEADS)
    for direction, word in WORDS.items():
        if (alone := heads_alone(run, direction)) is not None:
            yield by_divergence("heads", f"effective heads of the network by KL, {word}", alone)
    rows, summary, manifest = run.content.rows, run.content.summary, run.content.manifest
    games = {layer: sets.spoken_of(rows, summary, BREAKAGE, layer) for layer in findings.measured_layers(rows, manifest)}
    known = [layer for layer, one in games.items() if one and one.n > 1 and one.whole.counts]
    if not known:
        return
    layer, _ = findings.strongest_layer(rows, known)
    game, keys = games[layer], head_prompts(run, BREAKAGE, layer)
    assert game is not None
    by = "" if game.in_logits else " by KL"  # another currency is another number
    phi = (along_the_way if game.in_logits else shapley)(run, BREAKAGE, layer)
    if phi is not None:
        yield replace(number("heads", f"effective heads of the strongest layer{by}", phi, where=f"L{layer}"), layer=layer)
    order = next(iter(sets.orders(manifest, BREAKAGE, layer).values()), [])
    for k in TOPS:
        together, without = game.value(order[:k]), game.value([head for head in range(game.n) if head not in order[:k]])
        if not k <= len(order) or k >= game.n or len(keys) != len(game.whole.values):
            continue
        for word, part in (("coverage by", together), ("necessity of", None if without is None else game.whole.values - without)):
            if part is not None:
                share = ratio(part, game.whole.values, keys)
                yield Quantity(
                    axis="heads", name=f"{word} the top {k}{by}", estimate=share, unit="share", where=f"of L{layer}", layer=layer
                )


def axis(of: Compared) -> Section:
    """Do a few heads carry it?"""
    keys = of.of_axis("heads")
    parts: list[Any] = []
    curves = [made for run in of.runs if run.counts and (made := _coverage(run)) is not None]
    if curves:
        caption = "Coverage of the strongest layer's effect by the first k of its heads, in the order that each run chose on its validation prompts. "
        told = said(of, NETWORK.key)
        caption += f"Effective heads of the whole network, each alone: {told}." if told else ""
        options = {"table": pl.concat(curves), "names": of.names, "title": "heads in the set"}
        parts.append(Drawn(name="compare_heads", chart=charts.by_rank, options=options, caption=caption, reading="compare_heads"))
    return Section(
        id="heads", title="Do a few heads carry it?", parts=[*parts, *own(of, keys), *differences(of, keys), *lacking(of, "heads", "heads")]
    )


def _coverage(run: Any) -> pl.DataFrame | None:
    """`panel line rank value low high` of one run's strongest layer."""
    rows, summary, manifest = run.content.rows, run.content.summary, run.content.manifest
    games = {layer: sets.spoken_of(rows, summary, BREAKAGE, layer) for layer in findings.measured_layers(rows, manifest)}
    known = [layer for layer, one in games.items() if one and one.n > 1 and one.whole.counts]
    if not known:
        return None
    layer, _ = findings.strongest_layer(rows, known)
    order, game = next(iter(sets.orders(manifest, BREAKAGE, layer).values()), []), games[layer]
    assert game is not None
    curve = sets.curve(game, order).select("low", "high", rank="k", value="share")
    panel = "Share of how far all heads move the logits" if game.in_logits else "Share of what all heads break"
    return curve.with_columns(panel=pl.lit(panel), line=pl.lit(run.name)).select("panel", "line", "rank", "value", "low", "high")
