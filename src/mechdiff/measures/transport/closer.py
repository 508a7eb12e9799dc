"""At a few selected layers, maps are applied at several strengths and beside their controls."""

from collections.abc import Collection, Sequence
from typing import Any

import polars as pl
from torch import Tensor

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.engine.counterfactuals import labelled
from mechdiff.engine.distributions import EVERY
from mechdiff.engine.replay import Variant, Write
from mechdiff.maps.maps import Map
from mechdiff.measures.patching.hot import closer_layers
from mechdiff.measures.transport import formula
from mechdiff.measures.transport.compute import LOGIT_SUBSPACES, logit_subspace, maps_at
from mechdiff.measures.transport.plan import TransportOptions
from mechdiff.models.pair import Model
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result

EARLY = 8
"""The early layer of the controls is that at one part in so many of the depth."""


RANDOM_DRAWS = 3
"""Random subspaces that a map's written change is projected on."""


class Look:
    """Variants of one cell of the closer look, and their labels, as they are gathered."""

    def __init__(self, run: Execution, cell: Cell) -> None:
        self.direction, self.split, self.kind = cell.key["direction"], cell.key["split"], cell.key["kind"]
        sides = {side: run.states(side, self.split, "decision", cell.key["ids"]).kinds[self.kind][:, :, 0] for side in ("base", "tuned")}
        self.source, self.own = sides["base"], sides[labels.runner(self.direction)]
        """`[layer, prompt, d]`: what maps are applied to, and what the running model has there."""
        self.variants: list[Variant] = []
        self.labels: list[dict[str, Any]] = []

    def write(self, layer: int, state: Tensor, **named: Any) -> None:
        self.variants.append({Site(layer, self.kind): Write(value=state[:, None].float())})
        self.labels.append({"layer": layer, **named})

    def rows(self, run: Execution, cell: Cell, model: Model, measure: str, metrics: Collection[str] = EVERY) -> pl.DataFrame:
        columns = {name: [label.get(name) for label in self.labels] for name in ("layer", "arm", "rank", "strength", "control", "unit")}
        named = labelled(len(self.labels), measure=measure, direction=self.direction, split=self.split, site=self.kind, **columns)
        return run.variants(cell, model, self.variants, named, metrics=metrics)


def closer(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of strengths and controls at the closer layers."""
    assert model
    options = run.prepared.study.asked(TransportOptions)
    assert options
    look, layers = Look(run, cell), closer_layers(run, options)
    asked = cell.key["settings"]["maps"]
    for layer in layers:
        source, own = look.source[layer], look.own[layer]
        if look.split == "fit" and look.direction == "tuned<-base":
            look.write(layer, source, arm="identity", rank=0)
        for arm in ("shift", *asked):
            one = maps_at(run, cell, layer).there[arm]
            target = one.transform(source)
            strengths = () if look.split == "fit" else options.strengths
            for strength in strengths:
                look.write(layer, own + strength * (target - own), arm=arm, rank=one.rank_, strength=strength)
            if look.split != "report":
                look.write(layer, target, arm=arm, rank=one.rank_)
            elif arm in LOGIT_SUBSPACES and look.direction == "tuned<-base":  # the base's own coordinates in the subspace
                inside = logit_subspace(run, arm, cell.key["settings"]["dimensions"])
                swapped = Map(arm, directions=inside, mode="interchange").fit(source, own)
                look.write(layer, swapped.transform(source, own=own), arm=arm, rank=swapped.rank_, unit="interchange")
    if look.split == "report":
        _controls(run, cell, look, options, asked)
    return look.rows(run, cell, model, "transport"), {}


def _controls(run: Execution, cell: Cell, look: Look, options: TransportOptions, asked: Sequence[str]) -> None:
    """Another layer's map, a map of shuffled pairs, a random subspace, and an early layer."""
    layers = closer_layers(run, options)
    for layer in layers:
        source, own = look.source[layer], look.own[layer]
        for arm in asked:
            for other in layers:
                if other != layer:
                    one = maps_at(run, cell, other).there[arm]
                    look.write(layer, one.transform(source), arm=arm, rank=one.rank_, control=labels.other_layer(other))
            if len(run.prepared.rendered["fit"]) > 1:
                shuffled = maps_at(run, cell, layer, shuffled=True).there[arm]
                look.write(layer, shuffled.transform(source), arm=arm, rank=shuffled.rank_, control="permuted")
            one = maps_at(run, cell, layer).there[arm]
            if look.direction == "base<-base" and 0 < one.rank_ <= source.shape[-1] // 2:
                change = one.transform(source) - own
                for draw in range(RANDOM_DRAWS):
                    seen = formula.projected_at_random(change, one.rank_, seed=cell.key["seed"] + draw)
                    look.write(layer, own + seen, arm=arm, rank=one.rank_, control=labels.draw("random_subspace", draw))
    early = run.n_layers // EARLY
    if early not in layers and early in options.layer_numbers(run.n_layers):
        for arm in asked:
            one = maps_at(run, cell, early).there[arm]
            look.write(early, one.transform(look.source[early]), arm=arm, rank=one.rank_, control="early_layer")
