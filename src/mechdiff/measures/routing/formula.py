"""Does a fine-tune send tokens to other experts, and is that the routers' doing or that of what they are given?

A router gives each of E experts a score at every position and sends the token to k of them. With c_b and c_t the sets of experts that the two
models choose, and g_b and g_t their gates over all E experts (engine/routers.py says what the gate of a softmax and of a sigmoid router is):

    top1_expert_changed  = 1 where the chosen expert of the largest weight is another one
    expert_set_changed   = 1 where c_b and c_t are not the same set
    experts_replaced     = |c_b without c_t| / k
    gate_js_nats         = JS(g_t, g_b), at most ln 2 = 0.693 nats

each at the last prompt token, and as the mean over all positions that both models cut alike. 0: every token goes where it went; the gates are
the same.

The trivial explanation is that the router is the same and reads another state, or the reverse. With R_m(x) what model m's router makes of x:

    router_weights_alone   R_t(x_b) against R_b(x_b): the fine-tune's router on the states of the base
    inputs_alone           R_b(x_t) against R_b(x_b): the base's router on the states of the fine-tune
    no_op                  R_b(x_b), asked again outside the pass, against the pass: 0 exactly, or what asking a router by itself strays

The two need not add up to the whole: a token moves once, whichever of them would do.

When it misleads: experts that do nearly the same make a move without a meaning, so the share of tokens that move says nothing of what the model
then does; a small change of the gate moves a token whose two best experts tie (read JS beside it); shared experts are not routed and not seen; of
experts whose weights changed, but not the choice of them, this says nothing.
"""

import polars as pl
from jaxtyping import Float64
from torch import Tensor

from mechdiff import labels
from mechdiff.engine.distributions import js_nats
from mechdiff.engine.routers import Choice, Gate, gate_logits
from mechdiff.measures.routing.plan import JS, REPLACED, SET, TOP
from mechdiff.rows import rows


def moved(base: Choice, other: Choice, gate: Gate | None) -> dict[str, Float64[Tensor, " pos"]]:
    """Each metric at every position; without a gate no JS."""
    kept = (base.chosen & other.chosen).sum(-1)
    found = {
        TOP: base.top != other.top,
        SET: (base.chosen != other.chosen).any(-1),
        REPLACED: 1 - kept.double() / base.chosen.sum(-1),
    }
    if gate:
        found[JS] = js_nats(gate_logits(other, gate), gate_logits(base, gate))
    return {metric: values.double() for metric, values in found.items()}


def measure(found: dict[str, Float64[Tensor, " pos"]], *, layer: int, control: str | None, prompt: str, split: str) -> pl.DataFrame:
    """Rows of one prompt at one block: the mean over its positions, and the last of them, which is the decision position."""
    columns = {"measure": "routing", "layer": layer, "control": control, "prompt": prompt, "split": split}
    frames = []
    for metric, values in found.items():
        for position, value in (("all", values.mean()), ("decision", values[-1])):
            frames.append(rows([float(value)], unit=labels.experts_unit(position), metric=metric, **columns))
    return pl.concat(frames)


def sizes(choice: Choice) -> tuple[int, int]:
    """How many experts there are, and how many of them a token is sent to."""
    return choice.chosen.shape[-1], int(choice.chosen.sum(-1).max())
