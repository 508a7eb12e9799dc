"""Is the tuned model a child of this base? The distance of their weights, and what the tuned model's own files say.

A fine-tune moves its weights by a few per cent; two models trained apart are as far from each other as from zero (relative distance near
1.4). A study that takes a sibling for the parent publishes the difference of two fine-tunes as one: two children A + U and A + V of A are
V - U apart, which is further than either is from A. So the distance to other candidates for the base is measured where they are given.
Weights are streamed from the files, a tensor at a time.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mechdiff.digits import fixed
from mechdiff.errors import ModelError
from mechdiff.models.adapters import said_of_patterns
from mechdiff.models.changes import open_changes
from mechdiff.models.checkpoint import said_of_both, said_of_rotation, said_of_unread
from mechdiff.models.functions import function_differences
from mechdiff.models.sources import IN_MEMORY, Source
from mechdiff.prompts.vocabularies import Tokens

FAR = 0.5
"""Relative distance of weights beyond which two models are hardly parent and child."""


def lineage(
    base: Source, tuned: Source, alternatives: Sequence[Source] = (), tokens: Tokens | None = None, configs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """How far tuned is from base, and whether it looks like base's child. `alternatives` are other models that may be its base.
    `tokens`: where the vocabularies differ, embedding and unembedding are left out of the distance. `configs`: of both sides, whose functions are
    compared too.

    `relative_distance` is ||W_tuned - W_base|| / ||W_base|| over the tensors that both have in one shape (None where the files do not tell);
    then how many of these changed and how many are equal, those of other shapes, those that only one has, those of which nothing or not all
    is compared, `not_compared` (sentences), `functions` (what differs and is no weight),
    `alternatives` (ref and relative_distance of each), `stated_base`, and `warnings`. ModelError where a file of base or tuned is broken;
    an alternative's is warned of.
    """
    found = distance(base, tuned, tokens)
    found["functions"] = function_differences(configs["base"], configs["tuned"]) if configs else []
    named = stated_base(tuned)
    others, unread = [], []
    for other in alternatives:
        try:
            others.append({"ref": other.ref, **distance(other, tuned)})
        except ModelError as error:
            unread.append(f"lineage is not compared with the alternative {other.ref}: {error}")
    warnings = _of_folders(base, tuned) + _warnings(base, tuned, named, found) + _nearer(base, found, others) + unread
    told = [{name: other[name] for name in ("ref", "relative_distance")} for other in others]
    return {**found, "alternatives": told, "stated_base": named, "warnings": warnings}


def _of_folders(base: Source, tuned: Source) -> list[str]:
    """What stands in the models' folders and is not read, or not as one would think."""
    if tuned.adapter:
        of_tuned = said_of_both(tuned.adapter, tuned.ref) + said_of_patterns(tuned.adapter, tuned.ref)
    else:
        of_tuned = said_of_unread(Path(tuned.load), tuned.ref)
    rotation = [said for one in (base, tuned) for said in said_of_rotation(Path(one.load), one.ref)]
    return said_of_unread(Path(base.load), base.ref) + of_tuned + list(dict.fromkeys(rotation))


def _warnings(base: Source, tuned: Source, named: str | None, found: Mapping[str, Any]) -> list[str]:
    warnings, distance = [], found["relative_distance"]
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
        warnings.append(f"base and tuned: {unmoved(found)}")
    elif found["functions"]:
        warnings.append(f"base and tuned differ in more than weights, and all that is found is of both: {_first_few(found['functions'])}")
    return warnings


def unmoved(found: Mapping[str, Any]) -> str:
    """What can be said of two models none of whose compared tensors differs: that their weights are the same only where all were compared."""
    others = [
        (len(found["only_base"]), "only in base"),
        (len(found["only_tuned"]), "only in tuned"),
        (len(found["uncompared_tensors"]), "not compared"),
        (len(found["partly_tensors"]), "compared in part"),
    ]
    counted = [f"{n} {words}" for n, words in others if n]
    if counted:
        said = f"the {found['equal_tensors']} tensors that were compared are equal to the bit, but {', '.join(counted)}, so the weights may differ"
    else:
        said = "the same weights, bit for bit"
    if found["functions"]:
        return f"{said}; what differs beside them is the config: {_first_few(found['functions'])}"
    return said if counted else f"{said}, and configs that compute the same: only tokenizers, templates or prompts can make a difference"


def _first_few(differences: Sequence[str], n: int = 4) -> str:
    return "; ".join(differences[:n]) + (f"; and {len(differences) - n} more" if len(differences) > n else "")


def _nearer(base: Source, found: dict[str, Any], others: Sequence[dict[str, Any]]) -> list[str]:
    """A warning where the nearest alternative is nearer than base. One that shares fewer tensors with tuned than base does is not compared to it."""
    here = found["relative_distance"]
    compared = found["changed_tensors"] + found["equal_tensors"]
    rivals = [other for other in others if other["relative_distance"] is not None]
    rivals = [other for other in rivals if other["changed_tensors"] + other["equal_tensors"] >= compared]
    nearest = min(rivals, key=lambda other: other["relative_distance"], default=None)
    if here is None or nearest is None or nearest["relative_distance"] >= here:
        return []
    return [
        f"tuned is nearer to {nearest['ref']} ({fixed(nearest['relative_distance'])} of its size) than to the base given, {base.ref} "
        f"({fixed(here)}): what is studied is the difference of two fine-tunes, not what one of them changed. Take {nearest['ref']} as base."
    ]


def _bare(name: str) -> str:
    """A model's name without owner, folder and case, and a GGUF file's without its ending and quantisation."""
    bare = Path(name.partition(IN_MEMORY)[0].rstrip("/")).name.lower()
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


def distance(base: Source, tuned: Source, tokens: Tokens | None = None) -> dict[str, Any]:
    """||W_tuned - W_base|| / ||W_base|| over the tensors that both have in one shape, and how many changed. ModelError: a broken file."""
    changes = open_changes(base, tuned, tokens)
    moved, size, changed, equal = 0.0, 0.0, 0, 0
    partly = []
    for change in changes:
        if change.partly:
            partly.append(change.name)
            continue
        step = change.squared_change()
        moved += step
        size += change.squared_size()
        changed += step > 0
        equal += step == 0
    return {
        "relative_distance": math.sqrt(moved / size) if size else None,
        "equal_tensors": equal,
        "changed_tensors": changed,
        "reshaped_tensors": changes.reshaped,
        "uncompared_tensors": changes.uncompared,
        "partly_tensors": partly,
        "only_base": changes.only_base,
        "only_tuned": changes.only_tuned,
        "not_compared": changes.statements,
    }
