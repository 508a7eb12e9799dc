"""Which files hold a model's weights? Those that transformers loads from its folder, or peft from an adapter's.

A folder can hold several sets of weights: a second save leaves the first one's shards and index behind, an original release lies beside its
conversion. transformers takes the first of this list that is there, and everything that reads a folder here asks this module:

1. the file that config.json names as `transformers_weights`
2. model.safetensors
3. the shards that model.safetensors.index.json lists
4. pytorch_model.bin
5. the shards that pytorch_model.bin.index.json lists

peft takes adapter_model.safetensors before adapter_model.bin. What is there and not loaded is told by `unread`.
"""

import json
from pathlib import Path
from typing import Any

from mechdiff.errors import ModelError

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers loads a model of this folder from; none where it would find none. ModelError: one of them is missing."""
    if named := _named(folder):
        return _listed(folder / named) if named.endswith(".index.json") else [_there(folder / named)]
    for name in _SINGLE:
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}.index.json").is_file():
            return _listed(folder / f"{name}.index.json")
    return []


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


def _holds_weights(path: Path) -> bool:
    if path.name.startswith("consolidated"):  # Mistral's original release, beside its conversion
        return False
    return path.suffix in (".safetensors", ".gguf") or (path.suffix == ".bin" and path.name.startswith("pytorch_model"))


def _counted(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _named(folder: Path) -> str | None:
    """The file that config.json names, which goes before all others."""
    config = folder / "config.json"
    if not config.is_file():
        return None
    try:
        stated = json.loads(config.read_text())
    except ValueError as error:
        raise ModelError(f"{config}: this is no JSON ({error}). Is the download complete?") from error
    named = stated.get("transformers_weights") if isinstance(stated, dict) else None
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
