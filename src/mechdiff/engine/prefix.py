"""What several prompts have been read up to stands side by side: the caches of their clean runs, each without its last positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from mechdiff.engine.activations import Clean

KeysValues = tuple[Tensor, Tensor]


def side_by_side(cleans: Sequence[Clean]) -> list[KeysValues]:
    """Each block's keys and values of several prompts, `[prompt, kv_head, pos, d_head]`, padded on the right to the longest.

    Kept with the first of them until it runs beside others; the clean runs' own caches become views of it.
    """
    held = cleans[0].beside
    if held and len(held[0]) == len(cleans) and all(one() is clean for one, clean in zip(held[0], cleans, strict=True)):
        return held[1]
    caches = [clean.cache for clean in cleans if clean.cache is not None]
    assert len(caches) == len(cleans), "replay needs clean runs that were captured with keep_cache=True"
    longest = max(len(clean.ids) for clean in cleans)

    def stacked(layer: int, part: int) -> Tensor:
        kept = [cache[layer][part] for cache in caches]
        return torch.cat([torch.nn.functional.pad(tensor, (0, 0, 0, longest - tensor.shape[2])) for tensor in kept])

    blocks = [(stacked(layer, 0), stacked(layer, 1)) for layer in range(len(caches[0]))]
    for i, clean in enumerate(cleans):
        clean.cache = [(keys[i : i + 1, :, : len(clean.ids)], values[i : i + 1, :, : len(clean.ids)]) for keys, values in blocks]
    cleans[0].beside = [ref(clean) for clean in cleans], blocks
    return blocks


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
        if suffix is None:
            suffix = torch.stack([clean.ids[length:] for clean, length in zip(cleans, lengths, strict=True)])
        blocks, longest = side_by_side(cleans), max(lengths)
        return cls(
            keys=[keys[:, :, :longest] for keys, _ in blocks],
            values=[values[:, :, :longest] for _, values in blocks],
            lengths=torch.tensor(lengths, device=cleans[0].ids.device),
            longest=longest,
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
