"""Routing is held against routers whose change is known: in a mixture of experts made in code, whatever network the other truths are planted in."""

from collections.abc import Iterator

import torch

from mechdiff.engine.routers import Choice, Routed, ask, routed
from mechdiff.measures.routing import formula
from mechdiff.measures.routing.plan import JS, REPLACED, SET, TOP
from mechdiff.models.pair import Model, wrap
from mechdiff.validate import edits, made
from mechdiff.validate.checks import Check, above, at_most, near
from mechdiff.validate.planted import Bench, edited

SWAPPED = (0, 2)
"""Experts whose rows of the router are exchanged."""
Means = dict[str, list[float]]
"""By metric: the mean over all positions of all prompts, a block each."""


def p21(bench: Bench) -> Iterator[Check]:
    """Two rows of one router exchanged; then another attention below routers that stay as they are."""
    layer = bench.layer
    base = wrap(made.tiny_mixture(), side="base", ref="planted mixture")
    paths = dict.fromkeys(range(base.shape.n_layers), "mlp.gate")
    own = [routed(base, ids, paths) for ids in made.token_prompts(12, seed=1)]
    before = torch.cat([_known(one[layer][1]).chosen for one in own])
    top = torch.cat([_known(one[layer][1]).top for one in own])

    def exchange(net: edits.Net) -> None:
        weight = net.model.layers[layer].mlp.gate.weight
        weight[list(SWAPPED)] = weight[list(SWAPPED)[::-1]].clone()

    whole, inputs, weights = _apart(base, exchange, paths, own)
    one, other = (before[:, expert] for expert in SWAPPED)
    yield near(
        "share of tokens with another top expert, in the block", whole[TOP][layer], _share((top == SWAPPED[0]) | (top == SWAPPED[1])), 0
    )
    yield near("share of tokens with another set of experts, in the block", whole[SET][layer], _share(one != other), 0)
    yield near("share of experts replaced, in the block", whole[REPLACED][layer], _share(one != other) / 2, 1e-12)
    yield near("the same three by the router's weights alone", [weights[m][layer] for m in (TOP, SET, REPLACED, JS)],
               [whole[m][layer] for m in (TOP, SET, REPLACED, JS)], 0)  # fmt: skip
    yield at_most(
        "any metric by inputs alone, in the block and below it", [v for values in inputs.values() for v in values[: layer + 1]], 0
    )
    yield at_most("any metric by the router's weights alone, in other blocks",
                  [v for values in weights.values() for at, v in enumerate(values) if at != layer], 0)  # fmt: skip

    whole, inputs, weights = _apart(base, lambda net: edits.edit_attention(net, 0), paths, own)
    yield above("share of tokens with another top expert, routers unchanged", max(whole[TOP]), 0.02)
    yield near("every metric by inputs alone, every block", list(inputs.values()), list(whole.values()), 0)
    yield at_most("any metric by the router's weights alone", list(weights.values()), 0)


def _apart(base: Model, change: edits.Edit, paths: dict[int, str], own: list[Routed]) -> tuple[Means, Means, Means]:
    """What both together, the inputs alone and the routers' weights alone move."""
    tuned = wrap(edited(base.net, change), side="tuned", ref="planted mixture, tuned")
    theirs = [routed(tuned, ids, paths) for ids in made.token_prompts(12, seed=1)]
    ways = (
        [{at: _known(one[at][1]) for at in paths} for one in theirs],
        [{at: _known(ask(base, at, paths[at], one[at][0])) for at in paths} for one in theirs],
        [{at: _known(ask(tuned, at, paths[at], one[at][0])) for at in paths} for one in own],
    )
    found = []
    for way in ways:
        moved = [[formula.moved(_known(mine[at][1]), other[at], "softmax") for mine, other in zip(own, way, strict=True)] for at in paths]
        found.append({m: [float(torch.cat([one[m] for one in of_block]).mean()) for of_block in moved] for m in (TOP, SET, REPLACED, JS)})
    return found[0], found[1], found[2]


def _known(choice: Choice | None) -> Choice:
    assert choice is not None
    return choice


def _share(of: torch.Tensor) -> float:
    return float(of.double().mean())
