"""Tensors are laid at aligned addresses in memory, so that the same numbers give the same bits.

A product of a matrix with a single row (one token that runs alone) may be summed in another order where the matrix begins elsewhere within a
register's width: on many processors two copies of one weight, one of them four bytes further on, give other last bits. A file's tensors lie where its
header happens to end. So what is read from a file is put where torch puts the tensors that it makes: at a multiple of `WIDTH` bytes. Models that
hold the same weights then give the same logits, bit for bit, wherever each of them came from.
"""

from typing import Any

from jaxtyping import Shaped
from torch import Tensor, nn

WIDTH = 64
"""Bytes of the widest register, and of a line of the processor's cache."""


def aligned(tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The tensor itself where it begins at a multiple of `WIDTH`, or is not in this machine's own memory; else a copy that does."""
    return tensor.clone() if _is_astray(tensor) else tensor


def align(net: nn.Module) -> None:
    """Puts each tensor of a network so, one at a time: a second copy of the whole is never held.

    Tensors that several modules share stay one. What is on another device or on disk, and matrices in 8 or 4 bits, stay where they are.
    """
    moved: dict[Any, Tensor] = {}
    for tensor in [*net.parameters(), *net.buffers()]:
        if _is_astray(tensor):
            place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if place not in moved:
                moved[place] = tensor.detach().clone()
            tensor.data = moved[place]


def _is_astray(tensor: Tensor) -> bool:
    quantised = not tensor.is_floating_point() or hasattr(tensor, "quant_state")
    return tensor.device.type == "cpu" and not quantised and tensor.data_ptr() % WIDTH != 0
