"""Do the two models say different things next, and by how much?

At the decision position of each prompt, with p_t the tuned model's next-token law and p_b the base's, in nats:

    kl_tuned_base_nats = KL(p_t || p_b)       this is D, the total effect of the fine-tune: what patching has to explain
    kl_base_tuned_nats = KL(p_b || p_t)
    js_nats            = Jensen-Shannon divergence, symmetric, at most ln 2: for comparing the two directions
    top1_same          = 1 if both have the same most likely token, else 0

0 nats: the same law. The other end is open: each nat is a factor of e between the probabilities of what the tuned model says, on average.
D is infinite where the base excludes (logit -inf) a token that the tuned model allows.

**Over text**, the same at every position of the prompt and of a continuation that both models are made to read (teacher-forced; by default the
tuned model's own greedy one), token by token, and for each prompt

    first_divergence      the first position from the decision on at which the two most likely tokens differ: up to there both have said the same
    bits_per_byte_*       -log2 p(continuation) / its bytes, by each model: how surprising this continuation is to it

When it misleads: one position is one token. A fine-tune that changes how an answer opens has a large D at the first token whatever else it
learned, and one that changes only the fifth token has D = 0 here. D differs widely between prompts, often with a standard deviation above
its mean, so read the mean with its interval and beside the median. How the divergences are computed: `outcome.py`.
"""

import math

import polars as pl
from jaxtyping import Float, Float64, Int
from torch import Tensor

from mechdiff.measures.outcome import kl_and_js_nats, kl_nats, top1_same
from mechdiff.rows import rows


def measure(
    base_logits: Float[Tensor, "prompt vocab"], tuned_logits: Float[Tensor, "prompt vocab"], prompt_ids: list[str], split: str
) -> pl.DataFrame:
    """Rows of every divergence of each prompt, from both models' logits at the decision position."""
    found = divergences(base_logits, tuned_logits)
    return pl.concat(
        rows(value.numpy(), measure="divergence", split=split, prompt=prompt_ids, metric=metric) for metric, value in found.items()
    )


def divergences(base_logits: Float[Tensor, "row vocab"], tuned_logits: Float[Tensor, "row vocab"]) -> dict[str, Float64[Tensor, " row"]]:
    """Every divergence of each row of logits, on the CPU."""
    kl, js = kl_and_js_nats(tuned_logits, base_logits)
    return {
        "kl_tuned_base_nats": kl,
        "kl_base_tuned_nats": kl_nats(base_logits, tuned_logits),
        "js_nats": js,
        "top1_same": top1_same(base_logits, tuned_logits).cpu().double(),
    }


def over_text(
    base_logits: Float[Tensor, "pos vocab"],
    tuned_logits: Float[Tensor, "pos vocab"],
    continuation: Int[Tensor, " said"],
    *,
    n_bytes: int,
    prompt: str,
    split: str,
) -> pl.DataFrame:
    """Rows of every divergence at each position of one prompt and its continuation, whose tokens are `continuation`, `n_bytes` long as text.

    Logits at a position are the law of the token after it: the decision position is the one before the continuation's first token, and the last
    logits are those of its last token (of a prompt without a continuation, those of the decision position).
    """
    found = divergences(base_logits, tuned_logits)
    n_pos, n_said = len(base_logits), len(continuation)
    decision = n_pos - max(n_said, 1)
    columns = {"measure": "divergence", "split": split, "prompt": prompt}
    units = [f"token {i}" for i in range(n_pos)]
    frames = [rows(value.numpy(), unit=units, metric=metric, **columns) for metric, value in found.items()]
    apart = (found["top1_same"][decision:] == 0).nonzero()[:, 0]
    whole = {"first_divergence": float(apart[0]) + decision if len(apart) else math.nan}
    for name, logits in (("base", base_logits), ("tuned", tuned_logits)):
        whole[f"bits_per_byte_{name}"] = bits(logits[decision:], continuation) / n_bytes if n_bytes else math.nan
    return pl.concat([*frames, *(rows([value], metric=metric, **columns) for metric, value in whole.items())])


def bits(logits: Float[Tensor, "said vocab"], tokens: Int[Tensor, " said"]) -> float:
    """-log2 of the probability that these laws give to these tokens, one after the other."""
    log_p = logits.double().log_softmax(-1).gather(-1, tokens[:, None].to(logits.device))
    return float(-log_p.sum() / math.log(2))
