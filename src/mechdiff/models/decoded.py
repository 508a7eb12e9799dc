"""A model whose matrices its files hold in few bits is loaded as the numbers that these bits stand for.

transformers runs GPTQ, AWQ, compressed-tensors and ModelOpt's forms by kernels of other packages, mostly on GPUs alone. Here they are decoded
by `files.packed` on every machine alike, so no package is needed and both models of a pair compute in the study's dtype. Activations are not
rounded, as some of these forms do when they are served. A trainer's file of all weights, which transformers does not look for, is loaded so too.
"""

from pathlib import Path

import torch
from torch import Tensor

from mechdiff.errors import MachineError, ModelError
from mechdiff.models.checkpoint import method_of
from mechdiff.models.tensors import open_tensors

_LEFT = (".qweight", ".weight_packed")
"""Endings of codes that no form was found for."""


def decoded_state(folder: Path, ref: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a folder's files by the names that an unquantised checkpoint would give them. ModelError: some cannot be decoded."""
    files, method = open_tensors(folder), method_of(folder)
    if left := sorted(name for name in files.names if name.endswith(_LEFT)):
        raise ModelError(
            f"{ref}: {len(left)} of its tensors are held in a form of {method} that is not decoded, the first {left[0]}. Take the unquantised model."
        )
    state = {}
    for name, stored in files.stored.items():
        tensor = files.read(name)
        key = f"{stored.key.rpartition('.')[0]}.weight" if stored.codes else stored.key
        conv1d = files.family is not None and files.family.conv1d and name.startswith(f"{files.family.blocks}.") and tensor.ndim == 2
        tensor = tensor.T if conv1d else tensor
        state[key] = (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
    return state


def cannot_run(ref: str, folder: Path, error: Exception) -> MachineError:
    """The error of a quantised model that needs a package that is not installed."""
    wanted = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return MachineError(
        f"{ref}: its matrices are quantised by {method_of(folder) or 'another library'}, and transformers cannot run them here: "
        f"{wanted.rstrip('.')}. Install what it asks for, or take the unquantised model."
    )
