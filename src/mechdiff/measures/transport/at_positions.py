"""At the closer layers mapped activations are written at several last positions of a prompt together.

The maps are those of the decision position, or of the positions that `rows_per_prompt` spreads over the fit prompts; at each position its own
activation is mapped. A map that was fitted on decision positions alone has seen no other: give `rows_per_prompt` too.
"""

from typing import Any

from torch import Tensor

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.engine.counterfactuals import labelled
from mechdiff.engine.replay import Variant, Write
from mechdiff.measures.patching.hot import closer_layers
from mechdiff.measures.transport.compute import maps_at
from mechdiff.measures.transport.plan import TransportOptions
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
    maps = maps_at(run, cell, layer)
    one = (maps.back if back else maps.there)[arm]
    return one.transform(own), one.rank_
