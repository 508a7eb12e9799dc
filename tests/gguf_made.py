"""GGUF files of small networks, written as llama.cpp's converter writes them: other names, and query and key rows interleaved for its rotation."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from torch import nn

from tokenizers_made import byte_characters

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3, "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "stablelm": gguf.MODEL_ARCH.STABLELM, "starcoder2": gguf.MODEL_ARCH.STARCODER2, "phi3": gguf.MODEL_ARCH.PHI3,
}  # fmt: skip
TOKENS = [*byte_characters(), "ab", "<|bos|>", "<|eos|>"]
MERGES = ["a b"]


def write_gguf(
    net: nn.Module,
    path: Path,
    *,
    keys: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    tensors: Mapping[str, np.ndarray] = {},
    types: Callable[[str, np.ndarray], tuple[np.ndarray, Any]] = lambda name, numbers: (numbers, None),
    split: int = 0,
    tokens: list[str] = TOKENS,
    merges: list[str] = MERGES,
    pre: str = "default",
) -> None:
    """A Llama, or one of `ARCHITECTURES`. `keys` adds keys, `tensors` adds tensors, `types` gives the stored form of one, `split`: so many tensors
    a file. BOS and EOS are the last two of `tokens`."""
    config: Any = net.config
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture], split_max_tensors=split)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    for field in ("rms_norm_eps", "layer_norm_eps", "norm_epsilon"):
        if hasattr(config, field):
            (writer.add_layer_norm_rms_eps if field == "rms_norm_eps" else writer.add_layer_norm_eps)(getattr(config, field))
    rotary = config.rope_parameters
    writer.add_rope_freq_base(rotary["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(int(head_dim * rotary.get("partial_rotary_factor", 1)))
    if config.model_type in ("gemma2", "qwen3"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if config.model_type == "gemma2":
        writer.add_sliding_window(config.sliding_window)
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(tokens) - 2) + [gguf.TokenType.CONTROL] * 2)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_eos_token_id(len(tokens) - 1)
    keys(writer)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads} if config.model_type == "llama" else {}
    for name, tensor in net.state_dict().items():
        n_heads = next((n for part, n in heads.items() if part in name), None)
        if n_heads:
            tensor = tensor.reshape(n_heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if config.model_type == "gemma2" and "norm.weight" in name:
            tensor = tensor + 1
        numbers, kind = types(name, tensor.contiguous().numpy())
        writer.add_tensor(names.get_name(name, try_suffixes=[".weight", ".bias"]), numbers, raw_dtype=kind)
    for name, numbers in tensors.items():
        writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
