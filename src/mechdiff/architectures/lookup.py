"""Which row describes a model's architecture? The table's, or one that is proposed from the network itself where the table has none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mechdiff.architectures.families import FAMILIES, Family
from mechdiff.architectures.network import names_in, network_of, quiet
from mechdiff.architectures.proposal import propose
from mechdiff.architectures.sizes import Shape, stated_shape
from mechdiff.errors import ModelError

_PROPOSED: dict[str, Family | str] = {}
"""By what a config says of its network: the row, or why there is none. A pass without weights takes a second or two."""
_LABELS = ("_name_or_path", "architectures", "dtype", "transformers_version")
"""Fields that differ between base and tuned and say nothing of the network's modules."""


def family_of(config: Any, ref: str = "the model") -> Family:
    """The row of a transformers config: the table's where it holds for this variant, else proposed from the network. ModelError where none can be."""
    family = FAMILIES.get(config.model_type)
    if family and all(getattr(config, name) == value for name, value in family.only_if.items()):
        return family
    key = f"{type(config).__module__} {json.dumps(_plain(config.to_dict()), sort_keys=True, default=str)}"
    if key not in _PROPOSED:
        _PROPOSED[key] = _proposed(config)
    found = _PROPOSED[key]
    if isinstance(found, str):
        raise ModelError(
            f"{ref}: no row can be proposed for the architecture {config.model_type!r}: {found}. Rows are ready for {', '.join(sorted(FAMILIES))}; "
            "docs/FAMILIES.md says how to add one."
        )
    return found


def _plain(stated: Any) -> Any:
    """A config's fields without its labels, those of the configs inside it too."""
    return {name: _plain(value) for name, value in stated.items() if name not in _LABELS} if isinstance(stated, dict) else stated


def shape_of(config: Any) -> Shape:
    """The sizes of a model, by its config or, for a proposed row, by the network."""
    family = family_of(config)
    return family.shape or stated_shape(config)


def routers_of(config: Any) -> dict[int, str]:
    """Of each block that sends its tokens to experts, the path inside the block of the module that chooses them. Empty for a dense model."""
    family = family_of(config)
    if family.by_layer:
        return {layer: block.router for layer, block in enumerate(family.by_layer) if block.router}
    if not family.router:
        return {}
    blocks = network_of(config).get_submodule(family.blocks).children()
    return {layer: family.router for layer, block in enumerate(blocks) if any(path == family.router for path, _ in block.named_modules())}


def row_of_folder(folder: Path, kind: str) -> tuple[Family | None, Callable[[str], str] | None]:
    """The row of the model in a folder whose config says that it is of this `kind`, and for a proposed row what gives a tensor's name in the network
    by its name in the file; None where there is no row."""
    if kind in FAMILIES or not kind:
        return FAMILIES.get(kind), None
    from transformers import AutoConfig

    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder)
        return family_of(config), names_in(network_of(config))
    except (ModelError, OSError, ValueError, KeyError):
        return None, None


def _proposed(config: Any) -> Family | str:
    try:
        net = network_of(config)
    except Exception as error:  # noqa: BLE001  whatever an architecture's own code raises
        return f"the network cannot be built from its config ({type(error).__name__}: {error})"
    try:
        return propose(net, config)
    except ModelError as error:
        return str(error)
