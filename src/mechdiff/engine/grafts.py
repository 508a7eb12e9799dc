"""A network runs in which some units hold the tuned weights and all others the base's, or all a mixture of both.

A graft puts tuned tensors (or switched-on adapter layers) in place and, whatever happens, puts back what was there: the very tensors, so every
bit. Nothing is added to a weight and taken off again.

Which positions a graft reaches cannot be known, so a grafted run is a forward pass of whole sequences. But not of the whole network: below the
lowest grafted unit it is the base, so it starts there from the base's residual stream, kept from one clean pass. And where all that changed
below a block is grafted, the tuned model's residual stream is the start: a *trace* of each is all that any set of units needs.

Prompts run side by side, padded on the right. All attention is causal, so no prompt sees the padding.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechdiff.engine.activations import forward
from mechdiff.errors import ModelError
from mechdiff.models.modules import ChangedUnits, Factors, Tensors, Unit
from mechdiff.models.pair import Model
from mechdiff.models.switches import Rewritten

PASS_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Tokens of one pass, padding included: on a CPU few enough that a layer's activations stay in its cache."""


# ---- weights in and out ------------------------------------------------------------------------------------------------------------


@contextmanager
def grafted(base: Model, changes: ChangedUnits, units: Iterable[Unit]) -> Iterator[None]:
    """While open, these changed units hold the tuned weights. Afterwards every bit is the base's again, also after an error."""
    with ExitStack() as stack:
        for unit in units:
            assert unit in changes.units, f"{unit} has not changed"
            for name, tensor in changes.new_tensors(unit).items():
                stack.enter_context(placed(base, name, tensor, _again(changes, unit)))
            for layer in changes.switches.get(unit, ()):
                stack.enter_context(_switched_on(layer))
        yield


@contextmanager
def truncated(base: Model, changes: ChangedUnits, cut: Mapping[Unit, Mapping[str, Factors]], rank: int) -> Iterator[None]:
    """While open, the matrices of these units are the base's plus their change cut to `rank` (at least 1), and their vectors the tuned ones.

    A vector's change has rank 1. A matrix whose factors were not kept up to `rank` holds its whole change.
    """
    with ExitStack() as stack:
        for unit, matrices in cut.items():
            new = changes.new_tensors(unit)
            for name, change in matrices.items():
                own = base.net.get_parameter(name).detach()
                if name not in new or rank <= change.left.shape[-1]:
                    new[name] = (own.float() + change.cut(rank)).to(own.dtype)
            for name, tensor in new.items():
                stack.enter_context(placed(base, name, tensor, _again(changes, unit)))
            for layer in changes.switches.get(unit, ()):
                if isinstance(layer, Rewritten) and layer.parameter.ndim == 1:
                    stack.enter_context(_switched_on(layer))
        yield


@contextmanager
def scaled(base: Model, changes: ChangedUnits, strength: float, units: Sequence[Unit] | None = None) -> Iterator[None]:
    """While open, every changed tensor is base + strength (tuned - base): at 0 and 1 bit for bit that of a model. Afterwards the base's again.

    `units`: those of these changed units alone; all others stay the base's.

    Raises ModelError for an adapter's layer whose change is not what a factor makes of it.
    """
    moved = changes.units if units is None else units
    with ExitStack() as stack:
        if strength == 1:
            stack.enter_context(grafted(base, changes, moved))
        for unit in moved if strength not in (0, 1) else ():
            for name, tensor in changes.new_tensors(unit).items():
                own = base.net.get_parameter(name).detach()
                stack.enter_context(placed(base, name, towards(own, tensor.to(own), strength), _again(changes, unit)))
            for layer in changes.switches.get(unit, ()):
                stack.enter_context(_partly_on(layer, strength))
        yield


def towards(base: Float[Tensor, "*entry"], tuned: Float[Tensor, "*entry"], strength: float) -> Float[Tensor, "*entry"]:
    """base + strength (tuned - base), in float32 or better: at 0 and 1 exactly the two, and what is the same in both stays so."""
    wide = torch.promote_types(base.dtype, torch.float32)
    return torch.where(base == tuned, base, torch.lerp(base.to(wide), tuned.to(wide), strength).to(base.dtype))


def _again(changes: ChangedUnits, unit: Unit) -> Tensors | None:
    """Where a unit's base tensors are read again. The embedding stays in memory: it may be two parameters in one."""
    return None if unit.kind == "embed" else changes.base


@contextmanager
def placed(base: Model, name: str, tensor: Tensor, again: Tensors | None = None) -> Iterator[None]:
    """Another tensor in the place of a parameter; afterwards that parameter, or (to hold only one of them) its tensor read `again`."""
    path, _, leaf = name.rpartition(".")
    module = base.net.get_submodule(path)
    kept = None if again else module.get_parameter(leaf)
    setattr(module, leaf, nn.Parameter(tensor.to(module.get_parameter(leaf)), requires_grad=False))
    try:
        yield
    finally:
        setattr(module, leaf, nn.Parameter(again(name), requires_grad=False) if again else kept)


@contextmanager
def _switched_on(layer: Any) -> Iterator[None]:
    assert layer.disable_adapters, "the adapter is on: graft while the base is in use"
    layer.enable_adapters(True)
    try:
        yield
    finally:
        layer.enable_adapters(False)


@contextmanager
def _partly_on(layer: Any, strength: float) -> Iterator[None]:
    """An adapter's layer, off in the base, does so many times what it does when it is on."""
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import ModulesToSaveWrapper

    if isinstance(layer, Rewritten):
        with _held(layer.parameter, towards(layer.parameter.data, layer.other, strength)):
            yield
    elif isinstance(layer, ModulesToSaveWrapper):
        saved = layer.modules_to_save[layer.active_adapters[0]]
        with ExitStack() as stack:
            for own, other in zip(layer.original_module.parameters(), saved.parameters(), strict=True):
                stack.enter_context(_held(other, towards(own.data, other.data, strength)))
            stack.enter_context(_switched_on(layer))
            yield
    elif isinstance(layer, LoraLayer) and not layer.lora_variant:
        kept = dict(layer.scaling)
        layer.scaling.update({name: strength * scale for name, scale in kept.items()})
        try:
            with _switched_on(layer):
                yield
        finally:
            layer.scaling.update(kept)
    else:
        raise ModelError(
            f"an adapter layer of the kind {type(layer).__name__} does not grow with a factor, so its change has no strength. Merge the adapter "
            "(merge_and_unload) and give the full model as tuned."
        )


@contextmanager
def _held(parameter: nn.Parameter, numbers: Tensor) -> Iterator[None]:
    """Other numbers in a parameter; afterwards the very ones that were there."""
    kept = parameter.data
    parameter.data = numbers
    try:
        yield
    finally:
        parameter.data = kept


# ---- runs --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Prompts that run side by side."""

    rows: list[int]
    """Their numbers in the list that was packed."""
    ids: Int[Tensor, "prompt pos"]
    """Tokens, padded on the right."""
    last: Int[Tensor, " prompt"]
    """The last position of each."""
    places: Int[Tensor, "place 2"]
    """Where logits are asked for, prompt by prompt (its row in the batch, the position): the last position of each, or its last few."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One pass of a batch: where other passes can start from."""

    residuals: list[Float[Tensor, "prompt pos d"]]
    """What enters each block and, last, what leaves the last one. Positions behind a prompt's last are meaningless."""
    logits: Float[Tensor, "place vocab"]
    """At the batch's places, float32."""
    form: type
    """In which this family's blocks return it: a tensor, a tuple or a list."""
    n_returned: int = 1
    """Things in it."""


def batches(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_tokens: int | None = None,
    n_places: Sequence[int] | None = None,
    *,
    padding: int | None = None,
) -> list[Batch]:
    """All prompts, neighbours in length together, in passes of at most `max_tokens` (at least one prompt); a function of the prompts alone.

    Logits are asked for at the last position of each prompt, or at its last `n_places`. A pass has at most `padding` tokens of padding.
    """
    limit = max_tokens or PASS_TOKENS.get(model.device.type, PASS_TOKENS["cuda"])
    by_length = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row))
    groups: list[list[int]] = []
    for row in by_length:
        table = (len(groups[-1]) + 1) * len(prompts[row]) if groups else limit + 1
        padded = table - len(prompts[row]) - sum(len(prompts[one]) for one in groups[-1]) if groups else 0
        if table <= limit and (padding is None or padded <= padding):
            groups[-1].append(row)
        else:
            groups.append([row])
    return [_padded(model, prompts, rows, n_places or [1] * len(prompts)) for rows in groups]


def _padded(model: Model, prompts: Sequence[Sequence[int]], rows: list[int], n_places: Sequence[int]) -> Batch:
    longest = max(len(prompts[row]) for row in rows)
    places = [(place, at) for place, row in enumerate(rows) for at in range(len(prompts[row]) - n_places[row], len(prompts[row]))]
    ids = torch.tensor([[*prompts[row], *[0] * (longest - len(prompts[row]))] for row in rows], device=model.device)
    last = torch.tensor([len(prompts[row]) - 1 for row in rows], device=model.device)
    return Batch(rows=rows, ids=ids, last=last, places=torch.tensor(places, device=model.device))


def trace(model: Model, batch: Batch) -> Trace:
    """One pass of the network as its weights now are."""
    residuals: list[Tensor] = []
    forms: list[tuple[type, int]] = []

    def enters(module: nn.Module, args: tuple, kwargs: dict) -> None:
        residuals.append((args[0] if args else kwargs["hidden_states"]).clone())

    def leaves(module: nn.Module, args: tuple, output: Any) -> None:
        forms.append((type(output), len(output) if isinstance(output, tuple | list) else 1))
        residuals.append((output[0] if isinstance(output, tuple | list) else output).clone())

    handles = [block.register_forward_pre_hook(enters, with_kwargs=True) for block in model.blocks]
    handles.append(model.blocks[-1].register_forward_hook(leaves))
    try:
        logits = logits_at(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return Trace(residuals=residuals, logits=logits, form=forms[0][0], n_returned=forms[0][1])


def resume(model: Model, batch: Batch, start: Trace, layer: int) -> Float[Tensor, "place vocab"]:
    """Logits at the batch's places, float32, of the network as its weights now are from block `layer` up, on top of a trace's residual stream.

    `layer` may be the number of blocks: then only the final norm and the unembedding run; or -1: then all of it runs.
    """
    if layer < 0:
        return logits_at(model, batch)
    hidden = start.residuals[layer]

    def substitute(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return ((hidden, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": hidden})

    def untouched(*args: Any, **kwargs: Any) -> Any:
        return start.form((hidden, *[None] * max(1, start.n_returned - 1))) if start.form in (tuple, list) else hidden

    handle = model.blocks[0].register_forward_pre_hook(substitute, with_kwargs=True)
    skipped = [(block, block.__dict__.get("forward")) for block in model.blocks[:layer]]
    try:
        for block, _ in skipped:
            block.forward = untouched
        return logits_at(model, batch)
    finally:
        handle.remove()
        for block, own in skipped:
            if own is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = own


def logits_at(model: Model, batch: Batch, *, cache: Any = None) -> Float[Tensor, "place vocab"]:
    """Logits at the batch's places, float32. `cache` holds what comes before the batch's tokens, and takes what they add."""
    row, position = batch.places.T

    def decisions(head: nn.Module, args: tuple) -> tuple[Tensor]:
        at = args[0].device  # of a network that is split, not always that of its first layer
        return (args[0][row.to(at), position.to(at)][:, None],)

    handle = model.head.register_forward_pre_hook(decisions)
    try:
        return forward(model, batch.ids, logits_to_keep=0, use_cache=cache is not None, past_key_values=cache).logits[:, 0].float()
    finally:
        handle.remove()
