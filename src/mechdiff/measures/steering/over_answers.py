"""Over whole answers a model is steered at every position, by the mean difference along the other prompts' answers.

The mean difference at the decision position is that of how answers open, and none where they open alike. So the vector m is here the mean of
a_t - a_b over all positions of the answers to other prompts (study/answers.py: the prompt that is steered is not among them), and

    add      h + s m                  the base runs, at every position of the answer: does one vector make it go on like the tuned model?
    ablate   h - u u'(h - mu_b)       the tuned model runs, u = m / ||m||, mu_b the base's mean over the same positions

Random vectors as long as m, and random directions stretched to what is ablated, stand beside both.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.engine.counterfactuals import LOCATING, labelled
from mechdiff.engine.replay import Variant, Write
from mechdiff.measures.patching.hot import closer_layers
from mechdiff.measures.steering import formula
from mechdiff.measures.steering.formula import Push
from mechdiff.measures.steering.plan import SteeringOptions
from mechdiff.measures.steering.subspaces import Subspace, change_subspace, random_basis, random_vector
from mechdiff.models.pair import Model
from mechdiff.study.answers import along, unseen
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution, answered
from mechdiff.study.experiment import Result

Made = Callable[[Subspace], Push]
"""An edit from the mean difference of other prompts."""


def steer(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of every edit at every position of the answers, at the closer layers."""
    assert model
    key, options = cell.key, run.prepared.study.asked(SteeringOptions)
    assert options
    states = run.states_of(cell, model.side)
    own = states.kinds[key["kind"]].double()
    variants: list[Variant] = []
    named: list[dict[str, Any]] = []
    for layer in closer_layers(run, options):
        found = [_subspace(run, cell, layer, unseen(run, name)) for name in key["ids"]]
        at = own[states.layers.index(layer)]
        for label, made in _edits(key["direction"], options, layer, key["seed"]):
            value = torch.stack([made(one)(state) for one, state in zip(found, at, strict=True)]).float()
            variants.append({Site(layer, key["kind"]): Write(value=value, add=True)})
            named.append({"layer": layer, "rank": int(any(one.rank for one in found)), **label})
    columns = {name: [label.get(name) for label in named] for name in ("layer", "arm", "rank", "strength", "control")}
    told = labelled(
        len(named), measure="steering", direction=key["direction"], split=key["split"], site=key["kind"], unit=key["position"], **columns
    )
    return run.variants(cell, model, variants, told, floor=key["floor"], metrics=LOCATING), {}


def _subspace(run: Execution, cell: Cell, layer: int, names: tuple[str, ...]) -> Subspace:
    def made() -> Subspace:
        base, tuned = (torch.cat(along(run, cell, side, layer, names)) for side in ("base", "tuned"))
        return change_subspace(base, tuned, 1)

    return run.once(("mean difference of answers", answered(cell), cell.key["kind"], layer, names), made)


def _edits(direction: str, options: SteeringOptions, layer: int, seed: int) -> list[tuple[dict[str, Any], Made]]:
    """What an edit's rows are called, and how it is made."""
    if direction == labels.WITHIN[0]:
        strengths = sorted({1.0, *options.strengths})
        found: list[tuple[dict[str, Any], Made]] = [
            ({"arm": "add", "strength": None if strength == 1 else strength}, partial(_added, strength=strength)) for strength in strengths
        ]
        return [
            *found,
            *(
                ({"arm": "add", "control": labels.draw("random_vector", draw)}, partial(_random, seed=_seed(seed, layer, draw)))
                for draw in range(options.draws)
            ),
        ]
    drawn = (
        ({"arm": "ablate", "control": labels.draw("random_subspace", draw)}, partial(_ablated_at_random, seed=_seed(seed, layer, draw)))
        for draw in range(options.draws)
    )
    return [({"arm": "ablate"}, _ablated), *drawn]


def _added(one: Subspace, strength: float) -> Push:
    return formula.add(one.mean, strength)


def _random(one: Subspace, seed: int) -> Push:
    return formula.add(random_vector(one.mean, seed=seed))


def _ablated(one: Subspace) -> Push:
    return formula.ablate(one.basis, one.origin)


def _ablated_at_random(one: Subspace, seed: int) -> Push:
    basis: Tensor = random_basis(len(one.mean), 1, seed=seed)
    return replace(formula.ablate(basis, one.origin), length_of=_ablated(one))


def _seed(seed: int, layer: int, draw: int) -> int:
    return (seed * 1009 + layer) * 1009 + draw
