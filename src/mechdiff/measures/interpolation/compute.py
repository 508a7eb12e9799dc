"""The way from the base to the tuned model is walked: by weights, by logits, by activations of one block."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from mechdiff.architectures.sites import Site
from mechdiff.engine.grafts import scaled
from mechdiff.engine.outcome import CleanLogits
from mechdiff.engine.replay import Write
from mechdiff.errors import ModelError
from mechdiff.measures.divergence.compute import greedy
from mechdiff.measures.grafting.compute import units_changed
from mechdiff.measures.interpolation import formula
from mechdiff.measures.interpolation.formula import Label
from mechdiff.measures.interpolation.plan import KIND, STATES, WEIGHTS, InterpolationOptions, holds
from mechdiff.measures.patching.hot import closer_layers, selection
from mechdiff.models.pair import Model
from mechdiff.rows import empty
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result


def interpolate(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of one form at every strength. At 0 nothing runs: the base's own logits stand there."""
    key = cell.key
    clean = _clean(run, cell)
    label = Label(arm=key["arm"], split=key["split"], prompts=key["ids"], unit=key.get("modules"))
    if key["arm"] == STATES:
        assert model
        label = Label(arm=STATES, split=key["split"], prompts=key["ids"], direction="base<-tuned", layer=layer_of(run), site=KIND)
        found = _of_states(run, cell, model, clean)
    elif key["arm"] == WEIGHTS:
        assert model
        found = _of_weights(run, cell, model, clean)
    else:
        found = formula.of_logits(clean, key["strengths"])
    try:
        return pl.concat([formula.measure(logits, clean, label, strength) for strength, logits in found]), {}
    except ModelError as error:
        _warn(run, error)
        return empty(), {}


def _warn(run: Execution, error: ModelError) -> None:
    said = f"interpolation of weights is left out: {error}"
    if said not in run.folder.warnings:
        run.folder.warnings.append(said)


def _clean(run: Execution, cell: Cell) -> CleanLogits:
    logits = {side: run.states(side, cell.key["split"], "decision", cell.key["ids"]).logits for side in ("base", "tuned")}
    return CleanLogits(**logits, n_shared=run.prepared.tokens.n_shared)


def _of_weights(run: Execution, cell: Cell, model: Model, clean: CleanLogits) -> Iterator[tuple[float, Tensor]]:
    ids = [run.ids(cell, name) for name in cell.key["ids"]]
    yield 0.0, clean.base
    walked = [strength for strength in cell.key["strengths"] if strength]
    changes, group = units_changed(run, model), cell.key.get("modules")
    moved = None if group is None else [unit for unit in changes.units if holds(group, unit.layer, unit.kind)]
    for strength, logits in formula.of_weights(model, changes, ids, walked, moved):
        yield strength, run.prepared.tokens.place(logits, "base").cpu()


def _of_states(run: Execution, cell: Cell, model: Model, clean: CleanLogits) -> Iterator[tuple[float, Tensor]]:
    """The base's logits, moved as far as its run with these activations moves them."""
    key, layer = cell.key, layer_of(run)
    base, tuned = (run.states(side, key["split"], "decision", key["ids"]).kinds[KIND][layer, :, 0] for side in ("base", "tuned"))
    variants = [{Site(layer, KIND): Write(value=(strength * (tuned - base))[:, None], add=True)} for strength in key["strengths"]]
    moved = run.moved(cell, model, variants)
    for place, strength in enumerate(key["strengths"]):
        yield strength, clean.base + moved[:, place]


def layer_of(run: Execution) -> int:
    """The block whose output is moved: the middle one of those that are named or that the select prompts chose, else of the network."""
    options = run.prepared.study.asked(InterpolationOptions)
    assert options
    if options.closer == "hot" and not (selection(run) or {}).get("hot_layers"):
        layers = options.layer_numbers(run.n_layers)
    else:
        layers = tuple(closer_layers(run, options))
    return layers[len(layers) // 2]


def answer(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of how much the answers repeat themselves; tensors: the answers."""
    assert model
    key = cell.key
    prompts = [run.ids(cell, name) for name in key["ids"]]
    frames, tensors = [empty()], dict[str, np.ndarray]()
    for place, strength in enumerate(key["answer_strengths"]):
        try:
            with scaled(model, units_changed(run, model), strength), torch.no_grad():
                said = greedy(run, model, prompts, key["continuation"])
        except ModelError as error:
            _warn(run, error)
            return empty(), {}
        frames.append(formula.spoken(said, key["ids"], key["split"], strength))
        tensors |= {f"{place}.{i}": tokens.numpy() for i, tokens in enumerate(said)}
    return pl.concat(frames), tensors


def record(run: Execution) -> dict[str, Any]:
    """For the record: `interpolation` (the block where activations were moved, whether embed is the unembedding too, what was said by strength)."""
    cells = [cell for cell in run.cells if cell.stage in ("interpolation", "interpolated_answers")]
    if not cells:
        return {}
    moved = any(cell.key["arm"] == STATES for cell in cells)
    said = {"layer": layer_of(run) if moved else None, "tied": run.changes.tied}
    return {"interpolation": said | {"answers": [one for cell in cells for one in _answers(run, cell)]}}


def _answers(run: Execution, cell: Cell) -> list[dict[str, Any]]:
    if cell.stage != "interpolated_answers":
        return []
    tokenizer, key, tensors = run.prepared.pair.tokenizer("tuned"), cell.key, run.folder.load(cell.key).tensors
    if not tensors:
        return []
    return [
        {"prompt": name, "strength": strength, "text": tokenizer.decode(tensors[f"{place}.{i}"].tolist())}
        for i, name in enumerate(key["ids"])
        for place, strength in enumerate(key["answer_strengths"])
    ]
