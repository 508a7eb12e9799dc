"""What do the tuned model's answers do that the base's do not? Features of both answers to each prompt, and one test of all of them.

Features of an answer: how it begins (its first one to four words or signs), signs that are no words in it ("####"), whether it has a digit or a line
break, the letters it is mostly written in, and whether it is longer or shorter than the other model's.

    x_ij = 1 where the tuned model's answer to prompt i has feature j and the base's does not, -1 the other way, else 0; of prompts that share a
           cluster their mean
    p_j  = share of the 2^n exchanges of the two models' answers within prompts (clusters) in which the largest |sum_i x_ik|, over all features k
           that are seen no more often than j, is at least |sum_i x_ij|; never under the p of a feature before it

If it made no difference which model answers, an exchange within a prompt would be as likely as what was seen. So p is exact (n up to EXACT; else of
DRAWS exchanges) and family-wise over every feature, however many: of studies without a difference a share of 0.05 names anything. It misleads
where answers were cut off: what comes later is not seen. (Westfall and Young 1993: max-T, stepping down.)
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

LONGEST = 4
"""Words or signs of a beginning."""
EXACT, DRAWS = 12, 4095
"""Prompts up to which all exchanges are made, and how many are drawn of more."""
LEVEL = 0.05
_PIECE = re.compile(r"\w+|[^\w\s]+")


@dataclass(frozen=True, kw_only=True)
class Said:
    """One feature of the answers."""

    kind: str
    """begin, contain, has, written, than."""
    text: str
    base: int
    tuned: int
    """Answers that have it."""
    n: int
    p: float
    """Family-wise over all features."""

    @property
    def gained(self) -> bool:
        return self.tuned > self.base


def features(text: str, other: str) -> set[tuple[str, str]]:
    """(kind, text) of one answer beside the other model's to the same prompt."""
    pieces = [piece for piece in _PIECE.finditer(text) if "\N{REPLACEMENT CHARACTER}" not in piece[0]]
    found = {("begin", text[pieces[0].start() : piece.end()]) for piece in pieces[:LONGEST]}
    found |= {("contain", piece[0]) for piece in pieces if not re.match(r"\w", piece[0]) and piece[0] not in ".,;:!?'\"()-"}
    if re.search(r"\d", text):
        found.add(("has", "a number"))
    if "\n" in text.strip():
        found.add(("has", "several lines"))
    letters = [name for name in map(_letters, text) if name]
    if letters:
        found.add(("written", max(sorted(set(letters)), key=letters.count)))
    if len(text.split()) < len(other.split()):
        found.add(("than", "shorter"))
    return found


def _letters(letter: str) -> str | None:
    return unicodedata.name(letter, "").partition(" ")[0].capitalize() or None if letter.isalpha() else None


def apart(base: Sequence[str], tuned: Sequence[str], clusters: Sequence[str] = (), *, seed: int = 0) -> list[Said]:
    """Every feature by its p; of features that are in the same answers the most telling alone.

    `base` and `tuned`: answers to the same prompts. `clusters`: the cluster of each prompt; empty: every prompt is one.
    """
    theirs = [features(one, other) for one, other in zip(base, tuned, strict=True)]
    ours = [features(one, other) for other, one in zip(base, tuned, strict=True)]
    names = sorted(set().union(*theirs, *ours))
    if not names:
        return []
    in_base, in_tuned = (np.array([[name in one for name in names] for one in of], dtype=int) for of in (theirs, ours))
    p = exchanged(_by_cluster(in_tuned - in_base, clusters or [str(i) for i in range(len(base))]), seed=seed)
    best: dict[tuple, Said] = {}
    for place, (kind, text) in enumerate(names):
        one = Said(
            kind=kind, text=text, base=int(in_base[:, place].sum()), tuned=int(in_tuned[:, place].sum()), n=len(base), p=float(p[place])
        )
        key = (tuple(in_base[:, place]), tuple(in_tuned[:, place]))
        if key not in best or _telling(one) > _telling(best[key]):
            best[key] = one
    return sorted(best.values(), key=lambda one: (one.p, -abs(one.tuned - one.base), *(-part for part in _telling(one)), one.text))


def _by_cluster(x: Int[ndarray, "prompt feature"], clusters: Sequence[str]) -> Float[ndarray, "cluster feature"]:
    """The mean of each cluster's prompts."""
    return np.array([x[[name == one for name in clusters]].mean(axis=0) for one in dict.fromkeys(clusters)])


KINDS = ("than", "has", "written", "contain", "begin")
"""From the least telling to the most."""


def _telling(one: Said) -> tuple[int, int]:
    return KINDS.index(one.kind), len(one.text)


def exchanged(x: Float[ndarray, "unit feature"], *, seed: int = 0) -> Float[ndarray, " feature"]:
    """Family-wise p of each column's sum under exchanges of sign within rows, stepping down from the largest sum."""
    n, seen = len(x), np.abs(x.sum(axis=0))
    if n <= EXACT:
        signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
    else:
        drawn = np.random.default_rng(seed).choice((-1, 1), size=(DRAWS, n))
        signs = np.concatenate([np.ones((1, n), int), drawn])
    order = np.argsort(-seen, kind="stable")
    sums = np.abs(signs @ x[:, order])
    largest = np.maximum.accumulate(sums[:, ::-1], axis=1)[:, ::-1]  # over this feature and all that are seen no more often
    first = np.searchsorted(-seen[order], -seen[order])  # features that are seen as often are tested together
    p = np.maximum.accumulate((largest[:, first] >= seen[order] - 1e-9).mean(axis=0))
    return p[np.argsort(order)]
