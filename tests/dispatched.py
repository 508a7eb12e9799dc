"""What a pass asks of a device is counted, without one: operations that are sent to it, and moments at which the host waits for it."""

from collections import Counter
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten._unique2", "aten.unique_consecutive", "aten.equal")
"""Operations whose result the host must see before it goes on."""


class Operations(TorchDispatchMode):
    """While open, counts operations by name, views left out: those do nothing on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        views = [one.alias_info for one in func._schema.returns if one.alias_info and not one.alias_info.is_write]
        name = str(func.overloadpacket)
        if not views and name not in ("aten.detach", "aten._unsafe_view"):
            self.sent[name] += 1
        chosen = args[1] if name in ("aten.index", "aten.index_put", "aten.index_put_") else ()
        if name in WAITS or any(isinstance(one, torch.Tensor) and one.dtype in (torch.bool, torch.uint8) for one in chosen):
            self.waits[name] += 1
        return func(*args, **(kwargs or {}))


class Fetches(TorchFunctionMode):
    """While open, counts calls that bring numbers to the host and dispatch nothing on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("cpu", "tolist"):  # numpy refuses what is not on the host; the others dispatch what is counted as a wait
            self.made[name] += 1
        return func(*args, **(kwargs or {}))


def counted(work: Any) -> tuple[Counter[str], Counter[str]]:
    """Operations and waits of a piece of work, by name. Without inference mode, in which what is made of several operations is sent as one."""
    with patch("torch.inference_mode", lambda mode=True: torch.no_grad()), Fetches() as fetches, Operations() as operations:
        work()
    return operations.sent, operations.waits + fetches.made
