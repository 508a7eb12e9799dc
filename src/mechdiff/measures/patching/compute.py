"""Activations of one model are patched into the other, site by site."""

import torch
from jaxtyping import Float
from torch import Tensor

from mechdiff import labels, shares
from mechdiff.engine.counterfactuals import LOCATING, OVER_ANSWERS, Subject, first_parting, labelled, score_rows, scores
from mechdiff.engine.outcome import CleanLogits
from mechdiff.engine.reading import read_on
from mechdiff.measures.patching import formula
from mechdiff.measures.patching.formula import Both
from mechdiff.models.pair import Model
from mechdiff.rows import empty
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


def patch_at_divergence(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of every site, written and scored at one position alone: the first of the answer where the models part. Without one, no rows."""
    assert model
    key, lengths, clean = cell.key, run.lengths(cell), run.clean(cell, device=str(model.device))
    parting = {i: place for i, place in enumerate(first_parting(clean, lengths)) if place is not None}
    if not parting:
        return empty(), {}
    engine, cleans, answers = run.engine(model, key["position"]), run.cleans(cell, model), run.answers(model.side, key["ids"])
    told = read_on(model, engine, [cleans[i] for i in parting], [answers[i][:place] for i, place in parting.items()])
    rows = [sum(lengths[:i]) + place for i, place in parting.items()]
    states = run.states(labels.sides(key["direction"])[1], key["split"], key["position"], key["ids"]).kinds
    there = {kind: torch.stack([states[kind][:, i, place] for i, place in parting.items()], 1)[:, :, None] for kind in key["kinds"]}
    found = scores(
        Subject(model=model, engine=engine, cleans=told, tokens=run.prepared.tokens),
        [one for kind, written in there.items() for one in formula.variants(kind, key["layers"], written)],
        CleanLogits(base=clean.base[rows], tuned=clean.tuned[rows], n_shared=clean.n_shared), max_rows=run.max_rows, metrics=LOCATING,
    )  # fmt: skip
    named = labelled(
        len(key["layers"]) * len(there), measure="patching", direction=key["direction"], split=key["split"], arm=key["arm"],
        layer=[*key["layers"]] * len(there), site=[kind for kind in there for _ in key["layers"]],
        unit=labels.along_answer(labels.PARTING, key["answer"]["tokens"]),
    )  # fmt: skip
    of_place = {shares.over(name, shares.DIVERGENT): found[name] for name in OVER_ANSWERS if name in found}
    return score_rows(of_place, named, [key["ids"][i] for i in parting]), {}


def _means(run: Execution, cell: Cell) -> Both:
    """Over the fit split."""
    position, kind = cell.key["position"], cell.key["kind"]
    return Both(**{side: run.states(side, "fit", position).kinds[kind].mean(1) for side in ("base", "tuned")})
