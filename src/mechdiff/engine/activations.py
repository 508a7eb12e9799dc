"""The engine looks inside a model and writes into it. Hooks live here and in replay, nowhere else.

One primitive does both: `edited(model, {site: fn})` runs `fn` on the tensor at each site, in place, while the block computes. Reading is an
edit that copies and changes nothing; so the place that is read and the place that is written cannot differ.

The residual stream between attention and MLP is edited in place too: the tensor that enters the MLP's norm is the same one that is added
to the MLP's output afterwards.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from mechdiff.architectures.sites import Site
from mechdiff.models.pair import Model

Edit = Callable[[Tensor], None]
"""Changes a `[batch, pos, d]` tensor in place."""


differentiated: ContextVar[bool] = ContextVar("differentiated", default=False)
"""Set while passes must keep what gradients of states need."""


@contextmanager
def edited(model: Model, edits: Mapping[Site, Edit]) -> Iterator[None]:
    """While open, every forward pass of `model` runs each edit on the tensor at its site. Hooks are gone afterwards, also after an error."""
    handles = []
    try:
        for site in sorted(edits):
            module, end = model.place(site)
            edit = _scaled(edits[site], model.scale(site))
            if model.family.streams > 1 and site.kind.startswith("resid"):
                edit = _over_streams(model, edit)
            if site.kind == "z" and (width := model.family.head_width(site.layer) or model.shape.d_head) < model.shape.d_head:
                edit = _over_widened(model, width, edit)
            if model.family.flat:
                edit, handle = _unflattened(edit, model.blocks[site.layer])
                handles.append(handle)
            handles.append(_hook(module, end, edit))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _scaled(edit: Edit, scale: float) -> Edit:
    """The same edit for a module whose output is multiplied by `scale` before it is the state; entries that it leaves stay bit for bit.

    What is left is added as a zero, so that gradients pass.
    """
    if scale == 1:
        return edit

    def scaled(tensor: Tensor) -> None:
        before = tensor * scale
        state = before.clone()
        edit(state)
        tensor.copy_(torch.where(state == before, tensor + (state - before) / scale, state / scale))

    return scaled


def as_one(model: Model, state: Tensor) -> Tensor:
    """What a block is given or gives as `[text, pos, d]`: where several residual streams run side by side, one next to the other."""
    if model.family.streams == 1:
        return state
    return (state.movedim(0, 2) if model.family.streams_first else state).flatten(2)


def as_streams(model: Model, state: Tensor) -> Tensor:
    """The reverse of `as_one`."""
    if model.family.streams == 1:
        return state
    streams = state.unflatten(2, (model.family.streams, -1))
    return streams.movedim(2, 0) if model.family.streams_first else streams


def _over_streams(model: Model, edit: Edit) -> Edit:
    """The same edit where the block hands on several residual streams."""

    def together(tensor: Tensor) -> None:
        state = as_one(model, tensor).clone()
        edit(state)
        tensor.copy_(as_streams(model, state))

    return together


def _over_widened(model: Model, width: int, edit: Edit) -> Edit:
    """The same edit at a site z whose heads are narrower than the widest block's: behind each stand zeros."""

    def widened(tensor: Tensor) -> None:
        heads = tensor.unflatten(-1, (model.shape.n_heads, width))
        state = nn.functional.pad(heads, (0, model.shape.d_head - width)).flatten(-2)
        edit(state)
        tensor.copy_(state.unflatten(-1, (model.shape.n_heads, -1))[..., :width].flatten(-2))

    return widened


def _unflattened(edit: Edit, block: nn.Module) -> tuple[Edit, Any]:
    """The same edit where the block handles `[batch, pos, d]` as one table, and the handle of the hook that notes the batch's size."""
    n_batch = 1

    def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal n_batch
        n_batch = len(args[0] if args else kwargs["hidden_states"])

    def unflattened(tensor: Tensor) -> None:
        edit(tensor.view(n_batch, -1, tensor.shape[-1]))

    return unflattened, block.register_forward_pre_hook(note, with_kwargs=True)


def _hook(module: nn.Module, end: str, edit: Edit) -> Any:
    if end == "input":

        def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
            edit(args[0] if args else kwargs["hidden_states"])

        return module.register_forward_pre_hook(before, with_kwargs=True)

    def after(module: nn.Module, args: tuple, output: Any) -> Any:
        state = output[0] if isinstance(output, tuple | list) else output
        if not (torch.is_grad_enabled() and state._is_view()):
            edit(state)
            return None
        state = state.clone()  # a function of its own made this view (int8's layers): autograd refuses changes in place
        edit(state)
        return type(output)((state, *output[1:])) if isinstance(output, tuple | list) else state

    return module.register_forward_hook(after)


@dataclass(kw_only=True)
class Clean:
    """What one unedited forward pass of one prompt gave."""

    logits: Tensor
    """`[vocab]` at the decision position, float32."""
    states: dict[Site, Tensor]
    """`[pos, d]` at the wanted positions, in the model's dtype."""
    cache: list[tuple[Tensor, Tensor]] | None
    """Keys and values of every block, each `[1, kv_head, pos, d_head]`, over the whole prompt; None if not asked for."""
    ids: Tensor
    """`[pos]`, the whole prompt."""
    beside: Any = field(default=None, repr=False, compare=False)
    """The prompts (weak references) that it ran beside last, and the caches of all of them side by side: see `prefix.side_by_side`."""


def forward(model: Model, ids: Tensor, **kwargs: Any) -> Any:
    """One pass of `ids` `[batch, pos]`, with logits for the last position only. Keeps nothing for gradients unless `gradients.py` runs it."""
    if "logits_to_keep" in signature(model.net.forward).parameters:
        wanted = kwargs.setdefault("logits_to_keep", 1)
        if model.family.tangled and wanted:  # by a number, Gemma 4 leaves the other positions out of all blocks that share keys and values
            kwargs["logits_to_keep"] = torch.arange(-wanted, 0, device=ids.device)
    handle = model.head.register_forward_pre_hook(_contiguous)
    try:
        with torch.inference_mode(not differentiated.get()):
            return model.net(input_ids=ids, **kwargs)
    finally:
        handle.remove()


def _contiguous(head: nn.Module, args: tuple) -> tuple[Tensor]:
    """The last positions of a batch lie apart, and a product with them is as many products of a single row: six times slower."""
    return (args[0].contiguous(),)


def capture(
    model: Model, ids: Sequence[int], sites: Sequence[Site], positions: Sequence[int], *, keep_cache: bool = False, every: bool = False
) -> Clean:
    """One forward pass of one prompt: its states at `sites` and `positions` (token indices), last logits, and cache if asked for.

    `every`: the logits are of each of `positions`, which are the last ones, `[pos, vocab]`.
    """
    from transformers import DynamicCache

    states: dict[Site, Tensor] = {}
    where = torch.tensor(positions, device=model.device)

    def reader(site: Site) -> Edit:
        def read(tensor: Tensor) -> None:
            states[site] = tensor[0, where.to(tensor.device)].clone()

        return read

    tokens = torch.tensor([ids], device=model.device)
    cache = DynamicCache() if keep_cache else None
    with edited(model, {site: reader(site) for site in sites}):
        output = forward(
            model, tokens, use_cache=keep_cache, past_key_values=cache, **({"logits_to_keep": len(positions)} if every else {})
        )
    kept = [(layer.keys, layer.values) for layer in cache.layers] if cache is not None else None
    logits = output.logits[0, -len(positions) :] if every else output.logits[0, -1]
    return Clean(logits=logits.float().clone(), states=states, cache=kept, ids=tokens[0])


def matrix_inputs(model: Model, ids: Sequence[int], names: Sequence[str], positions: Sequence[int]) -> dict[str, Tensor]:
    """What enters the layers whose weights are `names`, `[pos, d_in]` at some positions of one prompt.

    Left out: what is no layer's weight, and layers that do not see every position once (experts, the unembedding).
    """
    found: dict[str, Tensor] = {}
    where = torch.tensor(positions, device=model.device)
    modules = dict(model.net.named_modules())

    def reader(name: str) -> Any:
        def read(module: nn.Module, args: tuple) -> None:
            if args and args[0].is_floating_point() and args[0].numel() == len(ids) * args[0].shape[-1]:
                found[name] = args[0].reshape(len(ids), -1)[where].float().cpu()

        return read

    held = {name: modules.get(name.removesuffix(".weight")) for name in names}
    handles = [module.register_forward_pre_hook(reader(name)) for name, module in held.items() if module]
    try:
        forward(model, torch.tensor([ids], device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def writer(value: Tensor) -> Edit:
    """An edit that writes `value` `[pos, d]` over the last positions of every sequence of the batch."""

    def write(tensor: Tensor) -> None:
        tensor[:, -len(value) :] = value

    return write


def full_forward(model: Model, ids: Tensor, edits: Mapping[Site, Edit]) -> Tensor:
    """Logits `[vocab]` (float32) at the last position of one whole forward pass of `ids` `[pos]` under edits."""
    with edited(model, edits):
        return forward(model, ids[None], use_cache=False).logits[0, -1].float()
