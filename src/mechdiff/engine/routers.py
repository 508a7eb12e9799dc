"""A router's choice of experts is read while a model reads a prompt; and a router is asked again, on what another model's router was given.

A router of transformers gives away a score of every expert `[token, expert]`, the experts that it chose `[token, k]` and the weight of each
`[token, k]`; or, in Llama 4, weights of all experts of which those that were not chosen are exactly 0. Which of its outputs is which is told by their
shapes and types.

    top expert     the chosen expert of the largest weight
    gate           p_e over all E experts: softmax(scores), where the weights of those chosen are in that proportion; sigmoid(score_e) / sum of
                   all sigmoids, where they are in that one (DeepSeek-V3: the weights that it would give if it chose all experts; its correction
                   bias enters the choice alone, never a weight, and is not in it)

The proportion is read from the model's own weights, so no config field and no name says which gate it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from mechdiff.engine.activations import forward
from mechdiff.models.pair import Model

Gate = Literal["softmax", "sigmoid"]
GATES: tuple[Gate, Gate] = ("softmax", "sigmoid")
_ROUNDINGS = 16
"""Roundings of its dtype by which a weight may miss the gate's proportion."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What one router made of each token, on the CPU."""

    scores: Float64[Tensor, "pos expert"]
    """As the router gives them away: before softmax or sigmoid."""
    weights: Float64[Tensor, "pos expert"]
    """Of the chosen experts; 0 of all others."""
    chosen: Bool[Tensor, "pos expert"]
    rounding: float
    """Of the dtype of scores or weights, the larger."""

    @property
    def top(self) -> Int[Tensor, " pos"]:
        """The chosen expert of the largest weight; the first of those that tie."""
        return self.weights.masked_fill(~self.chosen, -1).argmax(-1)

    def at(self, places: Sequence[int]) -> "Choice":
        """At some positions."""
        rows = list(places)
        return Choice(scores=self.scores[rows], weights=self.weights[rows], chosen=self.chosen[rows], rounding=self.rounding)


@dataclass(frozen=True)
class _Own:
    """A tensor of the block's own among a router's arguments, by its name in the block: another model's router gets its own."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a router was given. Tensors lie on the CPU."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


Routed = dict[int, tuple[Asked, Choice | None]]
"""By block: what its router was given, and what it chose; None where its outputs are not a router's."""


def routed(model: Model, ids: Sequence[int], routers: Mapping[int, str]) -> Routed:
    """What the routers at `routers` (block -> path inside it) do in one forward pass of a prompt."""
    found: Routed = {}

    def reader(layer: int) -> Any:
        own = {id(tensor): _Own(name) for name, tensor in _tensors(model.blocks[layer])}

        def read(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            kept = tree_map(lambda one: own.get(id(one), one.detach().cpu()) if isinstance(one, Tensor) else one, (args, kwargs))
            found[layer] = (Asked(args=kept[0], kwargs=kept[1]), _choice(output))

        return read

    handles = [
        model.blocks[layer].get_submodule(path).register_forward_hook(reader(layer), with_kwargs=True) for layer, path in routers.items()
    ]
    try:
        forward(model, torch.tensor([list(ids)], device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def ask(model: Model, layer: int, path: str, asked: Asked) -> Choice | None:
    """What this model's router makes of what another one was given; None where its outputs are not a router's."""
    block = model.blocks[layer]
    own, device = dict(_tensors(block)), next(block.parameters()).device

    def given(one: Any) -> Any:
        return own[one.name] if isinstance(one, _Own) else one.to(device) if isinstance(one, Tensor) else one

    with torch.inference_mode():
        return _choice(block.get_submodule(path)(*map(given, asked.args), **{name: given(one) for name, one in asked.kwargs.items()}))


def gate_of(choice: Choice) -> Gate | None:
    """The gate whose proportion the weights of the chosen experts have; None where they have neither, or say nothing (one expert, weight 1)."""
    scores, chosen = choice.scores, choice.chosen & (choice.weights > 0)
    laws = {"softmax": scores.log_softmax(-1), "sigmoid": torch.nn.functional.logsigmoid(scores)}
    single = bool((chosen.sum(-1) < 2).all())
    if single and len(chosen) and _spread(choice.weights.clamp(min=1e-300).log()[chosen]) <= _ROUNDINGS * choice.rounding:
        return None
    misses: dict[Gate, float] = {}
    for gate in GATES:
        off = choice.weights.clamp(min=1e-300).log() - laws[gate]
        misses[gate] = _spread(off[chosen]) if single else max(_spread(row[of]) for row, of in zip(off, chosen, strict=True))
    best = min(GATES, key=lambda gate: misses[gate])
    return best if misses[best] <= _ROUNDINGS * choice.rounding else None


def gate_logits(choice: Choice, gate: Gate) -> Float64[Tensor, "pos expert"]:
    """Logits of the gate: their softmax is the distribution over all experts."""
    return choice.scores if gate == "softmax" else torch.nn.functional.logsigmoid(choice.scores)


def _spread(values: Tensor) -> float:
    return float(values.max() - values.min()) if len(values) else 0.0


def _tensors(block: nn.Module) -> list[tuple[str, Tensor]]:
    return [*block.named_parameters(), *block.named_buffers()]


def _choice(output: Any) -> Choice | None:
    outputs = [one.detach().reshape(-1, one.shape[-1]).cpu() for one in tree_leaves(output) if isinstance(one, Tensor) and one.ndim > 1]
    floats = [one for one in outputs if one.is_floating_point()]
    indices = next((one for one in outputs if not one.is_floating_point() and one.dtype != torch.bool), None)
    if indices is None:
        pairs = [
            (one, other) for one in floats for other in floats if one is not other and one.shape == other.shape and (one == 0).any(-1).all()
        ]
        return _of(*pairs[0][::-1], pairs[0][0] > 0) if pairs else None
    scores = next((one for one in floats if len(one) == len(indices) and one.shape[-1] > int(indices.max())), None)
    given = next((one for one in floats if one is not scores and one.shape == indices.shape), None)
    if scores is None or given is None:
        return None
    chosen = torch.zeros(scores.shape, dtype=torch.bool).scatter(1, indices.long(), True)
    weights = torch.zeros(scores.shape, dtype=given.dtype).scatter(1, indices.long(), given)
    return _of(scores, weights, chosen)


def _of(scores: Tensor, weights: Tensor, chosen: Tensor) -> Choice:
    rounding = max(torch.finfo(one.dtype).eps for one in (scores, weights))
    return Choice(scores=scores.double(), weights=weights.double(), chosen=chosen, rounding=rounding)
