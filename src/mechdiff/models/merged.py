"""An adapter that changes matrices alone can be merged into private copies of them: the tuned model then runs without the adapter's own products.

The copies are a network of their own, which shares every tensor that the adapter leaves as it is with the base's network, where the adapter's
layers stay and are off. It is used only where its pass is the adapter's own within rounding.
"""

import copy
from itertools import chain
from typing import Any

import torch
from torch import nn

from mechdiff.architectures.network import quiet
from mechdiff.models.alignment import align
from mechdiff.models.switches import SAME_NATS, Rewritten, apart, logits_of


@torch.no_grad()
def merged(adapted: Any) -> nn.Module | None:
    """The network with the change in its matrices, of a network that holds an adapter (peft's model, switched on) in float32.

    None where the adapter changes more than linear layers and what it rewrote (an embedding, experts, saved modules: a pass of a few tokens would
    not show a mistake there), where peft cannot merge its kind or memory has no room for the copies, or where a pass differs from that with the
    adapter's layers by more than rounding (`switches.SAME_NATS`): merged into bfloat16, a change is rounded away.
    """
    if not all(_is_matrix(layer) for layer in switches_in(adapted)):
        return None
    shared: dict[int, Any] = {id(tensor): tensor for tensor in chain(adapted.parameters(), adapted.buffers())}
    for layer in switches_in(adapted):
        if isinstance(layer, Rewritten):  # switched off, its parameter takes the base's numbers
            shared[id(layer.parameter)] = nn.Parameter(layer.parameter.data, requires_grad=False)
    twin = copy.deepcopy(adapted, shared)  # all of the network but its tensors
    for module in list(twin.modules()):
        for name in [name for name, child in module.named_children() if isinstance(child, Rewritten)]:
            delattr(module, name)
    try:
        for layer in switches_in(twin):
            _own(layer.get_base_layer())
        with quiet():
            whole: nn.Module = twin.merge_and_unload().eval().requires_grad_(False)
    except (NotImplementedError, AttributeError, ValueError, TypeError, RuntimeError):  # a RuntimeError is torch's lack of memory too
        return None
    align(whole)
    return whole if apart(logits_of(adapted.get_base_model()), logits_of(whole)) <= SAME_NATS[torch.float32] else None


def switches_in(adapted: nn.Module) -> list[Any]:
    """The layers of an adapter that are switched on and off, what wraps a whole module among them."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return [module for module in adapted.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]


def _is_matrix(layer: Any) -> bool:
    if isinstance(layer, Rewritten):
        return True
    inner = layer.get_base_layer() if hasattr(layer, "get_base_layer") else None
    return isinstance(inner, nn.Linear) or type(inner).__name__ == "Conv1D"


def _own(layer: nn.Module) -> None:
    """Copies of a layer's parameters in their place."""
    for name, parameter in list(layer.named_parameters(recurse=False)):
        setattr(layer, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
