"""Activations of one model are patched into the other, site by site."""

from jaxtyping import Float
from torch import Tensor

from mechdiff import labels
from mechdiff.engine.counterfactuals import LOCATING, labelled
from mechdiff.measures.patching import formula
from mechdiff.measures.patching.formula import Both
from mechdiff.models.pair import Model
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result
from mechdiff.study.planner import NEED_FIT


def patch(run: Execution, cell: Cell, model: Model | None) -> Result:
    assert model
    key = cell.key
    variants = formula.variants(key["kind"], key["layers"], written(run, cell), key["width"])
    named = labelled(
        len(variants), measure="patching", direction=key["direction"], split=key["split"], arm=key["arm"], layer=list(key["layers"]),
        site=key["kind"], unit=labels.window_unit(key["width"], key["position"]),
    )  # fmt: skip
    return run.variants(cell, model, variants, named, floor=key["floor"], metrics=LOCATING), {}


def written(run: Execution, cell: Cell) -> Float[Tensor, "layer prompt pos d"]:
    """The states that a cell writes, at every layer."""
    key = cell.key
    states = Both(**{side: run.states(side, key["split"], key["position"], key["ids"]).kinds[key["kind"]] for side in ("base", "tuned")})
    means = _means(run, cell) if key["arm"] in NEED_FIT else None
    donor = run.donors("tuned", cell) if key["arm"] == "resample" else None
    return formula.written_state(key["arm"], key["direction"], states, means=means, donor=donor)


def _means(run: Execution, cell: Cell) -> Both:
    """Over the fit split."""
    position, kind = cell.key["position"], cell.key["kind"]
    return Both(**{side: run.states(side, "fit", position).kinds[kind].mean(1) for side in ("base", "tuned")})
