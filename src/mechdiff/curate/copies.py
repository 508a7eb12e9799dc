"""Copies and near copies are found among prompts, in any script.

Two texts are the same if they are equal once letters are normalised (NFKC), case is folded and white space collapsed. They are near by the Jaccard
similarity of their sets of five-character pieces: the share of pieces that they have in common. Candidates are found by MinHash and locality-
sensitive hashing (datasketch), and the true similarity of each is computed.

- at or above the threshold (0.8): the later one is a near copy and is removed;
- at or above half: both stay, in one cluster, so that a split never parts them. What was fitted on one template is not reported on its twin.
  Prompts with one question and other options share a cluster too.
"""

import unicodedata
from collections.abc import Iterator

from datasketch import MinHash, MinHashLSH

PIECE = 5
"""Characters of a piece."""
RELATED = 0.5
"""Similarity from which two prompts share a cluster."""
_HASHES = 128
_LOOKED_AT = 0.3
"""Similarity that hashing looks for: lower than what is asked, since it misses pairs near its threshold."""


def plain(text: str) -> str:
    """A text as copies are told by."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def pieces(text: str) -> frozenset[str]:
    """The five-character pieces of a text."""
    text = plain(text)
    return frozenset(text[i : i + PIECE] for i in range(max(1, len(text) - PIECE + 1)))


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard similarity of two sets of pieces: 1 for equal ones."""
    return len(one & other) / len(one | other)


class Copies:
    """What has been kept so far."""

    def __init__(self, *, threshold: float, seed: int) -> None:
        self.threshold, self.seed = threshold, seed
        self._texts: set[str] = set()
        self._first: dict[str, str] = {}
        self._pieces: dict[str, frozenset[str]] = {}
        self._index = MinHashLSH(threshold=_LOOKED_AT, num_perm=_HASHES)
        self._parent: dict[str, str] = {}

    def same(self, text: str) -> bool:
        """Whether a copy was kept already."""
        return plain(text) in self._texts

    def asked(self, question: str) -> str | None:
        """The name of the first prompt that was kept with this question, whatever its options."""
        return self._first.get(plain(question))

    def near(self, text: str) -> Iterator[tuple[str, float]]:
        """Names and similarities of the kept prompts that are related to a text."""
        ours = pieces(text)
        for name in self._index.query(self._hash(ours)):
            near = similarity(ours, self._pieces[name])
            if near >= min(RELATED, self.threshold):
                yield name, near

    def keep(self, name: str, text: str, related: list[str], *, question: str) -> None:
        """Notes a prompt that is kept (with its options, and its question alone), and the kept ones that it shares a cluster with."""
        self._first.setdefault(plain(question), name)
        ours = pieces(text)
        self._texts.add(plain(text))
        self._pieces[name] = ours
        self._index.insert(name, self._hash(ours))
        self._parent[name] = name
        for other in related:
            first, second = sorted((self.cluster(name), self.cluster(other)))
            self._parent[second] = first

    def cluster(self, name: str) -> str:
        """The name of a kept prompt's cluster: the first in order of its members."""
        while self._parent[name] != name:
            name = self._parent[name]
        return name

    def _hash(self, ours: frozenset[str]) -> MinHash:
        found = MinHash(num_perm=_HASHES, seed=self.seed % 2**32)
        found.update_batch([piece.encode() for piece in sorted(ours)])
        return found
