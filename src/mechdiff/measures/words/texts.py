"""A text is described by its features: the phrases in it, how it begins and ends, its letters, whether it repeats itself."""

import itertools
import re
import unicodedata
from collections.abc import Sequence

LONGEST = 4
"""Words of a phrase, at most."""
_PIECE = re.compile(r"\w+|[^\w\s]+")
REPEATS, ENDS, BREAKS, DIGITS, LONGER, SHORTER = (
    "repeats itself",
    "ends before it is cut off",
    "has a line break",
    "has a digit",
    "is longer than the other model's",
    "is shorter than the other model's",
)
ALIKE = 0.7
"""Share of word triples that two texts have in common from which they count as one."""


def described(text: str, *, ended: bool) -> set[str]:
    """The features of one text."""
    pieces = list(_PIECE.finditer(text))
    found = set()
    for start in range(len(pieces)):
        for stop in range(start + 1, min(start + LONGEST, len(pieces)) + 1):
            phrase = " ".join(text[pieces[start].start() : pieces[stop - 1].end()].split())
            if "\N{REPLACEMENT CHARACTER}" in phrase:  # a part of a character, where a text was cut
                continue
            found.add(contains(phrase))
            if start == 0:
                found.add(begins(phrase))
    letters = [one for one in map(script, text) if one]
    if letters:
        found.add(f"is written in {max(sorted(set(letters)), key=letters.count)} letters")
    found |= {
        name
        for name, has in ((REPEATS, loops(text)), (ENDS, ended), (BREAKS, "\n" in text.strip()), (DIGITS, bool(re.search(r"\d", text))))
        if has
    }
    return found


def beside(tuned: int, base: int) -> tuple[set[str], set[str]]:
    """What each of two texts of so many tokens is by the other; two that were cut off are of one length."""
    if tuned == base:
        return set(), set()
    return ({LONGER}, {SHORTER}) if tuned > base else ({SHORTER}, {LONGER})


def contains(phrase: str) -> str:
    return f"contains “{phrase}”"


def begins(phrase: str) -> str:
    return f"begins with “{phrase}”"


def script(letter: str) -> str | None:
    """The writing system of a letter, by its Unicode name: "Cyrillic"; None for what is no letter."""
    return unicodedata.name(letter, "").partition(" ")[0].capitalize() or None if letter.isalpha() else None


def loops(text: str) -> bool:
    """Whether half of the word pairs of a text of at least eight words stand in it before."""
    words = text.split()
    pairs = list(itertools.pairwise(words))
    return len(words) >= 8 and 2 * len(set(pairs)) <= len(pairs)


def distinct(texts: Sequence[str]) -> list[int]:
    """The places of the texts that are no near copy of one before them."""
    kept = list[int]()
    triples = [_triples(text) for text in texts]
    for i, own in enumerate(triples):
        if all(len(own & triples[j]) < ALIKE * max(1, len(own | triples[j])) for j in kept):
            kept.append(i)
    return kept


def _triples(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return set(zip(words, words[1:], words[2:], strict=False)) or {tuple(words)}
