"""The layers that later measures look at more closely are read from the finished cells of the select prompts."""

from typing import Any

import polars as pl

from mechdiff.measures.patching.selection import CHOOSING, choose_layers
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

    return run.once("hot layers", choose)


def closer_layers(run: Execution, options: CloserOptions) -> list[int]:
    """The layers that a measure looks at more closely: named, or the hot ones of the select prompts, or else a few evenly spaced."""
    if options.closer != "hot":
        return list(options.closer)
    layers = options.layer_numbers(run.n_layers)
    hot = [layer for layer in (selection(run) or {}).get("hot_layers", []) if layer in layers]
    return hot or list(evenly_spaced(FEW, layers))


def selection_record(run: Execution) -> dict[str, Any]:
    """For the record: `selection`, and `mapped_tokens`, the tokens of each prompt that was patched token by token."""
    tokenizer = run.prepared.pair.tokenizer("tuned")
    mapped = dict.fromkeys(cell.key["ids"][0] for cell in run.cells if cell.stage == "position_map" and cell.key["tokens"])
    texts = {name: [tokenizer.decode([token]) for token in run.prompt("report", name).ids_tuned] for name in mapped}
    return {"selection": selection(run), **({"mapped_tokens": texts} if texts else {})}
