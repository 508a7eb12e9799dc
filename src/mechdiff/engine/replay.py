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

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from mechdiff.architectures.families import sliding_window
from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import Clean, Edit, edited, forward
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
    prefix = Prefix.of(cleans, widths.pop())
    wanted = torch.zeros(prefix.suffix.shape, dtype=torch.bool, device=model.device)
    wanted[:, -1] = True
    return parallel(model, prefix, variants, wanted)


def parallel(model: Model, prefix: "Prefix", variants: Sequence[Variant], wanted: Tensor, cache: Any = None) -> Tensor:
    """Logits `[wanted, 1 + variant, vocab]`, float32, of copies of each prompt's suffix, at its `wanted` positions (`[prompt, pos]`, bool).

    A variant writes at the first positions of its copy, as many as its values have. `cache` is the prefix's, where what the pass adds to it is
    of use afterwards.
    """
    n_prompts, n_pos, n_rows = *prefix.suffix.shape, 1 + len(variants)
    stairs = Stairs.of(variants, len(model.blocks))
    masks: dict[int | None, Tensor] = {}

    def grow(layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        if born := stairs.born[layer]:
            hidden = torch.cat([hidden, hidden[:, :n_pos].detach().repeat(1, born, 1)], 1)
        rows = stairs.rows[layer]
        window = sliding_window(model.config, layer)
        if window not in masks:
            masks[window] = prefix.mask(n_rows, window, model.dtype)
        kwargs["attention_mask"] = masks[window][:, :, : rows * n_pos, : prefix.longest + rows * n_pos]
        for name in ("position_ids", "position_embeddings"):
            if kwargs.get(name) is not None:
                kwargs[name] = _repeat(kwargs[name], rows)
        return hidden

    def rows_of(tensor: Tensor, variant: int, n_written: int) -> Tensor:
        start = stairs.row[variant] * n_pos
        return tensor[:, start : start + n_written]

    def chosen(head: Any, args: tuple) -> tuple[Tensor]:
        copies = args[0].reshape(n_prompts, n_rows, n_pos, -1)[:, [0, *stairs.row]]
        return (copies.transpose(1, 2)[wanted],)

    with growing(model, grow), edited(model, writing(variants, rows_of)):
        handle = model.head.register_forward_pre_hook(chosen)
        try:
            output = forward(model, prefix.suffix, logits_to_keep=0, attention_mask=prefix.mask(1, None, model.dtype),
                             position_ids=prefix.positions.clamp(max=model.shape.context - 1),
                             past_key_values=prefix.cache() if cache is None else cache, use_cache=True)  # fmt: skip
        finally:
            handle.remove()
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


def _written(state: Tensor, value: Tensor, write: Write) -> Tensor:
    value = state + value if write.add else value
    return value if write.where is None else torch.where(write.where.to(value.device), value, state)


@dataclass(frozen=True, kw_only=True)
class Stairs:
    """Which row each variant takes, and how many rows there are at each block. Variants born at one block take neighbouring rows."""

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
        for place, variant in enumerate(sorted(range(len(births)), key=births.__getitem__), start=1):
            row[variant] = place
        born = [births.count(layer) for layer in range(n_layers)]
        return cls(row=row, born=born, rows=list(accumulate(born, initial=1))[1:])

    def grow_sequences(self, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """For `growing`, where variants are sequences of a batch: those born at a block are appended as copies of the clean one."""
        if kwargs.get("alibi") is not None:
            kwargs["alibi"] = kwargs["alibi"].repeat(self.rows[layer], *[1] * (kwargs["alibi"].ndim - 1))
        born = self.born[layer]
        return torch.cat([hidden, hidden[:1].detach().expand(born, -1, -1)]) if born else hidden


def _repeat(value: Any, rows: int) -> Any:
    """Tables of shape `[prompt, pos, ...]` repeated once for each row."""
    if isinstance(value, tuple):
        return tuple(_repeat(part, rows) for part in value)
    return value.repeat(1, rows, *[1] * (value.ndim - 2))


@contextmanager
def growing(model: Model, grow: Callable[[int, Tensor, dict[str, Any]], Tensor]) -> Iterator[None]:
    """While open, `grow(layer, hidden, kwargs)` runs at each block's input, before any edit there, and gives the block's new input."""
    handles = []
    try:
        for layer, block in enumerate(model.blocks):
            names = list(signature(block.forward).parameters)

            def before(block: Any, args: tuple, kwargs: dict, layer: int = layer, names: list[str] = names) -> tuple[tuple, dict]:
                named = {**dict(zip(names, args, strict=False)), **kwargs}
                hidden = grow(layer, named.pop(names[0]), named)
                return (hidden,), named

            handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """The caches of several prompts side by side, each without its last positions, padded on the right to the longest."""

    keys: list[Tensor]
    values: list[Tensor]
    lengths: Tensor
    """`[prompt]`: tokens before the suffix."""
    longest: int
    suffix: Tensor
    """`[prompt, pos]`: the tokens that the variants are copies of."""

    @classmethod
    def of(cls, cleans: Sequence[Clean], n_pos: int, suffix: Tensor | None = None) -> "Prefix":
        """The prompts without their last `n_pos` tokens, which are the suffix unless another is given."""
        lengths = [len(clean.ids) - n_pos for clean in cleans]
        assert min(lengths) >= 0, "a prompt is shorter than the window that is written"
        caches = [clean.cache for clean in cleans if clean.cache is not None]
        assert len(caches) == len(cleans), "replay needs clean runs that were captured with keep_cache=True"

        def stacked(layer: int, part: int) -> Tensor:
            kept = [cache[layer][part][:, :, :length] for cache, length in zip(caches, lengths, strict=True)]
            return torch.cat([torch.nn.functional.pad(tensor, (0, 0, 0, max(lengths) - tensor.shape[2])) for tensor in kept])

        if suffix is None:
            suffix = torch.stack([clean.ids[length:] for clean, length in zip(cleans, lengths, strict=True)])
        n_layers = len(caches[0])
        return cls(
            keys=[stacked(layer, 0) for layer in range(n_layers)],
            values=[stacked(layer, 1) for layer in range(n_layers)],
            lengths=torch.tensor(lengths, device=cleans[0].ids.device),
            longest=max(lengths),
            suffix=suffix,
        )

    @property
    def positions(self) -> Tensor:
        """`[prompt, pos]`: the suffix tokens' positions."""
        return self.lengths[:, None] + torch.arange(self.suffix.shape[1], device=self.lengths.device)

    def cache(self) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            cache.update(keys, values, layer)
        return cache

    def mask(self, n_rows: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """`[prompt, 1, row, key]` to add to attention scores: a row sees its prompt's prefix, its own block up to itself, and nothing else."""
        device, n_pos = self.lengths.device, self.suffix.shape[1]
        key = torch.arange(self.longest, device=device)
        sees_prefix = (key < self.lengths[:, None])[:, None, :].expand(-1, n_pos, -1)
        step = torch.arange(n_pos, device=device)
        sees_block = step[:, None] >= step
        if window is not None:
            sees_prefix = sees_prefix & (self.positions[:, :, None] - key < window)
            sees_block = sees_block & (step[:, None] - step < window)
        own = torch.kron(torch.eye(n_rows, dtype=torch.int8, device=device), sees_block.to(torch.int8)).bool()
        sees = torch.cat([sees_prefix.repeat(1, n_rows, 1), own.expand(len(self.lengths), -1, -1)], 2)
        return torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill_(~sees, torch.finfo(dtype).min)[:, None]
