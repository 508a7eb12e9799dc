"""What else did a fine-tune change? Both models read the same texts, and each token's distributions are compared with one another.

Of a text, or an answer behind a prompt (the prompt's own tokens are not scored), over the positions at which both models have read the same bytes:

    kl_tuned_base_nats, kl_base_tuned_nats     mean KL of the next-token distributions, each way (`kl_shared_*` where vocabularies
                                               differ, and `mass_outside`, what the tuned model gives to tokens that the base lacks)
    top1_same                                  share of positions at which both have the same top-1 token
    loss_base_nats, loss_tuned_nats            -log p of what follows, per token of the base: of the whole text, so that the two may cut it otherwise
    loss_change_nats                           tuned less base; exp of its mean is the ratio of their perplexities

Of a prompt with options, by log p per byte of each option behind it:

    right_base, right_tuned                    1 where the right option is the likeliest, else 0
    right_change, margin_change_nats           tuned less base, of that and of the right option's lead over the best other one

Of a request, by log p per token (per byte where the vocabularies differ) of refusals and plain openings behind it:

    refusal_base, refusal_tuned                1 where refusals are likelier on average than plain openings, else 0
    refusal_change, refusal_soft_change_nats   tuned less base, of that and of the difference of the two means

0 nats: nothing changed. A copy of the base gives exactly 0 everywhere.

When it misleads: a loss that falls on texts like the training set is learning, and one that rises elsewhere may be the price of a new format. The
largest of many groups is partly chance, so tests are corrected over all groups and scores. Twelve texts a group show large changes alone. An option
may become likelier without the model ever saying it.
"""

import polars as pl
from jaxtyping import Float, Int
from torch import Tensor

from mechdiff import labels, shares
from mechdiff.engine.distributions import kl_nats, top1_same
from mechdiff.rows import rows


def losses(logits: Float[Tensor, "pos vocab"], said: Int[Tensor, " pos"]) -> float:
    """Sum of -log p in nats of the token `said` after each position."""
    wide = logits.logsumexp(-1).double() - logits.gather(-1, said[:, None])[:, 0].double()
    return float(wide.sum())


def apart(base: Float[Tensor, "pos vocab"], tuned: Float[Tensor, "pos vocab"], n_shared: int) -> dict[str, float]:
    """Means over positions of what both models say next, on the tokens that both have: the first `n_shared`."""
    b, t = base[:, :n_shared], tuned[:, :n_shared]
    names = [shares.BETWEEN[side][n_shared < base.shape[-1]] for side in ("base", "tuned")]
    found = dict(zip(names, (float(one.mean()) for one in (kl_nats(t, b), kl_nats(b, t))), strict=True)) | {
        "top1_same": float(top1_same(base, tuned).double().mean())
    }
    return found | ({"mass_outside": float(tuned.double().softmax(-1)[:, n_shared:].sum(-1).mean())} if n_shared < base.shape[-1] else {})


def told(name: str, group: str, values: dict[str, float]) -> pl.DataFrame:
    """Rows of one text or prompt, with the change of whatever was measured of both models."""
    found = dict(values)
    for what, change in (("loss", "loss_change_nats"), ("right", "right_change"), ("refusal", "refusal_change")):
        unit = "_nats" if what == "loss" else ""
        if f"{what}_base{unit}" in found:
            found[change] = found[f"{what}_tuned{unit}"] - found[f"{what}_base{unit}"]
    return rows(list(found.values()), measure="panel", split="panel", unit=labels.texts_unit(group), prompt=name, metric=list(found))
