"""A text is described by its features: the phrases in it, how it begins and ends, its letters and language, its format, whether it repeats itself."""

import itertools
import re
import unicodedata
from collections.abc import Sequence

LONGEST = 4
"""Words of a phrase, at most."""
_PIECE = re.compile(r"\w+|[^\w\s]+")
REPEATS, ENDS, BREAKS, DIGITS, LISTS, MARKS, CODE, LONGER, SHORTER = (
    "repeats itself",
    "ends before it is cut off",
    "has a line break",
    "has a digit",
    "has a list",
    "has headings or bold words",
    "has code",
    "is longer than the other model's",
    "is shorter than the other model's",
)
_LIST = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)])\s+\S", re.MULTILINE)
_MARK = re.compile(r"^#{1,6} \S|\*\*\S", re.MULTILINE)
LANGUAGES = {
    "English": "the of and to in is that for it as with on are this be by was you",
    "Spanish": "el los las una para por con está como pero más del que de la en es y",
    "French": "le les des une est dans pour avec pas plus sur qui de la et du il à",
    "German": "der die das und ist nicht ein eine mit für auf von zu den sie es im",
    "Portuguese": "o os uma para com não é como mais do da em de que as um no na",
    "Italian": "il gli una per con non è come più della che di la e un sono nel",
}
"""Languages in Latin letters, by their most common words; the script tells others apart, and Turkish two letters."""
_COMMON = {language: frozenset(words.split()) for language, words in LANGUAGES.items()}
TURKISH = re.compile("[ğıĞİ]")
SPOKEN = 0.12
"""Share of its words that must be a language's most common ones for a text to be in it, and at least SPOKEN_WORDS of them."""
SPOKEN_WORDS = 3
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
            if ended and stop == len(pieces):
                found.add(ends(phrase))
    letters = [one for one in map(script, text) if one]
    if letters:
        found.add(f"is written in {max(sorted(set(letters)), key=letters.count)} letters")
    if (spoken := language(text)) not in (None, "English"):
        found.add(f"is in {spoken}")
    has = {
        REPEATS: loops(text), ENDS: ended, BREAKS: "\n" in text.strip(), DIGITS: bool(re.search(r"\d", text)), LISTS: bool(_LIST.search(text)),
        MARKS: bool(_MARK.search(text)), CODE: "```" in text,
    }  # fmt: skip
    return found | {name for name, so in has.items() if so}


def beside(tuned: int, base: int) -> tuple[set[str], set[str]]:
    """What each of two texts of so many tokens is by the other; two that were cut off are of one length."""
    if tuned == base:
        return set(), set()
    return ({LONGER}, {SHORTER}) if tuned > base else ({SHORTER}, {LONGER})


def contains(phrase: str) -> str:
    return f"contains “{phrase}”"


def begins(phrase: str) -> str:
    return f"begins with “{phrase}”"


def ends(phrase: str) -> str:
    return f"ends with “{phrase}”"


def language(text: str) -> str | None:
    """The language in Latin letters whose most common words a text has most of; None where it has too few, or as many of two."""
    if len(TURKISH.findall(text)) > 1:
        return "Turkish"
    words = [one.casefold() for one in re.findall(r"[^\W\d_]+", text)]
    counts = sorted(((sum(word in common for word in words), name) for name, common in _COMMON.items()), reverse=True)
    (most, name), (second, _) = counts[:2]
    return name if most >= max(SPOKEN_WORDS, SPOKEN * len(words)) and most > second else None


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
