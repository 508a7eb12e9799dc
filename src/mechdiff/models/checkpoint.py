"""Which files hold a model's weights? Those that transformers loads from its folder, or peft from an adapter's.

A folder can hold several sets of weights: a second save leaves the first one's shards and index behind, an original release lies beside its
conversion. transformers takes the first of this list that is there, and everything that reads a folder here asks this module:

1. the file that config.json names as `transformers_weights`
2. model.safetensors
3. the shards that model.safetensors.index.json lists
4. pytorch_model.bin
5. the shards that pytorch_model.bin.index.json lists

Where none of them is there, pytorch_model_fsdp.bin of a trainer is taken: one table of all tensors, which transformers does not look for.

peft takes adapter_model.safetensors before adapter_model.bin. What is there and not loaded is told by `unread`.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mechdiff.errors import ModelError
from mechdiff.files import in_memory
from mechdiff.files.containers import contents, read

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_FSDP = "pytorch_model_fsdp.bin"
_ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")

DECODED = ("gptq", "awq", "compressed-tensors", "modelopt", "fbgemm_fp8")
"""Forms of quantisation, by `quant_method`, that run as the numbers that they stand for."""


def weight_files(folder: Path) -> list[Path]:
    """The files that a model of this folder is loaded from; none where there are none. ModelError: one of them is missing."""
    if (folder / in_memory.NAME).is_file():
        return [folder / in_memory.NAME]
    if named := _named(folder):
        return _listed(folder / named) if named.endswith(".index.json") else [_there(folder / named)]
    for name in _SINGLE:
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}.index.json").is_file():
            return _listed(folder / f"{name}.index.json")
    return [folder / _FSDP] if (folder / _FSDP).is_file() else []


def adapter_file(folder: Path) -> Path:
    """The file that peft loads an adapter of this folder from. ModelError where there is none."""
    found = [folder / name for name in _ADAPTER if (folder / name).is_file()]
    if not found:
        raise ModelError(
            f"{folder}: adapter_config.json is there, and neither {_ADAPTER[0]} nor {_ADAPTER[1]} is. Is the download complete?"
        )
    return found[0]


def unread(folder: Path) -> list[str]:
    """Names of the files in a model's folder that hold weights and are not loaded."""
    loaded = {path.name for path in weight_files(folder)} | set(_ADAPTER)
    return sorted(path.name for path in folder.iterdir() if _holds_weights(path) and path.name not in loaded)


def said_of_unread(folder: Path, ref: str) -> list[str]:
    """A warning where a model's folder holds other weights beside those that are loaded."""
    others = unread(folder)
    loaded = [path.name for path in weight_files(folder)]
    if not others or not loaded:
        return []
    return [
        f"{ref}: its folder holds more than one set of weights. transformers loads {_counted(loaded)}, and so does every measure here; not read: "
        f"{_counted(others)}. If these are the ones that you mean, move the others away."
    ]


def said_of_both(adapter: Path, ref: str) -> list[str]:
    """A warning where an adapter's folder holds a full model too."""
    model = [path.name for path in weight_files(adapter)] if (adapter / "config.json").is_file() else []
    if not model:
        return []
    return [
        f"{ref}: its folder holds an adapter and a full model ({_counted(model)}). The adapter is studied, on the base given; to study the full "
        "model, give a folder without adapter_config.json."
    ]


def said_of_rotation(folder: Path, ref: str) -> list[str]:
    """A warning where config.json says rotary settings twice (as transformers 4 wrote them, and as 5 does), and not alike."""
    config = config_of(folder)
    new = config.get("rope_parameters")
    if not isinstance(new, dict):
        return []
    said, theta, old = [], config.get("rope_theta"), config.get("rope_scaling")
    if theta is not None and "rope_theta" in new and theta != new["rope_theta"]:
        said.append(f"rope_theta is {theta} and in rope_parameters {new['rope_theta']}; transformers obeys rope_parameters")
    if isinstance(old, dict) and any(new.get(name) != value for name, value in old.items() if name not in ("type", "rope_type")):
        said.append("rope_scaling and rope_parameters differ; transformers obeys rope_scaling")
    return [f"{ref}: its config.json says its rotary settings twice: {one}. Leave one of them out." for one in said]


def said_of_unplaced(folder: Path, ref: str, names: Collection[str]) -> list[str]:
    """What is to be said of tensors in a model's files for which its network has no place; nothing of those that are 0 throughout."""
    left, filled = set(names), []
    for path in weight_files(folder) if left else ():
        here = left & contents(path).keys()
        filled += [name for name in here if read(path, name).count_nonzero()]
        left -= here
    if lost := sorted([*filled, *left]):
        return [
            f"{ref}: its files hold {len(lost)} tensors that are not 0 and for which its network has no place, the first {lost[0]}: what runs is the "
            "model without them. Is config.json of the same model as the weights (biases, heads, an image encoder)?"
        ]
    return []


def _holds_weights(path: Path) -> bool:
    if path.name.startswith("consolidated"):  # Mistral's original release, beside its conversion
        return False
    return path.suffix in (".safetensors", ".gguf") or (path.suffix == ".bin" and path.name.startswith("pytorch_model"))


def _counted(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def config_of(folder: Path) -> dict[str, Any]:
    """What a model's config.json says; nothing where there is none. ModelError: it is no JSON."""
    config = folder / "config.json"
    try:
        stated = json.loads(config.read_text()) if config.is_file() else {}
    except ValueError as error:
        raise ModelError(f"{config}: this is no JSON ({error}). Is the download complete?") from error
    return stated if isinstance(stated, dict) else {}


def quantizer_of(folder: Path) -> dict[str, Any]:
    """What a folder says of how its matrices are held, `quant_method` among it: nothing where they are not quantised."""
    config, apart = config_of(folder), folder / "hf_quant_config.json"
    stated = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(stated, dict) and apart.is_file():  # NVIDIA ModelOpt beside older configs
        return {"quant_method": "modelopt", **(json.loads(apart.read_text()).get("quantization") or {})}
    return stated if isinstance(stated, dict) else {}


def method_of(folder: Path) -> str:
    """The form in which a folder's matrices are quantised: gptq, awq, ...; "" where they are not."""
    return str(quantizer_of(folder).get("quant_method", "")).lower()


def is_decoded(folder: Path) -> bool:
    """Whether a folder's matrices are decoded while they are loaded (models/decoded.py)."""
    return method_of(folder) in DECODED


def is_found(folder: Path) -> bool:
    """Whether transformers finds the files of weights by itself."""
    return [path.name for path in weight_files(folder)] != [_FSDP]


def _named(folder: Path) -> str | None:
    """The file that config.json names, which goes before all others."""
    named = config_of(folder).get("transformers_weights")
    return str(named) if named else None


def _there(path: Path) -> Path:
    if not path.is_file():
        raise ModelError(
            f"{path}: config.json names this file of weights (transformers_weights), and it is missing. Is the download complete?"
        )
    return path


def _listed(index: Path) -> list[Path]:
    """The shards that an index lists."""
    try:
        held: dict[str, Any] = json.loads(_there(index).read_text())["weight_map"]
        paths = sorted({index.parent / str(name) for name in held.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index}: not an index of weight files ({type(error).__name__}: {error}). Is the download complete?") from error
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise ModelError(
            f"{missing[0]}: this file of weights is missing ({len(missing)} of the {len(paths)} that {index.name} lists are). "
            "Is the download complete?"
        )
    return paths
