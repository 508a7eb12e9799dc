"""Each output of the closer layers is written with what lies behind it free, and held."""

import polars as pl

from mechdiff import labels
from mechdiff.engine.counterfactuals import LOCATING, labelled
from mechdiff.measures.patching.hot import closer_layers
from mechdiff.measures.self_repair import formula
from mechdiff.measures.self_repair.plan import OUTPUTS, SelfRepairOptions
from mechdiff.models.pair import Model
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result


def hold(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of both arms, and of what later blocks take off."""
    options = run.prepared.study.asked(SelfRepairOptions)
    assert model
    assert options
    key = cell.key
    held = {side: run.states(side, key["split"], key["position"], key["ids"]) for side in labels.sides(key["direction"])}
    own, other = ({kind: one.kinds[kind] for kind in OUTPUTS} for one in held.values())
    places = [(layer, kind) for layer in closer_layers(run, options) for kind in key["kinds"]]
    made = [(layer, kind, arm, one) for layer, kind in places for arm, one in formula.variants(layer, kind, own, other).items()]
    layers, kinds, arms, variants = map(list, zip(*made, strict=True))
    named = labelled(
        len(variants), measure="self_repair", direction=key["direction"], split=key["split"], layer=layers, site=kinds, arm=arms
    )
    found = run.variants(cell, model, variants, named, metrics=LOCATING)
    return pl.concat([found, formula.repaired(found)]), {}
