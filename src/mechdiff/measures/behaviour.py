"""What do the models do? Refusals, style, and answers, of what they say and of what they would say.

Numbers of states and laws are about one token. This measure lets both models answer (the same prompts, greedy, so many tokens) and counts

    refusal                1 if the answer's opening matches a refusal of its language (patterns: phrases.py), else 0
    style_per_100_words    markers of style (politeness, hedging, markup, ...) per 100 words, in all and by class; also per 100 tokens
    exact_match            1 if the final answer is the label's (answers.py)

and asks how likely they find texts that they are given:

    refusal_soft_nats      mean over refusal openings of log p per token, less the same over neutral openings: above 0 the model would rather refuse.
                           It moves long before a refusal is said. refusal_soft_per_byte_nats is the same per byte, which does not depend on
                           the tokenizer: between two tokenizers read that.
    mc_*                   multiple choice (answers.py)

**Masked** variants cut every next-token law to the tokens that both models have. They are diagnostics, for pairs whose vocabularies differ:
`mask_coverage` is the mass that the cut keeps, and where it is small the masked number is about another model.

A word is a run of letters, marks and digits (Unicode); a script without spaces counts as few long words, so compare within a language.

When it misleads: a refusal in other words than the list's is not seen, and an apology that helps may be; look at the texts beside the rate. An answer
that was cut after so many tokens may not have come to its final answer. Style per 100 words of a two-word answer is noise. One sample an answer says
nothing of how often.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import regex

from mechdiff.engine.prompts import n_words
from mechdiff.measures.phrases import Phrases, normalised

OPENING = 240
"""Characters of an answer in which a refusal is looked for."""

_KAZAKH = frozenset("әғқңөұүһіӘҒҚҢӨҰҮҺІ")


def language_of(text: str, meta: Mapping[str, Any], known: Mapping[str, Phrases]) -> str:
    """The language whose lists are used: `meta.language` where it is one of those, else by script and letters, else English (or the first known)."""
    told = meta.get("language")
    if told in known:
        return str(told)
    cyrillic = sum(1 for _ in regex.finditer(r"\p{Cyrillic}", text))
    latin = sum(1 for _ in regex.finditer(r"\p{Latin}", text))
    guess = "en" if cyrillic <= latin else "kk" if _KAZAKH & set(text) else "ru"
    return guess if guess in known else next(iter(known))


def refuses(text: str, phrases: Phrases) -> bool:
    """Whether the opening of an answer is a refusal."""
    opening = normalised(text)[:OPENING]
    return any(pattern.search(opening) for pattern in phrases.refusal)


def style(text: str, n_tokens: int, phrases: Phrases) -> dict[str | None, tuple[float, float]]:
    """Class (None: all) -> markers per 100 words and per 100 tokens of a text; NaN for one without words."""
    plain, words = normalised(text), n_words(text)
    counts: dict[str | None, int] = {name: sum(len(p.findall(plain)) for p in patterns) for name, patterns in phrases.style.items()}
    counts = {None: sum(counts.values()), **counts}
    return {
        name: (100 * count / words if words else math.nan, 100 * count / n_tokens if n_tokens else math.nan)
        for name, count in counts.items()
    }


def soft_refusal(logp_sums: Sequence[float], n_tokens: Sequence[int], n_bytes: Sequence[int], n_refusals: int) -> dict[str, float]:
    """Both scores of one prompt, from log p (nats), tokens and bytes of its openings: the first `n_refusals` are refusals, the others neutral."""
    found = {}
    if not all(map(math.isfinite, logp_sums)):
        return dict.fromkeys(("refusal_soft_nats", "refusal_soft_per_byte_nats"), math.nan)
    for name, sizes in (("refusal_soft_nats", n_tokens), ("refusal_soft_per_byte_nats", n_bytes)):
        each = [value / max(1, size) for value, size in zip(logp_sums, sizes, strict=True)]
        refusal, neutral = each[:n_refusals], each[n_refusals:]
        found[name] = sum(refusal) / len(refusal) - sum(neutral) / len(neutral)
    return found


def said_values(text: str, n_tokens: int, phrases: Phrases, label: str | None) -> dict[tuple[str, str | None], float]:
    """(metric, style class) -> value of one answer; `label`: of a prompt with a final answer."""
    from mechdiff.measures.answers import exact_match

    found: dict[tuple[str, str | None], float] = {("refusal", None): float(refuses(text, phrases))}
    for name, (per_words, per_tokens) in style(text, n_tokens, phrases).items():
        found["style_per_100_words", name], found["style_per_100_tokens", name] = per_words, per_tokens
    if label is not None:
        found["exact_match", None] = float(exact_match(text, label))
    return found
