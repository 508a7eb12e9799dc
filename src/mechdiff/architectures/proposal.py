"""An architecture that the table of families does not list gets a row from its own network, by what its tensors do and not by what they are called.

The network is built without weights and one pass of it is recorded (dataflow.py). In that record

- the *blocks* are the modules of one list that run one after the other, each on what the one before gave;
- the *residual stream* is what enters a block and leaves it as a sum: its other terms are what attention and MLP add (stream.py);
- *attention* is the term that holds a product of two activations (or a convolution, or a running sum) over positions, its *output projection* the
  matrix whose product is that term, or is normed into it; its *heads* are the axis that the projection's input was put together from (blocks.py);
- a matrix belongs to the half whose term it is an ancestor of.

A site that the record does not show is left out, and the row says why. Nothing of it is taken on trust: the engine's self-check proves the row on the
loaded weights before anything is measured.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mechdiff.architectures.blocks import read_block
from mechdiff.architectures.dataflow import PARAMETER, Call, Dataflow, trace
from mechdiff.architectures.families import Block, Family
from mechdiff.architectures.sizes import Shape
from mechdiff.architectures.stream import is_matrix, is_norm, shortest, streams_of
from mechdiff.errors import ModelError

LONGER = 300
"""Tokens of a second pass, where the first leaves modules of blocks unread."""


def propose(net: Any, config: Any) -> Family:
    """The row that the network's own pass shows; `net` lies on the meta device. Raises ModelError where it has no blocks that can be studied."""
    flow = trace(net)
    path, calls = _block_list(net, flow)
    blocks = _of_one_width(tuple(read_block(net, flow, call) for call in calls))
    left, state = calls[-1].outputs[0], flow.nodes[calls[0].inputs[0]].shape
    n_streams, streams_first = streams_of(state) or (1, False)
    width = state[-1]
    embed, head = _path_of(net, net.get_input_embeddings()), _path_of(net, net.get_output_embeddings()) or _last_matrix(net, flow)
    behind = (call for call in sorted(flow.calls, key=lambda call: call.first) if call.first >= calls[-1].last and call.inputs)
    norms = (call.path for call in behind if flow.root(call.inputs[0]) == flow.root(left) and is_norm(net.get_submodule(call.path)))
    final = next(norms, "") if n_streams == 1 else ""
    if embed is None or head is None:
        raise ModelError(f"no module is its {'embedding' if embed is None else 'unembedding'}")
    outside = {owner for owner in _weights_of(net, flow, [left]) if not owner.startswith(f"{path}.")}
    return Family(
        blocks=path,
        by_layer=blocks,
        embed=embed,
        embed_parts=tuple(sorted(outside - {embed, head})),
        end_parts=tuple(sorted(_weights_of(net, flow, _entered(flow, head), until=[left]) - outside - {embed, head, final})),
        final_norm=final,
        head=head,
        norm=norm_kind(net.get_submodule(final), width) if final else "rms",
        conv1d=any(type(module).__name__ == "Conv1D" for module in net.modules()),
        flat=any(block.flat for block in blocks),
        opaque=flow.opaque,
        unread=_unread(net, flow, path),
        streams=n_streams,
        streams_first=streams_first,
        tangled=_tangled(flow, calls),
        shape=replace(_shape(blocks, width, net.get_submodule(embed).weight.shape[0], config.get_text_config()), streams=n_streams),
    )


# ---- where things are --------------------------------------------------------------------------------------------------------------


def _block_list(net: nn.Module, flow: Dataflow) -> tuple[str, list[Call]]:
    """The longest list of modules that run one after the other on a state `[1, pos, d]` (or several side by side), and their runs."""
    found: list[tuple[int, int, str, list[Call]]] = []
    for path, module in net.named_modules():
        if not isinstance(module, nn.ModuleList):
            continue
        calls = [flow.by_path.get(f"{path}.{name}", []) for name, _ in module.named_children()]
        if calls and all(len(one) == 1 for one in calls) and _chained(flow, line := [one[0] for one in calls]):
            found.append((len(line), -path.count("."), path, line))
    if not found:
        raise ModelError(
            "no list of its modules is a chain of blocks, each run once on the state [text, position, d] that the one before gave"
        )
    _, _, path, line = max(found, key=lambda one: one[:2])
    return path, line


def _chained(flow: Dataflow, line: list[Call]) -> bool:
    if not all(call.inputs and call.outputs for call in line):
        return False
    shapes = {flow.nodes[node].shape for call in line for node in (call.inputs[0], call.outputs[0])}
    passed = all(flow.root(one.outputs[0]) == flow.root(other.inputs[0]) for one, other in pairwise(line))
    return passed and len(shapes) == 1 and streams_of(next(iter(shapes))) is not None


def _entered(flow: Dataflow, path: str) -> list[int]:
    """What enters a module."""
    return [call.inputs[0] for call in flow.by_path.get(path, ()) if call.inputs]


def _weights_of(net: nn.Module, flow: Dataflow, nodes: list[int], until: list[int] | None = None) -> set[str]:
    """The modules of whose weights some nodes were made, behind the nodes `until`."""
    made_of = flow.ancestors(nodes, until=until or (), before=len(flow.nodes))
    owners = {flow.nodes[node].module for node in made_of if flow.nodes[node].op == PARAMETER}
    return {owner for owner in owners if any(True for _ in net.get_submodule(owner).parameters(recurse=False))}


def _tangled(flow: Dataflow, calls: list[Call]) -> bool:
    """Whether a block reads what an earlier one made, other than what that one gave to the next."""
    made = [range(call.first, call.last) for call in calls]
    for at in range(1, len(calls)):
        given = {flow.root(node) for one in calls[:at] for node in one.outputs[:1]}
        for index in made[at]:
            earlier = (one for one in flow.nodes[index].inputs if flow.root(one) not in given and flow.nodes[one].op != PARAMETER)
            if any(one in before or flow.root(one) in before for one in earlier for before in made[:at]):
                return True
    return False


def _path_of(net: nn.Module, module: nn.Module | None) -> str | None:
    return next((path for path, one in net.named_modules() if one is module), None) if module is not None else None


def _last_matrix(net: nn.Module, flow: Dataflow) -> str | None:
    return next((call.path for call in reversed(flow.calls) if is_matrix(net.get_submodule(call.path))), None)


def _unread(net: nn.Module, flow: Dataflow, blocks: str) -> tuple[str, ...]:
    """The modules whose weights nothing was made of; inside the blocks neither in a text of LONGER tokens (what compresses distant positions)."""
    read = _read(flow)
    if any(path not in read and path.startswith(f"{blocks}.") and [*one.parameters(recurse=False)] for path, one in net.named_modules()):
        read |= _read(trace(net, LONGER))
    seen = {
        id(one) for path in read for one in net.get_submodule(path).parameters(recurse=False)
    }  # tied weights have one owner in the record
    owned = {path: [id(one) for one in module.parameters(recurse=False)] for path, module in net.named_modules() if path}
    return tuple(shortest({path: any(one in seen for one in its) for path, its in owned.items() if its}, False))


def _read(flow: Dataflow) -> set[str]:
    used = {at for node in flow.nodes for at in node.inputs}
    return {node.module for at, node in enumerate(flow.nodes) if node.op == PARAMETER and at in used}


# ---- sizes and norms ---------------------------------------------------------------------------------------------------------------


def _of_one_width(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """The blocks, without the site z where they differ in how many heads they have."""
    if all(block.heads for block in blocks) and len({block.heads[0] for block in blocks if block.heads}) == 1:
        return blocks
    if not any(block.heads for block in blocks):
        return blocks
    without = ({kind: place for kind, place in block.places.items() if kind != "z"} for block in blocks)
    why = "z: blocks differ in how many heads they have"
    return tuple(
        replace(block, heads=None, places=places, reasons=(*block.reasons, why)) for block, places in zip(blocks, without, strict=True)
    )


def _shape(blocks: tuple[Block, ...], d_model: int, vocab: int, config: Any) -> Shape:
    stated = config.to_dict()

    def size(*names: str) -> int | None:
        values = (stated.get(name, stated.get(config.attribute_map.get(name))) for name in names)
        return next((value for value in values if isinstance(value, int) and not isinstance(value, bool) and value > 0), None)

    n_heads, d_head = max(block.heads or (0, 0) for block in blocks)
    return Shape(
        n_layers=len(blocks),
        d_model=d_model,
        n_heads=n_heads,
        d_head=d_head,
        n_kv_heads=size("num_key_value_heads", "num_kv_heads", "multi_query_group_num") or n_heads,
        d_mlp=size("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim", "d_ff", "moe_intermediate_size") or 4 * d_model,
        vocab=vocab,
        context=size("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx", "max_sequence_length") or 1 << 20,
    )


def norm_kind(module: nn.Module, width: int) -> str:
    """What a norm of `width` coordinates does before its gain, as in Family.norm, by what a copy with other weights makes of random rows; "rms"
    where it is none of them."""
    copy, random = deepcopy(module).to_empty(device="cpu").float(), torch.Generator().manual_seed(0)
    for parameter in copy.parameters():
        parameter.data = torch.randn(parameter.shape, generator=random)
    weight, bias = (getattr(copy, name, None) for name in ("weight", "bias"))
    gain, shift = (torch.tensor(other) if one is None else one.detach() for one, other in ((weight, 1.0), (bias, 0.0)))
    rows = torch.randn(4, width, generator=random) * 3
    ways: dict[str, Callable[[], Tensor]] = {
        "rms": lambda: _normed(rows) * gain + shift,
        "layer": lambda: _normed(rows - rows.mean(-1, keepdim=True)) * gain + shift,
        "rms_plus_one": lambda: _normed(rows) * (gain + 1) + shift,
    }
    try:
        with torch.inference_mode():
            made = copy(rows)
    except (RuntimeError, TypeError, ValueError):
        return "rms"
    return next(
        (kind for kind, way in ways.items() if way().shape == made.shape and torch.allclose(way(), made, rtol=1e-3, atol=1e-3)), "rms"
    )


def _normed(rows: Tensor) -> Tensor:
    return rows / rows.square().mean(-1, keepdim=True).sqrt()
