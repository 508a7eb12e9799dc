"""Tables that several sections of a page ask for are made once.

A function of a run's frames gives the same table every time, and a page asks for some of them dozens of times. `once` remembers what a function gave
for the very same frames (by identity: frames are never changed in place) and equal other arguments. What a call with another run's frames gave
is forgotten when the frames of a third come.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
PLAIN = (str, int, float, bool, tuple, list, type(None))
RUNS = 2
"""Whose results are held: a comparison goes back and forth between two."""


def once(function: F) -> F:
    """The function, remembering by run: its first argument. What it gives must not be changed by who gets it."""
    held: dict[Any, dict[Any, tuple[Any, Any]]] = {}

    @wraps(function)
    def remembering(first: Any, *args: Any, **named: Any) -> Any:
        run = _name(first)
        if run not in held:
            while len(held) >= RUNS:
                del held[next(iter(held))]
            held[run] = {}
        key = (*map(_name, args), *((name, _name(value)) for name, value in sorted(named.items())))
        if key not in held[run]:
            held[run][key] = ((first, *args, *named.values()), function(first, *args, **named))  # an identity counts while its owner lives
        return held[run][key][1]

    return remembering  # type: ignore[return-value]


def _name(value: Any) -> Any:
    """What stands for an argument: frames, records and runs by identity, all else by what it says."""
    return repr(value) if isinstance(value, PLAIN) else id(value)
