"""Pico models: two to four random layers of each family, made in code, and pairs of them with planted differences."""

import copy
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Cohere2Config,
    CohereConfig,
    DeepseekV3Config,
    Ernie4_5Config,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4Config,
    GlmConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoConfig,
    OlmoeConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    SeedOssConfig,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)

from mechdiff.architectures.network import quiet
from mechdiff.models.pair import Model, wrap
from mechdiff.prompts.vocabularies import Tokens
from mechdiff.validate.made import random_net as make_net
from mechdiff.validate.made import save
from mechdiff.validate.made import token_prompts as prompts

SIZES: dict[str, Any] = {
    "vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258,
}  # fmt: skip
_SPECIAL = {name: SIZES[name] for name in ("vocab_size", "bos_token_id", "eos_token_id")}
_NEOX = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=8),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen2_sliding": lambda: Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=2),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=16),
    "gemma2": lambda: Gemma2Config(**SIZES, head_dim=16, sliding_window=8),
    "gemma3": lambda: Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=8, layer_types=["sliding_attention", "full_attention"] * 2),
    "gpt2": lambda: GPT2Config(**_SPECIAL, n_embd=32, n_layer=4, n_head=4, n_positions=128),
    "neox_parallel": lambda: GPTNeoXConfig(**_NEOX),
    "neox_sequential": lambda: GPTNeoXConfig(**_NEOX, use_parallel_residual=False),
    "mixtral": lambda: MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": lambda: Qwen3MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=16),
    "gpt_oss": lambda: GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, head_dim=8, sliding_window=8),
    "phi3": lambda: Phi3Config(**SIZES),
    "smollm3": lambda: SmolLM3Config(**SIZES),
    "starcoder2": lambda: Starcoder2Config(**SIZES),
    "olmo2": lambda: Olmo2Config(**SIZES),
    "olmo3": lambda: Olmo3Config(**SIZES, sliding_window=8),
    "glm4": lambda: Glm4Config(**SIZES, head_dim=8),
    "stablelm": lambda: StableLmConfig(**SIZES),
    "stablelm_parallel": lambda: StableLmConfig(**SIZES, use_parallel_residual=True),
    "falcon": lambda: FalconConfig(**_NEOX, multi_query=True, parallel_attn=True),
    "falcon_sequential": lambda: FalconConfig(**_NEOX, multi_query=False, parallel_attn=False),
    "cohere": lambda: CohereConfig(**SIZES),
    "falcon_alibi": lambda: FalconConfig(**_NEOX, multi_query=False, parallel_attn=False, alibi=True),
    "bloom": lambda: BloomConfig(**_SPECIAL, hidden_size=32, n_layer=4, n_head=4, pad_token_id=258, seq_length=128),
    "opt": lambda: OPTConfig(**_NEOX | {"intermediate_size": 0}, ffn_dim=48, word_embed_proj_dim=32),
    "granite": lambda: GraniteConfig(**SIZES, residual_multiplier=0.22, attention_multiplier=0.1, logits_scaling=2.0, embedding_multiplier=3.0),
    "qwen3_next": lambda: Qwen3NextConfig(
        **SIZES, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16,
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"] * 2,
    ),
    "qwen3_5": lambda: Qwen3_5TextConfig(
        **SIZES, head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"] * 2,
    ),
    "lfm2": lambda: Lfm2Config(**SIZES, layer_types=["conv", "full_attention"] * 2, block_auto_adjust_ff_dim=False),
    "gemma": lambda: GemmaConfig(**SIZES, head_dim=16),
    "glm": lambda: GlmConfig(**SIZES, head_dim=8),
    "olmo": lambda: OlmoConfig(**SIZES),
    "olmoe": lambda: OlmoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2),
    "qwen2_moe": lambda: Qwen2MoeConfig(
        **SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16
    ),
    "deepseek_v3": lambda: DeepseekV3Config(
        **SIZES | {"num_key_value_heads": 4}, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16,
        n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, moe_intermediate_size=16, first_k_dense_replace=2,
    ),
    "ernie4_5": lambda: Ernie4_5Config(**SIZES, head_dim=8),
    "seed_oss": lambda: SeedOssConfig(**SIZES, head_dim=8),
    "cohere2": lambda: Cohere2Config(**SIZES, sliding_window=8),
    "phi": lambda: PhiConfig(**SIZES),
}  # fmt: skip

HYBRID = ("qwen3_next", "qwen3_5", "lfm2")
"""Some blocks mix tokens by something else than attention: there is no site `z`."""
WITHOUT_HEADS = ("deepseek_v3", *HYBRID)
"""Their attention is no set of queries, keys and values by head: latent, gated, or none."""
RELAYED = ("falcon_alibi", "bloom", *HYBRID)
"""Parallel tokens do not suit them: relay does."""

USUAL = (
    "llama", "qwen2_sliding", "gemma2", "gpt2", "neox_parallel", "gpt_oss", "qwen3_moe", "olmo", "olmo2", "falcon", "bloom", "opt", "granite",
    "lfm2", "deepseek_v3", "cohere2",
)  # fmt: skip
"""One family of every way to build a block: fused and single projections, one or several norms, norms without weights, biases, windows, experts,
sinks, latent and no attention, positions learned, rotated or sloped, attention beside the MLP, multipliers, tied and untied heads."""


FEW = ("llama", "gemma2", "gpt2", "gpt_oss", "bloom", "falcon", "lfm2", "deepseek_v3")
"""Of these, where a test takes half a second for each: both kinds of position, of norm and of residual stream, windows, sinks and experts, slopes,
no attention and latent attention."""


def each(names: Iterable[str] = tuple(CONFIGS), *more: Any, usual: Collection[str] = USUAL) -> list[Any]:
    """Families as a test's parameters, `more` beside each: the usual ones in `make test`, the others in `make test-slow`."""
    return [pytest.param(name, *more, marks=() if name in usual else pytest.mark.slow) for name in names]


def pico(name: str, *, seed: int = 0, attention: str | None = None, dtype: torch.dtype = torch.float32) -> Model:
    """A wrapped random model of a family."""
    return wrap(make_net(CONFIGS[name](), seed=seed, attention=attention, dtype=dtype), side="base", ref=f"pico {name}")


def twin(model: Model, change: Callable[[nn.Module], None] | None = None) -> Model:
    """A deep copy of a model, with `change` applied to its network."""
    net = copy.deepcopy(model.net)
    if change:
        with torch.no_grad():
            change(net)
    return wrap(net, side="tuned", ref=model.ref + ", tuned")


def moved(net: nn.Module) -> None:
    """Every tensor another one."""
    torch.manual_seed(3)
    for parameter in net.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.03)


def with_adapter(name: str = "llama", **config: Any) -> Model:
    """A base with a LoRA on it, switched off; its factors are random where peft leaves them at 0."""
    from peft import LoraConfig, get_peft_model

    net = pico(name).net
    torch.manual_seed(7)
    with quiet():
        adapted = get_peft_model(net, LoraConfig(**{"r": 2, "lora_alpha": 4, "target_modules": ["o_proj", "up_proj"]} | config))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
    adapted.base_model.disable_adapter_layers()
    return wrap(adapted.get_base_model().eval(), side="base", ref="adapted")


def same_tokens(n: int) -> Tokens:
    """One vocabulary of `n` tokens that both models have."""
    ids = np.arange(n)
    return Tokens(relation="equal", pieces=(None,) * n, ids={"base": ids, "tuned": ids}, n_shared=n)
