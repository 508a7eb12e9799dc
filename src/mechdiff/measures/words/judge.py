"""Which lines of evidence are named: those that replicate, and that lie beyond what pairs that were taught nothing show. No torch here.

Null pairs are made of the base alone, each dirty in its own way, so each has its own number: the base against itself with other draws; the base
against itself with a random edit that diverges as far as the fine-tune does; and the pair itself with its two models exchanged unit by unit at
random.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEVEL = 0.05
MARGIN = 2.0
"""Times the largest size on any null pair that a named line of tokens must have."""
MARGIN_OF_TEXTS = 3.0
"""The same of a share of texts. Random edits that move an answer's first token by nats differ among themselves by more than two."""
WAY = 0.75
"""A phrase's share cannot pass 1: this much of the way from the largest on any null pair to 1 is enough."""
LEAST_SHARE = 0.5
"""Of a phrase, in any case. A base that never says it has no chance variation of its own that would stand in its way."""
LEAST_SIZE = 6.0
"""Of tokens, in any case: among a thousand tokens of a normal distribution some lie 3.3 standard deviations out, of random edits some lie 5.3."""
FORM = "form"
"""Of a text: its letters, its length, whether it repeats itself; all but its phrases."""
REPLICATES, BEYOND, CAUSAL, UNHELD = (
    "it does not replicate",
    "null pairs show as much",
    "patched into the base it does no more than a random vector",
    "no random edit was made to hold an amplified text against",
)

Told = Mapping[str, Any]
"""A line as it is recorded: the fields of `formula.Line`, and `q`."""


@dataclass(frozen=True, kw_only=True)
class Null:
    """One null pair."""

    name: str
    tested: int
    replicating: int
    """Lines with q <= LEVEL."""
    named: int
    """Lines that the whole rule names, held against the other null pairs."""
    largest: Mapping[str, float]
    """By kind of line: the largest size on half B."""


def kind(line: Told) -> str:
    """What a line is held against: "phrases, gained", "new phrases, gained", "form", "tokens, lost", ...

    A random edit's texts lose ordinary words long before they gain any, so either way has its own null. Not so of a text's form: what is in Latin
    letters is in Cyrillic ones no longer. What the base says now and then comes and goes by chance, and what it never says does not.
    """
    reader = line["reader"]
    if reader == "continuations":
        if "“" not in line["text"]:
            return FORM
        reader = "new phrases" if line["new"] else "phrases"
    return f"{reader}, {'gained' if line['gained'] else 'lost'}"


def largest(lines: Iterable[Told]) -> dict[str, float]:
    """By kind: the largest size on half B of any line that half A named."""
    found: dict[str, float] = {}
    for line in lines:
        found[kind(line)] = max(found.get(kind(line), 0.0), line["size"])
    return found


def least_size(line: Told, nulls: Iterable[Mapping[str, float]]) -> float:
    """The size that a line must have to be named."""
    most = max((sizes.get(kind(line), 0.0) for sizes in nulls), default=0.0)
    if line["reader"] == "continuations":
        least = MARGIN_OF_TEXTS * most
        if kind(line) == FORM or most >= 1:  # no text can say it more often than every null pair's
            return least
        return max(LEAST_SHARE, min(least, most + WAY * (1 - most)))
    return max(LEAST_SIZE, MARGIN * most)


def why_not(line: Told, least: float) -> str | None:
    """Why a line is not named; None where it is."""
    if not line["q"] <= LEVEL or not line["size"] > 0:
        return REPLICATES
    if line["size"] < least:
        return BEYOND
    if line.get("replay_z") is not None and not line["replay_z"] > line["replay_null"]:
        return CAUSAL
    return None


def judged(lines: Sequence[Told], nulls: Mapping[str, Sequence[Told]]) -> tuple[list[dict[str, Any]], list[Null]]:
    """Every line with `why_not` (None: it is named), and what each null pair shows when it is judged by the others."""
    sizes = {name: largest(found) for name, found in nulls.items()}
    told = [{**line, "least": (least := least_size(line, sizes.values())), "why_not": why_not(line, least)} for line in lines]
    of_nulls = []
    for name, found in nulls.items():
        others = [size for other, size in sizes.items() if other != name]
        of_nulls.append(
            Null(
                name=name, tested=len(found), replicating=sum(line["q"] <= LEVEL for line in found),
                named=sum(why_not(line, least_size(line, others)) is None for line in found), largest=sizes[name],
            )
        )  # fmt: skip
    return told, of_nulls
