"""Gradients are taken over whole answers, at every position of them, and held against true patches of the same positions."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechdiff import labels, shares
from mechdiff.architectures.sites import Site
from mechdiff.engine.gradients import gradients
from mechdiff.engine.replay import Variant
from mechdiff.measures.attribution import formula
from mechdiff.measures.attribution.compute import Values, validated
from mechdiff.measures.heads.bench import block
from mechdiff.measures.heads.formula import swap
from mechdiff.measures.transport.compute import per_prompt
from mechdiff.models.pair import SIDES, Model
from mechdiff.rows import OVERLAP
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution, answered
from mechdiff.study.experiment import Result


def attribute(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of every head and site by gradient times difference, and of what true swaps of the validated heads do."""
    assert model
    key, layers = cell.key, list(cell.key["layers"])
    states = {side: run.states_of(cell, side).kinds for side in SIDES}
    own, other = states[model.side], states["base" if model.side == "tuned" else "tuned"]
    changes = {layer: block(run, layer, {side: one["z"][layer] for side, one in states.items()}, model.side).change() for layer in layers}
    kinds = [kind for kind in key["settings"]["sites"] if kind in own]
    differences = {Site(layer, kind): other[kind][layer] - own[kind][layer] for layer in layers for kind in kinds}
    swapped = {Site(layer, "attn_proj"): changes[layer].sum(-2) for layer in layers}
    found = _gradients(run, cell, model, differences | swapped)
    unit: str = key["position"]
    values: Values = []
    for layer in layers:
        columns: dict[str, Any] = {"layer": layer, "site": "attn_proj", "arm": "grad_x_diff", "metric": "attributed_answer_logits"}
        for head, each in enumerate(formula.by_head(found[Site(layer, "attn_proj")], changes[layer]).unbind(1)):
            values.append(({**columns, "unit": labels.along_answer(labels.head_unit(head), key["answer"]["tokens"])}, each))
    for site, moved in differences.items():
        columns = {"layer": site.layer, "site": site.kind, "unit": unit, "arm": "grad_x_diff", "metric": "attributed_answer_logits"}
        values.append((columns, (found[site].double() * moved.double()).sum((-2, -1))))
    values += _true_effects(run, cell, model, changes)
    constant = {"measure": "attribution", "direction": key["direction"], "split": key["split"]}
    return per_prompt(values, key["ids"], **constant), {}


def _gradients(run: Execution, cell: Cell, model: Model, like: dict[Site, Tensor]) -> dict[Site, Float[Tensor, "prompt place d"]]:
    """dm/da at every position of the answers, of states as large as these."""
    tokens, weights = run.prepared.tokens, formula.over_places(run.clean(cell), run.lengths(cell))[:, : run.prepared.tokens.n_shared]
    weights = weights.to(model.device)

    def metric(logits: Float[Tensor, "row push vocab"]) -> Float[Tensor, "row push"]:
        return torch.einsum("rpv,rv->rp", tokens.shared(logits, model.side).float(), weights)

    push = {site: torch.zeros_like(state) for site, state in like.items()}
    engine, answers = run.engine(model, cell.key["position"]), run.answers(model.side, cell.key["ids"], answered(cell))
    (found,) = gradients(model, engine, run.cleans(cell, model), [push], metric, answers=answers)
    return found


def _true_effects(run: Execution, cell: Cell, model: Model, changes: dict[int, Tensor]) -> Values:
    """What real swaps at every position of the answer do to m: twice the overlap where the base runs, its reverse where the tuned model does."""
    chosen, n_tokens = validated(run, cell.key["direction"]), cell.key["answer"]["tokens"]
    players = [(layer, head) for layer, head in (*chosen["top"], *chosen["random"]) if head is not None]
    variants: list[Variant] = [swap(layer, changes[layer], [head]) for layer, head in players]
    overlaps = run.scores(cell, model, variants, (OVERLAP,))[shares.over(OVERLAP, shares.ANSWER)][:, 1:]
    effects = overlaps * (2 if model.side == "base" else -2)
    names = [(layer, labels.head_unit(head)) for layer, head in players]
    constant = {"site": "attn_proj", "arm": "contribution", "metric": "effect_answer_logits"}
    return [
        ({"layer": layer, "unit": labels.along_answer(unit, n_tokens), **constant}, each)
        for (layer, unit), each in zip(names, effects.unbind(1), strict=True)
    ]
