"""Is the tuned model a child of this base? The distance of their weights, and what the tuned model's own files say.

A fine-tune moves its weights by a few per cent; two models trained apart are as far from each other as from zero (relative distance near
1.4). A study that takes a sibling for the parent publishes the difference of two fine-tunes as one. Weights are streamed from the files, a
tensor at a time.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor, float64
from torch.linalg import vector_norm

from mechdiff.engine.sources import Source
from mechdiff.errors import ModelError

FAR = 0.5
"""Relative distance of weights beyond which two models are hardly parent and child."""


def lineage(base: Source, tuned: Source) -> dict[str, Any]:
    """How far tuned is from base, and whether it looks like base's child.

    `relative_distance` is ||W_tuned - W_base|| / ||W_base|| over the tensors that both have (None where the files do not tell); then how many
    of these changed and how many are equal to the bit, those of other shapes, those that only one has, `stated_base`, and `warnings`.
    """
    try:
        found = _adapter_distance(base, tuned) if tuned.adapter else _weights_distance(Path(base.load), Path(tuned.load))
    except SafetensorError as error:
        raise ModelError(f"the weights of {base.ref} or {tuned.ref} cannot be read: {error}. Is the download complete?") from error
    named = stated_base(tuned)
    return {**found, "stated_base": named, "warnings": _warnings(base, tuned, named, found["relative_distance"])}


def _warnings(base: Source, tuned: Source, named: str | None, distance: float | None) -> list[str]:
    warnings = []
    if named and _bare(named) != _bare(base.ref):
        warnings.append(
            f"{tuned.ref} says that it was made from {named}; the base given is {base.ref}. If that is another model, so are the results."
        )
    if distance is not None and distance > FAR:
        warnings.append(
            f"the weights of tuned and base are {distance:.2f} apart, relative to the base's size: models trained apart are 1.4 apart, a "
            "fine-tune is usually under 0.1. Is this the right base?"
        )
    if distance == 0:
        warnings.append("base and tuned have the same weights, bit for bit: there is no change to find")
    return warnings


def _bare(name: str) -> str:
    """A model's name without owner, folder and case, and a GGUF file's without its ending and quantisation."""
    bare = Path(name.rstrip("/")).name.lower()
    return re.sub(r"[.-](i?q|b?f)\d\w*$", "", bare.removesuffix(".gguf")) if bare.endswith(".gguf") else bare


def stated_base(source: Source) -> str | None:
    """The base model that an adapter's config or a model card names (the first, where it names several), or None."""
    if source.adapter:
        return json.loads((source.adapter / "adapter_config.json").read_text()).get("base_model_name_or_path")
    card = Path(source.load) / "README.md"
    text = card.read_text(errors="replace") if card.is_file() else ""
    if not text.startswith("---"):
        return None
    try:
        stated = yaml.safe_load(text.split("\n---", 1)[0])
    except yaml.YAMLError:
        return None
    named = stated.get("base_model") if isinstance(stated, dict) else None
    named = named[0] if isinstance(named, list) and named else named
    return named if isinstance(named, str) else None


# ---- distances ---------------------------------------------------------------------------------------------------------------------


def _weights_distance(base: Path, tuned: Path) -> dict[str, Any]:
    ours, theirs = _tensors(base), _tensors(tuned)
    common = sorted(ours.keys() & theirs.keys())
    moved, size, equal, reshaped = 0.0, 0.0, 0, []
    for name in common:
        before, after = _read(ours[name], name).float(), _read(theirs[name], name).float()
        if before.shape != after.shape:
            reshaped.append(name)
            continue
        moved += _squared(after - before)
        size += _squared(before)
        equal += bool((after == before).all())
    return {
        "relative_distance": math.sqrt(moved / size) if size else None,
        "equal_tensors": equal,
        "changed_tensors": len(common) - equal - len(reshaped),
        "reshaped_tensors": reshaped,
        "only_base": sorted(ours.keys() - theirs.keys()),
        "only_tuned": sorted(theirs.keys() - ours.keys()),
    }


def _adapter_distance(base: Source, tuned: Source) -> dict[str, Any]:
    """The distance that a LoRA adapter's factors make: ||scale B A|| from the small Gram matrices; other kinds of adapter: unknown."""
    assert tuned.adapter
    config = json.loads((tuned.adapter / "adapter_config.json").read_text())
    factors, tensors = _tensors(tuned.adapter), _tensors(Path(base.load))
    names = sorted({key.partition(".lora_A.")[0] for key in factors if ".lora_A." in key})
    plain = len(factors) == 2 * len(names) and not config.get("alpha_pattern") and not config.get("use_dora")
    moved, changed = 0.0, 0
    for name in names:
        a, b = (_read(factors[key], key).double() for key in (f"{name}.lora_A.weight", f"{name}.lora_B.weight"))
        rank = len(a)
        scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        step = float(scale**2 * ((b.T @ b) * (a @ a.T)).sum())
        moved += step
        changed += step > 0
    size = sum(_squared(_read(file, name)) for name, file in tensors.items()) if plain else 0.0
    return {
        "relative_distance": math.sqrt(moved / size) if size else None,
        "equal_tensors": len(tensors) - changed,
        "changed_tensors": changed,
        "reshaped_tensors": [],
        "only_base": [],
        "only_tuned": [],
    }


def _squared(tensor: Tensor) -> float:
    return float(vector_norm(tensor, dtype=float64)) ** 2


def _tensors(folder: Path) -> dict[str, Path]:
    """Tensor name -> safetensors file."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def _read(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)
