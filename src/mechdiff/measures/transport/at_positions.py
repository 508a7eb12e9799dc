"""At the closer layers mapped activations are written at several last positions of a prompt together.

At each position its own activation is mapped, by a map that was fitted on these very positions of the fit prompts, all of them together: a map
of decision positions has seen no other. Penalties are chosen by cross-validation there. `shift` and `mean` are of each position by itself, as in
patching.
"""

from typing import Any

import torch
from torch import Tensor

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.engine.counterfactuals import labelled
from mechdiff.engine.replay import Variant, Write
from mechdiff.maps.maps import Map
from mechdiff.measures.patching.hot import closer_layers
from mechdiff.measures.transport.compute import few_threads, map_settings, sample
from mechdiff.measures.transport.formula import Maps, fit_maps
from mechdiff.measures.transport.plan import CONSTANT, TransportOptions
from mechdiff.models.pair import Model
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result


def mapped(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of every arm at the closer layers, at the cell's positions."""
    assert model
    options = run.prepared.study.asked(TransportOptions)
    assert options
    key, variants, named = cell.key, list[Variant](), list[dict[str, Any]]()
    for layer in closer_layers(run, options):
        for arm in key["arms"]:
            state, rank = _written(run, cell, layer, arm)
            variants.append({Site(layer, key["kind"]): Write(value=state.float())})
            named.append({"layer": layer, "arm": arm, "rank": rank})
    told = labelled(
        len(named), measure="transport", direction=key["direction"], split=key["split"], site=key["kind"],
        unit=labels.window_unit(1, key["position"]), **{name: [label[name] for label in named] for name in ("layer", "arm", "rank")},
    )  # fmt: skip
    return run.variants(cell, model, variants, told), {}


def _written(run: Execution, cell: Cell, layer: int, arm: str) -> tuple[Tensor, int | None]:
    """`[prompt, pos, d]` that an arm writes, and the rank of its map."""
    key, back = cell.key, cell.key["direction"] == "tuned<-tuned"
    source = "tuned" if back or key["direction"] == "base<-tuned" else "base"
    states = run.states(source, key["split"], key["position"], key["ids"])
    place = states.layers.index(layer)
    own = states.kinds[key["kind"]][place]
    if arm == "identity":
        return own, 0
    if arm == "resample":
        return run.donors("base" if back else "tuned", cell)[place], None
    if arm in CONSTANT:
        by_position = _constants(run, cell, layer, arm, source)
        return torch.stack([one.transform(own[:, i]) for i, one in enumerate(by_position)], 1), max(one.rank_ for one in by_position)
    maps = window_maps(run, cell, layer)
    one = (maps.back if back else maps.there)[arm]
    return one.transform(own), one.rank_


def window_maps(run: Execution, cell: Cell, layer: int) -> Maps:
    """The maps that learn, fitted on all positions of the cell's window, a row each; once an execution."""
    kind, position = cell.key["kind"], cell.key["position"]

    def fitted() -> Maps:
        fit = sample(run, cell, kind, layer, position)
        with few_threads(len(fit.base)):
            return fit_maps(cell.key["settings"]["maps"], fit, None, settings=map_settings(run, cell), seed=cell.key["seed"])

    return run.once(("window maps", kind, layer, position), fitted)


def _constants(run: Execution, cell: Cell, layer: int, arm: str, source: str) -> list[Map]:
    """The mean, or the mean difference, at each position of the window."""
    sides = {side: run.states(side, "fit", cell.key["position"]) for side in ("base", "tuned")}
    at = {side: one.kinds[cell.key["kind"]][one.layers.index(layer)] for side, one in sides.items()}
    target = at["base" if source == "tuned" else "tuned"]
    return [Map(arm).fit(at[source][:, i], target[:, i]) for i in range(target.shape[1])]
