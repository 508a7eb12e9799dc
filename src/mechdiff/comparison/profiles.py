"""Shares of D along the layers are drawn for all runs over one another, with the difference of each two.

The share of a layer is a ratio of means over prompts; its pseudo-values (`spread.py`) are each prompt's contribution. Bands cover a whole profile
at once (max-|t| bootstrap), so that a layer where the band of a difference leaves 0 out is one where the two runs differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import polars as pl
from jaxtyping import Float
from numpy import ndarray

from mechdiff.comparison.comparable import Loaded
from mechdiff.comparison.effects import Table
from mechdiff.comparison.quantity import share_of
from mechdiff.statistics import intervals, spread

SCHEMA = {
    "panel": pl.String, "line": pl.String, "against": pl.String, "layer": pl.Int64, "x": pl.Float64, "value": pl.Float64, "low": pl.Float64,
    "high": pl.Float64, "n": pl.String,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Shares of one run along the layers, per prompt."""

    run: str
    panel: str
    layers: list[int]
    depth: int
    prompts: tuple[str, ...]
    contributions: Float[ndarray, "prompt layer"] = field(repr=False)

    def at(self, layers: Sequence[int]) -> Float[ndarray, "prompt layer"]:
        return self.contributions[:, [self.layers.index(layer) for layer in layers]]


def shares_along(run: Loaded, panel: str, of: Table, layers: list[int]) -> Profile | None:
    """Effects at layers as shares of D; None of one prompt, or where there is no D."""
    if len(of.prompts) < 2 or of.total.mean() <= 0:
        return None
    pseudo = spread.pseudo_values(np.column_stack([of.values, of.total]), share_of)
    pseudo = pseudo if pseudo.ndim == 2 else pseudo[:, None]
    depth = int(((run.content.manifest.get("pair") or {}).get("base") or {}).get("n_layers") or max(layers) + 1)
    return Profile(run=run.name, panel=panel, layers=layers, depth=depth, prompts=tuple(of.prompts), contributions=pseudo)


def along(found: Sequence[Profile], *, by_depth: bool = False) -> pl.DataFrame:
    """`panel line layer x value low high n`: the profiles with their simultaneous bands; x is the layer, or the share of depth."""
    lines = []
    for one in found:
        low, high = intervals.simultaneous_bands(one.contributions)
        for layer, value, a, b in zip(one.layers, one.contributions.mean(axis=0), low, high, strict=True):
            x = (layer + 1) / one.depth if by_depth else layer
            lines.append((one.panel, one.run, None, layer, x, value, a, b, str(len(one.prompts))))
    return pl.DataFrame(lines, schema=SCHEMA, orient="row")


def differences(found: Sequence[Profile]) -> pl.DataFrame:
    """`panel line against layer x value low high n`: line - against at the layers that both have, with simultaneous bands."""
    lines = []
    for one, other in combinations(found, 2):
        layers = [layer for layer in one.layers if layer in other.layers]
        if one.panel != other.panel or not layers:
            continue
        here, there = one.at(layers), other.at(layers)
        paired = set(one.prompts) == set(other.prompts)
        if paired:
            place = {prompt: i for i, prompt in enumerate(other.prompts)}
            low, high = intervals.simultaneous_bands(here - there[[place[prompt] for prompt in one.prompts]])
        else:
            low, high = spread.difference_bands(here, there)
        n = str(len(here)) if paired else f"{len(here)} and {len(there)}"
        for layer, value, a, b in zip(layers, here.mean(axis=0) - there.mean(axis=0), low, high, strict=True):
            lines.append((one.panel, one.run, other.run, layer, float(layer), value, a, b, n))
    return pl.DataFrame(lines, schema=SCHEMA, orient="row")
