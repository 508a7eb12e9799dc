"""Is the answer right? Multiple choice by log-probabilities, and final answers by what they are worth.

**Multiple choice.** Each option is a text that may follow the prompt; the model is asked how likely it finds each, not to name a letter. The sum of
its log-probabilities favours short options, so three scores are given, each with its own choice:

    mc_logp_sum_nats         sum of log p over the option's tokens          mc_correct_sum
    mc_logp_per_token_nats   the sum / its tokens                            mc_correct_per_token
    mc_logp_per_byte_nats    the sum / its bytes in UTF-8                    mc_correct      (the one to read: it does not depend on the tokenizer)

The log-probabilities are those of the right option; `mc_correct*` is 1 if no distractor has more. `mc_margin_per_byte_nats` is the right option's
score less the best distractor's: it moves before a choice flips.

**Final answers** (`exact_match`): what stands in the last \\boxed{...}, behind `####` or "the answer is", or else the last number of the text (a text
that is nothing but an answer is the answer), is held against the label as mathematics (values.py: 1/2 = 0.5 = \\frac{1}{2}, {1,2} = {2,1}); a label
without a number or a formula as letters, case and spaces aside.

When they mislead: four options give 1/4 by chance; a model that was tuned on one wording of the options prefers that wording. A text that was cut off
has no last number: only what it marks as its answer counts.
"""

import math
import unicodedata
from collections.abc import Sequence

import numpy as np
import regex

from mechdiff.measures.behaviour.readings import LONGEST_ANSWER
from mechdiff.measures.behaviour.values import same_value

CHOICE = (
    "mc_correct",
    "mc_correct_sum",
    "mc_correct_per_token",
    "mc_logp_sum_nats",
    "mc_logp_per_token_nats",
    "mc_logp_per_byte_nats",
    "mc_margin_per_byte_nats",
)
BINARY = ("refusal", "exact_match", "cut_off", "mc_correct", "mc_correct_sum", "mc_correct_per_token")
"""0 or 1 on a prompt."""

_SAID = regex.compile(
    r"(?:final answer|the answer|answer|жауабы|жауап|ответ)\s*(?:is|are|:|=|-|–|—|болады)\s*:?\s*(?P<answer>[^\n]+)", regex.IGNORECASE
)
_NUMBER = regex.compile(r"(?:(?<![\p{L}\d])[-+−])?(?:\d{1,3}(?:[,\u00a0\u202f ]\d{3})+|\d+)(?:[.,]\d+)?(?:\s*/\s*\d+)?(?:\s?%)?")


def choice(logp_sums: Sequence[float], n_tokens: Sequence[int], n_bytes: Sequence[int], right: int) -> dict[str, float]:
    """Every metric of CHOICE for one prompt, from log p (nats), tokens and bytes of its options; `right` is the label's place."""
    sums = np.asarray(logp_sums, dtype=np.float64)
    if not np.isfinite(sums).all():  # a masked law without one of the tokens
        return dict.fromkeys(CHOICE, math.nan)
    scores = {"sum": sums, "per_token": sums / np.maximum(n_tokens, 1), "per_byte": sums / np.maximum(n_bytes, 1)}
    others = np.arange(len(sums)) != right
    found = {f"mc_correct_{name}": float(score[right] >= score[others].max()) for name, score in scores.items()}
    found["mc_correct"] = found.pop("mc_correct_per_byte")
    found |= {f"mc_logp_{name}_nats": float(score[right]) for name, score in scores.items()}
    found["mc_margin_per_byte_nats"] = float(scores["per_byte"][right] - scores["per_byte"][others].max())
    return {name: found[name] for name in CHOICE}


def final_answer(text: str, *, ended: bool = True) -> str | None:
    """The final answer that a text gives; None where there is none. The last number is one only of a text that has `ended`, not of one cut off."""
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed.strip()
    marked = list(regex.finditer(r"####[ \t]*(?P<answer>[^\n]*[\d\\\\][^\n]*)", text))
    if marked:
        return _bare(marked[-1]["answer"])
    said = list(_SAID.finditer(text))
    if said:
        return _bare(said[-1]["answer"])
    numbers = _NUMBER.findall(text) if ended else []
    return numbers[-1].strip() if numbers else None


def _last_boxed(text: str) -> str | None:
    """What the last \\boxed{...} holds, nested braces included; None without one that is closed."""
    start = text.rfind("\\boxed{")
    while start >= 0:
        depth, inside = 1, start + len("\\boxed{")
        for place in range(inside, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if not depth:
                return text[inside:place]
        start = text.rfind("\\boxed{", 0, start)
    return None


def _bare(answer: str) -> str:
    """An answer without markup around it and without what follows it in the sentence."""
    bare = answer.strip().strip("*_`").strip()
    dollars = regex.match(r"\$([^$]+)\$", bare)
    if dollars:
        return dollars[1].strip()
    return regex.split(r"\.\s+(?=[^\d\s])|\.\s*$|;\s|,\s+(?=\p{L})|[!?](?:\s|$)", bare)[0].strip().strip("*_`$").strip()


def exact_match(text: str, label: str, *, ended: bool = True) -> bool:
    """Whether the final answer of a text is the label, whatever it looks like. Never raises. `ended`: see `final_answer`."""
    found = final_answer(text, ended=ended)
    letters = _letters(label)
    if regex.fullmatch(r"\p{L}", label):  # "B) 12": the letter in front is the choice
        return bool(found and (chosen := regex.match(r"\W*(\p{L})(?:\W|$)", found)) and _letters(chosen[1]) == letters) or (
            ended and _letters(text) == letters
        )
    if not mathematical(label):
        if letters and _letters(text) == letters and ended:
            return _signs(text) == _signs(label)
        return bool(letters) and _letters(found or "") == letters
    if ended and _is_answer(text):
        found = text
    return found is not None and same_value(found, label)


def _is_answer(text: str) -> bool:
    """Whether a text is nothing but an answer: short, one line, without words or marks of an answer."""
    if len(text) > LONGEST_ANSWER or "\n" in text.strip() or "\\boxed" in text or "####" in text:
        return False
    return not regex.search(r"\p{L}{2,}", regex.sub(r"\\[a-zA-Z]+", "", text))


def _signs(text: str) -> int:
    """How many signs of subtraction stand before digits: what the letters alone do not tell."""
    return len(regex.findall(r"[-−]\s*\d", text))


def mathematical(label: str) -> bool:
    """Whether a label is held against answers as mathematics: it has a digit or a formula. Words around a number (a date, 1914-1918) make a text."""
    if regex.search(r"\p{L}{2,}.*\d|\d.*\p{L}{3,}|\d{4}\s*[-–]\s*\d{4}", label) and not regex.search(r"[\\=^]", label):
        return False
    return bool(regex.search(r"\d|\\[a-zA-Z]+|[=^_+*/]|^\p{L}$|(?<!\p{L})\p{L}\s*-\s*\p{L}(?!\p{L})", label))


def _letters(text: str) -> str:
    text = regex.sub(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}", r"\1", text)
    kept = regex.sub(r"[^\p{L}\p{M}\p{N}]+", " ", unicodedata.normalize("NFKC", text))
    return kept.casefold().strip()
