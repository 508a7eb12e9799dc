"""GGUF files of small networks, written as llama.cpp's converter writes them: other names, and query and key rows interleaved for its rotation."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from torch import nn

from tokenizers_made import byte_characters

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
    """A Llama. `keys` adds keys, `tensors` adds tensors, `types` gives the stored form of one, `split`: so many tensors a file. BOS and EOS are the
    last two of `tokens`."""
    config: Any = net.config
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(tokens) - 2) + [gguf.TokenType.CONTROL] * 2)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_eos_token_id(len(tokens) - 1)
    keys(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in net.state_dict().items():
        n_heads = next((n for part, n in heads.items() if part in name), None)
        if n_heads:
            tensor = tensor.reshape(n_heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        numbers, kind = types(name, tensor.contiguous().numpy())
        writer.add_tensor(names.get_name(name, try_suffixes=[".weight"]), numbers, raw_dtype=kind)
    for name, numbers in tensors.items():
        writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
