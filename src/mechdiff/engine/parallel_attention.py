"""Parallel copies of a prompt's last tokens attend to its prefix and to themselves, without a mask.

A mask that hides the copies from each other is a table of rows x rows, and with a mask an attention kernel wants each key head repeated for the query
heads that share it, behind a copy of the cache that the copies' own keys have been added to. Here a copy's scores over the prefix come from one
product for all copies of a prompt, its scores over its own tokens stand beside them, and one softmax is taken over both:

    scores = scale * [q . prefix keys, q . own keys],  then the cap, the padding and the sinks that the family has

It is a function of transformers' attention interface, so all around it is the model's own code. In half precision a mask it is: there attention
kernels round inside as no other way does, and the choice of an expert can hang on that.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mechdiff.architectures.families import sliding_window
from mechdiff.engine.prefix import KeysValues, Prefix
from mechdiff.models.pair import Model

NAME = "mechdiff_parallel_copies"
MOST_SCORES = 2**24
"""Entries of one table of scores; with more, some of the copies at a time."""


@dataclass(kw_only=True)
class Copies:
    """What the attention of one pass needs to know."""

    prefix: Prefix
    config: Any
    hidden: dict[int | None, Tensor] = field(default_factory=dict)
    """By sliding window, `[prompt, 1, 1 or pos, key]` to add to scores: the lowest number where a position may not look."""

    @property
    def n_pos(self) -> int:
        return self.prefix.suffix.shape[1]

    def bias(self, layer: int, n_tokens: int) -> Tensor:
        """For `n_tokens` of copies at a block: `[prompt, 1, 1 or token, key]` over the prefix and a copy's own positions."""
        window = sliding_window(self.config, layer)
        if window not in self.hidden:
            self.hidden[window] = self.prefix.mask(1, window, self.prefix.keys[0].dtype)
        one = self.hidden[window]
        return one if self.n_pos == 1 else one.repeat(1, 1, n_tokens // self.n_pos, 1)


_OPEN: ContextVar[Copies] = ContextVar("copies")


def is_possible(model: Model) -> bool:
    """Whether a model in float32 sends its attention through the interface, on the keys that it caches. Of a proposed row it is not known."""
    through = bool(getattr(model.net, "_supports_attention_backend", False)) and model.dtype == torch.float32
    return through and not (model.family.latent or model.family.by_layer)


@contextmanager
def without_mask(model: Model, prefix: Prefix) -> Iterator[None]:
    """While open, forward passes of the model are of parallel copies behind this prefix; they need `OwnKeys` for a cache."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    held: list[Any] = [module.config for block in model.blocks for module in block.modules() if hasattr(module, "config")]
    configs = {id(config): config for config in (*held, model.config, model.config.get_text_config())}
    before = {key: config._attn_implementation_internal for key, config in configs.items()}
    opened = _OPEN.set(Copies(prefix=prefix, config=model.config))
    try:
        for config in configs.values():
            config._attn_implementation_internal = NAME
        yield
    finally:
        _OPEN.reset(opened)
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]


class OwnKeys:
    """Stands for a cache in a pass of parallel copies: attention is given the copies' own keys and values, and adds those of the prefix itself."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.own: list[KeysValues] = []

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> KeysValues:
        self.own.append((keys, values))
        return keys, values

    def get_seq_length(self, *args: Any) -> int:
        return self.longest


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`query` `[prompt, head, token, d]`, `key` and `value` `[prompt, kv_head, token, d]` of the copies' own tokens -> `[prompt, token, head, d]`.

    The other arguments are those of transformers' attention functions: `s_aux` are sinks, one score a head that takes its share of the softmax.
    """
    now = _OPEN.get()
    assert all(kwargs.get(name) is None for name in ("position_bias", "indices")), (
        "this attention adds more to its scores than copies follow"
    )
    keys, values, n_pos = now.prefix.keys[module.layer_idx], now.prefix.values[module.layer_idx], now.n_pos
    (n_prompts, n_kv, longest, _), (n_heads, n_tokens, d) = keys.shape, query.shape[1:]
    step = max(1, MOST_SCORES // (n_prompts * n_heads * (longest + n_pos) * n_pos)) * n_pos
    if n_tokens > step:
        parts = zip(query.split(step, 2), key.split(step, 2), value.split(step, 2), strict=True)
        return torch.cat([attend(module, q, k, v, None, scaling, softcap, s_aux)[0] for q, k, v in parts], 1), None
    by_kv = query.reshape(n_prompts * n_kv, -1, d)  # the query heads of a key head are so many rows more
    before = torch.bmm(by_kv, keys.flatten(0, 1).mT).view(n_prompts, n_heads, n_tokens, longest)
    scores = torch.cat([before, _own_scores(query, key, n_pos)], -1) * (d**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + now.bias(module.layer_idx, n_tokens)
    if s_aux is not None:
        scores = torch.cat([scores, s_aux.to(scores).view(1, -1, 1, 1).expand(n_prompts, -1, n_tokens, 1)], -1)
    shares = scores.softmax(-1)
    of_prefix = torch.bmm(shares[..., :longest].view(n_prompts * n_kv, by_kv.shape[1], longest), values.flatten(0, 1))
    of_own = _own_values(shares[..., longest : longest + n_pos], value, n_pos)
    return (of_prefix.view(of_own.shape) + of_own).transpose(1, 2), None


def _own_scores(query: Tensor, key: Tensor, n_pos: int) -> Tensor:
    """`[prompt, head, token, n_pos]`: of each token with the tokens of its own copy."""
    n_prompts, n_heads, n_tokens, _ = query.shape
    grouped = query.unflatten(1, (key.shape[1], -1))
    if n_pos == 1:
        return (grouped * key[:, :, None]).sum(-1).view(n_prompts, n_heads, n_tokens, 1)
    copies = grouped.unflatten(3, (-1, n_pos)) @ key[:, :, None].unflatten(3, (-1, n_pos)).mT
    return copies.reshape(n_prompts, n_heads, n_tokens, n_pos)


def _own_values(shares: Tensor, value: Tensor, n_pos: int) -> Tensor:
    """`[prompt, head, token, d]`: what each token takes from the tokens of its own copy."""
    n_prompts, n_heads, n_tokens, _ = shares.shape
    grouped = shares.unflatten(1, (value.shape[1], -1))
    if n_pos == 1:
        return (grouped * value[:, :, None]).reshape(n_prompts, n_heads, n_tokens, -1)
    copies = grouped.unflatten(3, (-1, n_pos)) @ value[:, :, None].unflatten(3, (-1, n_pos))
    return copies.reshape(n_prompts, n_heads, n_tokens, -1)
