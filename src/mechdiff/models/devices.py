"""A model's device is found by its name, and how much memory is there."""

from pathlib import Path

import torch

from mechdiff.errors import MachineError, ModelError

SPLIT = "split"
"""The device that is all of them: blocks on one GPU after the other, what does not fit in memory, the rest on disk (accelerate)."""


def device_of(name: str) -> torch.device | None:
    """The device of a name; None for SPLIT. Raises ModelError where it is not there."""
    if name == SPLIT:
        return None
    n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if n_cuda else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"--device {name}: no such device. Give cpu, cuda, cuda:1, split or auto.") from error
    if device.type == "cuda" and (device.index or 0) >= n_cuda:
        raise MachineError(
            f"--device {name}: this machine has {n_cuda or 'no'} CUDA device{'s' * (n_cuda > 1)}. Use --device cpu or another."
        )
    return device


def free_memory(device: torch.device) -> int:
    """Bytes that a model could take on the device now (8 GiB where the system does not say)."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else _memory("MemAvailable")


def all_memory(device: torch.device) -> int:
    """Bytes of memory that the device has (8 GiB where the system does not say)."""
    return int(torch.cuda.mem_get_info(device)[1]) if device.type == "cuda" else _memory("MemTotal")


def _memory(what: str) -> int:
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.is_file() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(what)), 8 << 30)
