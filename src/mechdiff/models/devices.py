"""A model's device is found by its name, how much memory is there, and in which dtype a model runs where nobody says."""

from collections.abc import Callable, Collection
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


AUTO = "auto"
"""The dtype that `settled` chooses."""
SHORT = ("bfloat16", "float16")
"""Dtypes in which checkpoints are stored that run on GPUs as they are."""
ROOM = 0.8
"""Share of a machine's memory that the weights of one model in float32 may take."""


def settled(device: torch.device | None, stored: Collection[torch.dtype | None], float32_bytes: Callable[[], int]) -> str:
    """The dtype of `auto`: on a CPU float32, unless one model's weights then exceed ROOM of its memory; else as both models are stored, where that is
    one of SHORT, and float32 where it is not. It depends on nothing that changes while the machine runs. `device` None: split over all."""
    names = {str(one).removeprefix("torch.") for one in stored}
    name = names.pop() if len(names) == 1 else ""
    if name not in SHORT or (device and device.type == "cpu" and float32_bytes() <= ROOM * all_memory(device)):
        return "float32"
    return name


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
