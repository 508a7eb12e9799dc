"""A study's `dtype: int8` or `dtype: nf4` holds a model's matrices in 8 or 4 bits, by bitsandbytes.

int8 keeps each row of a matrix as whole numbers of its largest entry's 127th part, and rounds what enters it in the same way, but for columns
with outliers (LLM.int8: Dettmers et al. 2022, arXiv:2208.07339). Which these are is decided for all rows of a pass together, so a run depends a
little on its company; the noise floor, measured in the same passes, holds that. nf4 keeps 64 entries at a time as one of 16 quantiles of a normal
law, and computes in bfloat16 (QLoRA: Dettmers et al. 2023, arXiv:2305.14314). Only linear layers of the blocks are held so: embedding, unembedding,
norms and the factors of an adapter stay bfloat16, and so do all states. So do experts that lie side by side in one tensor, which is no linear layer:
`weights_of` counts them, on the network itself, without memory for a single weight.

Such a model is another model than its files say: what it computes with are the *rounded* matrices. Measures that read a matrix beside states
(heads) read it rounded; `weights` compares what the files say; grafting is not done, because one block's rounding would count as its change.

Files may hold the codes already (a checkpoint that was saved so): then they are decoded, and that is what they say.
"""

import copy
import logging
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechdiff.architectures.network import network_of
from mechdiff.architectures.sizes import Weights
from mechdiff.errors import MachineError

for said in ("autograd._functions", "backends.cpu.ops"):  # that int8 reads float16, and (to whoever loads peft) of kernels on a hub
    logging.getLogger(f"bitsandbytes.{said}").setLevel(logging.ERROR)


def quantizing(dtype: str, device: torch.device | None) -> dict[str, Any]:
    """Arguments of `from_pretrained`; `device` None: split over all. ModelError where bitsandbytes is not installed."""
    from transformers import BitsAndBytesConfig

    _library(dtype)
    if dtype == "int8":
        how = BitsAndBytesConfig(load_in_8bit=True)
    else:
        how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    return {"quantization_config": how, **({"device_map": {"": device}} if device else {})}


def weights_of(config: Any) -> Weights:
    """The weights of a config's network, counted on the network itself (on the meta device: nothing is read, and nothing takes memory)."""
    stated = copy.deepcopy(config)
    if hasattr(stated, "quantization_config"):
        del stated.quantization_config
    net = network_of(stated)
    names: dict[int, list[str]] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    ends = {id(module.weight) for module in (net.get_input_embeddings(), net.get_output_embeddings()) if module is not None}
    linear = {id(module.weight) for module in net.modules() if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"}
    held = {id(parameter): parameter for parameter in net.parameters()}
    shares = {key: _share_of_experts(names[key][0], parameter, stated, net) for key, parameter in held.items()}
    return Weights(
        stored=sum(parameter.numel() for parameter in held.values()),
        active=sum(round(parameter.numel() * shares[key]) for key, parameter in held.items()),
        body=sum(round(parameter.numel() * shares[key]) for key, parameter in held.items() if key not in ends),
        rounded=sum(parameter.numel() for key, parameter in held.items() if key in linear - ends),
        experts=sum(parameter.numel() for key, parameter in held.items() if _EXPERTS in names[key][0].split(".") and parameter.ndim > 2),
        tensors=tuple(tuple(same) for same in names.values()),
    )


_EXPERTS = "experts"
_USED = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
"""Config fields that say how many experts a token is sent to."""


def _share_of_experts(name: str, parameter: Tensor, config: Any, net: nn.Module) -> float:
    """Of a parameter, the share that one token uses: all but of experts, which lie side by side in a tensor or in a list of modules."""
    path = name.split(".")
    if _EXPERTS not in path:
        return 1.0
    stated = config.get_text_config()
    used = next((n for field in _USED if isinstance(n := getattr(stated, field, None), int) and n), None)
    owner = net.get_submodule(".".join(path[: path.index(_EXPERTS) + 1]))
    several = len(owner) if isinstance(owner, nn.ModuleList) else len(parameter) if parameter.ndim > 1 else 0
    return min(1.0, used / several) if used and several else 1.0


def keep_rounding(net: nn.Module) -> None:
    """On some processors nf4's layers round their scales once more at their first pass, and fail where a matrix is small: not here."""
    layers: Any = net.modules()
    for layer in layers:
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def rounded(matrix: Float[Tensor, "d_out d_in"], dtype: str) -> Float[Tensor, "d_out d_in"]:
    """What a linear layer's matrix is once it is held so, in float32."""
    functional, held = _library(dtype).functional, matrix.to(torch.bfloat16).contiguous()
    if dtype == "int8":
        whole, largest, _ = functional.int8_vectorwise_quant(held.half())
        return functional.int8_vectorwise_dequant(whole, largest).float()
    codes, state = functional.quantize_4bit(held, blocksize=64, quant_type="nf4")
    return functional.dequantize_4bit(codes, state).float()


def held_matrix(layer: nn.Module) -> Float[Tensor, "d_out d_in"]:
    """The matrix that a layer computes with: its parameter, or what that stands for."""
    weight: Any = layer.weight
    if hasattr(weight, "quant_state"):
        return _library("nf4").functional.dequantize_4bit(weight, weight.quant_state)
    if hasattr(weight, "SCB"):
        return _library("int8").functional.int8_vectorwise_dequant(weight.data, scales(layer))
    return weight


def scales(layer: nn.Module) -> Tensor | None:
    """What a layer's codes are multiplied by; NaN where the matrix was. None: it holds no codes of its own (an adapter's layer lends its base's)."""
    weight: Any = dict(layer.named_parameters(recurse=False)).get("weight")
    if hasattr(weight, "quant_state"):
        return weight.quant_state.absmax
    if hasattr(weight, "SCB"):
        state: Any = layer.state
        return state.SCB if weight.SCB is None else weight.SCB  # the first pass moves them
    return None


STATISTICS = {"int8": ("SCB",), "nf4": ("weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4")}
"""What files hold beside a layer's `weight` where that is codes; double quantisation adds `weight.nested_*`."""


def decoded(codes: Tensor, statistics: dict[str, Tensor], dtype: str) -> Float[Tensor, "d_out d_in"]:
    """The matrix of a layer whose files hold codes; `statistics` are what the files hold beside them, by name behind the layer's."""
    library = _library(dtype)
    if dtype == "int8":
        return library.functional.int8_vectorwise_dequant(codes, statistics["SCB"].float()).float()
    held = library.nn.Params4bit.from_prequantized(data=codes, quantized_stats=statistics, device="cpu")
    return library.functional.dequantize_4bit(held.data, held.quant_state)


def held_shape(layer: nn.Module) -> tuple[int, ...]:
    """The shape of its matrix, which four bits a number are packed into a column for."""
    weight: Any = layer.weight
    return tuple(weight.quant_state.shape if hasattr(weight, "quant_state") else weight.shape)


def drop(net: nn.Module) -> None:
    """Frees a network's weights, which cannot be moved to the meta device; it cannot be used afterwards."""
    for module in net.modules():
        module._parameters.clear()
        vars(module).pop("state", None)


def _library(dtype: str) -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise MachineError(
            f"dtype {dtype}: bitsandbytes is not installed. pip install 'mechdiff[quantization]', or take float32, bfloat16 or float16."
        ) from error
    return bitsandbytes
