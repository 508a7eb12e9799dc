"""A PEFT adapter adds exact low-rank factors, or whole tensors where it stores them, to each tensor of its base: read without merging.

LoRA (Hu 2021, arXiv 2106.09685): W + s B A with s = alpha / r, or alpha / sqrt(r) with rslora; both may differ by module. PiSSA (Meng 2024,
arXiv 2404.02948) and OLoRA (Buyukakyuz 2024, arXiv 2406.01775) take their first factors out of the base, W + s (B A - B0 A0): the r largest
singular components of W, or s times the first r columns and rows of its QR decomposition; twice the rank. KaSA (Wang 2024, arXiv 2412.06071)
takes the r smallest components out and adds s B diag A. DoRA (Liu 2024, arXiv 2402.09353): the
rows of W + s B A rescaled to a learned magnitude; no low-rank change, so it comes as the merged matrix. Trained tokens are rows in the place of
the base's.
"""

import json
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, Float64, Shaped
from torch import Tensor
from torch.linalg import qr, svd, vector_norm

from mechdiff.architectures.families import Family
from mechdiff.errors import ModelError
from mechdiff.models.checkpoint import adapter_file
from mechdiff.models.switches import KEPT, refuse_empty, rewrites
from mechdiff.models.tensors import Stored, TensorFiles, contents

_INITS = (None, True, False, "gaussian", "eva", "orthogonal", "mica", "lora_ga", *KEPT)
"""How factors may have started: ways that leave the base's weights alone when the adapter is loaded, or take their own start out of them."""
_OTHER_KINDS = ("use_qalora", "use_bdlora", "monteclora_config", "arrow_config", "target_parameters", "alora_invocation_tokens")
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
    start: str | None = None
    """pissa, olora or kasa: of what was taken out of the base's tensor."""
    rows: tuple[int, ...] = ()
    """Of trained tokens."""


@dataclass(frozen=True, kw_only=True)
class AdaptedTensors:
    """The tensors of a base with an adapter on it."""

    base: TensorFiles
    file: TensorFiles
    """The adapter's own file, its names as they stand there."""
    edits: dict[str, _Edit]
    refused: str | None
    """Why this adapter's change cannot be read from its file; None where it can."""
    tied: bool
    """Whether embedding and unembedding are one matrix still: an adapter's factors on one of the two leave the other as it is, and so untie them."""

    @property
    def family(self) -> Family | None:
        return self.base.family

    @property
    def head(self) -> str:
        return self.base.head

    @property
    def embed(self) -> str:
        return self.base.embed

    @property
    def names(self) -> set[str]:
        return self.base.names | self.edits.keys()

    @property
    def merges_into_both(self) -> bool:
        """Whether peft, merging, would add a change of one of two tied matrices to both: another model than the adapter on its base."""
        layers = tuple(f".{name.removesuffix('weight')}" for name in (self.embed, self.head))
        return self.base.tied and any(layer in f".{key}" for key in self.file.names for layer in layers)

    def shape(self, name: str) -> tuple[int, ...]:
        edit = self.edits.get(name)
        return self.file.shape(edit.keys["saved"]) if edit and "saved" in edit.keys else self.base.shape(name)

    def is_float(self, name: str) -> bool:
        edit = self.edits.get(name)
        return self.file.is_float(edit.keys["saved"]) if edit and "saved" in edit.keys else self.base.is_float(name)

    def factors(self, name: str) -> Factors | None:
        """The exact change of this tensor as factors; None where it has none or is more than that (`read` then tells)."""
        edit = self.edits.get(name)
        low_rank = ({"A", "B"}, {"A", "B", "diag"}, {"embedding_A", "embedding_B"})
        return self._factors(name, edit) if edit and edit.keys.keys() in low_rank else None

    def _factors(self, name: str, edit: _Edit) -> Factors:
        kind = "embedding_" if "embedding_A" in edit.keys else ""
        a, b = (self.file.read(edit.keys[kind + factor]).double() for factor in "AB")
        if edit.start is None:
            return Factors(left=edit.scale * a.T, right=b.T) if kind else Factors(left=edit.scale * b, right=a)
        if "diag" in edit.keys:
            b = b * self.file.read(edit.keys["diag"]).double()
        first = _taken_out(self.base.read(name).float(), edit, len(a))
        return Factors(left=torch.cat([edit.scale * b, -first.left], 1), right=torch.cat([a, first.right]))

    def changes(self, name: str) -> bool:
        """Whether the adapter holds anything for this tensor."""
        return name in self.edits

    def read(self, name: str) -> Shaped[Tensor, "..."]:
        """The tensor as the tuned model has it; merged in float64 by peft's formula where the adapter changes it by factors."""
        edit = self.edits.get(name)
        if edit is None:
            return self.base.read(name)
        weight = self.file.read(edit.keys["saved"]) if "saved" in edit.keys else self.base.read(name)
        if "tokens" in edit.keys:
            rows = torch.tensor(edit.rows, dtype=torch.long)
            return weight.index_copy(0, rows, self.file.read(edit.keys["tokens"]).to(weight))
        if edit.keys.keys() == {"saved"}:
            return weight
        if "bias" in edit.keys:
            return weight.double() + edit.scale * self.file.read(edit.keys["bias"]).double()
        merged = weight.double() + self._factors(name, edit).product()
        if "magnitude" not in edit.keys:
            return merged
        return merged * (self.file.read(edit.keys["magnitude"]).double() / vector_norm(merged, dim=1))[:, None]


def open_adapter(adapter: Path, base: TensorFiles) -> AdaptedTensors:
    """The base's tensors with the change of an adapter in peft's form. ModelError: its file is broken, or it changes tensors that the base does not
    have."""
    path = adapter_file(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    held = {key: Stored(path=path, key=key, shape=shape, dtype=dtype) for key, (shape, dtype) in contents(path).items()}
    refuse_empty(adapter, {key: stored.shape for key, stored in held.items()})
    refused = _refusal(config)
    edits: dict[str, _Edit] = {}
    for key in held if refused is None else ():
        if config.get("velora_config") and key.endswith("velora_embed"):  # of the backward pass alone
            continue
        name, role = _named(key) or ("", "")
        if not role:
            refused = f"holds {key}, which mechdiff cannot read"
            break
        edits.setdefault(name, _Edit()).keys[role] = key
    for name, edit in edits.items() if refused is None else ():
        if (refused := _unread(adapter, name, edit, base, config)) is not None:
            break
        if (saved := edit.keys.get("saved")) and base.transposed(name):
            held[saved] = replace(held[saved], shape=held[saved].shape[::-1], transposed=True)
        module = name.rpartition(".")[0]
        edit.scale = _scale(config, module, _rank(edit, held))
        edit.start = _start(config) if "A" in edit.keys else None
        edit.rows = _token_rows(config, module)
        _refuse_misfit(adapter, name, edit, held, base)
    tied = base.tied and (refused is not None or _tied_still(edits, base, config))
    if tied and base.embed in edits:
        edits.pop(base.head, None)  # the same trained tokens, held twice
    return AdaptedTensors(base=base, file=TensorFiles(None, held), edits={} if refused else edits, refused=refused, tied=tied)


def _refusal(config: dict[str, Any]) -> str | None:
    """Why the change is not s B A by this config; None where it is."""
    if (kind := config.get("peft_type")) not in ("LORA", "TRAINABLE_TOKENS"):
        return f"is of the kind {kind}"
    if (reason := rewrites(config)) is not None:
        return reason
    if (init := config.get("init_lora_weights")) not in _INITS:
        return f"starts its factors in a way that mechdiff does not know (init_lora_weights={init!r})"
    if config.get("ensure_weight_tying"):
        return "ties what it changes to other tensors (ensure_weight_tying)"
    return next((f"uses {name}={config[name]!r}" for name in _OTHER_KINDS if config.get(name)), None)


def _unread(adapter: Path, name: str, edit: _Edit, base: TensorFiles, config: dict[str, Any]) -> str | None:
    """Why a tensor's change cannot be read; None where it can. ModelError where the base has no such tensor."""
    if "bias" in edit.keys and name not in base.names and name.removesuffix("bias") + "weight" in base.names:
        return f"adds {name}, which the base has none of"
    if name not in base.names | ({base.head} if base.tied else set()):
        raise ModelError(f"{adapter}: this adapter changes {name}, which the base does not have. It was made for another architecture.")
    if not _readable(edit):
        return f"changes {name} by {', '.join(sorted(edit.keys))}, a form that mechdiff cannot read"
    if (start := _start(config)) and base.tied and name in (base.embed, base.head):
        return f"takes its start ({start}) out of a matrix that is embedding and unembedding at once"
    return None


def _start(config: dict[str, Any]) -> str | None:
    """Which of the ways to start takes something out of the base's matrices; None where the base stays as it is."""
    init = config.get("init_lora_weights")
    return init if init in KEPT else "kasa" if config.get("kasa_config") else None


def _tied_still(edits: dict[str, _Edit], base: TensorFiles, config: dict[str, Any]) -> bool:
    """Whether a tied pair is one matrix with the adapter on. What the file holds as the base's own tensor is written over both, and with it trained
    tokens; factors, and modules that peft keeps a copy of (modules_to_save), change one of them."""
    copies = tuple(config.get("modules_to_save") or ())
    for name in {base.embed, base.head} & edits.keys():
        roles = edits[name].keys.keys()
        if not roles <= {"saved", "tokens"} or ("saved" in roles and name.removesuffix(".weight").endswith(copies)):
            return False
    return True


_KEY = re.compile(
    r"base_model\.model\.(?P<module>.+?)\.(?P<part>lora_[AB]\.(?:weight|bias)|lora_embedding_[AB]|lora_magnitude_vector|trainable_tokens_delta|\w+)$"
)


def _named(key: str) -> tuple[str, str] | None:
    """A key of the adapter's file as (tensor's name in the base, role in its change); None where it is of no known form."""
    found = _KEY.match(key.removesuffix(".weight") if key.endswith("lora_magnitude_vector.weight") else key)
    if found is None:
        return None
    module, part = found["module"].replace(".base_layer", "").replace(".modules_to_save.default", ""), found["part"]
    if part == "trainable_tokens_delta":
        return f"{module.removesuffix('.token_adapter')}.weight", "tokens"
    if part == "lora_B.bias":
        return f"{module}.bias", "bias"
    if part.startswith("lora_"):
        role = {"lora_A.weight": "A", "lora_B.weight": "B", "lora_magnitude_vector": "magnitude"}.get(part, part.removeprefix("lora_"))
        return None if role == "A.bias" else (f"{module}.weight", role)
    return (f"{module}.{part}", "saved") if ".lora_" not in module and part in ("weight", "bias") else None


def _readable(edit: _Edit) -> bool:
    factors = edit.keys.keys() - {"saved"}
    return factors in (set(), {"A", "B"}, {"A", "B", "magnitude"}, {"A", "B", "diag"}, {"embedding_A", "embedding_B"}, {"bias"}, {"tokens"})


def _rank(edit: _Edit, held: dict[str, Stored]) -> int | None:
    factor = edit.keys.get("A") or edit.keys.get("embedding_A")
    return held[factor].shape[0] if factor else None


def _token_rows(config: dict[str, Any], module: str) -> tuple[int, ...]:
    """The trained tokens of a module: one list for the embedding, or lists by the modules' names."""
    given = config.get("trainable_token_indices") or config.get("token_indices") or ()
    if isinstance(given, dict):
        given = next((rows for name, rows in given.items() if f".{module}".endswith(f".{name}")), ())
    return tuple(given)


def _taken_out(weight: Float32[Tensor, "d_out d_in"], edit: _Edit, rank: int) -> Factors:
    """What peft takes out of a base's matrix when it puts the adapter on, the scale in it: PiSSA's factors are divided by that before."""
    if edit.start == "olora":
        q, r = qr(weight)
        return Factors(left=edit.scale * q[:, :rank].double(), right=r[:rank].double())
    u, s, v = svd(weight, full_matrices=False)
    some = slice(rank) if edit.start == "pissa" else slice(len(s) - rank, None)
    return Factors(left=(u[:, some] * s[some]).double(), right=v[some].double())


def said_of_patterns(adapter: Path, ref: str) -> list[str]:
    """A warning where several patterns of an adapter's alphas fit one layer and differ: the first in the file counts, and saving sorts them."""
    patterns = json.loads((adapter / "adapter_config.json").read_text()).get("alpha_pattern") or {}
    for key in contents(adapter_file(adapter)) if len(patterns) > 1 else ():
        module = (_named(key) or ("", ""))[0].rpartition(".")[0]
        fits = {pattern: alpha for pattern, alpha in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)}  # as peft matches
        if len(set(fits.values())) > 1:
            named = ", ".join(f"{name} ({alpha})" for name, alpha in fits.items())
            return [
                f"{ref}: several patterns of its alpha_pattern fit {module}: {named}. peft takes the first in the file, and sorts them when it "
                "saves: if another stood first in training, the scale is not the one that was trained with."
            ]
    return []


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
