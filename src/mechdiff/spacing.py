"""So many of a list are picked evenly spaced, each from the middle of an equal stretch of it. No torch here."""

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def evenly_spaced(n: int, of: Sequence[Item]) -> tuple[Item, ...]:
    """`n` of the items in their order, spread over all of them; all where there are no more."""
    n = min(n, len(of))
    return tuple(of[(2 * i + 1) * len(of) // (2 * n)] for i in range(n))
