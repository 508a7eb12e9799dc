"""A fine-tune's change is put into the base at random places: the same singular values, the same entries, other rows and columns.

Rows and columns of each changed matrix's dW are permuted and their signs drawn, which is a rotation of both sides: spectrum, entries and sparsity
stay what they were, and nothing of what was taught does. Scaled until it moves the next-token distribution as far as the fine-tune does, it is a
null for whoever says what a fine-tune has taught: an edit of the same kind and size that teaches nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from mechdiff.engine.grafts import placed
from mechdiff.models.modules import ChangedUnits
from mechdiff.models.pair import Model
from mechdiff.models.switches import Rewritten

NEAR = 0.1
"""Share by which the reached divergence may miss the wanted one."""
TRIES = 8


def deltas(base: Model, changes: ChangedUnits) -> dict[str, Float[Tensor, "..."]]:
    """tuned - base of every changed tensor, by the name that it has in the base's network (float32).

    Layers of adapters that are no addition to a weight are left out.
    """
    own = dict(base.net.named_parameters(remove_duplicate=False))
    path = {id(module): name for name, module in base.net.named_modules()}
    named = {id(parameter): name for name, parameter in own.items()}
    found = {}
    for unit in changes.units:
        for name, tensor in changes.new_tensors(unit).items():
            found[name] = tensor.to(own[name]).float() - own[name].detach().float()
        for layer in changes.switches.get(unit, ()):
            if isinstance(layer, Rewritten):
                name, added = named[id(layer.parameter)], layer.other.float() - layer.parameter.detach().float()
            elif hasattr(layer, "get_delta_weight") and hasattr(layer, "base_layer"):
                name = f"{path[id(layer)]}.base_layer.weight"
                added = sum(layer.get_delta_weight(adapter).detach().float() for adapter in layer.active_adapters)
            else:
                continue
            found[name] = found.get(name, 0) + added
    return found


def shuffled(delta: Float[Tensor, "..."], seed: int) -> Float[Tensor, "..."]:
    """The same change with its last two axes permuted and their signs drawn."""
    generator = torch.Generator().manual_seed(seed)
    moved = delta
    for axis in range(max(0, delta.ndim - 2), delta.ndim):
        n = delta.shape[axis]
        signs = torch.randint(0, 2, (n,), generator=generator).to(delta) * 2 - 1
        shape = [n if one == axis else 1 for one in range(delta.ndim)]
        moved = moved.index_select(axis, torch.randperm(n, generator=generator).to(delta.device)) * signs.view(shape)
    return moved


def random_edit(base: Model, changed: Mapping[str, Tensor], *, scale: float, seed: int) -> dict[str, Tensor]:
    """The base's tensors with `scale` times a random edit of this change in them, by name."""
    own = dict(base.net.named_parameters(remove_duplicate=False))
    first = {id(tensor): place for place, tensor in reversed(list(enumerate(own.values())))}  # one tensor of two names gets one edit
    found = {}
    for name, delta in changed.items():
        here = own[name]
        moved = shuffled(delta, seed * 1_000_003 + first[id(here)])
        found[name] = (here.detach().float() + scale * moved.to(here.device)).to(here.dtype)
    return found


@contextmanager
def holding(base: Model, tensors: Mapping[str, Tensor]) -> Iterator[Model]:
    """While open, the base has these tensors. Afterwards every bit is the base's again."""
    with ExitStack() as stack:
        for name, tensor in tensors.items():
            stack.enter_context(placed(base, name, tensor))
        yield base


@contextmanager
def randomly_edited(base: Model, changed: Mapping[str, Tensor], *, scale: float, seed: int) -> Iterator[None]:
    """While open, the base has `scale` times a random edit of this change in it. Afterwards every bit is the base's again."""
    with holding(base, random_edit(base, changed, scale=scale, seed=seed)):
        yield


def scaled_to(wanted: float, reached: Callable[[float], float]) -> tuple[float, float]:
    """The scale at which `reached(scale)`, a divergence that grows about with the scale's square, is the wanted one, and what it then is."""
    scale, below, above = 1.0, 0.0, float("inf")
    best = (scale, float("inf"))
    for _ in range(TRIES):
        found = reached(scale)
        if abs(found - wanted) < abs(best[1] - wanted):
            best = (scale, found)
        if abs(found - wanted) <= NEAR * wanted:
            break
        below, above = (scale, above) if found < wanted else (below, scale)
        step = scale * (wanted / found) ** 0.5 if found > 0 else 4 * scale
        step = min(max(step, scale / 8), scale * 8)
        inside = below < step < above
        scale = step if inside else (below + above) / 2 if above < float("inf") else 2 * scale
    return best
