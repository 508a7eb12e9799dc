"""A measure declares here what several runs can be compared in: its numbers, its profiles along the layers, and its section. No torch here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def nothing(*_: Any) -> list[Any]:
    return []


@dataclass(frozen=True, kw_only=True)
class BetweenRuns:
    """What a comparison reads of a measure."""

    quantities: Callable[..., Any] = nothing
    """(loaded run): its numbers, each a Quantity."""
    profiles: Callable[..., Any] = nothing
    """(loaded runs): shares of D along the layers, each a Profile."""
    axis: Callable[..., Any] | None = None
    """(comparison): the measure's section."""
    place: int = 0
    """Its numbers and its section stand in a comparison in this order."""
    locates: bool = False
    """Whether it says where a change is."""
    arms: bool = False
    """Whether its best arm is compared, so that runs that tried other arms are marked."""
    without_effect: bool = False
    """Whether its numbers mean something where D cannot be told from rounding."""
    across_bases: bool = False
    """Whether its section means something of runs on different bases; such sections come first."""
