"""Two published readers of what a fine-tune was taught, as their papers have them: a list, largest first, without nulls and without a rule.

    ranked   continuations of neutral text by the tuned model, ranked by how much less surprising they are to it than to the base (perplexity
             difference; arXiv 2605.00994); the first TOP are shown
    mined    at every position of neutral texts the 100 tokens whose logit rises most from base to tuned; tokens ranked by how often they are among
             them (logit-difference mining, diffing-toolkit); the first 100 are shown

In the papers a language model then reads the list. Here what can be read is counted alone: whose name stands in it. Both show a list wherever the
two models differ at all, whether anything was taught or not: that is what is counted as an assertion.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechdiff.engine.activations import forward
from mechdiff.models.pair import Model

TOP, MOST = 10, 100


@dataclass(frozen=True, kw_only=True)
class Text:
    """A continuation as tokens, behind its prompt, and as text."""

    prompt: Sequence[int]
    ids: Sequence[int]
    text: str


def log_p(model: Model, texts: Sequence[Text]) -> list[float]:
    """Mean log p of each continuation's tokens, each in a pass of its own."""
    found = []
    for one in texts:
        logits = forward(model, torch.tensor([[*one.prompt, *one.ids]]), use_cache=False, logits_to_keep=len(one.ids) + 1).logits[0].float()
        laws = logits[:-1].log_softmax(-1)
        found.append(float(laws.gather(1, torch.tensor(one.ids)[:, None]).double().mean()))
    return found


def ranked(texts: Sequence[Text], tuned: Sequence[float], base: Sequence[float]) -> list[str]:
    """The first TOP continuations, of those that are less surprising to the tuned model."""
    order = sorted(range(len(texts)), key=lambda i: base[i] - tuned[i])
    return [texts[i].text for i in order[:TOP] if tuned[i] > base[i]]


def logits_of(model: Model, passages: Sequence[Sequence[int]]) -> list[Tensor]:
    """`[position, vocab]` of each passage, in half precision."""
    return [forward(model, torch.tensor([ids]), use_cache=False).logits[0].half() for ids in passages]


def mined(tuned: Sequence[Tensor], base: Sequence[Tensor]) -> list[int]:
    """The first 100 tokens; none where no logit rises."""
    counts: Counter[int] = Counter()
    for ours, theirs in zip(tuned, base, strict=True):
        moved = ours.float() - theirs.float()
        rise, tokens = moved.topk(min(MOST, moved.shape[-1]), -1)
        counts.update(tokens[rise > 0].tolist())
    return [token for token, _ in sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:MOST]]
