"""A file of weights is a table of tensors, safetensors or a pickle of torch, and one tensor of it is read at a time.

A pickle is read with `weights_only`, so nothing in it runs, and mapped into memory, so a tensor that is not asked for is not read. Only files that
torch wrote before version 1.6 cannot be mapped: those are read whole, and kept until another is asked for.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError

import torch
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mechdiff.errors import ModelError
from mechdiff.files.in_memory import LENT

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2", torch.float8_e4m3fnuz: "F8_E4M3FNUZ", torch.float8_e5m2fnuz: "F8_E5M2FNUZ", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Dtypes by the names that safetensors gives them."""


def contents(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> shape and dtype (F32, BF16, U8, ...) of every tensor in a file. ModelError where it cannot be read."""
    if path.suffix != ".safetensors":
        return {name: (tuple(tensor.shape), DTYPES.get(tensor.dtype, str(tensor.dtype))) for name, tensor in _pickled(path).items()}
    try:
        with safe_open(path, "pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  (safe_open is no mapping)
            return {key: (tuple(part.get_shape()), str(part.get_dtype())) for key, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error


def read(path: Path, key: str) -> Shaped[Tensor, "..."]:
    """One tensor, in the dtype of the file. ModelError where it cannot be read."""
    if path.suffix != ".safetensors":
        return _pickled(path)[key].detach().cpu().clone(memory_format=torch.contiguous_format)
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error


def first_row(path: Path, key: str) -> Shaped[Tensor, "..."]:
    """The first entry of a tensor along its first axis."""
    if path.suffix != ".safetensors":
        return _pickled(path)[key][:1].clone()
    try:
        with safe_open(path, "pt") as file:
            return file.get_slice(key)[:1]
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> ModelError:
    return ModelError(f"the weights in {path} cannot be read: {str(error).rstrip('. ')}. Is the download complete?")


def _pickled(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file that is no safetensors, or that stands for a model in memory."""
    if path in LENT:
        return LENT[path]
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise ModelError(
            f"{path}: its weights are a pickle that holds more than tensors, which could run code: not read. Take a copy in safetensors."
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        if "mmap can only be used with files saved with" not in str(error):
            raise unreadable(path, error) from error
        found = _old(path, path.stat().st_mtime_ns)
    if not isinstance(found, Mapping) or not all(isinstance(one, Tensor) for one in found.values()):
        raise ModelError(
            f"{path}: this file holds more than one flat table of tensors (a trainer's own checkpoint, perhaps), so transformers cannot load it. "
            "Load it where it was written and save the model with save_pretrained."
        )
    return found


@lru_cache(maxsize=1)
def _old(path: Path, _changed: int) -> Mapping[str, Tensor]:
    """A file of torch before 1.6."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, UnpicklingError) as error:
        raise unreadable(path, error) from error
