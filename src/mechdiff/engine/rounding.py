"""How far does rounding alone move a model's next-token distribution? Every check that two ways of computing one thing agree is held against that.

A number of nats that is rounding in one model is a mistake in another: a wrong position moves a small random network by 0.005 nats, and rounding
to bfloat16 moves a model of 30 blocks on a sharp law by as much. So it is measured, on the very model and prompt, by whole forward passes in which
each block's two outputs (where it has no two, what leaves it) are rounded once more than they are: an eighth of the entries to the next number above,
an eighth to the one below. No way of running variants takes part in it, so none can hide its own mistake there. Two sound ways (other matrix shapes,
another attention kernel) differ by 0.3 to 3 of these draws' largest KL; a position that is off by one, or a hidden token, by tens to thousands.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import Edit, edited, forward
from mechdiff.models.pair import Model

CLOSE = 10
"""How many times what rounding does two ways may be apart."""
LEAST_NATS = {torch.float32: 1e-8, torch.float16: 1e-8, torch.bfloat16: 1e-7}
"""What is always taken for rounding, by the model's dtype: laws that hardly depend on the state say little of it."""
DRAWS = 8
ROUNDED = 1 / 8
"""The share of entries that are rounded up once more, and of those rounded down."""


def nats_between(reference: Float[Tensor, "*row vocab"], logits: Float[Tensor, "*row vocab"]) -> Float64[Tensor, "*row"]:
    """KL(reference || logits) in float64; infinite where a law is not one."""
    log_p, log_q = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0).nan_to_num(torch.inf)


def rounding_nats(
    model: Model, ids: Int[Tensor, " pos"], edits: Mapping[Site, Edit] | None = None, *, draws: int = DRAWS, alone: bool = False
) -> float:
    """Largest KL(whole pass of `ids` under `edits` || the same once more rounded) of some draws, all in one pass; `alone`: a pass each, for a
    network in which one text may depend on what stands beside it."""
    own = dict(edits or {})
    random = torch.Generator().manual_seed(0)
    outputs = [kind for kind in ("attn_out", "mlp_out") if kind in model.kinds()]
    places = outputs if len(outputs) == 2 else [*outputs, "resid_post"]
    rounded = own | {
        site: _rounded_after(own.get(site), torch.finfo(model.dtype).eps, random, kept=0 if alone else 1)
        for site in (Site(layer, kind) for layer in range(model.shape.n_layers) for kind in places)
    }

    def law(edits: Mapping[Site, Edit], rows: int) -> Tensor:
        with edited(model, edits):
            return forward(model, ids.expand(rows, -1), use_cache=False).logits[:, -1].float()

    found = torch.cat([law(own, 1), *(law(rounded, 1) for _ in range(draws))]) if alone else law(rounded, 1 + draws)
    apart = nats_between(found[0], found[1:])
    return float(apart[apart.isfinite()].max()) if apart.isfinite().any() else 0.0


def allowed_nats(model: Model, measured: float) -> float:
    """How far apart two ways may be where rounding once more does `measured` nats."""
    return max(LEAST_NATS[model.dtype], CLOSE * measured)


def _rounded_after(edit: Edit | None, step: float, random: torch.Generator, kept: int) -> Edit:
    """`edit`, and then all sequences but the first `kept` rounded once more."""

    def rounded(tensor: Tensor) -> None:
        if edit:
            edit(tensor)
        draws = tensor[kept:]
        drawn = torch.rand(draws.shape, generator=random).to(tensor.device)
        up = (drawn < ROUNDED).float() - (drawn > 1 - ROUNDED).float()
        draws.copy_(draws.float() * (1 + step * up))

    return rounded
