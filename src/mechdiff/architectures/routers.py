"""A router chooses each token's experts. In a recorded pass it is found by what it does, never by what it is called.

It is the innermost module of a block that takes the largest of E scores of every token and gives these scores away: one of its outputs is
`[token, E]`, and what was chosen was made of it. An indexer of attention takes the largest of scores too, but gives away the choice alone.
"""

from mechdiff.architectures.dataflow import N_TOKENS, Call
from mechdiff.architectures.stream import Stream

_LARGEST = ("topk", "max")
"""Operations that take the largest of scores."""


def router_in(stream: Stream) -> str | None:
    """The path inside the block of the module that chooses experts; None where none does, or where it gives no scores away."""
    found = [call for call in stream.within if _chooses(stream, call)]
    return stream.inside(max(found, key=lambda call: call.path.count(".")).path) if found else None


def _chooses(stream: Stream, call: Call) -> bool:
    flow, nodes = stream.flow, stream.flow.nodes
    scored = [one for one in call.outputs if nodes[one].shape[:-1] in ((N_TOKENS,), (1, N_TOKENS)) and nodes[one].shape[-1] > 1]
    chosen = [at for at in range(call.first, call.last) if nodes[at].op in _LARGEST]
    if not scored or not chosen:
        return False
    behind = {flow.root(one) for one in flow.ancestors(chosen, until=call.inputs)} - {flow.root(one) for one in chosen}
    widths = {nodes[nodes[one].inputs[0]].shape[-1] for one in chosen}
    return any(flow.root(one) in behind and nodes[one].shape[-1] in widths for one in scored)
