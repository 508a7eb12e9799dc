"""A PEFT adapter adds exact low-rank factors, or whole tensors where it stores them, to each tensor of its base: read without merging.

LoRA (Hu 2021, arXiv 2106.09685): W + s B A with s = alpha / r, or alpha / sqrt(r) with rslora; both may differ by module. DoRA (Liu 2024,
arXiv 2402.09353): the rows of W + s B A rescaled to a learned magnitude; it is no low-rank change, so it comes as the merged matrix.
"""

import json
import math
import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Float64, Shaped
from torch import Tensor
from torch.linalg import vector_norm

from mechdiff.errors import ModelError
from mechdiff.models.checkpoint import adapter_file
from mechdiff.models.families import Family
from mechdiff.models.switches import refuse_empty, rewrites
from mechdiff.models.tensors import Stored, TensorFiles, contents

_INITS = (None, True, False, "gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""How factors may have started: ways that leave the base's weights alone when the adapter is loaded."""
_OTHER_KINDS = ("use_qalora", "use_bdlora", "monteclora_config", "arrow_config", "target_parameters", "trainable_token_indices",
                "alora_invocation_tokens")  # fmt: skip
"""Options of a LoRA config that make the change another one than s B A."""


@dataclass(frozen=True, kw_only=True)
class Factors:
    """A low-rank change of a matrix: left @ right, the scale in left."""

    left: Float64[Tensor, "d_out rank"]
    right: Float64[Tensor, "rank d_in"]

    def product(self) -> Float64[Tensor, "d_out d_in"]:
        return self.left @ self.right

    def squared_norm(self) -> float:
        """||left right||_F^2 from the two small Gram matrices."""
        return max(0.0, float(((self.left.T @ self.left) * (self.right @ self.right.T)).sum()))


@dataclass(kw_only=True)
class _Edit:
    """What the adapter holds for one tensor: keys in its file, by role."""

    keys: dict[str, str] = field(default_factory=dict)
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class AdaptedTensors:
    """The tensors of a base with an adapter on it."""

    base: TensorFiles
    file: TensorFiles
    """The adapter's own file, its names as they stand there."""
    edits: dict[str, _Edit]
    refused: str | None
    """Why this adapter's change cannot be read from its file; None where it can."""

    @property
    def family(self) -> Family | None:
        return self.base.family

    @property
    def head(self) -> str:
        return self.base.head

    @property
    def embed(self) -> str:
        return self.base.embed

    @cached_property
    def tied(self) -> bool:
        """An adapter on one of two tied matrices leaves the other as it is, and so unties them."""
        return self.base.tied and not {self.head, self.embed} & self.edits.keys()

    @property
    def names(self) -> set[str]:
        return self.base.names | self.edits.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        edit = self.edits.get(name)
        return self.file.shape(edit.keys["saved"]) if edit and "saved" in edit.keys else self.base.shape(name)

    def is_float(self, name: str) -> bool:
        edit = self.edits.get(name)
        return self.file.is_float(edit.keys["saved"]) if edit and "saved" in edit.keys else self.base.is_float(name)

    def factors(self, name: str) -> Factors | None:
        """The exact change of this tensor as factors; None where it has none or is more than that (`read` then tells)."""
        edit = self.edits.get(name)
        return self._factors(edit) if edit and edit.keys.keys() in ({"A", "B"}, {"embedding_A", "embedding_B"}) else None

    def _factors(self, edit: _Edit) -> Factors:
        kind = "embedding_" if "embedding_A" in edit.keys else ""
        a, b = (self.file.read(edit.keys[kind + factor]).double() for factor in "AB")
        return Factors(left=edit.scale * a.T, right=b.T) if kind else Factors(left=edit.scale * b, right=a)

    def changes(self, name: str) -> bool:
        """Whether the adapter holds anything for this tensor."""
        return name in self.edits

    def read(self, name: str) -> Shaped[Tensor, "..."]:
        """The tensor as the tuned model has it; merged in float64 by peft's formula where the adapter changes it by factors."""
        edit = self.edits.get(name)
        if edit is None:
            return self.base.read(name)
        weight = self.file.read(edit.keys["saved"]) if "saved" in edit.keys else self.base.read(name)
        if edit.keys.keys() == {"saved"}:
            return weight
        if "bias" in edit.keys:
            return weight.double() + edit.scale * self.file.read(edit.keys["bias"]).double()
        merged = weight.double() + self._factors(edit).product()
        if "magnitude" not in edit.keys:
            return merged
        return merged * (self.file.read(edit.keys["magnitude"]).double() / vector_norm(merged, dim=1))[:, None]


def open_adapter(adapter: Path, base: TensorFiles) -> AdaptedTensors:
    """The base's tensors with the adapter's change. ModelError: its file is broken, or it changes tensors that the base does not have."""
    path = adapter_file(adapter)
    if path.suffix != ".safetensors":
        pickled = f"is a pickle ({path.name}), whose factors are not read; save it again with peft, which writes safetensors"
        return AdaptedTensors(base=base, file=TensorFiles(None, {}), edits={}, refused=pickled)
    config = json.loads((adapter / "adapter_config.json").read_text())
    held = {key: Stored(path=path, key=key, shape=shape, dtype=dtype) for key, (shape, dtype) in contents(path).items()}
    refuse_empty(adapter, {key: stored.shape for key, stored in held.items()})
    refused = _refusal(config)
    edits: dict[str, _Edit] = {}
    for key in held if refused is None else ():
        name, role = _named(key) or ("", "")
        if not role:
            refused = f"holds {key}, which mechdiff cannot read"
            break
        edits.setdefault(name, _Edit()).keys[role] = key
    for name, edit in edits.items() if refused is None else ():
        if "bias" in edit.keys and name not in base.names and name.removesuffix("bias") + "weight" in base.names:
            refused = f"adds {name}, which the base has none of"
            break
        if name not in base.names | ({base.head} if base.tied else set()):
            raise ModelError(f"{adapter}: this adapter changes {name}, which the base does not have. It was made for another architecture.")
        if not _readable(edit):
            refused = f"changes {name} by {', '.join(sorted(edit.keys))}, a form that mechdiff cannot read"
            break
        if (saved := edit.keys.get("saved")) and base.transposed(name):
            held[saved] = replace(held[saved], shape=held[saved].shape[::-1], transposed=True)
        edit.scale = _scale(config, name.rpartition(".")[0], _rank(edit, held))
        _refuse_misfit(adapter, name, edit, held, base)
    return AdaptedTensors(base=base, file=TensorFiles(None, held), edits={} if refused else edits, refused=refused)


def _refusal(config: dict[str, Any]) -> str | None:
    """Why the change is not s B A by this config; None where it is."""
    if (kind := config.get("peft_type")) != "LORA":
        return f"is of the kind {kind}"
    if (reason := rewrites({**config, "bias": "none"})) is not None:
        return reason
    if (init := config.get("init_lora_weights")) not in _INITS:
        return f"starts its factors in a way that mechdiff does not know (init_lora_weights={init!r})"
    if config.get("ensure_weight_tying"):
        return "ties what it changes to other tensors (ensure_weight_tying)"
    return next((f"uses {name}={config[name]!r}" for name in _OTHER_KINDS if config.get(name)), None)


_KEY = re.compile(
    r"base_model\.model\.(?P<module>.+?)\.(?P<part>lora_[AB]\.(?:weight|bias)|lora_embedding_[AB]|lora_magnitude_vector|\w+)$"
)


def _named(key: str) -> tuple[str, str] | None:
    """A key of the adapter's file as (tensor's name in the base, role in its change); None where it is of no known form."""
    found = _KEY.match(key.removesuffix(".weight") if key.endswith("lora_magnitude_vector.weight") else key)
    if found is None:
        return None
    module, part = found["module"].replace(".base_layer", "").replace(".modules_to_save.default", ""), found["part"]
    if part == "lora_B.bias":
        return f"{module}.bias", "bias"
    if part.startswith("lora_"):
        role = {"lora_A.weight": "A", "lora_B.weight": "B", "lora_magnitude_vector": "magnitude"}.get(part, part.removeprefix("lora_"))
        return None if role == "A.bias" else (f"{module}.weight", role)
    return (f"{module}.{part}", "saved") if ".lora_" not in module and part in ("weight", "bias") else None


def _readable(edit: _Edit) -> bool:
    factors = edit.keys.keys() - {"saved"}
    return factors in (set(), {"A", "B"}, {"A", "B", "magnitude"}, {"embedding_A", "embedding_B"}, {"bias"})


def _rank(edit: _Edit, held: dict[str, Stored]) -> int | None:
    factor = edit.keys.get("A") or edit.keys.get("embedding_A")
    return held[factor].shape[0] if factor else None


def _scale(config: dict[str, Any], module: str, rank: int | None) -> float:
    """peft's scale of a module's product; the rank is what the file holds, or the config's for a bias alone."""
    from peft.utils.other import get_pattern_key

    def stated(pattern: str, default: str) -> Any:
        given = config.get(pattern) or {}
        return given.get(get_pattern_key(given.keys(), module), config.get(default, 8))

    r = rank or stated("rank_pattern", "r")
    return stated("alpha_pattern", "lora_alpha") / (math.sqrt(r) if config.get("use_rslora") else r)


def _refuse_misfit(adapter: Path, name: str, edit: _Edit, held: dict[str, Stored], base: TensorFiles) -> None:
    """ModelError where the factors make a matrix of another shape than the one that they are added to."""
    wanted = held[edit.keys["saved"]].shape if "saved" in edit.keys else base.shape(name)
    for left, right in (("B", "A"), ("embedding_A", "embedding_B")):
        if {left, right} <= edit.keys.keys():
            first, second = held[edit.keys[left]].shape, held[edit.keys[right]].shape
            made = (first[0], second[1]) if left == "B" else (first[1], second[0])
            if made != wanted:
                raise ModelError(
                    f"{adapter}: its factors of {name} make a matrix of shape {made}, the base's has {wanted}. "
                    "It was made for a model of another size."
                )
