"""Tensors of a model that a program holds in memory are read as if they lay in a file of its folder.

The folder has a file NAME in the place of weights, which holds nothing but a digest of the tensors; while the model is lent, the tensors that it
stands for are here, by the file's path. They are never copied as a whole: whoever reads one gets that one.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

NAME = "tensors.in_memory"
"""The file in the place of weights."""
LENT: dict[Path, Mapping[str, Tensor]] = {}
"""By the file's path, the tensors that it stands for."""


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over every tensor in the order of names: name, dtype, sizes, bytes. The same numbers on another device have the same digest."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
