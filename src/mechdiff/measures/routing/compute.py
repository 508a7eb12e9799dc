"""Both models read the prompts, and each router is asked again on what the other model's was given."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from mechdiff.architectures.lookup import routers_of
from mechdiff.engine.routers import GATES, Choice, Gate, Routed, ask, gate_of, routed
from mechdiff.measures.routing import formula
from mechdiff.measures.routing.plan import INPUTS_ALONE, WEIGHTS_ALONE
from mechdiff.models.pair import SIDES, Model
from mechdiff.rows import empty
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result

Choices = list[dict[int, Choice | None]]
"""By prompt: what the router of each block made of it."""
UNREAD, UNLIKE, NO_GATE = 1, 2, 3
"""Why a block has no rows: a router's outputs are none that a router gives; the two choose among, or choose, different numbers of experts. Why it has
none of JS: its gate is not known."""
WHY = {
    UNREAD: "a router gives away no score of each expert beside the experts that it chose and their weights",
    UNLIKE: "the two models choose among different numbers of experts, or choose different numbers of them",
    NO_GATE: "the chosen experts' weights are in the proportion of neither a softmax nor sigmoids of the scores, or not alike in both models",
}


def route(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of every block, prompt and metric, of the two models and of the controls; tensors: how many experts there are, and why a block has no
    rows."""
    split, names, pair = cell.key["split"], cell.key["ids"], run.prepared.pair
    paths = {side: {layer: path for layer, path in routers_of(pair.config(side)).items() if layer in cell.key["layers"]} for side in SIDES}
    prompts = [run.prompt(split, name) for name in names]
    with pair.use("tuned") as tuned:
        of_tuned = [routed(tuned, one.ids_tuned, paths["tuned"]) for one in prompts]
    with pair.use("base") as base:
        of_base = [routed(base, one.ids_base, paths["base"]) for one in prompts]
        again = _asked(base, paths["base"], of_base)
        inputs = _asked(base, paths["base"], of_tuned) if cell.key["controls"] else []
    weights: Choices = []
    if cell.key["controls"]:
        with pair.use("tuned") as tuned:
            weights = _asked(tuned, paths["tuned"], of_base)
    found = {"base": _chosen(of_base), None: _chosen(of_tuned), "no_op": again, INPUTS_ALONE: inputs, WEIGHTS_ALONE: weights}
    places = [(list(base_at), list(tuned_at)) for base_at, tuned_at in (zip(*one.positions, strict=True) for one in prompts)]
    frames, facts = [], []
    for layer in cell.key["layers"]:
        first, other = found["base"][0][layer], found[None][0][layer]
        why, gate = _why(first, other), _gate(first, other)
        facts.append([why, GATES.index(gate) if gate else -1, *(formula.sizes(first) if first else (0, 0))])
        if not why:
            frames += _rows(found, places, layer=layer, gate=gate, names=names, split=split)
    return pl.concat(frames) if frames else empty(), {"layers": np.array(cell.key["layers"]), "facts": np.array(facts)}


def _asked(model: Model, paths: Mapping[int, str], given: Sequence[Routed]) -> Choices:
    return [{layer: ask(model, layer, paths[layer], asked) for layer, (asked, _) in one.items()} for one in given]


def _chosen(given: Sequence[Routed]) -> Choices:
    return [{layer: choice for layer, (_, choice) in one.items()} for one in given]


def _why(base: Choice | None, tuned: Choice | None) -> int:
    if base is None or tuned is None:
        return UNREAD
    return 0 if formula.sizes(base) == formula.sizes(tuned) else UNLIKE


def _gate(base: Choice | None, tuned: Choice | None) -> Gate | None:
    """The gate of both models' routers; None where it is not known, or not the same."""
    gates = {gate_of(one) if one else None for one in (base, tuned)}
    return gates.pop() if len(gates) == 1 else None


def _rows(
    found: Mapping[str | None, Choices],
    places: Sequence[tuple[list[int], list[int]]],
    *,
    layer: int,
    gate: Gate | None,
    names: Sequence[str],
    split: str,
) -> list[pl.DataFrame]:
    """Rows of one block; what read the base's states is taken at the base's positions, what read the tuned model's at its own."""
    frames = []
    for control in (None, "no_op", INPUTS_ALONE, WEIGHTS_ALONE):
        for name, (base_at, tuned_at), own, others in zip(names, places, found["base"], found[control] or [{}] * len(names), strict=True):
            base, other = own[layer], others.get(layer)
            if base is None or other is None:
                continue
            at = base_at if control in ("no_op", WEIGHTS_ALONE) else tuned_at
            moved = formula.moved(base.at(base_at), other.at(at), gate)
            frames.append(formula.measure(moved, layer=layer, control=control, prompt=name, split=split))
    return frames


def routers_record(run: Execution) -> dict[str, Any]:
    """For the record: `routers` (of each block that was read: its experts, how many of them a token is sent to, and the gate), and what was left
    out."""
    cells = [cell for cell in run.cells if cell.stage == "routing"]
    known: dict[str, dict[str, Any]] = {}
    blocks: dict[int, set[int]] = {UNREAD: set(), UNLIKE: set(), NO_GATE: set()}
    for cell in cells:
        tensors = run.folder.load(cell.key).tensors
        for layer, (why, gate, experts, chosen) in zip(tensors["layers"].tolist(), tensors["facts"].tolist(), strict=True):
            if why:
                blocks[why].add(layer)
                continue
            known[str(layer)] = {"experts": experts, "chosen": chosen, "gate": GATES[gate] if gate >= 0 else None}
            if gate < 0:
                blocks[NO_GATE].add(layer)
    skipped = []
    for why, layers in blocks.items():
        what = f"routing{': JS of the gates' if why == NO_GATE else ''} at block{'s' * (len(layers) != 1)} {', '.join(map(str, sorted(layers)))}"
        skipped += [{"what": what, "why": WHY[why]}] if layers else []
    return {"routers": known, **({"skipped": skipped} if skipped else {})} if cells else {}
