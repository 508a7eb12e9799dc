"""The residual stream of one block is read from a recorded pass: what enters, what is added to it, and which module gives each term."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import nn

from mechdiff.architectures.dataflow import N_TOKENS, PARAMETER, Call, Dataflow

SAME = (
    "view", "reshape", "flatten", "unflatten", "clone", "to", "to_copy", "type_as", "detach", "alias", "contiguous", "expand", "squeeze",
    "unsqueeze", "dropout", "native_dropout", "unsafe_view",
)  # fmt: skip
"""Operations that leave the numbers as they are."""
_SUMS = ("add", "add_")
_PRODUCTS = ("mul", "mul_")


@dataclass(frozen=True)
class Term:
    """What is added to the residual stream."""

    node: int
    scale: float
    """The number that it is multiplied by first."""
    at: int
    """The sum that it enters."""


@dataclass(frozen=True)
class Stream:
    """The residual stream inside one block's run."""

    net: nn.Module
    flow: Dataflow
    call: Call

    @property
    def entered(self) -> int:
        return self.call.inputs[0]

    @property
    def left(self) -> int:
        return self.call.outputs[0]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The shape [text, position, d] of one state, where several streams run side by side of one of them."""
        return (1, N_TOKENS, self.flow.nodes[self.entered].shape[-1])

    @property
    def n_streams(self) -> int:
        """How many states of that shape enter side by side."""
        return (streams_of(self.flow.nodes[self.entered].shape) or (1, False))[0]

    def inside(self, path: str) -> str:
        """A module's path relative to the block."""
        return path.removeprefix(f"{self.call.path}.")

    def module(self, call: Call) -> nn.Module:
        return self.net.get_submodule(call.path)

    @cached_property
    def made(self) -> range:
        """What the block made."""
        return range(self.call.first, self.call.last)

    @cached_property
    def within(self) -> list[Call]:
        """The runs of the modules inside, but of those that run more than once or only drop out while training."""
        inside = (call for call in self.flow.calls if call.path.startswith(f"{self.call.path}.") and len(self.flow.by_path[call.path]) == 1)
        return [call for call in inside if call.inputs and not isinstance(self.module(call), nn.Dropout | nn.Identity)]

    # ---- the sum

    @cached_property
    def chain(self) -> set[int]:
        """The roots of the residual stream inside the block: what enters, and every sum of it with something."""
        found = {self.flow.root(self.entered)}
        for index in self.made:
            node = self.flow.nodes[index]
            if node.root == index and any(self.flow.root(one) in found for one in self._carried(index)):
                found.add(index)
        return found

    def _carried(self, index: int) -> tuple[int, ...]:
        """What a node is the sum or the copy of; nothing of other operations."""
        node = self.flow.nodes[index]
        if node.op in _SUMS and len(node.inputs) == 2:
            return node.inputs
        return node.inputs[:1] if node.op in SAME else ()

    @cached_property
    def total(self) -> int:
        """The root of the sum that leaves the block: what leaves, or what a factor of weights alone (a scalar of the layer) makes that of."""
        left = self.flow.nodes[self.flow.root(self.left)]
        if left.op in _PRODUCTS and len(left.inputs) == 2:
            entered = self.flow.root(self.entered)
            sums = [one for one in left.inputs if self.flow.root(one) in self.chain]
            factors = [one for one in left.inputs if entered not in map(self.flow.root, self.flow.ancestors([one]))]
            if len(sums) == len(factors) == 1:
                return self.flow.root(sums[0])
        return self.flow.root(self.left)

    @cached_property
    def terms(self) -> list[Term]:
        """What is added to what enters; none where what leaves is no such sum, or several streams run side by side."""
        if self.n_streams > 1:
            return []
        found: list[Term] = []
        todo, seen, entered = [self.total], set[int](), self.flow.root(self.entered)
        while todo:
            at = todo.pop()
            if at in seen or at not in self.chain:
                return []
            seen.add(at)
            for one in self._carried(at) if at != entered else ():
                if self.flow.root(one) in self.chain:
                    todo.append(self.flow.root(one))
                else:
                    found += self._split(one, 1.0, at)
        return sorted(found, key=lambda term: term.node) if entered in seen else []

    def _split(self, node: int, scale: float, at: int) -> list[Term]:
        """The terms of a sum that is added as one, where its sum is made in the block itself."""
        root = self.flow.root(node)
        made = self.flow.nodes[root]
        given = any(self.gives(call, root) for call in self.within)
        if made.op == "mul" and made.number is not None and len(made.inputs) == 1 and made.module == self.call.path:
            return self._split(made.inputs[0], scale * made.number, at)
        if made.op in SAME and made.module.startswith(self.call.path) and not given:
            return self._split(made.inputs[0], scale, at)
        if made.op in _SUMS and len(made.inputs) == 2 and made.module == self.call.path and not given:
            return [term for one in made.inputs for term in self._split(one, scale, at)]
        return [Term(root, scale, at)]

    def own(self, node: int) -> set[int]:
        """What a tensor was made of inside the block, down to the residual stream."""
        return self.flow.ancestors([node], until=self.chain)

    def n_weights(self, node: int) -> int:
        """How many of the block's weights it was made of there."""
        read = (self.flow.nodes[one] for one in self.own(node))
        return sum(prod(one.shape) for one in read if one.op == PARAMETER and one.module.startswith(f"{self.call.path}."))

    def maker(self, node: int) -> tuple[Call, float] | None:
        """The innermost module whose output is this tensor (but for views, copies and a number it is multiplied by), and the number."""
        scale = 1.0
        while True:
            root = self.flow.root(node)
            calls = [call for call in self.within if self.gives(call, root)]
            if calls:
                return min(calls, key=lambda call: len(self.flow.nodes[call.outputs[0]].shape) != 3), scale
            made = self.flow.nodes[root]
            if made.op == "mul" and made.number is not None and len(made.inputs) == 1:
                scale *= made.number
            elif made.op not in SAME or not made.inputs:
                return None
            node = made.inputs[0]

    def gives(self, call: Call, root: int) -> bool:
        """Whether a module's output is the tensor at `root`, in the form [text, position, d] or [text and position, d]."""
        if not call.outputs or self.flow.root(call.outputs[0]) != root:
            return False
        return self.flow.nodes[call.outputs[0]].shape in (self.shape, self.shape[1:])

    # ---- who reads it

    def norm_of(self, stream: int) -> Call | None:
        """The norm that is the first to read a state of the residual stream."""
        reads = sorted(self.within, key=lambda call: (call.first, -call.last))
        return next(
            (call for call in reads if self.flow.root(call.inputs[0]) == self.flow.root(stream) and is_norm(self.module(call))), None
        )

    def between(self, attention: Term, other: list[Term]) -> Call | None:
        """The module that is the first to read the residual stream behind attention's term, where its input is that tensor itself and all other terms
        are made of it."""
        stream = attention.at
        views = {index for index in self.made if self.flow.root(index) == stream}
        if any(term.at == stream or not self.flow.ancestors([term.node]) & views for term in other):
            return None
        calls = [call for call in self.within if self.flow.root(call.inputs[0]) == stream and call.first > stream]
        first = min(calls, key=lambda call: (call.first, -call.last), default=None)
        others = (index for index in range(stream + 1, self.call.last) if index not in views)
        readers = [index for index in others if any(self.flow.root(one) == stream for one in self.flow.nodes[index].inputs)]
        return first if first and readers and min(readers) >= first.first else None


def streams_of(shape: tuple[int, ...]) -> tuple[int, bool] | None:
    """How many residual streams a state of this shape holds in the traced pass, and whether that is its first axis; None: it is no state."""
    if shape[:-1] == (1, N_TOKENS):
        return 1, False
    if len(shape) == 4 and shape[1:3] == (1, N_TOKENS):
        return shape[0], True
    return (shape[2], False) if len(shape) == 4 and shape[:2] == (1, N_TOKENS) else None


def is_matrix(module: nn.Module) -> bool:
    """Whether a module's weight is a matrix."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.ndim == 2


def is_norm(module: nn.Module) -> bool:
    """Whether a module has no modules inside and no weights but vectors."""
    return not any(True for _ in module.children()) and all(parameter.ndim == 1 for parameter in module.parameters())


def shortest(sides: Mapping[str, bool], side: bool) -> Iterable[str]:
    """The fewest paths that cover all modules of one side and none of the other."""
    found: set[str] = set()
    for path in (path for path, its in sides.items() if its is side):
        steps = path.split(".")
        ways = (".".join(steps[:n]) for n in range(1, len(steps) + 1))
        inside = {way: [its for other, its in sides.items() if other == way or other.startswith(f"{way}.")] for way in ways}
        found.add(next((way for way, its in inside.items() if all(one is side for one in its)), path))
    return sorted(found)
