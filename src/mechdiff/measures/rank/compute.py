"""The change of activations is measured in ranks, and maps of each rank are applied."""

from collections.abc import Sequence
from dataclasses import replace

import polars as pl
import torch
from torch import Tensor

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.engine.counterfactuals import LOCATING
from mechdiff.engine.gradients import fisher_samples
from mechdiff.measures.patching.hot import closer_layers
from mechdiff.measures.rank import formula
from mechdiff.measures.rank.plan import RankOptions
from mechdiff.measures.transport import formula as transport_formula
from mechdiff.measures.transport.closer import Look
from mechdiff.measures.transport.compute import decision_sample, few_threads
from mechdiff.models.pair import Model
from mechdiff.rows import empty, rows
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result

FISHER_PROMPTS = 8
"""Prompts whose gradients are taken in one pass, at most; no more clean runs than that are held."""


# ---- rank --------------------------------------------------------------------------------------------------------------------------


def ranks(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of the rank of the change at every layer."""
    kind, layers = cell.key["kind"], cell.key["layers"]
    found = {split: [decision_sample(run, split, kind, layer) for layer in layers] for split in ("fit", "report")}
    fit, report = ([one for one in found[split] if one] for split in ("fit", "report"))
    names = [name for shard in run.captures("base", "report", "decision") for name in shard.key["ids"]]
    with few_threads(len(fit[0].base)):
        return formula.measure(fit, report, layers=layers, kind=kind, prompt_ids=names, seed=cell.key["seed"]), {}


def fisher(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Tensors: gradients of log-probabilities at the closer layers, `[sample, d]` by the site's name."""
    assert model
    options = run.prepared.study.asked(RankOptions)
    assert options
    sites = [Site(layer, kind) for layer in closer_layers(run, options) for kind in cell.key["kinds"]]
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
    look = Look(run, cell)
    held = next((run.tensors(one) for one in run.cells if one.stage == "fisher"), {})
    for layer in closer_layers(run, options):
        fit = decision_sample(run, "fit", look.kind, layer)
        assert fit
        gradients = held.get(str(Site(layer, look.kind)))
        with few_threads(len(fit.base)):
            maps = formula.curve_maps(fit, None if gradients is None else torch.from_numpy(gradients), seed=cell.key["seed"])
        _write_curve(look, layer, maps, options, cell.key["seed"])
    found = look.rows(run, cell, model, "rank", LOCATING)
    if (look.direction, cell.key["shard"]) != ("tuned<-base", 0):
        return found, {}
    at = {
        layer: formula.agreement(torch.from_numpy(held[name]))
        for layer in closer_layers(run, options)
        if (name := str(Site(layer, look.kind))) in held
    }
    place = {"measure": "rank", "split": "fit", "site": look.kind, "unit": "fisher", "metric": "fisher_agreement"}
    return pl.concat([found, rows(list(at.values()), layer=list(at), **place)]), {}


def _write_curve(look: Look, layer: int, maps: Sequence[formula.RankedMap], options: RankOptions, seed: int) -> None:
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
            moved = transport_formula.projected_at_random(target - at_zero, one.rank, seed=seed + draw)
            look.write(layer, at_zero + moved, arm=one.arm, rank=one.rank, control=labels.draw("random_subspace", draw))
