"""An attention pattern says which tokens a head attends to from the decision position.

The token whose next-token law is studied attends to itself and to all tokens before it. A head's pattern a is its share of attention on each of
them: a >= 0, and the sum is 1, but for heads with a *sink* (GPT-OSS: a learned place that takes attention and gives nothing), where the sum
is what the sink leaves over.

Fast attention never writes its pattern down, so one token is run again by the slow kind ("eager") on top of the prompt's cache: the same model,
and it is checked to say the same. Two patterns a and b over the same tokens are compared by the Jensen-Shannon divergence

    JS(a, b) = KL(a || m) / 2 + KL(b || m) / 2,   m = (a + b) / 2,   0 (the same) to ln 2 nats (nothing in common).

A pattern says where a head reads, not what it reads there, nor whether that matters: much attention on the first token is often a head at rest
(Xiao et al. 2023), and another pattern may give the same output (Jain & Wallace 2019). What a head does is a matter of patches.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mechdiff.engine.activations import Clean, capture, forward
from mechdiff.engine.rounding import LEAST_NATS, allowed_nats, nats_between, rounding_nats
from mechdiff.errors import ModelError
from mechdiff.models.pair import Model

ROUNDING = 0.02
"""How far the sum of a pattern may be from 1 where there is no sink: each weight is rounded to the model's dtype."""


def attention_at_decision(model: Model, clean: Clean, layers: Sequence[int]) -> dict[int, Float[Tensor, "head key"]]:
    """The attention of a prompt's last token on all its tokens, by layer: `attention_at_end` of one token."""
    return {layer: pattern[:, 0] for layer, pattern in attention_at_end(model, clean, layers, 1).items()}


def attention_at_end(model: Model, clean: Clean, layers: Sequence[int], n_last: int) -> dict[int, Float[Tensor, "head last key"]]:
    """The attention of each of a prompt's last tokens on all its tokens, by layer; float32, on the CPU. Keys that a token does not see have 0.

    `n_last`: how many tokens, or all where the prompt has fewer. One pass of these tokens on the clean run's cache (after a pass of the prefix where
    none was kept). Raises ModelError where the model gives no attention weights, or none that are those of the model as it runs.
    """
    _refuse_unreadable(model)
    n_last = min(n_last, len(clean.ids))
    prefix = _prefix(model, clean, len(clean.ids) - n_last)
    with _eager(model):
        output = forward(model, clean.ids[None, -n_last:], past_key_values=prefix, use_cache=prefix is not None, output_attentions=True)
    _refuse_another_law(model, clean, output.logits[0, -1].float())
    given = output.attentions or ()
    expected = (1, model.shape.n_heads, n_last, len(clean.ids))
    shapes = [tuple(pattern.shape) for pattern in given if pattern is not None]
    if shapes != [expected] * model.shape.n_layers:
        raise ModelError(
            f"{model.ref}: its blocks give no attention weights that can be read: {sorted(set(shapes)) or 'none'} from {len(shapes)} of "
            f"{model.shape.n_layers} blocks, where {expected} (prompts, heads, positions, keys) from each is expected. Leave attention out."
        )
    return {layer: _pattern(model, layer, given[layer][0]) for layer in layers}


def _refuse_unreadable(model: Model) -> None:
    """Raises ModelError where what eager attention shows is known to be missing or wrong."""
    if model.family.mixers:
        why = "some of its blocks mix tokens by something else than attention"
    elif model.config.model_type == "falcon" and model.config.alibi:
        # transformers 5.23 adds it to the mask and again to the scores; half precision could hide that from the comparison of laws.
        why = "its eager attention in transformers adds the bias for distance (ALiBi) twice, so the patterns are not those of the model as it runs"
    else:
        return
    raise ModelError(f"{model.ref}: attention patterns cannot be read: {why}. Leave attention out.")


def _prefix(model: Model, clean: Clean, n_before: int) -> Any:
    """The keys and values of a prompt's first tokens; None for none."""
    from transformers import DynamicCache

    if n_before == 0:
        return None
    kept = clean.cache or capture(model, clean.ids[:-1].tolist(), [], [0], keep_cache=True).cache
    assert kept, "a capture that was asked for its cache has one"
    prefix = DynamicCache()
    for layer, (keys, values) in enumerate(kept):
        prefix.update(keys[:, :, :n_before], values[:, :, :n_before], layer)
    return prefix


@contextmanager
def _eager(model: Model) -> Iterator[None]:
    """While open, the model attends by plain matrix products, whose weights can be seen.

    By the config, which every block asks as it runs: `set_attn_implementation` refuses the families that dispatch by hand.
    """
    own = model.config._attn_implementation
    model.config._attn_implementation = "eager"
    try:
        yield
    finally:
        model.config._attn_implementation = own


def _refuse_another_law(model: Model, clean: Clean, logits: Float[Tensor, " vocab"]) -> None:
    nats = float(nats_between(clean.logits, logits.to(clean.logits.device)))
    if nats > LEAST_NATS[model.dtype] and not nats <= allowed_nats(model, rounding_nats(model, clean.ids)):
        raise ModelError(
            f"{model.ref}: with eager attention, whose patterns can be seen, it says something else than in its clean run ({nats:.1e} nats "
            "apart), so they are not its patterns. Leave attention out."
        )


def _pattern(model: Model, layer: int, given: Float[Tensor, "head last key"]) -> Float[Tensor, "head last key"]:
    """Without a sink, rounding is taken out of the sum: a comparison would take what is missing to 1 for a sink."""
    pattern = given.float().cpu()
    if any(name.endswith("sinks") for name, _ in model.blocks[layer].named_parameters()):
        return pattern.clone()
    total = pattern.sum(-1, keepdim=True)
    if not ((total - 1).abs() <= ROUNDING).all():
        raise ModelError(
            f"{model.ref}: the attention of a head of block {layer} sums to {float(total[(total - 1).abs().argmax()]):.3f}, not 1, and the "
            "block has no sink that would explain it. Leave attention out."
        )
    return pattern / total


def pattern_js_nats(a: Float[Tensor, "*head key"], b: Float[Tensor, "*head key"]) -> Float64[Tensor, "*head"]:
    """Jensen-Shannon divergence of patterns over the same keys; what a pattern lacks to 1, a sink's share, is one more outcome."""
    assert a.shape == b.shape, f"patterns over other keys: {tuple(a.shape)} and {tuple(b.shape)}"
    p, q = _with_sink(a), _with_sink(b)
    middle = (p + q) / 2
    return ((_negative_entropy(p) + _negative_entropy(q)) / 2 - _negative_entropy(middle)).clamp(min=0)


def _with_sink(pattern: Tensor) -> Tensor:
    pattern = pattern.double()
    return torch.cat([pattern, (1 - pattern.sum(-1, keepdim=True)).clamp(min=0)], -1)


def _negative_entropy(law: Tensor) -> Tensor:
    return torch.xlogy(law, law).sum(-1)
