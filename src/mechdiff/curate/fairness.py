"""Two tokenizers are compared on a prompt: its length in each one's tokens, and the share of them that both vocabularies have.

A study that compares next-token laws only on shared tokens is tempted to keep the prompts that consist of them. **That selects on the treatment**:
where a fine-tune brought tokens of its own for a language, the prompts that are left are those with the least of that language. So no prompt
is dropped for its shared share unless asked for, and the record says which ones a limit keeps and loses: by category, by script, by length.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import regex

from mechdiff.prompts.sets import n_words
from mechdiff.prompts.vocabularies import Tokens, shared_tokens, vocabulary_of

SIDES = ("base", "tuned")
SCRIPTS = (
    "Latin",
    "Cyrillic",
    "Arabic",
    "Hebrew",
    "Han",
    "Hiragana",
    "Katakana",
    "Hangul",
    "Devanagari",
    "Greek",
    "Armenian",
    "Georgian",
    "Thai",
)
BINS = 10
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

SELECTS = (
    "this limit selects on the treatment: it keeps the prompts that need least of what the tuned tokenizer brought, so report what it dropped "
    "beside every number"
)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One prompt in both tokenizers."""

    tokens: Mapping[str, int]
    """By side."""
    shared: Mapping[str, float]
    """Share of each side's tokens that both vocabularies have, 0 to 1."""


class Tokenizers:
    """Both models' tokenizers, and which of their tokens are the same."""

    def __init__(self, base: Any, tuned: Any) -> None:
        self.tokenizers = {"base": base, "tuned": tuned}
        self.tokens: Tokens = shared_tokens(*(vocabulary_of(self.tokenizers[side]) for side in SIDES))
        self._shared = {side: self.tokens.shared_ids(side) for side in SIDES}

    def cut(self, text: str) -> Cut:
        """A prompt's own text, without a template."""
        ids = {side: self.tokenizers[side](text, add_special_tokens=False, verbose=False)["input_ids"] for side in SIDES}
        shared = {side: sum(one in self._shared[side] for one in found) / max(1, len(found)) for side, found in ids.items()}
        return Cut(tokens={side: len(found) for side, found in ids.items()}, shared=shared)


def script_of(text: str) -> str:
    """The script of most letters of a text."""
    counts = {script: len(regex.findall(rf"\p{{{script}}}", text)) for script in SCRIPTS}
    most = max(counts, key=counts.__getitem__)
    return most if counts[most] else "other"


class Fairness:
    """Every prompt that came to the limit, kept or dropped."""

    def __init__(self) -> None:
        self._seen: list[tuple[bool, str, str, str, Cut]] = []

    def note(self, kept: bool, text: str, category: str | None, cut: Cut) -> None:
        self._seen.append((kept, text, category or "(none)", script_of(text), cut))

    def record(self, tokens: Tokens, limit: float | None) -> dict[str, Any]:
        """Distributions of shares before the limit, and what it does; empty without prompts."""
        if not self._seen:
            return {}
        found: dict[str, Any] = {
            "tokenizers": tokens.said(),
            "limit": limit,
            "n": len(self._seen),
            "kept": sum(one[0] for one in self._seen),
        }
        for side in SIDES:
            shares = np.array([cut.shared[side] for *_, cut in self._seen])
            words = [max(1, n_words(text)) for _, text, *_ in self._seen]
            counts, edges = np.histogram(shares, bins=BINS, range=(0, 1))
            found[side] = {
                "mean": float(shares.mean()),
                "quantiles": {f"{q:g}": float(np.quantile(shares, q)) for q in QUANTILES},
                "histogram": {"edges": edges.round(3).tolist(), "counts": counts.tolist()},
                "tokens_per_word": float(sum(cut.tokens[side] for *_, cut in self._seen) / sum(words)),
            }
        if limit is not None:
            found |= {
                "said": SELECTS,
                "by_category": _by([one[2] for one in self._seen], self._seen),
                "by_script": _by([one[3] for one in self._seen], self._seen),
                "length": self._lengths(),
            }
        return found

    def _lengths(self) -> dict[str, dict[str, float]]:
        found = {}
        for name, kept in (("kept", True), ("dropped", False)):
            words = [n_words(text) for was_kept, text, *_ in self._seen if was_kept is kept]
            found[name] = {"mean_words": float(np.mean(words)), "median_words": float(np.median(words))} if words else {}
        return found


def _by(names: Sequence[str], seen: Sequence[tuple]) -> dict[str, dict[str, float]]:
    """What the limit keeps and drops of each group, the largest first."""
    groups: dict[str, list[tuple]] = defaultdict(list)
    for name, one in zip(names, seen, strict=True):
        groups[name].append(one)
    return {name: _kept_and_dropped(members) for name, members in sorted(groups.items(), key=lambda item: -len(item[1]))}


def _kept_and_dropped(members: Sequence[tuple]) -> dict[str, float]:
    kept = sum(one[0] for one in members)
    means = {f"mean_shared_{side}": float(np.mean([one[-1].shared[side] for one in members])) for side in SIDES}
    return {"kept": kept, "dropped": len(members) - kept, **means}
