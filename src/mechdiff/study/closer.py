"""The stages of the closer look at a few layers: strengths and controls of maps, gradients for the Fisher metric, maps of every rank."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import polars as pl
import torch
from torch import Tensor

from mechdiff import labels
from mechdiff.engine.gradients import fisher_samples
from mechdiff.engine.models import Model
from mechdiff.engine.replay import Variant, Write
from mechdiff.engine.sites import Site
from mechdiff.measures import rank, transport
from mechdiff.measures.counterfactuals import LOCATING, labelled
from mechdiff.measures.maps import Map
from mechdiff.measures.outcome import EVERY
from mechdiff.rows import empty, rows
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution, Result
from mechdiff.study.mapping import LOGIT_SUBSPACES, decision_sample, few_threads, maps_at
from mechdiff.study.options import RankOptions, TransportOptions

EARLY = 8
"""The early layer of the controls is that at one part in so many of the depth."""

FISHER_PROMPTS = 8
"""Prompts whose gradients are taken in one pass, at most; no more clean runs than that are held."""

RANDOM_DRAWS = 3
"""Random subspaces that a map's written change is projected on."""


class _Look:
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

    def rows(self, run: Execution, cell: Cell, model: Model, measure: str) -> pl.DataFrame:
        columns = {name: [label.get(name) for label in self.labels] for name in ("layer", "arm", "rank", "strength", "control", "unit")}
        named = labelled(len(self.labels), measure=measure, direction=self.direction, split=self.split, site=self.kind, **columns)
        return run.variants(cell, model, self.variants, named, metrics=LOCATING if measure == "rank" else EVERY)


def closer(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of strengths and controls at the closer layers."""
    assert model
    options = run.prepared.study.asked(TransportOptions)
    assert options
    look, layers = _Look(run, cell), run.closer(options)
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
                inside = run.logit_directions(arm, cell.key["settings"]["dimensions"])
                swapped = Map(arm, directions=inside, mode="interchange").fit(source, own)
                look.write(layer, swapped.transform(source, own=own), arm=arm, rank=swapped.rank_, unit="interchange")
    if look.split == "report":
        _controls(run, cell, look, options, asked)
    return look.rows(run, cell, model, "transport"), {}


def _controls(run: Execution, cell: Cell, look: _Look, options: TransportOptions, asked: Sequence[str]) -> None:
    """Another layer's map, a map of shuffled pairs, a random subspace, and an early layer."""
    layers = run.closer(options)
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
                    seen = transport.projected_at_random(change, one.rank_, seed=cell.key["seed"] + draw)
                    look.write(layer, own + seen, arm=arm, rank=one.rank_, control=labels.draw("random_subspace", draw))
    early = run.n_layers // EARLY
    if early not in layers and early in options.layer_numbers(run.n_layers):
        for arm in asked:
            one = maps_at(run, cell, early).there[arm]
            look.write(early, one.transform(look.source[early]), arm=arm, rank=one.rank_, control="early_layer")


# ---- rank --------------------------------------------------------------------------------------------------------------------------


def ranks(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of the rank of the change at every layer."""
    kind, layers = cell.key["kind"], cell.key["layers"]
    found = {split: [decision_sample(run, split, kind, layer) for layer in layers] for split in ("fit", "report")}
    fit, report = ([one for one in found[split] if one] for split in ("fit", "report"))
    names = [name for shard in run.captures("base", "report", "decision") for name in shard.key["ids"]]
    with few_threads(len(fit[0].base)):
        return rank.measure(fit, report, layers=layers, kind=kind, prompt_ids=names, seed=cell.key["seed"]), {}


def fisher(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Tensors: gradients of log-probabilities at the closer layers, `[sample, d]` by the site's name."""
    assert model
    options = run.prepared.study.asked(RankOptions)
    assert options
    sites = [Site(layer, kind) for layer in run.closer(options) for kind in cell.key["kinds"]]
    parts: dict[str, list[Tensor]] = {}
    names, draws = cell.key["ids"], cell.key["samples"]
    width = max(1, min(FISHER_PROMPTS, run.max_rows // (1 + draws)))
    for start in range(0, len(names), width):
        here = replace(cell, key={**cell.key, "position": "decision", "ids": names[start : start + width]})
        seeds = [cell.key["seed"] + number for number in range(start, start + len(here.key["ids"]))]
        found = fisher_samples(model, run.engine(model, "decision"), run.cleans(here, model), sites, draws, seeds)
        for site, gradients in found.items():
            parts.setdefault(str(site), []).append(gradients.flatten(0, 1))
    return empty(), {name: torch.cat(gradients).numpy() for name, gradients in parts.items()}


def rank_curve(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of maps of every rank, written at the closer layers."""
    assert model
    options = run.prepared.study.asked(RankOptions)
    assert options
    look = _Look(run, cell)
    held = next((run.tensors(one) for one in run.cells if one.stage == "fisher"), {})
    for layer in run.closer(options):
        fit = decision_sample(run, "fit", look.kind, layer)
        assert fit
        gradients = held.get(str(Site(layer, look.kind)))
        with few_threads(len(fit.base)):
            maps = rank.curve_maps(fit, None if gradients is None else torch.from_numpy(gradients), seed=cell.key["seed"])
        _write_curve(look, layer, maps, options, cell.key["seed"])
    found = look.rows(run, cell, model, "rank")
    if (look.direction, cell.key["shard"]) != ("tuned<-base", 0):
        return found, {}
    at = {
        layer: rank.agreement(torch.from_numpy(held[name]))
        for layer in run.closer(options)
        if (name := str(Site(layer, look.kind))) in held
    }
    place = {"measure": "rank", "split": "fit", "site": look.kind, "unit": "fisher", "metric": "fisher_agreement"}
    return pl.concat([found, rows(list(at.values()), layer=list(at), **place)]), {}


def _write_curve(look: _Look, layer: int, maps: Sequence[rank.RankedMap], options: RankOptions, seed: int) -> None:
    """Each map at strength 1; reduced-rank ones at other strengths too, and their change in random subspaces of the same size."""
    source, own = look.source[layer], look.own[layer]
    at_zero = maps[0].transform(source)
    for one in maps:
        target = one.transform(source)
        look.write(layer, target, arm=one.arm, rank=one.rank, unit=one.unit)
        if one.arm != "rrr" or one.unit:
            continue
        for strength in options.strengths:
            look.write(layer, own + strength * (target - own), arm=one.arm, rank=one.rank, strength=strength)
        for draw in range(options.draws if one.rank else 0):
            moved = transport.projected_at_random(target - at_zero, one.rank, seed=seed + draw)
            look.write(layer, at_zero + moved, arm=one.arm, rank=one.rank, control=labels.draw("random_subspace", draw))
