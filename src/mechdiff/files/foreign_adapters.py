"""An adapter that another program saved is given in the form that peft loads: one of mlx-lm, or of llama.cpp.

| saved by | where | the change of a matrix [d_out, d_in] |
|---|---|---|
| mlx-lm | adapters.safetensors, adapter_config.json | scale (lora_a lora_b)^T, factors [d_in, r] and [r, d_out]; with `m`, a DoRA |
| llama.cpp | a GGUF file that says `adapter.type` | alpha / r B A, names as llama.cpp has them; rows of some queries and keys in another order |

The scale is llama.cpp's and mlx-lm's own: of an alpha and a rank, or stated. What has no such form is refused with what to do.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechdiff.errors import ModelError

Form = tuple[dict[str, Any], dict[str, Tensor]]
"""What stands in adapter_config.json, and the tensors of adapter_model.safetensors."""

FOREIGN_FILES = ("adapter_config.json", "adapters.safetensors")
"""What a folder of mlx-lm holds of an adapter."""
_PERMUTED = ("llama", "granite", "smollm3")
"""Architectures of llama.cpp whose queries and keys it stores with the two halves of a head's rows interleaved."""
_AS_THEY_ARE = ("qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "starcoder2")
"""Architectures of llama.cpp that hold every matrix as transformers does."""
_HEADER = 1 << 16


def is_gguf_adapter(path: Path) -> bool:
    """Whether a GGUF file says that it holds an adapter; what it says of itself stands at its beginning."""
    with path.open("rb") as file:
        return b"adapter.type" in file.read(_HEADER)


def foreign(path: Path) -> str | None:
    """Who saved an adapter in a form that peft does not load: "llama.cpp" or "mlx-lm"; None: peft did."""
    if path.suffix == ".gguf":
        return "llama.cpp"
    of_mlx = (path / "adapters.safetensors").is_file() or "lora_parameters" in _stated(path)
    return "mlx-lm" if of_mlx and "peft_type" not in _stated(path) else None


def in_peft_form(path: Path, base: Path) -> Form:
    """An adapter that is `foreign`, on the model in the folder `base`. ModelError: broken, or of a kind that peft has not."""
    return {"llama.cpp": _of_llama_cpp, "mlx-lm": _of_mlx}[str(foreign(path))](path, base)


def _stated(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    try:
        stated = json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(f"{path}: this is no JSON ({error}). Is the download complete?") from error
    return stated if isinstance(stated, dict) else {}


# ---- mlx-lm ------------------------------------------------------------------------------------------------------------------------


def _of_mlx(folder: Path, base: Path) -> Form:
    stated, net = _stated(folder), _skeleton(base)
    dora, scale = _mlx_kind(folder, stated), _mlx_scale(folder, stated)
    factors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for module, parts in _mlx_tensors(folder).items():
        layer = _module(net, folder, module)
        if parts.keys() != ({"lora_a", "lora_b", "m"} if dora else {"lora_a", "lora_b"}) or parts["lora_a"].ndim != 2:
            shapes = ", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in sorted(parts.items()))
            raise ModelError(f"{folder}: mlx-lm's change of {module} is {shapes}, a form that peft has not. {_FUSE}")
        if isinstance(layer, nn.Embedding) and (dora or net.config.tie_word_embeddings):
            raise ModelError(
                f"{folder}: it changes {module} by {'DoRA' if dora else 'factors that mlx-lm uses for the unembedding too'}, and peft has no such "
                f"layer. {_FUSE}"
            )
        factors |= _named(module, layer, parts["lora_a"].T, parts["lora_b"].T)
        if dora:
            factors[f"base_model.model.{module}.lora_magnitude_vector"] = parts["m"]
        ranks[module] = parts["lora_a"].shape[1]
    return _config(net, ranks, dict.fromkeys(ranks, scale), use_dora=dora, base_model_name_or_path=stated.get("model")), factors


_FUSE = "Fuse it into the base with mlx_lm.fuse (--dequantize where the base is quantised) and give the full model as tuned."


def _mlx_kind(folder: Path, stated: Mapping[str, Any]) -> bool:
    """Whether it is a DoRA; ModelError where it is neither that nor a LoRA."""
    kind = stated.get("fine_tune_type", "dora" if stated.get("use_dora") else "lora")
    if kind not in ("lora", "dora"):
        raise ModelError(f"{folder}: mlx-lm saved whole tensors here (fine_tune_type {kind!r}), no adapter. {_FUSE}")
    return bool(kind == "dora")


def _mlx_scale(folder: Path, stated: Mapping[str, Any]) -> float:
    given = stated.get("lora_parameters") or {}
    if "scale" not in given:
        raise ModelError(
            f"{folder}: adapter_config.json of mlx-lm states no lora_parameters.scale. Write there the one it was trained with."
        )
    if given.get("alpha", given.get("rank")) != given.get("rank"):
        raise ModelError(
            f"{folder}: adapter_config.json of mlx-lm states a scale of {given['scale']} and an alpha of {given['alpha']}. Older versions "
            "multiplied the change by scale * alpha / rank, newer ones do by scale alone: write the factor that it was trained with as scale, and "
            "take alpha out."
        )
    return float(given["scale"])


def _mlx_tensors(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Module -> what the file holds for it, by its last word."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / "adapters.safetensors"
    if not path.is_file():
        raise ModelError(f"{path}: missing, beside an adapter_config.json of mlx-lm. Is the download complete?")
    try:
        held = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: this file cannot be read ({error}). Is the download complete?") from error
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in held.items():
        module, _, part = key.rpartition(".")
        found.setdefault(module, {})[part] = tensor
    if not found:
        raise ModelError(f"{path}: no tensor is in this file. Is the download complete?")
    return found


# ---- llama.cpp ---------------------------------------------------------------------------------------------------------------------


def _of_llama_cpp(path: Path, base: Path) -> Form:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ModelError(f"{path}: this GGUF file cannot be read ({error}). Is the download complete?") from error
    said = {key: field.contents() for key, field in reader.fields.items() if key.startswith(("general.", "adapter."))}
    kind, arch = said.get("adapter.type"), str(said.get("general.architecture"))
    if kind != "lora" or said.get("adapter.alora.invocation_tokens"):
        kind = "activated LoRA" if kind == "lora" else repr(kind)
        raise ModelError(
            f"{path}: this GGUF adapter is of the kind {kind}; only a LoRA, which changes the network at every token, can be studied."
        )
    if arch not in _PERMUTED + _AS_THEY_ARE:
        known = ", ".join((*_PERMUTED, *_AS_THEY_ARE))
        raise ModelError(
            f"{path}: this GGUF adapter is for the architecture {arch!r}, and how llama.cpp lays out its matrices is known here for {known}. Give "
            "the adapter that it was converted from, or merge it (llama-export-lora) and give the full GGUF file."
        )
    net = _skeleton(base)
    names = _gguf_names(path, net, arch)
    factors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for module, (a, b) in _gguf_factors(path, reader, names, net if arch in _PERMUTED else None).items():
        factors |= _named(module, _module(net, path, module), a, b)
        ranks[module] = b.shape[-1]
    alpha = float(said.get("adapter.lora.alpha") or 0)
    return _config(net, ranks, {module: alpha / rank if alpha else 1.0 for module, rank in ranks.items()}), factors


def _gguf_names(path: Path, net: Any, arch: str) -> dict[str, str]:
    """Tensor's name in llama.cpp -> its module in the network."""
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

    try:
        found = get_gguf_hf_weights_map(net, TensorProcessor(config=net.config.to_dict()), arch)
    except NotImplementedError as error:
        raise ModelError(
            f"{path}: this GGUF adapter is for the architecture {arch!r}, whose names the installed gguf does not know."
        ) from error
    return {name: module.removesuffix(".weight") for name, module in found.items() if module.endswith(".weight")}


def _gguf_factors(
    path: Path, reader: Any, names: Mapping[str, str], permuted: Any
) -> dict[str, tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"]]]:
    """Module -> both factors. `permuted`: the network whose queries and keys the file has in llama.cpp's order; None where it has none so."""
    from gguf import dequantize

    found: dict[str, dict[str, Tensor]] = {}
    for tensor in reader.tensors:
        name, _, part = tensor.name.rpartition(".")
        if part not in ("lora_a", "lora_b") or name not in names or len(tensor.shape) != 2:
            raise ModelError(
                f"{path}: this GGUF adapter holds {tensor.name} of shape {tuple(map(int, reversed(tensor.shape)))}, which is no factor of a matrix "
                "of the base. It was made for another architecture, or it changes more than matrices: give the adapter that it was converted from."
            )
        data = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).float()
        if name == "token_embd.weight" and part == "lora_a":
            data = data.T
        if permuted is not None and part == "lora_b" and name.endswith((".attn_q.weight", ".attn_k.weight")):
            heads = permuted.config.num_attention_heads if ".attn_q." in name else permuted.config.num_key_value_heads
            data = data.reshape(heads, -1, 2, data.shape[1]).transpose(1, 2).reshape(data.shape)
        found.setdefault(names[name], {})[part] = data
    if not found:
        raise ModelError(f"{path}: no factor is in this GGUF adapter. Is the download complete?")
    if half := next((module for module, parts in found.items() if len(parts) < 2), None):
        raise ModelError(f"{path}: this GGUF adapter holds one factor of {half} and not the other. Is the download complete?")
    return {module: (parts["lora_a"], parts["lora_b"]) for module, parts in found.items()}


# ---- peft's form -------------------------------------------------------------------------------------------------------------------


def _skeleton(base: Path) -> Any:
    """The base's network, without its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{base}: its network cannot be built for an adapter that is no peft adapter ({error}).") from error


def _module(net: nn.Module, adapter: Path, name: str) -> nn.Module:
    found = dict(net.named_modules()).get(name)
    if found is None or not isinstance(getattr(found, "weight", None), Tensor):
        raise ModelError(
            f"{adapter}: this adapter changes {name}, which the base does not have as a layer. It was made for another architecture, or for a "
            "mixture whose experts are held otherwise."
        )
    return found


def _named(module: str, layer: nn.Module, a: Float[Tensor, "r d_in"], b: Float[Tensor, "d_out r"]) -> dict[str, Tensor]:
    """Both factors under the names that peft gives them."""
    names = ("lora_embedding_A", "lora_embedding_B") if isinstance(layer, nn.Embedding) else ("lora_A.weight", "lora_B.weight")
    return {f"base_model.model.{module}.{name}": factor.contiguous() for name, factor in zip(names, (a, b), strict=True)}


def _config(net: nn.Module, ranks: Mapping[str, int], scales: Mapping[str, float], **more: Any) -> dict[str, Any]:
    """peft's config of a LoRA on these modules: rank and scale as most have them, patterns for the others."""
    assert ranks, "an adapter of no tensors is refused where they are read"
    r, scale = Counter(zip(ranks.values(), scales.values(), strict=True)).most_common(1)[0][0]
    other = [module for module in ranks if (ranks[module], scales[module]) != (r, scale)]
    conv1d = any(type(layer).__name__ == "Conv1D" for name, layer in net.named_modules() if name in ranks)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": r,
        "lora_alpha": scale * r,
        "rank_pattern": {re.escape(module): ranks[module] for module in other},
        "alpha_pattern": {re.escape(module): scales[module] * ranks[module] for module in other},
        "target_modules": sorted(ranks),
        "fan_in_fan_out": conv1d,
        "inference_mode": True,
        **more,
    }
