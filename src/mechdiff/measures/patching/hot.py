"""The layers that later measures look at more closely are read from the finished cells of the select prompts."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from mechdiff.architectures.sites import Site
from mechdiff.measures.patching.selection import CHOOSING, choose_layers
from mechdiff.rows import OVERLAP, where
from mechdiff.spacing import evenly_spaced
from mechdiff.study.execution import Execution
from mechdiff.study.options import CloserOptions

FEW = 3
"""Layers that are looked at more closely where nothing chose them."""


def selection(run: Execution) -> dict[str, Any] | None:
    """The hot and control layers, and why: see `choose_layers`; None where nothing ran on the select prompts."""

    def choose() -> dict[str, Any] | None:
        cells = [cell for cell in run.cells if cell.stage in CHOOSING and cell.key["split"] == "select"]
        return choose_layers(pl.concat([run.folder.load(cell.key).frame for cell in cells])) if cells else None

    return run.once("selected layers", choose)


def closer_layers(run: Execution, options: CloserOptions) -> list[int]:
    """The layers that a measure looks at more closely: named, or the hot ones of the select prompts, or else a few evenly spaced."""
    if options.closer != "hot":
        return list(options.closer)
    layers = options.layer_numbers(run.n_layers)
    hot = [layer for layer in (selection(run) or {}).get("hot_layers", []) if layer in layers]
    return hot or list(evenly_spaced(FEW, layers))


def strongest_outputs(run: Execution, kinds: Sequence[str], layers: Sequence[int], n: int) -> list[Site]:
    """The `n` outputs that move the logits furthest on the select prompts (the mean overlap of both directions), in network order."""

    def choose() -> list[Site]:
        cells = [cell for cell in run.cells if cell.stage == "patching" and cell.key["split"] == "select" and cell.key["kind"] in kinds]
        every = pl.concat([run.folder.load(cell.key).frame for cell in cells])
        moved = where(every, metric=OVERLAP, arm="identity", control=None, unit=None).filter(pl.col("layer").is_in(list(layers)))
        means = (
            moved.group_by("layer", "site", "direction")
            .agg(pl.col("value").mean().abs())
            .group_by("layer", "site")
            .agg(pl.col("value").mean())
        )
        first = means.sort("value", "layer", "site", descending=[True, False, False]).head(n)
        return sorted(Site(layer, kind) for layer, kind in first.select("layer", "site").iter_rows())

    return run.once(("strongest outputs", tuple(kinds), tuple(layers), n), choose)


def selection_record(run: Execution) -> dict[str, Any]:
    """For the record: `selection`, and `mapped_tokens`, the tokens of each prompt that was patched token by token."""
    vocabulary = run.prepared.vocabularies["tuned"]
    mapped = dict.fromkeys(cell.key["ids"][0] for cell in run.cells if cell.stage == "position_map" and cell.key["tokens"])
    texts = {name: [vocabulary.text(token) for token in run.prompt("report", name).ids_tuned] for name in mapped}
    return {"selection": selection(run), **({"mapped_tokens": texts} if texts else {})}
