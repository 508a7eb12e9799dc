"""Models are steered: at the decision position, over whole sequences, on neutral prompts for side effects, on texts; vectors are saved."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from mechdiff import labels
from mechdiff.architectures.lookup import shape_of
from mechdiff.architectures.sites import Site
from mechdiff.engine.counterfactuals import labelled
from mechdiff.engine.outcome import CleanLogits
from mechdiff.engine.steered import opening, steering
from mechdiff.maps.vectors import has_control_vector, save_control_vector, save_vector
from mechdiff.measures.divergence.compute import greedy
from mechdiff.measures.patching.hot import closer_layers
from mechdiff.measures.steering import formula
from mechdiff.measures.steering.doses import dose
from mechdiff.measures.steering.formula import Edit, Place, Reader
from mechdiff.measures.steering.plan import SteeringOptions
from mechdiff.measures.steering.subspaces import Subspace, change_subspace, label_swapped
from mechdiff.models.pair import Model
from mechdiff.rows import empty
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result

TEXT_TOKENS = "base", "tuned", "steered"
"""Whose texts are kept."""


# ---- what edits are made of --------------------------------------------------------------------------------------------------------


def _options(run: Execution) -> SteeringOptions:
    options = run.prepared.study.asked(SteeringOptions)
    assert options
    return options


def _decision(run: Execution, side: str, split: str, kind: str, layer: int) -> Tensor:
    """`[prompt, d]`"""
    return run.states(side, split, "decision").kinds[kind][layer, :, 0]


def _contrast(run: Execution, kind: str, layer: int) -> Tensor | None:
    """The mean difference on neutral prompts, where it is to be taken off."""
    if not _options(run).contrast:
        return None
    base, tuned = (_decision(run, side, "neutral", kind, layer).double() for side in ("base", "tuned"))
    return (tuned - base).mean(0)


def subspace(run: Execution, kind: str, layer: int) -> Subspace:
    """The directions of the change at one site, from the fit prompts."""
    base, tuned = (_decision(run, side, "fit", kind, layer) for side in ("base", "tuned"))
    contrast = _contrast(run, kind, layer)
    return change_subspace(base, tuned, max(formula.RANKS), contrast=contrast, seed=run.prepared.study.seed)


def _swapped(run: Execution, kind: str, layer: int) -> list[Tensor]:
    base, tuned = (_decision(run, side, "fit", kind, layer) for side in ("base", "tuned"))
    contrast, seed = _contrast(run, kind, layer), run.prepared.study.seed
    return [label_swapped(base, tuned, contrast=contrast, seed=seed + draw) for draw in range(_options(run).draws)]


def strongest(run: Execution, kind: str) -> list[int]:
    """Of the closer layers those that are steered over whole sequences: where the mean difference is largest beside a state, on the fit prompts.

    The last block's output comes last: what is added there is added to the logits, of any two models.
    """
    last = run.n_layers - 1 if kind == "resid_post" else run.n_layers
    layers = sorted(
        closer_layers(run, _options(run)), key=lambda layer: (layer != last, subspace(run, kind, layer).relative_size), reverse=True
    )
    return sorted(layers[: _options(run).all_positions_layers])


def _places(run: Execution, cell: Cell, layers: Sequence[int], width: int = 1) -> list[Place]:
    """These layers, each with the `width` - 1 layers above it."""
    kind, direction = cell.key["kind"], cell.key["direction"]
    found = []
    for first in layers:
        if first + width > run.n_layers:
            continue
        window = range(first, first + width)
        others = {}
        if formula.ARMS[direction] == ("interchange",):
            theirs = run.states(labels.sides(direction)[1], cell.key["split"], "decision", cell.key["ids"]).kinds[kind]
            others = {layer: theirs[layer, :, 0] for layer in window}
        swapped = {layer: _swapped(run, kind, layer) for layer in window} if direction == "base<-base" else {}
        found.append(Place(kind=kind, subspaces={layer: subspace(run, kind, layer) for layer in window}, swapped=swapped, others=others))
    return found


def edits_of(run: Execution, cell: Cell, layers: Sequence[int], width: int = 1) -> list[Edit]:
    options, key = _options(run), cell.key
    return [
        edit
        for place in _places(run, cell, layers, width)
        for edit in formula.edits(place, key["direction"], strengths=options.strengths, draws=options.draws, seed=key["seed"])
    ]


# ---- the stages --------------------------------------------------------------------------------------------------------------------


def steer(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of every edit at the decision position."""
    assert model
    key, layers = cell.key, closer_layers(run, _options(run))
    edits = edits_of(run, cell, layers)
    if not edits:
        return empty(), {}
    states = run.states(model.side, key["split"], "decision", key["ids"]).kinds[key["kind"]]
    own = {layer: states[layer, :, 0] for layer in layers}
    named = labelled(len(edits), measure="steering", direction=key["direction"], split=key["split"], **_columns(edits))
    return run.variants(cell, model, [formula.at_the_decision(edit, own) for edit in edits], named), {}


def _columns(edits: Sequence[Edit]) -> dict[str, list[Any]]:
    named = [edit.label() for edit in edits]
    return {name: [label[name] for label in named] for name in named[0]}


def steered_prompts(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of fewer edits over whole report prompts; windows of layers also at the decision position alone."""
    assert model
    key = cell.key
    reader, clean, columns = _reader(run, cell, model), _clean(run, cell, model), {"direction": key["direction"], "split": key["split"]}
    frames = [empty()]
    for width in (1, *key["windows"]):
        edits = formula.few(edits_of(run, cell, strongest(run, key["kind"]), width))
        frames.append(formula.measure_effects(reader, edits, clean, columns))
        if width > 1:
            frames.append(formula.measure_effects(reader, edits, clean, columns, all_positions=False))
    return pl.concat(frames), {}


def side_effects(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of what the same edits do to neutral prompts."""
    assert model
    layers = strongest(run, cell.key["kind"])
    edits = [edit for width in (1, *cell.key["windows"]) for edit in formula.few(edits_of(run, cell, layers, width))]
    return formula.measure_side_effects(_reader(run, cell, model), edits, {"direction": cell.key["direction"]}), {}


def steered_controls(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of random directions of the dose that neutral prompts allow, over whole report prompts; none where they allow no dose."""
    assert model
    key, options = cell.key, _options(run)
    sides = [
        run.folder.load(one.key).frame for one in run.cells if one.stage == "side_effects" and one.key["direction"] == key["direction"]
    ]
    limits = {"max_kl_nats": options.max_side_kl_nats, "max_perplexity_ratio": options.max_perplexity_ratio}
    found = dose(pl.concat(sides), key["direction"], **limits) if sides else None
    if found is None or found["site"] != key["kind"]:
        return empty(), {}
    places = _places(run, cell, [found["layer"]])
    edits = formula.random_edits(places[0], found["arm"], found["rank"], found["strength"], draws=options.test_draws, seed=key["seed"])
    columns = {"direction": key["direction"], "split": key["split"]}
    return formula.measure_effects(_reader(run, cell, model), edits, _clean(run, cell, model), columns), {}


def _reader(run: Execution, cell: Cell, model: Model) -> Reader:
    prompts = {name: torch.tensor(run.ids(cell, name), device=model.device) for name in cell.key["ids"]}
    return Reader(model=model, prompts=prompts, tokens=run.prepared.tokens, max_rows=run.max_rows)


def _clean(run: Execution, cell: Cell, model: Model) -> CleanLogits:
    logits = {side: run.states(side, cell.key["split"], "decision", cell.key["ids"]).logits.to(model.device) for side in ("base", "tuned")}
    return CleanLogits(**logits, n_shared=run.prepared.tokens.n_shared)


def steered_texts(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Tensors: what the tuned model, the base, and the base steered by the mean difference at one layer say to a few prompts."""
    key = cell.key
    layer = max(closer_layers(run, _options(run)), key=lambda layer: subspace(run, key["kind"], layer).relative_size)
    found = subspace(run, key["kind"], layer)
    said: dict[str, list[Tensor]] = {}
    for side in ("tuned", "base"):
        with run.prepared.pair.use(side) as running:
            ids = [getattr(run.prompt(key["split"], name), f"ids_{side}") for name in key["ids"]]
            said[side] = greedy(run, running, ids, key["continuation"])
            if side == "base":
                with steering(running, {Site(layer, key["kind"]): formula.add(found.mean)}):
                    said["steered"] = greedy(run, running, ids, key["continuation"])
    tensors = {f"{who}.{i}": tokens.numpy() for who in TEXT_TOKENS for i, tokens in enumerate(said[who])}
    return empty(), {**tensors, "layer": np.array(layer)}


# ---- for the record ----------------------------------------------------------------------------------------------------------------


def steering_record(run: Execution) -> dict[str, Any]:
    """For the record: `steering` (the closer layers, what their directions are like, the saved vectors, the texts). Saves the vectors."""
    cells = [cell for cell in run.cells if cell.stage == "steering"]
    if not cells:
        return {}
    options, kinds = _options(run), sorted({cell.key["kind"] for cell in cells})
    sites = {Site(layer, kind): subspace(run, kind, layer) for kind in kinds for layer in closer_layers(run, options)}
    return {
        "steering": {
            "closer_layers": closer_layers(run, options),
            "all_positions": {kind: strongest(run, kind) for kind in kinds},
            "sites": {str(site): _said(one) for site, one in sorted(sites.items())},
            "files": [name for site, one in sorted(sites.items()) if one.mean.any() for name in _save(run, site, one)],
            "limits": options.model_dump(include={"max_side_kl_nats", "max_perplexity_ratio"}),
            "neutral": _neutral(run),
            "texts": _texts(run),
        }
    }


def _said(one: Subspace) -> dict[str, Any]:
    said = {"rank": one.rank, "relative_size": one.relative_size, "split_half_cosine": one.split_half_cosine}
    return (
        said
        if one.rank
        else {**said, "empty": "the two models' activations differ by no more than rounding here: there is nothing to steer with"}
    )


def _save(run: Execution, site: Site, one: Subspace) -> list[str]:
    """Puts the steering vector of one site into the run's folder; returns the files' names in it."""
    pair, names = run.prepared.pair, [f"steering/{site}.safetensors"]
    of = {"base": pair.base.ref, "tuned": pair.tuned.ref, "fit_prompts": str(len(run.prepared.rendered["fit"]))}
    save_vector(run.folder.place(names[0]), site, one.mean, contrast=str(_options(run).contrast).lower(), **of)
    if has_control_vector(site, shape_of(pair.config("base")).streams):
        names.append(f"steering/{site}.gguf")
        save_control_vector(run.folder.place(names[1]), {site: one.mean}, model_hint=pair.config("base").model_type)
    return names


def _neutral(run: Execution) -> Mapping[str, Any] | None:
    """How many neutral prompts there were, and how many tokens they all open with; None without."""
    cells = [cell for cell in run.cells if cell.stage == "side_effects"]
    if not cells:
        return None
    ids = [torch.tensor(run.ids(cells[0], name)) for name in cells[0].key["ids"]]
    n_shared = opening(run.prepared.pair.config("base"), ids)
    return {"prompts": len(ids), "tokens_scored": sum(len(one) - n_shared for one in ids), "tokens_shared": n_shared}


def _texts(run: Execution) -> list[dict[str, Any]]:
    """What was said to each prompt, by whom."""
    cells = [cell for cell in run.cells if cell.stage == "steered_texts"]
    if not cells:
        return []
    tokenizer, key, tensors = run.prepared.pair.tokenizer("tuned"), cells[0].key, run.folder.load(cells[0].key).tensors
    site = str(Site(int(tensors["layer"]), key["kind"]))
    return [
        {"prompt": name, "text": run.prompt(key["split"], name).prompt.text, "site": site}
        | {who: tokenizer.decode(tensors[f"{who}.{i}"].tolist()) for who in TEXT_TOKENS}
        for i, name in enumerate(key["ids"])
    ]
