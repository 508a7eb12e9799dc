"""Activations of one model are patched into the other, site by site."""

from torch import Tensor

from mechdiff import labels
from mechdiff.engine.counterfactuals import LOCATING, labelled
from mechdiff.measures.patching import formula
from mechdiff.models.pair import Model
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result
from mechdiff.study.planner import NEED_FIT


def patch(run: Execution, cell: Cell, model: Model | None) -> Result:
    assert model
    key = cell.key
    base, tuned = (run.states(side, key["split"], key["position"], key["ids"]).kinds[key["kind"]] for side in ("base", "tuned"))
    written = formula.written_state(key["arm"], key["direction"], base, tuned, **_arm_states(run, cell))
    variants = formula.variants(key["kind"], key["layers"], written, key["width"])
    named = labelled(
        len(variants), measure="patching", direction=key["direction"], split=key["split"], arm=key["arm"], layer=list(key["layers"]),
        site=key["kind"], unit=labels.window_unit(key["width"], key["position"]),
    )  # fmt: skip
    return run.variants(cell, model, variants, named, floor=key["floor"], metrics=LOCATING), {}


def _arm_states(run: Execution, cell: Cell) -> dict[str, Tensor]:
    """What an arm needs beside the prompts' own states: means over fit, or another prompt's tuned state."""
    key = cell.key
    if key["arm"] in NEED_FIT:
        means = {side: run.states(side, "fit", key["position"]).kinds[key["kind"]].mean(1) for side in ("base", "tuned")}
        return {"mean_base": means["base"], "mean_tuned": means["tuned"]}
    return {"donor": run.donors("tuned", cell)} if key["arm"] == "resample" else {}
