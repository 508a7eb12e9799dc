"""Activations of one model are patched into the other, site by site."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from mechdiff import labels, shares
from mechdiff.engine.activations import Clean
from mechdiff.engine.counterfactuals import LOCATING, OVER_ANSWERS, Scores, Subject, first_parting, labelled, score_rows, scores
from mechdiff.engine.outcome import CleanLogits
from mechdiff.engine.reading import read_on
from mechdiff.engine.replay import Variant, Write
from mechdiff.measures.patching import formula
from mechdiff.measures.patching.formula import Both
from mechdiff.measures.patching.hot import strongest_outputs
from mechdiff.models.pair import Model
from mechdiff.rows import empty
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution, answered
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
    states = Both(**{side: run.states_of(cell, side).kinds[key["kind"]] for side in ("base", "tuned")})
    means = _means(run, cell) if key["arm"] in NEED_FIT else None
    donor = run.donors("tuned", cell) if key["arm"] == "resample" else None
    return formula.written_state(key["arm"], key["direction"], states, means=means, donor=donor)


def write_pairs(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of every two of the strongest outputs, written together as the other model has them."""
    assert model
    key = cell.key
    sites = strongest_outputs(run, key["kinds"], key["layers"], key["strongest"])
    other = run.states_of(cell, labels.sides(key["direction"])[1])
    writes = {site: Write(value=other.kinds[site.kind][other.layers.index(site.layer)]) for site in sites}
    chosen = list(combinations(sites, 2))
    named = labelled(
        len(chosen),
        measure="patching",
        direction=key["direction"],
        split=key["split"],
        arm=key["arm"],
        unit=[labels.set_unit(two) for two in chosen],
    )
    return run.variants(cell, model, [{site: writes[site] for site in two} for two in chosen], named, metrics=LOCATING), {}


def patch_at_divergence(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of every site, written and scored at one position alone: the first of the answer where the models part. Without one, no rows."""
    assert model
    key, lengths, clean = cell.key, run.lengths(cell), run.clean(cell)
    parting = {i: place for i, place in enumerate(first_parting(clean, lengths)) if place is not None}
    if not parting:
        return empty(), {}
    engine, answers = run.engine(model, key["position"]), run.answers(model.side, key["ids"], answered(cell))
    states = run.states_of(cell, labels.sides(key["direction"])[1]).kinds
    places = [parting.get(i, 0) for i in range(len(lengths))]  # of prompts without one nothing is written
    there = {kind: torch.stack([states[kind][:, i, place] for i, place in enumerate(places)], 1)[:, :, None] for kind in key["kinds"]}
    variants = [one for kind, written in there.items() for one in formula.variants(kind, key["layers"], written)]

    def score(cleans: Sequence[Clean], here: Sequence[Variant], part: slice) -> Scores:
        chosen = [i for i in range(part.start, part.stop) if i in parting]
        if not chosen:
            return {}
        among = [i - part.start for i in chosen]
        told = read_on(model, engine, [cleans[i] for i in among], [answers[i][: parting[i]] for i in chosen])
        subject = Subject(model=model, engine=engine, cleans=told, tokens=run.prepared.tokens)
        written = [{site: replace(write, value=write.value[among]) for site, write in one.items()} for one in here]
        rows = [sum(lengths[:i]) + parting[i] for i in chosen]
        laws = CleanLogits(base=clean.base[rows].to(model.device), tuned=clean.tuned[rows].to(model.device), n_shared=clean.n_shared)
        return scores(subject, written, laws, max_rows=run.max_rows, metrics=LOCATING)

    parts = [one for one in run.in_parts(cell, model, variants, score) if one]
    found = {name: torch.cat([one[name] for one in parts]) for name in parts[0]}
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
