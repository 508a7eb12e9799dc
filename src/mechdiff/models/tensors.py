"""The tensors of one model are streamed from its files, each under its module's name and with its place in the network.

Nothing is loaded but the tensor that is asked for, so a model of any size takes the memory of its largest tensor. Matrices come as
[d_out, d_in] whatever the family stores.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mechdiff.errors import ModelError
from mechdiff.models.alignment import aligned
from mechdiff.models.checkpoint import weight_files
from mechdiff.models.families import FAMILIES, Family
from mechdiff.models.quantization import STATISTICS, decoded
from mechdiff.models.small_floats import decoded_float8, decoded_mxfp4, in_small_floats

SITES = ("embed", "norm", "attn", "mlp", "final_norm", "head")
"""Parts of a network that a tensor can stand in; the order is that of computation."""

SMALL = ("float8", "mxfp4")
"""Codes that are numbers in few bits."""

_NO_WEIGHTS = re.compile(r"\.(rotary_emb\.inv_freq|masked_bias)$|\.(attn|attention|self_attention)\.bias$")
"""Masks and tables that older files hold beside the weights."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Where one tensor lies."""

    path: Path
    key: str
    """Its name in the file."""
    shape: tuple[int, ...]
    """As it is read."""
    dtype: str
    """As safetensors writes it: F32, BF16, U8, ..."""
    transposed: bool = False
    """Stored [d_in, d_out]."""
    codes: str | None = None
    """int8 or nf4: the file holds codes of bitsandbytes, and what they mean beside them. float8 or mxfp4: small floats (small_floats.py)."""
    scale: "Stored | None" = None
    """What small floats are multiplied by."""
    block: tuple[int, int] = (0, 0)
    """Sides of the blocks that share a scale."""


@dataclass(frozen=True)
class TensorFiles:
    """The tensors of one model's safetensors files."""

    family: Family | None
    """The row of the model's architecture; None where the table has none."""
    stored: dict[str, Stored]
    """Module's name + ".weight" (".bias", ...) -> where the tensor lies; a tied unembedding is not listed."""

    @property
    def names(self) -> set[str]:
        return set(self.stored)

    @property
    def head(self) -> str:
        """Name of the unembedding matrix."""
        return f"{(self.family or Family()).head}.weight"

    @property
    def embed(self) -> str:
        """Name of the token embedding matrix."""
        return f"{(self.family or Family()).embed}.weight"

    @cached_property
    def tied(self) -> bool:
        """Whether embedding and unembedding are one matrix: the files hold one, or the same twice."""
        return self.head not in self.stored and self.embed in self.stored

    def shape(self, name: str) -> tuple[int, ...]:
        """Sizes of a tensor, a matrix's as (d_out, d_in). KeyError where there is none of this name."""
        return self.stored[self._own(name)].shape

    def transposed(self, name: str) -> bool:
        """Whether the file holds this matrix as [d_in, d_out]."""
        return self.stored[self._own(name)].transposed

    def is_float(self, name: str) -> bool:
        """Whether a tensor is read as numbers (not as bytes of some other quantisation)."""
        stored = self.stored[self._own(name)]
        return stored.codes is not None or stored.dtype in ("F16", "BF16", "F32", "F64")

    def read(self, name: str) -> Shaped[Tensor, "..."]:
        """A tensor in the dtype of the file, or decoded; a tied unembedding is read as the embedding. ModelError where the file is broken."""
        stored = self.stored[self._own(name)]
        if stored.codes in SMALL:
            return _decoded_small(stored)
        layer = stored.key.removesuffix("weight")
        try:
            with safe_open(stored.path, "pt") as file:
                found = aligned(file.get_tensor(stored.key))
                keys = [key for key in file.keys() if key.startswith(layer)] if stored.codes else []  # noqa: SIM118
                statistics = {key.removeprefix(layer): file.get_tensor(key) for key in keys if key != stored.key}
        except (SafetensorError, OSError) as error:
            raise _unreadable(stored.path, error) from error
        if stored.codes:
            return decoded(found, statistics, stored.codes)
        return found.T if stored.transposed else found

    def _own(self, name: str) -> str:
        return self.embed if name == self.head and self.tied else name


def place(name: str, family: Family, n_axes: int) -> tuple[int | None, str] | None:
    """(block index or None, site) of a tensor; None where the family's row does not tell.

    Inside a block, what is neither attention nor MLP and has one axis is a norm. Norms of queries and keys belong to attention.
    """
    embeds = (("embed", path) for path in (family.embed, *family.embed_parts))
    for site, path in (*embeds, ("final_norm", family.final_norm), ("head", family.head)):
        if name.startswith(f"{path}."):
            return None, site
    index, _, rest = name.removeprefix(f"{family.blocks}.").partition(".")
    if not name.startswith(f"{family.blocks}.") or not index.isdigit():
        return None
    for site, path in family.parts():
        if rest.startswith(f"{path}."):
            return int(index), site
    return (int(index), "norm") if n_axes == 1 else None


def attention_path(family: Family) -> str:
    """Path of the attention module inside a block: the parent of its output projection."""
    return family.projection.rpartition(".")[0]


def reading_order(names: Iterable[str], places: dict[str, tuple[int | None, str]]) -> list[str]:
    """Names in the order of computation: embedding, blocks, final norm, unembedding; those without a place last."""

    def key(name: str) -> tuple[int, int, int, str]:
        layer, site = places.get(name, (None, ""))
        outer = 1 if layer is not None else {"embed": 0, "final_norm": 2, "head": 3}.get(site, 4)
        return outer, layer or 0, SITES.index(site) if site else 0, name

    return sorted(names, key=key)


# ---- opening a folder --------------------------------------------------------------------------------------------------------------


def open_tensors(folder: Path) -> TensorFiles:
    """The tensors in a model's folder (none where it has no safetensors files). ModelError: a file is broken or missing."""
    config = folder / "config.json"
    try:
        kind = str(json.loads(config.read_text()).get("model_type")) if config.is_file() else ""
    except ValueError as error:
        raise ModelError(f"{config}: this is no JSON ({error}). Is the download complete?") from error
    family = FAMILIES.get(kind)
    stored: dict[str, Stored] = {}
    for path in weight_files(folder):
        if path.suffix != ".safetensors":
            continue
        for key, (shape, dtype) in contents(path).items():
            name = _module_name(key, family) if family else key
            if not _NO_WEIGHTS.search(name):
                turned = bool(family and family.conv1d and name.startswith(f"{family.blocks}.") and len(shape) == 2)
                stored[name] = Stored(path=path, key=key, shape=shape[::-1] if turned else shape, dtype=dtype, transposed=turned)
    found = TensorFiles(family, in_small_floats(_with_codes(stored), replace, folder))
    if _same_twice(found):
        return TensorFiles(family, {name: where for name, where in found.stored.items() if name != found.head})
    return found


def _decoded_small(stored: Stored) -> Float[Tensor, "..."]:
    """The numbers of a tensor that its file holds as small floats."""
    codes, scale = _raw(stored), _raw(stored.scale) if stored.scale else None
    if stored.codes == "mxfp4":
        assert scale is not None
        return decoded_mxfp4(codes, scale)
    return decoded_float8(codes, scale, stored.block)


def _raw(stored: Stored) -> Shaped[Tensor, "..."]:
    """A tensor as it stands in its file."""
    try:
        with safe_open(stored.path, "pt") as file:
            found = aligned(file.get_tensor(stored.key))
    except (SafetensorError, OSError) as error:
        raise _unreadable(stored.path, error) from error
    return found.T if stored.transposed else found


def _with_codes(stored: dict[str, Stored]) -> dict[str, Stored]:
    """Layers whose weight is codes of bitsandbytes as one tensor each, without what the codes mean."""
    found = dict(stored)
    for layer in [name.removesuffix(".weight") for name in stored if name.endswith(".weight")]:
        for dtype, statistics in STATISTICS.items():
            if not all(f"{layer}.{one}" in stored for one in statistics):
                continue
            where = found[f"{layer}.weight"]
            for name in [name for name in found if name.startswith((f"{layer}.weight.", f"{layer}.weight_format", f"{layer}.SCB"))]:
                del found[name]
            shape = where.shape[::-1] if where.transposed else where.shape  # codes lie as the layer reads them
            found[f"{layer}.weight"] = replace(where, codes=dtype, transposed=False, shape=_stated(where) if dtype == "nf4" else shape)
    return found


def _stated(where: Stored) -> tuple[int, ...]:
    """The shape of a matrix whose codes are packed."""
    with safe_open(where.path, "pt") as file:
        return tuple(json.loads(bytes(file.get_tensor(f"{where.key}.quant_state.bitsandbytes__nf4").tolist()))["shape"])


def contents(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> shape and dtype of every tensor in a safetensors file. ModelError where it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  (safe_open is no mapping)
            return {key: (tuple(part.get_shape()), str(part.get_dtype())) for key, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ModelError:
    return ModelError(f"the weights in {path} cannot be read: {error}. Is the download complete?")


def _module_name(key: str, family: Family) -> str:
    """A tensor's name as the model has it: renamed parts, and the outermost module where the files leave it out."""
    for there, here in family.stored_as:
        key = ".".join(here if part == there else part for part in key.split("."))
    root = f"{family.blocks.partition('.')[0]}."
    inner = [path.removeprefix(root) for path in (family.blocks, family.embed, family.final_norm, *family.embed_parts)]
    return root + key if key.startswith(tuple(f"{path}." for path in inner)) else key


def _same_twice(files: TensorFiles) -> bool:
    """Whether the files hold the embedding a second time as the unembedding, bit for bit."""
    if not {files.head, files.embed} <= files.stored.keys():
        return False
    one, other = files.stored[files.head], files.stored[files.embed]
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return torch.equal(_first_row(one), _first_row(other)) and torch.equal(files.read(files.head), files.read(files.embed))


def _first_row(stored: Stored) -> Shaped[Tensor, "..."]:
    try:
        with safe_open(stored.path, "pt") as file:
            return file.get_slice(stored.key)[:1]
    except (SafetensorError, OSError) as error:
        raise _unreadable(stored.path, error) from error
