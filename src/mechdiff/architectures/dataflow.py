"""A network's dataflow is recorded in one pass without weights: which tensor each operation made from which, inside which module.

The network lies on the meta device, where tensors have shapes and no numbers, so a model of any size is traced in a second or two and in no memory.
A module whose forward pass asks for numbers (which expert has tokens?) cannot run there: it is replaced by one operation that makes its output of its
inputs and its weights, innermost first, until the pass runs.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mechdiff.errors import ModelError

N_TOKENS = 7
"""Of the traced pass."""
OPAQUE = "opaque"
"""The operation that stands for a module which cannot run without numbers."""
PARAMETER = "parameter"
_ASKED = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero")
"""Operations that make a plain number of a tensor."""
_MOST_OPAQUE = 64


@dataclass(frozen=True, slots=True)
class Node:
    """A tensor and what made it."""

    op: str
    """As aten names it, without overload and leading underscores: "add", "mm", ...; "parameter" of a weight or buffer, "input" of what no operation
    made."""
    inputs: tuple[int, ...]
    """The tensors it was made of, by node."""
    module: str
    """Path of the innermost module that was running; of a parameter its owner."""
    shape: tuple[int, ...]
    root: int
    """The node whose memory it looks at: its own unless it is a view."""
    number: float | None = None
    """The plain number among the operation's arguments, where there is one alone."""


@dataclass(frozen=True, slots=True)
class Call:
    """One run of one module."""

    path: str
    inputs: tuple[int, ...]
    """Tensors among its arguments, by node; the first is what it is about."""
    outputs: tuple[int, ...]
    first: int
    """Nodes `first` to `last` were made while it ran."""
    last: int


@dataclass(frozen=True, kw_only=True)
class Dataflow:
    """What one pass did."""

    nodes: list[Node]
    calls: list[Call]
    """In the order in which they ended."""
    opaque: Mapping[str, int]
    """Modules that could not be looked into, and whether they give a tensor (0) or a tuple (1)."""
    written: Mapping[int, list[int]] = field(default_factory=dict)
    """What was written into the memory of a root afterwards, in place."""

    def root(self, node: int) -> int:
        return self.nodes[node].root

    @cached_property
    def by_path(self) -> dict[str, list[Call]]:
        found: dict[str, list[Call]] = {}
        for call in self.calls:
            found.setdefault(call.path, []).append(call)
        return found

    def ancestors(self, of: Iterable[int], until: Iterable[int] = (), before: int = 0) -> set[int]:
        """The nodes that some nodes were made of, themselves included; what lies behind the nodes `until` (and their views) is left out.

        What was written into a tensor's memory counts where it was written before the tensor was read, and into `of` before the node `before`.
        """
        stop = {self.root(node) for node in until}
        found: dict[int, int] = {}
        todo = [(node, before) for node in of]
        while todo:
            node, read = todo.pop()
            if found.get(node, -1) >= read or self.root(node) in stop:
                continue
            found[node] = read
            todo += ((one, node) for one in self.nodes[node].inputs)
            todo += ((one, one) for one in self.written.get(self.root(node), ()) if node < one < read)
        return set(found)


@dataclass(kw_only=True)
class _Recorder:
    """Nodes and calls while a pass runs. Tensors are kept, so that no two have one id."""

    nodes: list[Node] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    of: dict[int, int] = field(default_factory=dict)
    kept: list[Tensor] = field(default_factory=list)
    running: list[str] = field(default_factory=lambda: [""])
    written: dict[int, list[int]] = field(default_factory=dict)

    def node(self, tensor: Tensor) -> int:
        return self.of[id(tensor)] if id(tensor) in self.of else self.add(tensor, "input", ())

    def add(
        self, tensor: Tensor, op: str, inputs: tuple[int, ...], *, view: bool = False, module: str | None = None, number: Any = None
    ) -> int:
        index = len(self.nodes)
        root = self.nodes[inputs[0]].root if view and inputs else index
        where = self.running[-1] if module is None else module
        self.nodes.append(Node(op, inputs, where, tuple(tensor.shape), root, number))
        self.of[id(tensor)] = index
        self.kept.append(tensor)
        return index

    def all(self, value: Any) -> tuple[int, ...]:
        """The nodes of the tensors in a structure of arguments or results."""
        return tuple(self.node(one) for one in tree_leaves(value) if isinstance(one, Tensor))


class _Mode(TorchDispatchMode):
    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tree_leaves((args, kwargs))
        inputs = tuple(self.recorder.node(one) for one in given if isinstance(one, Tensor))
        if func._schema.name in _ASKED:  # "is no token padding, is this one text": yes
            return 1.0 if given[0].is_floating_point() else True if given[0].dtype == torch.bool else 1
        out = func(*args, **kwargs)
        numbers = [one for one in args if isinstance(one, int | float) and not isinstance(one, bool)]
        aliases = [returned.alias_info for returned in func._schema.returns]
        view = bool(aliases and aliases[0] is not None and not aliases[0].is_write)
        if aliases and aliases[0] is not None and aliases[0].is_write and inputs:
            root = self.recorder.nodes[inputs[0]].root
            self.recorder.written.setdefault(root, []).append(len(self.recorder.nodes))
        for one in tree_leaves(out):
            if isinstance(one, Tensor):
                self.recorder.add(
                    one,
                    func._schema.name.removeprefix("aten::").lstrip("_"),
                    inputs,
                    view=view,
                    number=numbers[0] if len(numbers) == 1 else None,
                )
        return out


def trace(net: nn.Module, n_tokens: int = N_TOKENS) -> Dataflow:
    """The dataflow of one pass of a network that lies on the meta device.

    Raises ModelError where not even its outer modules run there.
    """
    opaque: dict[str, int] = {}
    while True:
        recorder = _Recorder()
        for name, tensor in (*net.named_parameters(), *net.named_buffers()):
            recorder.add(tensor, PARAMETER, (), module=name.rpartition(".")[0])
        try:
            with torch.inference_mode(), _recorded(net, recorder, opaque), _Mode(recorder):
                net(input_ids=torch.zeros(1, n_tokens, dtype=torch.long, device="meta"), use_cache=False)
            return Dataflow(nodes=recorder.nodes, calls=recorder.calls, opaque=opaque, written=recorder.written)
        except Exception as error:  # whatever a model's own code raises where it finds no numbers
            path = recorder.running[-1]
            if not path or len(opaque) >= _MOST_OPAQUE:
                raise ModelError(f"a pass without weights does not run ({type(error).__name__}: {error})") from error
            _close(opaque, path)


@contextmanager
def without_numbers(net: nn.Module, opaque: Mapping[str, int]) -> Iterator[None]:
    """While open, passes of a network on the meta device run as the traced one did: with these modules not looked into."""
    recorder = _Recorder()
    with torch.inference_mode(), _recorded(net, recorder, opaque), _Mode(recorder):
        yield


def _close(opaque: dict[str, int], path: str) -> None:
    """Make the module at `path`, which failed, an opaque one; or, where it failed on what an opaque module inside it gave, let that one give a
    tuple."""
    inside = [one for one in opaque if one.startswith(f"{path}.") and opaque[one] == 0]
    if inside:
        opaque[inside[-1]] = 1
        return
    for one in [one for one in opaque if one.startswith(f"{path}.")]:
        del opaque[one]
    opaque[path] = 0


@contextmanager
def _recorded(net: nn.Module, recorder: _Recorder, opaque: Mapping[str, int]) -> Iterator[None]:
    """While open, every module's runs are recorded, and opaque ones do not run."""
    from torch.fx.experimental import _config

    meta: Any = _config

    handles, started = [], []
    modules = {path: module for path, module in net.named_modules() if path}

    def before(path: str) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            first = args[:1] or tuple(kwargs[name] for name in ("hidden_states", "x", "input") if name in kwargs)[:1]
            started.append((len(recorder.nodes), recorder.all((first, args, kwargs))))
            recorder.running.append(path)

        return hook

    def after(path: str) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            recorder.running.pop()
            first, inputs = started.pop()
            recorder.calls.append(Call(path, inputs, recorder.all(output), first, len(recorder.nodes)))

        return hook

    try:
        for path, module in modules.items():
            handles.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
            handles.append(module.register_forward_hook(after(path), with_kwargs=True))
        for path, form in opaque.items():
            modules[path].forward = _stub(modules[path], recorder, form)
        with meta.patch(meta_nonzero_assume_all_nonzero=True):
            yield
    finally:
        for handle in handles:
            handle.remove()
        for path in opaque:
            modules[path].__dict__.pop("forward", None)


def _stub(module: nn.Module, recorder: _Recorder, form: int) -> Callable[..., Any]:
    """One operation in the place of a module: its output has the shape of its first argument."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        out = torch.empty_like(given[0])
        inputs = (*recorder.all((args, kwargs)), *(recorder.node(parameter) for parameter in module.parameters()))
        recorder.add(out, OPAQUE, inputs)
        return (out, None) if form else out

    return forward
