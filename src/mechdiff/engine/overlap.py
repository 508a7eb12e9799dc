"""How far does a run move the logits the way that leads from one model to the other? A share that adds, and does not grow with the change.

A divergence grows as the square of a small edit and bends for a large one, so shares of D of two edits are no sums, and how evenly they fall
over the parts hangs on how large the whole change is. Logits add. With z the logits of a run, z_own and z_other the two models' clean ones, p their
next-token distributions,

    overlap(run) = 1/2 sum_v (p_other - p_own)_v (z - z_own)_v          in nats
    total        = overlap of z_other = (KL(p_own || p_other) + KL(p_other || p_own)) / 2

The first is half of what the run adds to the logit that is expected of a token that the other model says, less that of a token that its own model
says: a logit difference (Heimersheim & Nanda 2024, arXiv 2404.15255), of all tokens by their probabilities instead of two. It is linear in the run's
logits. It is also a projection: <x, y> = the mean of Cov_{p_s}(x, y) along the straight line of logits from one model to the other is the Fisher
information, averaged over the way, and overlap = <z - z_own, z_other - z_own> / 2, for every size of the change, not for small ones alone.

0: what the run does has nothing to do with the difference of the models. total: it does all of it. Negative: it leads the other way. Overlaps of
edits that do not meet (other sites, other modules) add up to the overlap of both together, as far as the network is linear in between; the writes of
all sites add up to more than the total, because what a site holds has come from sites below it, too.

Why this inner product. One fine-tune at strengths from 1/4 to 8 (D from 0.01 to 2.9 nats) has 23, 23, 23, 21 and 21 effective sites by it where the
base runs; under the base's own distribution, the tuned model's, or a uniform one the number falls or rises with the size (docs/COMPARE.md has the
table, `python benchmarks/spread.py` makes it).

When it misleads: where one model excludes a token (logit -inf) the total is infinite. Where the tuned model runs and the change is large, what one
site does hangs on what the others have changed already, and no inner product mends that.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mechdiff.engine.distributions import kl_nats

_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}
"""Logits moved at a time: on a CPU few enough to stay in its cache, where this is a twentieth of what the divergences cost."""


def leading(
    own: Float[Tensor, "prompt vocab"], other: Float[Tensor, "prompt vocab"], n_shared: int | None = None
) -> Float[Tensor, "prompt vocab"]:
    """(p_other - p_own) / 2: the weights of a run's change of logits. Of the first `n_shared` tokens, renormalised; 0 on the others."""
    weights = torch.zeros_like(own, dtype=torch.float64 if own.dtype == torch.float64 else torch.float32)
    cut = slice(None, n_shared)
    weights[..., cut] = (other[..., cut].to(weights.dtype).softmax(-1) - own[..., cut].to(weights.dtype).softmax(-1)) / 2
    return weights


@torch.no_grad()
def overlap_nats(
    logits: Float[Tensor, "prompt run vocab"],
    own: Float[Tensor, "prompt vocab"],
    other: Float[Tensor, "prompt vocab"],
    n_shared: int | None = None,
) -> Float64[Tensor, "prompt run"]:
    """The overlap of each run, on the CPU; `own` is the clean model that runs."""
    found = torch.empty(logits.shape[:2], dtype=torch.float64)
    rows = max(1, _ELEMENTS.get(logits.device.type, _ELEMENTS["cuda"]) // logits.shape[-1])
    for i, weights in enumerate(leading(own, other, n_shared)):
        clean = own[i].to(weights.dtype)
        excluded = clean == -torch.inf
        for start in range(0, logits.shape[1], rows):
            moved = logits[i, start : start + rows].to(weights.dtype) - clean
            if excluded.any():
                moved.masked_fill_(excluded, 0)
            found[i, start : start + rows] = (moved @ weights).double().cpu()
    return found


def total_nats(
    base: Float[Tensor, "prompt vocab"], tuned: Float[Tensor, "prompt vocab"], n_shared: int | None = None
) -> Float64[Tensor, " prompt"]:
    """What overlaps are shares of, on the CPU: half the sum of both divergences between the models."""
    base, tuned = base[..., :n_shared], tuned[..., :n_shared]
    return (kl_nats(tuned, base) + kl_nats(base, tuned)) / 2
