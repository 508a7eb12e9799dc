"""Do the two models say different things next, and by how much?

At the decision position of each prompt, with p_t the tuned model's next-token law and p_b the base's, in nats:

    kl_tuned_base_nats = KL(p_t || p_b)       this is D, the total effect of the fine-tune: what patching has to explain
    kl_base_tuned_nats = KL(p_b || p_t)
    js_nats            = Jensen-Shannon divergence, symmetric, at most ln 2: for comparing the two directions
    top1_same          = 1 if both have the same most likely token, else 0

0 nats: the same law. The other end is open: each nat is a factor of e between the probabilities of what the tuned model says, on average.
D is infinite where the base excludes (logit -inf) a token that the tuned model allows.

When it misleads: one position is one token. A fine-tune that changes how an answer opens has a large D at the first token whatever else it
learned, and one that changes only the fifth token has D = 0 here. D differs widely between prompts, often with a standard deviation above
its mean, so read the mean with its interval and beside the median. How the divergences are computed: `outcome.py`.
"""

import polars as pl
from jaxtyping import Float
from torch import Tensor

from mechdiff.measures.outcome import js_nats, kl_nats, top1_same
from mechdiff.rows import rows


def measure(
    base_logits: Float[Tensor, "prompt vocab"], tuned_logits: Float[Tensor, "prompt vocab"], prompt_ids: list[str], split: str
) -> pl.DataFrame:
    """Rows of every divergence of each prompt, from both models' logits at the decision position."""
    found = {
        "kl_tuned_base_nats": kl_nats(tuned_logits, base_logits),
        "kl_base_tuned_nats": kl_nats(base_logits, tuned_logits),
        "js_nats": js_nats(base_logits, tuned_logits),
        "top1_same": top1_same(base_logits, tuned_logits).cpu().double(),
    }
    return pl.concat(
        rows(value.numpy(), measure="divergence", split=split, prompt=prompt_ids, metric=metric) for metric, value in found.items()
    )
