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

from mechdiff.compare import effects
from mechdiff.compare.comparable import Loaded
from mechdiff.compare.effects import Table
from mechdiff.compare.quantity import share_of
from mechdiff.report.difference import BREAKAGE, RECOVERY
from mechdiff.statistics import intervals, spread

KINDS = ("attn_out", "mlp_out", "resid_post")
WORDS = {BREAKAGE: "breakage", RECOVERY: "recovery"}
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


def panel_of(kind: str, direction: str) -> str:
    return f"{kind}, {WORDS[direction]}"


def profile(run: Loaded, kind: str, direction: str) -> Profile | None:
    """None where it was not measured, or of one prompt."""
    of = effects.patched(run, direction, (kind,))
    return shares_along(run, panel_of(kind, direction), of, [layer for layer, _ in of.names]) if of is not None else None


def shares_along(run: Loaded, panel: str, of: Table, layers: list[int]) -> Profile | None:
    if len(of.prompts) < 2 or of.total.mean() <= 0:
        return None
    pseudo = spread.pseudo_values(np.column_stack([of.values, of.total]), share_of)
    pseudo = pseudo if pseudo.ndim == 2 else pseudo[:, None]
    depth = int(((run.content.manifest.get("pair") or {}).get("base") or {}).get("n_layers") or max(layers) + 1)
    return Profile(run=run.name, panel=panel, layers=layers, depth=depth, prompts=tuple(of.prompts), contributions=pseudo)


def profiles(runs: Sequence[Loaded]) -> list[Profile]:
    """Every profile of every run with an effect."""
    made = (profile(run, kind, direction) for kind in KINDS for direction in WORDS for run in runs if run.counts)
    return [one for one in made if one is not None]


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
