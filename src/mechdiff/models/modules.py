"""Which parts of a network did a fine-tune change? Every tensor belongs to one *unit*, and a unit has changed if a single bit of it has.

| unit | tensors |
|---|---|
| `embed` | what runs before the first block: the token embedding, a table of positions; and the unembedding where it is the same tensor (tied) |
| `L3.attn` | the attention module of block 3, with norms inside it (of queries and keys) |
| `L3.mlp` | the MLP of block 3, with its router where it has experts |
| `L3.norm` | the other norms of block 3: before attention and MLP, and behind them where there are such |
| `final_norm` | the norm after the last block, and what else stands before the unembedding |
| `head` | the unembedding |

What changed is kept as a way to get the tuned tensors by name (from the other loaded model, or from its files where only one model fits into
memory), or as the layers of an adapter that can be switched on one by one. The change of a matrix is also given as factors, its singular
vectors, so that it can be cut down to a rank.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import total_ordering
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechdiff.architectures.families import Family
from mechdiff.errors import ModelError
from mechdiff.files.containers import contents, read
from mechdiff.models.alignment import aligned
from mechdiff.models.checkpoint import weight_files
from mechdiff.models.pair import Model, Pair
from mechdiff.models.switches import Rewritten
from mechdiff.models.tensors import open_tensors, place

KINDS = ("embed", "attn", "mlp", "norm", "final_norm", "head")

Tensors = Callable[[str], Tensor]
"""Gives a tensor of a model by the name of its place in the network."""

KEPT_RANK = 256
"""Most singular vectors of a dense change that are kept: a change of a higher rank is cut below this, or not at all."""


@total_ordering
@dataclass(frozen=True)
class Unit:
    """A part of the network that is grafted whole. Sorts in network order: embed, each block's attn, mlp and norm, final_norm, head."""

    kind: str
    layer: int | None = None

    def __str__(self) -> str:
        return self.kind if self.layer is None else f"L{self.layer}.{self.kind}"

    def __lt__(self, other: "Unit") -> bool:
        return (self.first(1 << 30), KINDS.index(self.kind)) < (other.first(1 << 30), KINDS.index(other.kind))

    def first(self, n_layers: int) -> int:
        """The lowest block whose input residual stream stands before this unit's work: -1 for the embedding, `n_layers` behind all blocks."""
        if self.layer is not None:
            return self.layer
        return -1 if self.kind == "embed" else n_layers


@dataclass(frozen=True, kw_only=True)
class ChangedUnits:
    """What a fine-tune changed, and how to get at it. Empty `units`: not a bit of a weight differs."""

    units: tuple[Unit, ...]
    """The changed ones, in network order."""
    names: Mapping[Unit, tuple[str, ...]] = field(default_factory=dict)
    """The changed tensors of each unit (two full models)."""
    tuned: Tensors | None = None
    base: Tensors | None = None
    """Where grafted tensors are read again afterwards; None: they stay in memory meanwhile."""
    switches: Mapping[Unit, tuple[Any, ...]] = field(default_factory=dict)
    """The adapter layers of each unit, off in the base (an adapter pair)."""

    def new_tensors(self, unit: Unit) -> dict[str, Tensor]:
        """The tuned tensors of one unit, by name; none for an adapter."""
        assert self.tuned or not self.names
        return {name: self.tuned(name) for name in self.names.get(unit, ())} if self.tuned else {}

    def record(self) -> dict[str, Any]:
        """For a run's manifest."""
        return {"changed_units": [str(unit) for unit in self.units], "as": "adapter layers" if self.switches else "tuned tensors"}


def parts(model: Model) -> dict[str, Unit]:
    """The unit of every tensor, by its name in the network. A tensor with two names (tied) has the unit of the first, for both.

    Raises ModelError where a block holds a matrix that is neither in its attention nor in its MLP: the family's row does not fit.
    """
    unread = tuple(f"{path}." for path in model.family.unread)
    named = {name: tensor for name, tensor in model.net.named_parameters(remove_duplicate=False) if not name.startswith(unread)}
    units = {name: unit_at(model.family, name) for name in named}
    for name, unit in units.items():
        if unit.kind == "norm" and named[name].ndim > 1:
            raise ModelError(
                f"{model.ref}: the tensor {name} has shape {tuple(named[name].shape)} and is neither in the attention nor in the MLP of its "
                f"block, where only norms are expected. The row {model.config.model_type!r} of mechdiff/architectures/families.py does not fit."
            )
    embedded = {id(named[name]) for name, unit in units.items() if unit.kind == "embed"}
    return {name: Unit("embed") if id(named[name]) in embedded else unit for name, unit in units.items()}


def unit_at(family: Family, name: str) -> Unit:
    """The unit that a module or tensor of this name in the network belongs to, ties aside."""
    layer, kind = place(f"{name}.", family, n_axes=1) or (None, "embed")
    return Unit(kind, layer)


# ---- finding them ------------------------------------------------------------------------------------------------------------------


def changes_of(pair: Pair, base: Model) -> ChangedUnits:
    """What the pair's tuned model changed, while its `base` is in use: by adapter layers, from the tuned model in memory, or from its files.

    Raises ModelError where the two do not have the same tensors in the same shapes.
    """
    if away := sum(parameter.is_meta for parameter in base.net.parameters()):
        raise ModelError(
            f"{base.ref}: {away} tensors lie on disk (--device split), and grafting writes weights into the model. "
            "Leave the measure grafting out, or give it a device with room."
        )
    if pair.tuned.adapter:
        return changes_of_adapter(base)
    if pair.one_at_a_time:
        return changes_between(base, tensors_in(Path(pair.tuned.load), base), again=tensors_in(Path(pair.base.load), base))
    with pair.use("tuned") as tuned:
        return changes_between(base, tensors_of(tuned, base.family))


def changes_between(base: Model, tuned: Tensors, *, again: Tensors | None = None) -> ChangedUnits:
    """The units in which `tuned` differs from the base's network by a bit. `again`: where the base's own tensors can be read anew.

    Raises ModelError: a tensor that the tuned model lacks or has in another shape, or that `again` gives otherwise than it was loaded.
    """
    found: dict[Unit, list[str]] = {}
    named = dict(base.net.named_parameters(remove_duplicate=False))
    tied_to = next(name for name, unit in parts(base).items() if unit.kind == "embed")
    for name, unit in parts(base).items():
        own, new = named[name].detach(), tuned(name)
        if own.shape != new.shape:
            raise ModelError(
                f"{base.ref}: its {name} has shape {tuple(own.shape)}, the tuned model's {tuple(new.shape)}. Only tensors of one shape can be "
                "grafted: leave the measure grafting out of this study."
            )
        if torch.equal(own, new.to(own)):
            continue
        if again and not torch.equal(own, again(name).to(own)):
            raise ModelError(
                f"{base.ref}: its {name} cannot be read again from its files as it was loaded. Use --memory both, or leave grafting out."
            )
        untied = (
            name != tied_to and unit_at(base.family, name).kind == "head" and unit.kind == "embed" and not torch.equal(new, tuned(tied_to))
        )
        found.setdefault(Unit("head") if untied else unit, []).append(name)
    units = tuple(sorted(found))
    return ChangedUnits(units=units, names={unit: tuple(found[unit]) for unit in units}, tuned=tuned, base=again)


def tensors_of(model: Model, names: Family | None = None) -> Tensors:
    """The tensors of a loaded model, by the names that the architecture `names` has for them (default: its own)."""
    own = dict(model.net.named_parameters(remove_duplicate=False))
    named = {model.family.as_in(names or model.family, name): tensor for name, tensor in own.items()}

    def tensor(name: str) -> Tensor:
        if name not in named:
            raise ModelError(f"{model.ref} has no tensor {name}, which its partner has. Only models of one architecture can be grafted.")
        return named[name].detach()

    return tensor


def tensors_in(folder: Path, like: Model) -> Tensors:
    """The tensors of the files that a folder's model is loaded from, each read (and decoded) when asked for, in the dtype and on the device that it
    has in the network `like`."""
    files = _files(folder)
    opened = open_tensors(folder)
    device, dtypes = like.device, {}
    same: dict[int, list[str]] = {}
    for name, parameter in like.net.named_parameters(remove_duplicate=False):
        same.setdefault(id(parameter), []).append(name)
        dtypes[name] = parameter.dtype
    also = {name: others for others in same.values() for name in others}

    def tensor(name: str) -> Tensor:
        stored = next((other for other in (name, *also.get(name, ())) if other in files), None)
        if (held := opened.stored.get(name)) and held.codes:
            return aligned(opened.read(name).to(device=device, dtype=dtypes[name]))
        if stored is None:
            raise ModelError(
                f"{folder}: no tensor {name} in its files, which name things otherwise than the network does. Use --memory both."
            )
        return aligned(read(files[stored], stored).to(device=device, dtype=dtypes[name]))

    return tensor


def not_in_files(folder: Path, tensors: Iterable[Sequence[str]]) -> str | None:
    """The first of a network's tensors (each by its names) that `tensors_in` would not find in a folder; None: it finds all."""
    files, opened = _files(folder), open_tensors(folder).stored
    there = files.keys() | {name for name, held in opened.items() if held.codes}
    return next((names[0] for names in tensors if not there.intersection(names)), None)


def _files(folder: Path) -> dict[str, Path]:
    return {key: path for path in weight_files(folder) for key in contents(path)}


def changes_of_adapter(base: Model) -> ChangedUnits:
    """The units that an adapter on the base's network changes; its layers must be off. LoRA layers whose product is 0 change nothing."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    found: dict[Unit, list[Any]] = {}
    switched: set[int] = set()  # by the wrapper around them
    for name, module in base.net.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            switched |= {id(inner) for inner in module.modules() if inner is not module}
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and id(module) not in switched and _moves(module):
            found.setdefault(unit_at(base.family, name), []).append(module)
    units = tuple(sorted(found))
    return ChangedUnits(units=units, switches={unit: tuple(found[unit]) for unit in units})


def _moves(layer: Any) -> bool:
    """Whether an adapter layer does anything; one that is not known well is taken to."""
    from peft.tuners.lora import LoraLayer

    if isinstance(layer, LoraLayer) and _is_plain(layer):
        return all(any(bool(factor.weight.any()) for factor in side.values()) for side in (layer.lora_A, layer.lora_B))
    return True


def _is_plain(layer: Any) -> bool:
    """Whether the layer's weight is that of a linear map W plus scale B A, and nothing else."""
    from peft.tuners.adalora import AdaLoraLayer

    if isinstance(layer, AdaLoraLayer):  # B diag(E) A
        return False
    linear = isinstance(layer.get_base_layer(), nn.Linear) or type(layer.get_base_layer()).__name__ == "Conv1D"
    return linear and not layer.lora_variant and not any(layer.lora_bias.values())


# ---- the change of a matrix as factors ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The change of a matrix as `left @ right`, by falling singular value; experts side by side along the leading axis."""

    left: Float[Tensor, "*expert d_out rank"]
    right: Float[Tensor, "*expert rank d_in"]
    full: int
    """The change's rank, what rounding of the weights adds left out; more than the factors hold where that is above KEPT_RANK."""

    def cut(self, rank: int) -> Float[Tensor, "*expert d_out d_in"]:
        """The nearest change of at most this rank."""
        return self.left[..., :rank] @ self.right[..., :rank, :]


def factors(base: Model, changes: ChangedUnits, unit: Unit) -> dict[str, Factors]:
    """The factors of each changed matrix of a unit, by the tensor's name; vectors have none.

    Raises ModelError for an adapter layer that is not a LoRA on a matrix.
    """
    named = dict(base.net.named_parameters(remove_duplicate=False))
    found = {name: _of_dense(named[name].detach(), new) for name, new in changes.new_tensors(unit).items() if new.ndim > 1}
    path = {id(module): name for name, module in base.net.named_modules()}
    layers = changes.switches.get(unit, ())
    rewritten = {id(layer.parameter): layer.other for layer in layers if isinstance(layer, Rewritten) and layer.parameter.ndim > 1}
    for layer in layers:
        if not isinstance(layer, Rewritten):
            own = getattr(getattr(layer, "base_layer", None), "weight", None)
            found[f"{path[id(layer)]}.base_layer.weight"] = _of_lora(layer, rewritten.pop(id(own), None))
    at = {id(parameter): name for name, parameter in named.items()}
    return found | {at[place]: _of_dense(named[at[place]].detach(), other) for place, other in rewritten.items()}


def _of_dense(own: Float[Tensor, "*expert d_out d_in"], new: Float[Tensor, "*expert d_out d_in"]) -> Factors:
    left, sizes, right = torch.linalg.svd(new.to(own).float() - own.float(), full_matrices=False)
    full = int((sizes > _rounding(new, float(sizes.max()))).sum(-1).max()) or sizes.shape[-1]
    kept = min(full, KEPT_RANK)
    return Factors(left=left[..., :kept] * sizes[..., None, :kept], right=right[..., :kept, :].clone(), full=full)


def _rounding(weight: Float[Tensor, "*expert d_out d_in"], largest: float) -> float:
    """A bound on singular values of a change that are none: what rounding of the tuned weights adds (a random matrix with entries of half a
    step), and what the decomposition in float32 itself errs by, which goes with the `largest` value."""
    m, n = weight.shape[-2:]
    norm = float(weight.float().norm(dim=(-2, -1)).max())
    return torch.finfo(weight.dtype).eps * norm * (m**-0.5 + n**-0.5) + 10 * torch.finfo(torch.float32).eps * largest


def _of_lora(layer: Any, rewritten: Float[Tensor, "d_out d_in"] | None) -> Factors:
    """From B and A alone: the singular vectors of their product live in the spans of both. `rewritten`: what the adapter has in the base's place."""
    from peft.tuners.lora import LoraLayer

    if not (isinstance(layer, LoraLayer) and _is_plain(layer)):
        raise ModelError(
            f"an adapter layer of the kind {type(layer).__name__} is no product of two factors, so it cannot be cut to a rank. Merge the adapter "
            "(merge_and_unload; never one that changes a tied embedding, which is another model merged) and give the full model as tuned, or leave "
            "the arm truncate out."
        )
    if rewritten is not None:
        added = sum(layer.get_delta_weight(name) for name in layer.active_adapters)
        return _of_dense(layer.get_base_layer().weight.detach(), rewritten.float() + added)
    scaled = [
        (layer.lora_B[name].weight.detach().float() * layer.scaling[name], layer.lora_A[name].weight.detach().float())
        for name in layer.active_adapters
    ]
    q_b, r_b = torch.linalg.qr(torch.cat([b for b, _ in scaled], 1))
    q_a, r_a = torch.linalg.qr(torch.cat([a for _, a in scaled], 0).T)
    left, sizes, right = torch.linalg.svd(r_b @ r_a.T)
    left, right = q_b @ left * sizes, right @ q_a.T
    if layer.fan_in_fan_out:
        left, right = right.T.contiguous(), left.T.contiguous()
    full = int((sizes > sizes[0] * torch.finfo(torch.float32).eps * len(sizes)).sum())
    return Factors(left=left[:, :full], right=right[:full], full=full)
