"""The tensors of one model are streamed from its files, each under its module's name and with its place in the network.

Nothing is loaded but the tensor that is asked for, so a model of any size takes the memory of its largest tensor. Matrices come as
[d_out, d_in] whatever the family stores.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mechdiff.architectures.families import Family
from mechdiff.architectures.lookup import row_of_folder
from mechdiff.files import packed
from mechdiff.files.containers import contents, first_row, read
from mechdiff.files.small_floats import decoded_float8, decoded_mxfp4, in_small_floats
from mechdiff.models.alignment import aligned
from mechdiff.models.checkpoint import config_of, quantizer_of, weight_files
from mechdiff.models.quantization import STATISTICS, decoded

SITES = ("embed", "norm", "attn", "mlp", "final_norm", "head")
"""Parts of a network that a tensor can stand in; the order is that of computation."""

__all__ = ["Stored", "TensorFiles", "contents", "open_tensors", "place", "reading_order"]

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
    """int8 or nf4: the file holds codes of bitsandbytes; float8 or mxfp4: of `files.small_floats`; else of `files.packed`. None: numbers."""
    beside: Mapping[str, "Stored"] = field(default_factory=dict)
    """What codes are decoded with, by the part that it plays: their scale, their zeros, the group of each input."""
    block: tuple[int, int] = (0, 0)
    """Sides of the blocks that share a scale."""


@dataclass(frozen=True)
class TensorFiles:
    """The tensors of one model's files."""

    family: Family | None
    """The row of the model's architecture; None where the table has none."""
    stored: dict[str, Stored]
    """Module's name + ".weight" (".bias", ...) -> where the tensor lies; a tied unembedding is not listed."""
    says_tied: bool = False
    """Whether the config says that the unembedding is the embedding. Where the files hold two that differ, transformers loads both all the same."""

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
        if stored.codes in STATISTICS:
            layer = stored.key.removesuffix("weight")
            keys = [key for key in contents(stored.path) if key.startswith(layer) and key != stored.key]
            return decoded(_raw(stored), {key.removeprefix(layer): read(stored.path, key) for key in keys}, stored.codes)
        return _decoded(stored) if stored.codes else _raw(stored)

    def named_as(self, family: Family | None) -> "TensorFiles":
        """The same tensors by the names that another architecture has for them: of a language model by itself and inside a wrapper for images."""
        if self.family is None or family is None or self.family.blocks == family.blocks:
            return self
        return replace(self, family=family, stored={self.family.as_in(family, name): where for name, where in self.stored.items()})

    def _own(self, name: str) -> str:
        return self.embed if name == self.head and self.tied else name


def place(name: str, family: Family, n_axes: int) -> tuple[int | None, str] | None:
    """(block index or None, site) of a tensor; None where the family's row does not tell.

    Inside a block, what is neither attention nor MLP and has one axis is a norm. Norms of queries and keys belong to attention.
    """
    index, _, rest = name.removeprefix(f"{family.blocks}.").partition(".")
    if name.startswith(f"{family.blocks}.") and index.isdigit():
        found = next((site for site, path in family.parts(int(index)) if rest.startswith(f"{path}.")), "norm" if n_axes == 1 else None)
        return (int(index), found) if found else None
    ends = (("final_norm", path) for path in (family.final_norm, *family.end_parts))
    embeds = (("embed", path) for path in family.embed_parts)  # last, for a module around all others may hold a table itself
    named = (("embed", family.embed), *ends, ("head", family.head), *embeds)
    return next(((None, site) for site, path in named if path and name.startswith(f"{path}.")), None)


def reading_order(names: Iterable[str], places: dict[str, tuple[int | None, str]]) -> list[str]:
    """Names in the order of computation: embedding, blocks, final norm, unembedding; those without a place last."""

    def key(name: str) -> tuple[int, int, int, str]:
        layer, site = places.get(name, (None, ""))
        outer = 1 if layer is not None else {"embed": 0, "final_norm": 2, "head": 3}.get(site, 4)
        return outer, layer or 0, SITES.index(site) if site else 0, name

    return sorted(names, key=key)


# ---- opening a folder --------------------------------------------------------------------------------------------------------------


def open_tensors(folder: Path) -> TensorFiles:
    """The tensors in a model's folder (none where it has no files of weights). ModelError: a file is broken or missing."""
    config = config_of(folder)
    family, named = row_of_folder(folder, str(config.get("model_type") or ""))
    stored: dict[str, Stored] = {}
    for path in weight_files(folder):
        for key, (shape, dtype) in contents(path).items():
            name = named(key) if named else _module_name(key, family) if family else key
            if not _NO_WEIGHTS.search(name):
                turned = bool(family and family.conv1d and name.startswith(f"{family.blocks}.") and len(shape) == 2)
                stored[name] = Stored(path=path, key=key, shape=shape[::-1] if turned else shape, dtype=dtype, transposed=turned)
    quantizer = quantizer_of(folder)
    stored = packed.in_packed(_with_codes(stored), replace, quantizer, _raw)
    found = TensorFiles(family, in_small_floats(stored, replace, quantizer), says_tied=bool(config.get("tie_word_embeddings")))
    if family and found.head in found.stored and found.embed not in found.stored:  # transformers ties either to the other
        found.stored[found.embed] = found.stored.pop(found.head)
    if _same_twice(found):
        return replace(found, stored={name: where for name, where in found.stored.items() if name != found.head})
    return found


def _decoded(stored: Stored) -> Float[Tensor, "..."]:
    """The numbers that codes stand for."""
    codes, beside = _raw(stored), {part: _raw(where) for part, where in stored.beside.items()}
    if stored.codes in packed.KINDS:
        return packed.decoded(stored.codes, codes, beside, stored.shape)
    return decoded_mxfp4(codes, beside["scale"]) if stored.codes == "mxfp4" else decoded_float8(codes, beside.get("scale"), stored.block)


def _raw(stored: Stored) -> Shaped[Tensor, "..."]:
    """A tensor as it stands in its file, a matrix as [d_out, d_in]."""
    found = aligned(read(stored.path, stored.key))
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
    return tuple(json.loads(bytes(read(where.path, f"{where.key}.quant_state.bitsandbytes__nf4").tolist()))["shape"])


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
    if one.codes or other.codes:
        return False
    rows = [first_row(where.path, where.key) for where in (one, other)]
    return torch.equal(*rows) and torch.equal(files.read(files.head), files.read(files.embed))
