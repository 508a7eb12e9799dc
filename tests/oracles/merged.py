"""A grafted network the naive way: a deep copy of the base with the tuned model's tensors written into it, run whole, one prompt at a time."""

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

WHERE = {
    "attn": ("self_attn.", "attn.", "attention.", "self_attention.", "linear_attn.", "conv."),
    "mlp": ("mlp.", "feed_forward.", "fc1.", "fc2."),
    "norm": ("input_layernorm.", "post_attention_layernorm.", "pre_feedforward_layernorm.", "post_feedforward_layernorm.",
             "post_self_attn_layernorm.", "post_mlp_layernorm.", "ln_1.", "ln_2.", "self_attn_layer_norm.", "final_layer_norm.",
             "operator_norm.", "ffn_norm."),
}  # fmt: skip
"""Beginnings of names inside a block, of all families here."""
OUTSIDE = {
    "embed": ("model.embed_tokens.", "transformer.wte.", "transformer.wpe.", "gpt_neox.embed_in.", "transformer.word_embeddings.",
              "transformer.word_embeddings_layernorm.", "model.decoder.embed_tokens.", "model.decoder.embed_positions."),
    "final_norm": ("model.norm.", "transformer.ln_f.", "gpt_neox.final_layer_norm.", "model.decoder.final_layer_norm.",
                   "model.final_layernorm.", "model.embedding_norm."),
    "head": ("lm_head.",),
}  # fmt: skip
BLOCKS = ("model.layers.", "transformer.h.", "gpt_neox.layers.", "model.decoder.layers.")


def names_of(net: nn.Module, unit: str) -> list[str]:
    """The parameters, each once, that a unit like "L3.attn" or "head" must hold."""
    starts = OUTSIDE.get(unit) or tuple(
        f"{blocks}{unit[1:].split('.')[0]}.{part}" for blocks in BLOCKS for part in WHERE[unit.split(".")[1]]
    )
    return [name for name, _ in net.named_parameters() if name.startswith(starts)]


def merged(base: nn.Module, tuned: nn.Module, units: Iterable[str]) -> nn.Module:
    """The base with these units of the tuned network."""
    net, source = copy.deepcopy(base), dict(tuned.named_parameters())
    own = dict(net.named_parameters())
    for unit in units:
        for name in names_of(net, unit):
            own[name].data.copy_(source[name].data)
    return net


def logits(net: nn.Module, prompts: Sequence[Sequence[int]]) -> Tensor:
    """`[prompt, vocab]` at each prompt's last position."""
    with torch.inference_mode():
        return torch.stack([net(torch.tensor([list(ids)]), use_cache=False).logits[0, -1].float() for ids in prompts])
