"""Do the two models predict different things next, and by how much?

At the last prompt token of each prompt, with p_t the tuned model's next-token distribution and p_b the base's, in nats:

    kl_tuned_base_nats = KL(p_t || p_b)       this is D, the total effect of the fine-tune: what patching has to explain
    kl_base_tuned_nats = KL(p_b || p_t)
    js_nats            = Jensen-Shannon divergence, symmetric, at most ln 2: for comparing the two directions
    top1_same          = 1 if both have the same most likely token, else 0

0 nats: the same distribution. The other end is open: each nat is a factor of e between the probabilities of what the tuned model says, on average.
D is infinite where the base excludes (logit -inf) a token that the tuned model allows: where their vocabularies differ it nearly always is.
Then two numbers say together what one cannot, and neither is published alone:

    kl_shared_nats     = KL(p_t || p_b) of both distributions on the tokens that both have, renormalised; shares of an effect are of this
    mass_outside       = what the tuned model gives to tokens that the base does not have (mass_outside_base: the reverse)

With nothing outside in the base, KL(p_b || p_t) = kl_shared_base_tuned_nats - log(1 - mass_outside), exactly. A token that the base would say in
two steps counts as outside, though the text is the same. What the text's next byte is does not depend on how a model cuts it:

    kl_byte_nats       = KL(p_t || p_b) of the next byte: tokens summed by their first byte, special tokens as one more. At most D (grouping
                         loses), 0 for two models that write the same bytes in other tokens. It sees one byte ahead, no more.

And how finely each tokenizer cuts the prompt's own text: tokens_per_word_*, tokens_per_byte_* (a word is a run of letters, marks and digits).

    fisher_total_nats  = (KL(p_t || p_b) + KL(p_b || p_t)) / 2, on the tokens that both have: what shares that add are shares of (overlap.py)

**Over text**, the same at every position of the prompt and of a continuation that both models are made to read (teacher-forced; by default the
tuned model's own greedy one), token by token, and for each prompt

    first_divergence      the first position from the decision on at which the two most likely tokens differ: up to there both have said the same
    bits_per_byte_*       -log2 p(continuation) / its bytes, by each model: how surprising this continuation is to it

**Over answers**, at every position of the first tokens that the tuned model says (`answers` of a study), which both models have read. Each prompt's
value is the mean over its positions, so that a long answer counts as much as a short one:

    kl_tuned_base_answer_nats, kl_base_tuned_answer_nats, fisher_total_answer_nats      what shares over answers are shares of
    log_ratio_*_answer_nats    log p(tuned model's top-1 token) - log p(the base's) in either model: negative in the base, positive in the tuned one
    top1_same_answer           the share of positions at which both have the same top-1 token
    divergent_place            the first position at which they have not (0 is the last prompt token); `*_divergent_nats` are the values there

When it misleads: one position is one token. A fine-tune that changes how an answer opens has a large D at the first token whatever else it
learned, and one that changes only the fifth token has D = 0 here. D differs widely between prompts, often with a standard deviation above
its mean, so read the mean with its interval and beside the median. How the divergences are computed: `outcome.py`.
"""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from mechdiff import labels, shares
from mechdiff.engine.counterfactuals import first_parting
from mechdiff.engine.distributions import kl_and_js_nats, kl_nats, logit_diff_divergent, top1_same
from mechdiff.engine.outcome import CleanLogits
from mechdiff.engine.overlap import total_nats
from mechdiff.prompts.sets import n_words
from mechdiff.prompts.vocabularies import Tokens
from mechdiff.rows import TOTAL, rows

_BYTE = re.compile("<0x[0-9A-F]{2}>")


def measure(
    base_logits: Float[Tensor, "prompt vocab"],
    tuned_logits: Float[Tensor, "prompt vocab"],
    prompt_ids: list[str],
    split: str,
    tokens: Tokens | None = None,
    unit: str | None = None,
) -> pl.DataFrame:
    """Rows of every divergence of each prompt, from both models' logits at the decision position; `tokens` lists the vocabulary's."""
    found = divergences(base_logits, tuned_logits)
    if tokens:
        found |= across_vocabularies(base_logits, tuned_logits, tokens)
        found[TOTAL] = total_nats(base_logits, tuned_logits, tokens.n_shared)
        found["kl_byte_nats"] = next_byte_nats(base_logits, tuned_logits, tokens.first_bytes)
    return pl.concat(
        rows(value.numpy(), measure="divergence", split=split, unit=unit, prompt=prompt_ids, metric=metric)
        for metric, value in found.items()
    )


def over_answers(
    base_logits: Float[Tensor, "place vocab"],
    tuned_logits: Float[Tensor, "place vocab"],
    lengths: Sequence[int],
    prompt_ids: Sequence[str],
    split: str,
    n_shared: int | None = None,
) -> pl.DataFrame:
    """Rows of each prompt over its answer, from both models' logits at every position (`lengths` of them a prompt), on the tokens that both have."""
    base, tuned = base_logits[:, :n_shared], tuned_logits[:, :n_shared]
    parting = first_parting(CleanLogits(base=base, tuned=tuned), lengths)
    same = top1_same(base, tuned).double()
    at = {side: logit_diff_divergent(law, tuned, base).nan_to_num(nan=0.0) for side, law in (("base", base), ("tuned", tuned))}
    by_place = {
        "kl_tuned_base_nats": kl_nats(tuned, base),
        "kl_base_tuned_nats": kl_nats(base, tuned),
        TOTAL: total_nats(base, tuned),
        **{f"log_ratio_{side}_nats": values.cpu() for side, values in at.items()},
    }
    found = {"top1_same_answer": [float(one.mean()) for one in same.split(list(lengths))]}
    found["divergent_place"] = [math.nan if place is None else float(place) for place in parting]
    for name, values in by_place.items():
        split_up = values.split(list(lengths))
        found[shares.over(name, shares.ANSWER)] = [float(one.mean()) for one in split_up]
        places = zip(split_up, parting, strict=True)
        found[shares.over(name, shares.DIVERGENT)] = [math.nan if place is None else float(one[place]) for one, place in places]
    columns = {"measure": "divergence", "split": split, "prompt": list(prompt_ids)}
    return pl.concat(rows(values, metric=metric, **columns) for metric, values in found.items())


def total_effect(
    base_logits: Float[Tensor, "prompt vocab"], tuned_logits: Float[Tensor, "prompt vocab"], tokens: Tokens
) -> Float64[Tensor, " prompt"]:
    """What shares are shares of, on the CPU: D, of the laws on the tokens that both models have."""
    return kl_nats(tuned_logits[..., : tokens.n_shared], base_logits[..., : tokens.n_shared])


def across_vocabularies(
    base_logits: Float[Tensor, "row vocab"], tuned_logits: Float[Tensor, "row vocab"], tokens: Tokens
) -> dict[str, Float64[Tensor, " row"]]:
    """What two vocabularies add, of each row, on the CPU: nothing where they are equal."""
    if tokens.all_shared:
        return {}
    base, tuned = base_logits[..., : tokens.n_shared], tuned_logits[..., : tokens.n_shared]
    outside = {
        side: logits.double().softmax(-1)[..., tokens.n_shared :].sum(-1).cpu()
        for side, logits in (("base", base_logits), ("tuned", tuned_logits))
    }
    found = {
        "mass_outside": outside["tuned"],
        "kl_shared_nats": kl_nats(tuned, base),
        "kl_shared_base_tuned_nats": kl_nats(base, tuned),
    }
    return found | ({"mass_outside_base": outside["base"]} if tokens.relation != "extended" else {})


def next_byte_nats(
    base_logits: Float[Tensor, "row vocab"], tuned_logits: Float[Tensor, "row vocab"], first_bytes: Int64[np.ndarray, " vocab"]
) -> Float64[Tensor, " row"]:
    """KL(tuned || base) of the next byte, in float64 on the CPU; `first_bytes` of every token, 256 for what is no text."""
    groups = torch.from_numpy(first_bytes).expand(base_logits.shape)
    laws = [
        torch.zeros(len(logits), 257, dtype=torch.float64).scatter_add_(1, groups, logits.cpu().double().softmax(-1))
        for logits in (base_logits, tuned_logits)
    ]
    base, tuned = laws
    terms = torch.where(tuned > 0, tuned * (tuned.log() - base.log()), 0.0)
    return terms.sum(-1).clamp(min=0)


def fragmentation(texts: Sequence[str], n_tokens: Mapping[str, Sequence[int]], prompt_ids: Sequence[str], split: str) -> pl.DataFrame:
    """Rows of how finely each tokenizer cuts each text, from each one's number of tokens ("base", "tuned"). No row for a text without words."""
    frames = []
    sizes = {"word": [n_words(text) for text in texts], "byte": [len(text.encode()) for text in texts]}
    for side, counts in n_tokens.items():
        for what, size in sizes.items():
            known = [(name, count / n) for name, count, n in zip(prompt_ids, counts, size, strict=True) if n]
            columns = {"measure": "divergence", "split": split, "metric": f"tokens_per_{what}_{side}"}
            frames.append(rows([value for _, value in known], prompt=[name for name, _ in known], **columns))
    return pl.concat(frames)


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
    *,
    decision: int,
    bits_per_byte: Mapping[str, float],
    columns: Mapping[str, str],
    tokens: Tokens | None = None,
) -> pl.DataFrame:
    """Rows of every divergence at each position of one prompt and its continuation.

    Logits at a position are the law of the token after it; `decision` is the position before the continuation's first token. `bits_per_byte` of the
    continuation by each model ("base", "tuned"); a model that is not in it has none. `columns` name the prompt and its split.
    """
    found = divergences(base_logits, tuned_logits) | (across_vocabularies(base_logits, tuned_logits, tokens) if tokens else {})
    n_pos = len(base_logits)
    named = {"measure": "divergence", **columns}
    units = [labels.token_unit(i) for i in range(n_pos)]
    frames = [rows(value.numpy(), unit=units, metric=metric, **named) for metric, value in found.items()]
    apart = (found["top1_same"][decision:] == 0).nonzero()[:, 0]
    whole = {"first_divergence": float(apart[0]) + decision if len(apart) else math.nan}
    for name in ("base", "tuned"):
        whole[f"bits_per_byte_{name}"] = bits_per_byte.get(name, math.nan)
    return pl.concat([*frames, *(rows([value], metric=metric, **named) for metric, value in whole.items())])


def bits(logits: Float[Tensor, "said vocab"], tokens: Int[Tensor, " said"]) -> float:
    """-log2 of the probability that these laws give to these tokens, one after the other."""
    log_p = logits.double().log_softmax(-1).gather(-1, tokens[:, None].to(logits.device))
    return float(-log_p.sum() / math.log(2))


def kind_of(token: str) -> str:
    """What kind of token a text is: "spaces and line ends", "digits", "words" (whatever has a letter), "punctuation", or "parts of characters" (bytes
    alone, as `Vocabulary.text` writes them)."""
    bare = _BYTE.sub("", token).strip()
    if not bare and _BYTE.search(token):
        return "parts of characters"
    if not bare:
        return "spaces and line ends"
    if any(one.isalpha() for one in bare):
        return "words"
    return "digits" if any(one.isdigit() for one in bare) else "punctuation"
