"""One block's row is read from a recorded pass: its sites, its heads, and which half each matrix belongs to."""

from dataclasses import dataclass, field
from typing import TypeVar

from torch import nn

from mechdiff.architectures.dataflow import OPAQUE, PARAMETER, Call, Dataflow
from mechdiff.architectures.families import Block
from mechdiff.architectures.routers import router_in
from mechdiff.architectures.stream import SAME, Stream, Term, is_matrix, is_norm, shortest

MOST_WEIGHTS = 0.75
"""Of the weights of all that a block adds beside attention: the MLP's, where there is more than an MLP."""
_TURNED = ("transpose", "permute", "t")
_PRODUCTS = ("bmm", "baddbmm", "matmul", "mm", "einsum")
_ATTENTION = "scaled_dot_product"
_RUNNING = ("conv1d", "convolution", "cumsum", "cumprod", "logcumsumexp")
"""How the names of operations begin that mix positions in another way than attention."""


def read_block(net: nn.Module, flow: Dataflow, call: Call) -> Block:
    """The row of the block whose run is `call`."""
    stream = Stream(net, flow, call)
    return _Reader(stream, _Attention(stream)).block()


One = TypeVar("One")


@dataclass
class _Reader:
    """Puts a block's row together; `reasons` collects what is left out."""

    stream: Stream
    attention: "_Attention"
    reasons: list[str] = field(default_factory=list)

    def block(self) -> Block:
        stream = self.stream
        mixing = [term for term in stream.terms if self.attention.mixes(stream.own(term.node))]
        other = [term for term in stream.terms if term not in mixing]
        places: dict[str, tuple[str, str]] = {"resid_pre": ("", "input"), "resid_post": ("", "output")}
        scales = self._outputs(places, {"attn_out": mixing, "mlp_out": other})
        projection, norm = self.attention.projection(mixing, bool(mixing) and "attn_out" in places)
        given = self._beside_streams(places) if stream.n_streams > 1 else None
        if given and projection and stream.flow.root(given.outputs[0]) == stream.flow.root(projection.outputs[0]):
            norm = path if (path := places["attn_out"][0]) != stream.inside(given.path) else None
        heads = self.attention.heads(projection) if projection else None
        if projection:
            places["attn_proj"] = (stream.inside(projection.path), "output")
        if projection and heads:
            places["z"] = (stream.inside(projection.path), "input")
        else:
            self.reasons.append("z: nothing that was put together from heads enters an output projection")
        mid = stream.between(mixing[0], other) if len(mixing) == 1 and other and "attn_out" in places else None
        if mid:
            places["resid_mid"] = (stream.inside(mid.path), "input")
        attention, mlp = self._parts(mixing, given or projection)
        entry = stream.norm_of(stream.entered) if stream.n_streams == 1 else None
        return Block(
            places=places,
            inputs=self.attention.inputs(),
            attention=attention,
            mlp=mlp,
            norm=norm,
            scale=next(iter(scales.values()), 1.0),
            heads=heads,
            input_norm=stream.inside(entry.path) if entry else None,
            mid_norm=stream.inside(mid.path) if mid and is_norm(stream.module(mid)) else None,
            parallel=self.attention.is_plain(mixing),
            flat=any(self._is_flat(*place) for place in places.values()),
            router=router_in(stream),
            adds=tuple(scales)
            if stream.terms and len(scales) == len(stream.terms) and stream.total == stream.flow.root(stream.left)
            else None,
            reasons=tuple(self.reasons),
        )

    def _outputs(self, places: dict[str, tuple[str, str]], of: dict[str, list[Term]]) -> dict[str, float]:
        """Puts the places of attention's and the MLP's outputs into `places`, and gives what each is multiplied by."""
        scales: dict[str, float] = {}
        if not self.stream.terms and self.stream.n_streams == 1:
            self.reasons.append("attn_out, mlp_out, resid_mid: the block does more to the residual stream than to add to it")
        for kind, terms in of.items():
            apart = len(of["attn_out"]) == 1 and len({term.at for term in terms}) == len(terms)  # one after the other, no parts of one sum
            some = terms if len(terms) == 1 or apart else []
            term = self._most(kind, some, [self.stream.n_weights(term.node) for term in some])
            found = self.stream.maker(term.node) if term else None
            if term and found:
                places[kind], scales[kind] = (self.stream.inside(found[0].path), "output"), term.scale * found[1]
            elif terms:
                self.reasons.append(f"{kind}: {len(terms)} terms, or no module gives the term")
        if len(set(scales.values())) > 1:
            self.reasons.append("mlp_out: it is multiplied by another number than attn_out")
            del places["mlp_out"], scales["mlp_out"]
        return scales

    def _beside_streams(self, places: dict[str, tuple[str, str]]) -> Call | None:
        """Puts what attention and the MLP give, before it is weighed into several residual streams, into `places`; the module that attention is."""
        stream = self.stream
        whole = [call for call in stream.within if stream.gives(call, stream.flow.root(call.outputs[0])) and self._has_matrices(call)]
        outer = [call for call in whole if not any(call.path.startswith(f"{other.path}.") for other in whole)]
        halves = {
            kind: [call for call in outer if self.attention.is_in(call) is mixes]
            for kind, mixes in (("attn_out", True), ("mlp_out", False))
        }
        self.reasons.append(f"resid_mid: {stream.n_streams} residual streams run side by side")
        for kind, calls in halves.items():
            call = self._most(kind, calls, [sum(one.numel() for one in stream.module(call).parameters()) for call in calls])
            if call is None:
                self.reasons.append(f"{kind}: {len(calls)} modules give such a state to the {stream.n_streams} residual streams")
                continue
            norm = stream.norm_of(call.outputs[0])
            places[kind] = (stream.inside((norm or call).path), "output")
        return halves["attn_out"][0] if len(halves["attn_out"]) == 1 else None

    def _most(self, kind: str, of: list[One], weights: list[int]) -> One | None:
        """What stands for attention or the MLP: the only one, or of what stands beside the MLP (embeddings of each layer) the one with nearly all
        weights."""
        if len(of) < 2 or kind != "mlp_out":
            return of[0] if len(of) == 1 else None
        most = weights.index(max(weights))
        if weights[most] < MOST_WEIGHTS * sum(weights):
            return None
        self.reasons.append(
            f"mlp_out is one of {len(of)} terms beside attention, the one with {weights[most] / sum(weights):.0%} of their weights"
        )
        return of[most]

    def _has_matrices(self, call: Call) -> bool:
        return any(one.ndim > 1 for one in self.stream.module(call).parameters())

    def _is_flat(self, path: str, end: str) -> bool:
        """Whether a site's tensor is one table of all texts' positions."""
        calls = [call for call in self.stream.within if self.stream.inside(call.path) == path]
        return any(len(self.stream.flow.nodes[(call.inputs if end == "input" else call.outputs)[0]].shape) == 2 for call in calls)

    def _parts(self, mixing: list[Term], end: Call | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Paths of the modules that hold matrices of attention, which the module of the run `end` ends, and of all others."""
        stream, nodes = self.stream, self.stream.flow.nodes
        sources = [term.node for term in mixing] or ([end.outputs[0]] if end else [])
        own = stream.flow.ancestors(sources, until=stream.chain if mixing else [stream.entered])
        attention = {stream.inside(nodes[one].module) for one in own if nodes[one].op == PARAMETER}
        if end:
            attention |= {".".join(filter(None, (stream.inside(end.path), path))) for path, _ in stream.module(end).named_modules()}
        matrices = [
            path
            for path, module in stream.module(stream.call).named_modules()
            if any(one.ndim > 1 for one in module.parameters(recurse=False))
        ]
        sides = {path: path in attention for path in matrices if path}
        return tuple(shortest(sides, True)), tuple(shortest(sides, False))


@dataclass
class _Attention:
    """What mixes positions in a block."""

    stream: Stream
    _activity: dict[int, bool] = field(default_factory=dict)

    def mixes(self, own: set[int]) -> bool:
        """Whether any of some nodes mixes positions."""
        return any(self._over_positions(node) for node in own)

    def _over_positions(self, index: int) -> bool:
        node = self.stream.flow.nodes[index]
        if node.op.startswith((_ATTENTION, *_RUNNING)):
            return True
        return node.op in _PRODUCTS and all(self._active(one) for one in node.inputs[-2:])

    def _is_attention(self, index: int) -> bool:
        return self._over_positions(index) and not self.stream.flow.nodes[index].op.startswith(_RUNNING)

    def is_in(self, call: Call) -> bool:
        """Whether it runs inside a module."""
        return any(self._is_attention(index) for index in range(call.first, call.last))

    def _active(self, index: int) -> bool:
        """Whether a tensor depends on what enters the block as numbers, not as an index alone."""
        if index not in self._activity:
            stream, node = self.stream, self.stream.flow.nodes[index]
            if stream.flow.root(index) == stream.flow.root(stream.entered) or index in stream.chain:
                self._activity[index] = True
            elif index not in stream.made or node.op == PARAMETER:
                self._activity[index] = False
            else:
                inputs = node.inputs[:1] if node.op.startswith(("index", "gather")) else node.inputs
                self._activity[index] = any(self._active(one) for one in inputs)
        return self._activity[index]

    def projection(self, mixing: list[Term], of_term: bool) -> tuple[Call | None, str | None]:
        """The matrix that gives attention's term, and the norm between, where there is one; else the first matrix behind the last attention."""
        stream = self.stream
        made = stream.maker(mixing[0].node) if of_term else None
        if made and is_matrix(stream.module(made[0])):
            return made[0], None
        before = stream.maker(made[0].inputs[0]) if made and is_norm(stream.module(made[0])) else None
        if made and before and before[1] == 1.0 and is_matrix(stream.module(before[0])):
            return before[0], stream.inside(made[0].path)
        last = max((index for index in stream.made if self._is_attention(index)), default=None)
        if last is None:
            return None, None
        behind = (
            call for call in sorted(stream.within, key=lambda call: call.first) if call.first > last and is_matrix(stream.module(call))
        )
        first = next((call for call in behind if last in stream.own(call.inputs[0])), None)
        return (first if first and stream.gives(first, stream.flow.root(first.outputs[0])) else None), None

    def heads(self, projection: Call) -> tuple[int, int] | None:
        """How many heads the projection's input was put together from, and how wide each is there."""
        nodes = self.stream.flow.nodes
        node, shape = projection.inputs[0], nodes[projection.inputs[0]].shape
        while True:
            made = nodes[node]
            if len(made.shape) == 4 and made.shape[1] == shape[-2] and made.shape[2] * made.shape[3] == shape[-1]:
                return (made.shape[2], made.shape[3]) if self._attends(node) else None
            if made.op in (*SAME, *_TURNED) and made.inputs:
                node = made.inputs[0]
            elif made.op == "mul" and len(mixed := [one for one in made.inputs if self._attends(one)]) == 1:  # the other is a gate
                node = mixed[0]
            else:
                return None

    def _attends(self, node: int) -> bool:
        """Whether attention is among what a tensor was made of."""
        return any(self._is_attention(one) for one in self.stream.own(node))

    def is_plain(self, mixing: list[Term]) -> bool:
        """Whether all that mixes positions is one attention over keys and values of its own, with one mask for all heads."""
        nodes = self.stream.flow.nodes
        own = self.stream.own(mixing[0].node) if len(mixing) == 1 else set()
        found = sorted(index for index in own if self._over_positions(index))
        if not all(self._is_attention(index) for index in found) or any(nodes[one].op == "topk" for one in own):
            return False
        if len(found) == 1 and nodes[found[0]].op.startswith(_ATTENTION):
            _, key, value, *more = nodes[found[0]].inputs
            shared = all(len(nodes[mask].shape) < 3 or nodes[mask].shape[-3] == 1 for mask in more)
            return shared and all(len(nodes[one].shape) == 4 and self._has_weights(one) for one in (key, value))
        return len(found) == 2 and all(self._has_weights(nodes[index].inputs[-1]) for index in found)

    def _has_weights(self, node: int) -> bool:
        """Whether a tensor is made by weights of this block."""
        nodes, path = self.stream.flow.nodes, self.stream.call.path
        return any(nodes[one].op == PARAMETER and nodes[one].module.startswith(f"{path}.") for one in self.stream.own(node))

    def inputs(self) -> tuple[str, ...]:
        """The matrices that queries, keys and values come from, where attention is one operation and each comes from one of its own."""
        nodes = self.stream.flow.nodes
        attention = [index for index in self.stream.made if nodes[index].op.startswith(_ATTENTION)]
        found = [self._matrices(node) for node in nodes[attention[0]].inputs[:3]] if len(attention) == 1 else []
        names = [one.pop() for one in found if len(one) == 1]
        return tuple(self.stream.inside(name) for name in names) if len(set(names)) == 3 else ()

    def _matrices(self, node: int) -> set[str]:
        """The nearest matrices that a tensor is made by; "" for one that is no module's."""
        found, todo, seen = set[str](), [node], set[int]()
        while todo:
            at = todo.pop()
            if at in seen or self.stream.flow.root(at) in self.stream.chain:
                continue
            seen.add(at)
            made = self.stream.flow.nodes[at]
            if made.op in ("linear", "addmm", "mm", OPAQUE) and made.module.startswith(f"{self.stream.call.path}."):
                found.add(made.module if is_matrix(self.stream.net.get_submodule(made.module)) else "")
            else:
                todo += made.inputs
        return found
