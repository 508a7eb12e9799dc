"""Is the tuned model a child of this base? The distance of their weights, and what the tuned model's own files say.

A fine-tune moves its weights by a few per cent; two models trained apart are as far from each other as from zero (relative distance near 1.4).
A study that takes a sibling for the parent publishes the difference of two fine-tunes as one. Weights are streamed from the files, a tensor at
a time.
"""

import json
import math
from pathlib import Path
from typing import Any

from safetensors import safe_open

from mechdiff.engine.models import Source, stated_base

FAR = 0.5
"""Relative distance of weights beyond which two models are hardly parent and child."""


def lineage(base: Source, tuned: Source) -> dict[str, Any]:
    """`relative_distance` ||W_tuned - W_base|| / ||W_base|| over the tensors that both have (None where it cannot be known from the files), how
    many tensors changed and how many are equal to the bit, the names that only one has, the base that tuned's files name, and `warnings`."""
    found = _adapter_distance(base, tuned) if tuned.adapter else _weights_distance(Path(base.load), Path(tuned.load))
    named = stated_base(tuned)
    warnings = []
    if named and _bare(named) != _bare(base.ref):
        warnings.append(f"{tuned.ref} says that it was made from {named}; the base given is {base.ref}. If that is another model, so are the results.")
    distance = found["relative_distance"]
    if distance is not None and distance > FAR:
        warnings.append(
            f"the weights of tuned and base are {distance:.2f} apart, relative to the base's size: models trained apart are 1.4 apart, a fine-tune "
            "is usually under 0.1. Is this the right base?"
        )
    if distance == 0:
        warnings.append("base and tuned have the same weights, bit for bit: there is no change to find")
    return {**found, "stated_base": named, "warnings": warnings}


def _bare(name: str) -> str:
    """A model's name without owner, folder, file ending and case."""
    return Path(name.rstrip("/")).name.lower().removesuffix(".gguf")


def _weights_distance(base: Path, tuned: Path) -> dict[str, Any]:
    where = {folder: _tensors(folder) for folder in (base, tuned)}
    common = where[base].keys() & where[tuned].keys()
    moved, size, equal, reshaped = 0.0, 0.0, 0, []
    for name in sorted(common):
        ours, theirs = _read(where[base][name], name).float(), _read(where[tuned][name], name).float()
        if ours.shape != theirs.shape:
            reshaped.append(name)
            continue
        moved += float((theirs - ours).double().square().sum())
        size += float(ours.double().square().sum())
        equal += bool((theirs == ours).all())
    return {
        "relative_distance": math.sqrt(moved / size) if size else None,
        "equal_tensors": equal,
        "changed_tensors": len(common) - equal - len(reshaped),
        "reshaped_tensors": reshaped,
        "only_base": sorted(where[base].keys() - common),
        "only_tuned": sorted(where[tuned].keys() - common),
    }


def _adapter_distance(base: Source, tuned: Source) -> dict[str, Any]:
    """The distance that a LoRA adapter's factors make: ||scale B A|| from the small Gram matrices; other kinds of adapter: unknown."""
    assert tuned.adapter
    config = json.loads((tuned.adapter / "adapter_config.json").read_text())
    factors = _tensors(tuned.adapter)
    names = sorted({key.partition(".lora_A.")[0] for key in factors if ".lora_A." in key})
    moved = 0.0
    for name in names:
        a, b = (_read(factors[key], key).double() for key in (f"{name}.lora_A.weight", f"{name}.lora_B.weight"))
        rank = a.shape[0]
        scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        moved += float(scale**2 * ((b.T @ b) * (a @ a.T)).sum())
    plain = len(factors) == 2 * len(names) and not config.get("alpha_pattern") and not config.get("use_dora")
    tensors = _tensors(Path(base.load))
    size = sum(float(_read(file, key).double().square().sum()) for key, file in tensors.items()) if plain else 0.0
    return {
        "relative_distance": math.sqrt(moved / size) if size else None,
        "equal_tensors": len(tensors) - len(names),
        "changed_tensors": len(names),
        "reshaped_tensors": [],
        "only_base": [],
        "only_tuned": [],
    }


def _tensors(folder: Path) -> dict[str, Path]:
    """Tensor name -> safetensors file."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: path for name in file.keys()}  # noqa: SIM118  (safe_open is no mapping)
    return found


def _read(path: Path, name: str) -> Any:
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)
