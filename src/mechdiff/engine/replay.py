"""Many counterfactual runs of one prompt are computed in one forward pass.

The question "what would the next token be, had this state been that one?" is asked thousands of times of the same prompt: every layer, site
and arm is a *variant*. Nothing written at the last position can reach the keys and values of earlier ones. So the prefix is computed once, and
the variants run as parallel copies of the last token on top of its cache: each copy has the same position, sees the prefix and itself, and is
edited at its own site alone.

Below the layer that it first edits a variant equals the clean run, so its copy need not exist there (the *staircase*): a pass starts with one
clean row a prompt, and at the input of each block the variants born there are appended as copies of the clean row. The clean row rides along
to the end: its distance from the model's own forward pass is the noise floor of every number the pass gives. Copies are detached from it: it
depends on no write, and the sum of their gradients could overflow in half precision, which reaches every row as 0 * inf.

Three engines with one signature, `(model, cleans, variants) -> logits [prompt, 1 + variant, vocab]`, row 0 the clean run:

- `replay`: parallel tokens as above; edits at the last `n_pos` positions (a variant is then a block of `n_pos` tokens).
- `relay`: variants as sequences of a batch, born at the block they first edit; for edits at all positions.
- `full`: a whole hooked forward pass for each variant. Slow; what the others are tested against.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from inspect import signature
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from mechdiff.architectures.families import sliding_window
from mechdiff.architectures.sites import Site
from mechdiff.engine import parallel_attention
from mechdiff.engine.activations import Clean, Edit, as_one, as_streams, edited, forward
from mechdiff.engine.prefix import KeysValues, Prefix
from mechdiff.models.pair import Model


@dataclass(frozen=True, kw_only=True)
class Write:
    """What an edit writes at a site, at the last `pos` positions of each prompt."""

    value: Tensor
    """`[prompt, pos, d]`"""
    add: bool = False
    """Add to the state that is there, instead of replacing it."""
    where: Tensor | None = None
    """`[d]`, bool: the entries that are written, the others stay; None: all."""

    def of(self, prompts: Sequence[int]) -> "Write":
        """What is written for some of the prompts, in this order."""
        return replace(self, value=self.value[list(prompts)])


Variant = Mapping[Site, Write]
Engine = Callable[[Model, Sequence[Clean], Sequence[Variant]], Tensor]


def replay(model: Model, cleans: Sequence[Clean], variants: Sequence[Variant]) -> Tensor:
    """Logits `[prompt, 1 + variant, vocab]` at the decision position, float32; prompts and variants in one pass of parallel tokens.

    Every variant must write the same number of positions; each clean run must hold its cache.
    """
    widths = {write.value.shape[1] for variant in variants for write in variant.values()} or {1}
    assert len(widths) == 1, "the variants of one pass write one number of positions"
    return parallel(model, Prefix.of(cleans, widths.pop()), variants)


def parallel(
    model: Model, prefix: Prefix, variants: Sequence[Variant], wanted: Tensor | None = None, own: list[KeysValues] | None = None
) -> Tensor:
    """Logits `[wanted, 1 + variant, vocab]`, float32, of copies of each prompt's suffix, at its `wanted` positions (`[prompt, pos]`, bool; None:
    each one's last).

    A variant writes at the first positions of its copy, as many as its values have. `own` takes each block's keys and values of the copies,
    `[prompt, kv_head, row * pos, d_head]`, where they are of use afterwards.
    """
    n_prompts, n_pos, n_rows = *prefix.suffix.shape, 1 + len(variants)
    variants = [later_born(variant, model.shape.n_layers) for variant in variants]
    stairs = Stairs.of(variants, len(model.blocks))
    order = torch.tensor([0, *stairs.row], device=model.device)
    masked = not parallel_attention.is_possible(model)
    masks: dict[int | None, Tensor] = {}
    tables: dict[int, tuple[Any, Any]] = {}

    def grow(layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        if born := stairs.born[layer]:
            hidden = torch.cat([hidden, hidden[:, :n_pos].detach().repeat(1, born, 1)], 1)
        rows = stairs.rows[layer]
        window = sliding_window(model.config, layer)
        if masked and window not in masks:
            masks[window] = prefix.mask(n_rows, window, model.dtype)
        kwargs["attention_mask"] = masks[window][:, :, : rows * n_pos, : prefix.longest + rows * n_pos] if masked else None
        for name, one in kwargs.items():
            if name != "attention_mask" and _by_position(one, n_pos):
                if id(one) not in tables:
                    tables[id(one)] = one, _repeat(one, n_rows)
                kwargs[name] = _first(tables[id(one)][1], rows * n_pos)
        return hidden

    def chosen(head: Any, args: tuple) -> tuple[Tensor]:
        copies = args[0].reshape(n_prompts, n_rows, n_pos, -1)
        if wanted is None:
            return (copies[:, :, -1].index_select(1, order.to(args[0].device)),)
        return (copies.index_select(1, order.to(args[0].device)).transpose(1, 2)[wanted],)

    cache: Any = prefix.cache() if masked else parallel_attention.OwnKeys(prefix.longest)
    way = nullcontext() if masked else parallel_attention.without_mask(model, prefix)
    with way, growing(model, grow), edited(model, writing_copies(variants, stairs, n_pos)):
        handle = model.head.register_forward_pre_hook(chosen)
        try:
            output = forward(model, prefix.suffix, logits_to_keep=0, attention_mask=prefix.mask(1, None, model.dtype),
                             position_ids=prefix.positions.clamp(max=model.shape.context - 1), past_key_values=cache, use_cache=True)  # fmt: skip
        finally:
            handle.remove()
    if own is not None:
        own += (
            [(layer.keys[:, :, prefix.longest :], layer.values[:, :, prefix.longest :]) for layer in cache.layers] if masked else cache.own
        )
    return output.logits.float()


def relay(model: Model, cleans: Sequence[Clean], variants: Sequence[Variant]) -> Tensor:
    """As `replay`, with whole sequences: edits at any number of last positions, one prompt at a time."""
    stairs = Stairs.of(variants, len(model.blocks))

    def rows_of(tensor: Tensor, variant: int, n_pos: int) -> Tensor:
        return tensor[stairs.row[variant], -n_pos:]

    found = []
    for i, clean in enumerate(cleans):
        with growing(model, stairs.grow_sequences), edited(model, writing(variants, rows_of, prompt=i)):
            found.append(forward(model, clean.ids[None], use_cache=False).logits[:, -1].float()[[0, *stairs.row]])
    return torch.stack(found)


def full(model: Model, cleans: Sequence[Clean], variants: Sequence[Variant]) -> Tensor:
    """As `replay`, by one whole forward pass for each variant and prompt."""

    def rows_of(tensor: Tensor, variant: int, n_pos: int) -> Tensor:
        return tensor[0, -n_pos:]

    found = []
    for i, clean in enumerate(cleans):
        for variant in ({}, *variants):
            with edited(model, writing([variant], rows_of, prompt=i)):
                found.append(forward(model, clean.ids[None], use_cache=False).logits[0, -1].float())
    return torch.stack(found).reshape(len(cleans), 1 + len(variants), -1)


ENGINES: dict[str, Engine] = {"replay": replay, "relay": relay, "full": full}


def writing(variants: Sequence[Variant], rows_of: Callable[[Tensor, int, int], Tensor], prompt: int | None = None) -> dict[Site, Edit]:
    """One edit a site, which writes each variant's value (of one prompt, or of all at once) into that variant's rows.

    `rows_of(tensor, variant, n_pos)` is the view of those rows in the tensor at a site.
    """
    at: dict[Site, list[tuple[int, Write]]] = {}
    for v, variant in enumerate(variants):
        for site, write in variant.items():
            at.setdefault(site, []).append((v, write))

    def edit_all(writes: list[tuple[int, Write]]) -> Edit:
        def edit(tensor: Tensor) -> None:
            for v, write in writes:
                value = (write.value if prompt is None else write.value[prompt]).to(tensor)
                rows = rows_of(tensor, v, value.shape[-2])
                rows.copy_(_written(rows, value, write))

        return edit

    return {site: edit_all(writes) for site, writes in at.items()}


def writing_copies(variants: Sequence[Variant], stairs: "Stairs", n_pos: int) -> dict[Site, Edit]:
    """As `writing`, of copies of `n_pos` tokens that lie side by side in the rows of `stairs`: what is written alike at a site is written at once."""
    at: dict[Site, dict[tuple[int, bool, bool], list[tuple[int, Write]]]] = {}
    for v, variant in enumerate(variants):
        for site, write in variant.items():
            alike = (write.value.shape[1], write.add, write.where is not None)
            at.setdefault(site, {}).setdefault(alike, []).append((stairs.row[v], write))

    def edit_all(groups: list[tuple[Sequence[int] | slice, Write]]) -> Edit:
        def edit(tensor: Tensor) -> None:
            copies = tensor.unflatten(1, (-1, n_pos))
            for rows, write in groups:
                value = write.value[:, :, :n_pos].to(tensor)  # of a shorter copy the rest is not there
                here = copies[:, rows, : value.shape[2]]
                new = _written(here, value, write)
                copies[:, rows, : value.shape[2]] = new

        return edit

    return {site: edit_all([_stacked(writes) for writes in groups.values()]) for site, groups in at.items()}


def _stacked(writes: list[tuple[int, Write]]) -> tuple[list[int] | slice, Write]:
    """The rows of several writes (a slice where they are neighbours), and one write of all: values `[prompt, row, pos, d]`, `where` `[row, 1, d]`."""
    writes = sorted(writes, key=lambda one: one[0])
    rows, each = [row for row, _ in writes], [write for _, write in writes]
    value = torch.stack([write.value for write in each], 1)
    where = torch.stack([write.where for write in each if write.where is not None])[:, None] if each[0].where is not None else None
    neighbours = rows == list(range(rows[0], rows[0] + len(rows)))
    return slice(rows[0], rows[-1] + 1) if neighbours else rows, Write(value=value, add=each[0].add, where=where)


def _written(state: Tensor, value: Tensor, write: Write) -> Tensor:
    value = state + value if write.add else value
    return value if write.where is None else torch.where(write.where.to(value.device), value, state)


@dataclass(frozen=True, kw_only=True)
class Stairs:
    """Which row each variant takes, and how many rows there are at each block. Variants that first write at one site take neighbouring rows."""

    row: list[int]
    """By variant; row 0 is the clean one."""
    born: list[int]
    """By block: variants that are first edited there."""
    rows: list[int]
    """By block: the clean row, and every variant born there or below."""

    @classmethod
    def of(cls, variants: Sequence[Mapping[Site, Any]], n_layers: int) -> "Stairs":
        births = [min(variant).layer for variant in variants]
        row = [0] * len(births)
        for place, variant in enumerate(sorted(range(len(births)), key=lambda one: min(variants[one])), start=1):
            row[variant] = place
        born = [births.count(layer) for layer in range(n_layers)]
        return cls(row=row, born=born, rows=list(accumulate(born, initial=1))[1:])

    def grow_sequences(self, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """For `growing`, where variants are sequences of a batch: those born at a block are appended as copies of the clean one."""
        if kwargs.get("alibi") is not None:
            kwargs["alibi"] = kwargs["alibi"].repeat(self.rows[layer], *[1] * (kwargs["alibi"].ndim - 1))
        born = self.born[layer]
        return torch.cat([hidden, hidden[:1].detach().expand(born, -1, -1)]) if born else hidden


def later_born(variant: Variant, n_layers: int) -> Variant:
    """The same variant, its first write put at the input of the next block where it is at a block's output: its copy need not exist before."""
    first = min(variant)
    if first.kind != "resid_post" or first.layer == n_layers - 1 or (after := Site(first.layer + 1, "resid_pre")) in variant:
        return variant
    return {after: variant[first], **{site: write for site, write in variant.items() if site != first}}


def _by_position(value: Any, n_pos: int) -> bool:
    """Whether this is such a table, or a tuple of such tables: of positions, or what a block is given beside the residual stream for each token."""
    if isinstance(value, tuple):
        return bool(value) and all(_by_position(part, n_pos) for part in value)
    return isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == n_pos


def _repeat(value: Any, rows: int) -> Any:
    """Tables of shape `[prompt, pos, ...]` repeated once for each row."""
    if isinstance(value, tuple):
        return tuple(_repeat(part, rows) for part in value)
    return value.repeat(1, rows, *[1] * (value.ndim - 2))


def _first(value: Any, n: int) -> Any:
    """The first `n` positions of such tables."""
    return tuple(_first(part, n) for part in value) if isinstance(value, tuple) else value[:, :n]


def _beside(value: Any, rows: int, sizes: Collection[int]) -> Any:
    """What a block is given beside its input, for so many sequences: tensors of as many sequences as earlier blocks had get copies of the first."""
    if isinstance(value, Tensor):
        if value.ndim < 2 or value.shape[0] >= rows or value.shape[0] not in sizes:
            return value
        return torch.cat([value, value[:1].expand(rows - len(value), *value.shape[1:])])
    if isinstance(value, MutableMapping):  # in its place: blocks write into it
        value.update({name: _beside(one, rows, sizes) for name, one in value.items()})
        return value
    return type(value)(_beside(one, rows, sizes) for one in value) if type(value) in (tuple, list) else value


@contextmanager
def growing(model: Model, grow: Callable[[int, Tensor, dict[str, Any]], Tensor]) -> Iterator[None]:
    """While open, `grow(layer, hidden, kwargs)` runs at each block's input, before any edit there, and gives the block's new input. Where blocks read
    more of earlier ones than that, it grows with it."""
    handles = []
    sizes = set[int]()
    try:
        for layer, block in enumerate(model.blocks):
            names = list(signature(block.forward).parameters)

            def before(block: Any, args: tuple, kwargs: dict, layer: int = layer, names: list[str] = names) -> tuple[tuple, dict]:
                named = {**dict(zip(names, args, strict=False)), **kwargs}
                entered = as_one(model, named.pop(names[0]))
                hidden = grow(layer, entered, named)
                sizes.add(len(entered))
                if model.family.tangled and len(hidden) > min(sizes):
                    named = _beside(named, len(hidden), sizes)
                return (as_streams(model, hidden),), named

            handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
