"""One prompt goes through one whole forward pass, read and patched by plain hooks: the slow way, which every number of a run must agree with.

No cache, no batch, no rows side by side, and no code of the engine but the family's table, which says where a site is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechdiff.architectures.sites import Site
from mechdiff.models.pair import Model

Touch = Callable[[Tensor], Tensor | None]
"""From the states `[pos, d]` at a site to other ones, or None to leave them."""


@dataclass(frozen=True, kw_only=True)
class Put:
    """What is written over some positions of a prompt: the last ones, unless the first of them is named."""

    value: Tensor
    """`[pos, d]`"""
    add: bool = False
    start: int | None = None


def logits(model: Model, ids: Sequence[int], puts: Mapping[Site, Put] | None = None, *, everywhere: bool = False) -> Tensor:
    """Float64 logits `[vocab]` after the last token, or `[pos, vocab]` after each, of a pass with these writes."""

    def write(put: Put) -> Touch:
        def touch(states: Tensor) -> Tensor:
            new, start = states.clone(), len(states) - len(put.value) if put.start is None else put.start
            places = slice(start, start + len(put.value))
            new[places] = (states[places] if put.add else 0) + put.value.to(states)
            return new

        return touch

    with touched(model, {site: write(put) for site, put in (puts or {}).items()}), torch.no_grad():
        found = model.net(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False).logits[0].double().cpu()
    return found if everywhere else found[-1]


def states(model: Model, ids: Sequence[int], sites: Sequence[Site], n_pos: int | None = None) -> dict[Site, Tensor]:
    """The states `[pos, d]` at some sites, at the last `n_pos` positions or at all."""
    found: dict[Site, Tensor] = {}

    def read(site: Site) -> Touch:
        def touch(here: Tensor) -> None:
            found[site] = here[-(n_pos or len(here)) :].detach().clone().cpu()

        return touch

    with touched(model, {site: read(site) for site in sites}), torch.no_grad():
        model.net(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
    return found


def gradients(
    model: Model, ids: Sequence[int], sites: Sequence[Site], weights: Tensor, moved: Mapping[Site, Tensor] | None = None
) -> dict[Site, Tensor]:
    """d m / d state `[d]` at the last position, m = sum of weights times logits; with the states `moved` by so much."""
    leaves = {site: torch.zeros(0) for site in sites}

    def lean(site: Site) -> Touch:
        def touch(here: Tensor) -> Tensor:
            start = torch.zeros(here.shape[-1], dtype=here.dtype, device=here.device)
            leaves[site] = start.requires_grad_(True)
            shift = torch.zeros_like(here)
            shift[-1] = (moved or {}).get(site, start.detach()).to(here)
            last = torch.zeros(len(here), 1, dtype=here.dtype, device=here.device)
            last[-1] = 1
            return here + shift + last * leaves[site]

        return touch

    with touched(model, {site: lean(site) for site in sites}), torch.enable_grad():
        law = model.net(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False).logits[0, -1]
        found = torch.autograd.grad((law.double() * weights.to(law.device).double()).sum(), [leaves[site] for site in sites])
    return {site: one.double().cpu() for site, one in zip(sites, found, strict=True)}


def gradients_along(model: Model, ids: Sequence[int], site: Site, weights: Tensor) -> Tensor:
    """d m / d state `[place, d]` at the last places, m = sum over these places of `weights` `[place, vocab]` times their logits."""
    leaf: list[Tensor] = []
    n_places = len(weights)

    def touch(here: Tensor) -> Tensor:
        leaf.append(torch.zeros_like(here[-n_places:]).requires_grad_(True))
        return here + torch.cat([torch.zeros_like(here[:-n_places]), leaf[0]])

    with touched(model, {site: touch}), torch.enable_grad():
        laws = model.net(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False).logits[0, -n_places:]
        (found,) = torch.autograd.grad((laws.double() * weights.to(laws.device)).sum(), leaf)
    return found.double().cpu()


@contextmanager
def touched(model: Model, touches: Mapping[Site, Touch]) -> Iterator[None]:
    """While open, each function sees the states at its site, in the order of computation, and may give others."""
    handles = []
    try:
        for site, touch in touches.items():
            module, end = model.place(site)
            scale = model.scale(site)

            table, back = _table(model, site)

            def changed(tensor: Tensor, touch: Touch = touch, scale: float = scale, table: Any = table, back: Any = back) -> Tensor | None:
                new = touch(table(tensor) * scale)
                return None if new is None else back(new / scale, tensor)

            if end == "input":
                # The residual stream is added to what comes out later: the very tensor has to change.
                def before(module: Any, args: tuple, kwargs: dict, changed: Any = changed) -> Any:
                    tensor = args[0] if args else kwargs["hidden_states"]
                    new = changed(tensor)
                    if new is None:
                        return None
                    if not new.requires_grad:
                        tensor.copy_(new)
                        return None
                    return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            else:

                def after(module: Any, args: tuple, output: Any, changed: Any = changed) -> Any:
                    new = changed(output[0] if isinstance(output, tuple | list) else output)
                    if new is None:
                        return None
                    return type(output)((new, *output[1:])) if isinstance(output, tuple | list) else new

                handles.append(module.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _table(model: Model, site: Site) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
    """What makes `[pos, d]` of a tensor at a site, and what makes such a tensor of that again: several residual streams lie side by side, and
    heads that are narrower than others have zeros behind them."""
    heads, wide = model.shape.n_heads, model.shape.d_head
    own = model.family.head_width(site.layer) if site.kind == "z" else None
    if own and own < wide:
        chosen = [head * wide + at for head in range(heads) for at in range(own)]

        def widened(one: Tensor) -> Tensor:
            table = one.new_zeros(one.numel() // (heads * own), heads * wide)
            table[:, chosen] = one.reshape(len(table), -1)
            return table

        return widened, lambda new, one: new[:, chosen].reshape(one.shape)
    n = model.family.streams if site.kind.startswith("resid") else 1
    if n == 1 or not model.family.streams_first:
        width = n * model.shape.d_model if n > 1 else None
        return lambda one: one.reshape(-1, width or one.shape[-1]), lambda new, one: new.reshape(one.shape)
    return (
        lambda one: torch.cat(list(one.flatten(1, 2)), -1),
        lambda new, one: torch.stack(new.chunk(n, -1)).reshape(one.shape),
    )


def norms(model: Model, ids: Sequence[int]) -> list[tuple[str, Tensor]]:
    """What enters each norm `[pos, d]` in a whole pass, by the module's name, in the order of computation."""
    found: list[tuple[str, Tensor]] = []

    def read(name: str) -> Callable[[Any, tuple, dict], None]:
        return lambda _, args, kwargs: found.append((name, (args[0] if args else kwargs["hidden_states"]).detach().clone().cpu()))

    named = {name: one for name, one in model.net.named_modules() if "norm" in type(one).__name__.lower()}
    handles = [one.register_forward_pre_hook(read(name), with_kwargs=True) for name, one in named.items()]
    try:
        with torch.no_grad():
            model.net(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [(name, tensor.reshape(-1, tensor.shape[-1])) for name, tensor in found]


# ---- distances of laws, from their definitions -----------------------------------------------------------------------------------------


def kl(p: Tensor, q: Tensor) -> float:
    """KL(softmax p || softmax q) in nats."""
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    terms = log_p.exp() * (log_p - log_q)
    return float(terms[log_p > -torch.inf].sum())


def overlap(own: Tensor, other: Tensor, run: Tensor) -> float:
    """Half of what a run adds to the logit expected of the other model's next token, less that of its own model's."""
    moved = torch.where(own > -torch.inf, run - own, 0.0)
    return float((other.softmax(-1) * moved).sum() - (own.softmax(-1) * moved).sum()) / 2


def js(p: Tensor, q: Tensor) -> float:
    """Half of KL(p || m) and half of KL(q || m)."""
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0, dtype=torch.float64))
    halves = [(one.exp() * (one - log_m))[one > -torch.inf].sum() for one in (log_p, log_q)]
    return float(sum(halves) / 2)
