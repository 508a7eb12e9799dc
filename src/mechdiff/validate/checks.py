"""A planted truth's expectation is set beside what was found. NaN never passes."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, kw_only=True)
class Check:
    """One expectation. Of several numbers, `found` is the one that comes nearest to failing."""

    what: str
    relation: str
    """"=", "<=", ">", or "is" (equal, exactly)."""
    expected: Any
    tolerance: float | None = None
    """Of "=": the largest distance that passes."""
    found: Any
    passed: bool

    @property
    def expectation(self) -> str:
        """As it is printed: "= 1 ± 1e-09", "<= 1e-10", "is {'L1.attn'}"."""
        within = f" ± {self.tolerance:.3g}" if self.tolerance else ""
        return f"{self.relation} {said(self.expected)}{within}"

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"expected": _plain(self.expected), "found": _plain(self.found)}


def said(value: Any) -> str:
    """A number, or a list of them, as it is printed."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(said(one) for one in value)}]"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(str, value)))}}}"
    return str(value)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else value


def near(what: str, found: ArrayLike, expected: ArrayLike, within: float) -> Check:
    """Every number is within `within` of what is expected there; `expected` is one number for all, or one for each."""
    numbers, wanted = np.broadcast_arrays(_numbers(found), _numbers(expected))
    off = np.abs(numbers - wanted)
    worst = int(np.argmax(np.where(np.isnan(off), np.inf, off)))
    alike = len(set(wanted.tolist())) == 1
    return Check(
        what=what, relation="=", expected=float(wanted[0]) if alike else wanted.tolist(), tolerance=within,
        found=float(numbers[worst]) if alike else numbers.tolist(), passed=bool((off <= within).all()),
    )  # fmt: skip


def at_most(what: str, found: ArrayLike, limit: float) -> Check:
    """No number is above the limit."""
    numbers = _numbers(found)
    return Check(what=what, relation="<=", expected=float(limit), found=float(numbers.max()), passed=bool((numbers <= limit).all()))


def above(what: str, found: ArrayLike, limit: float) -> Check:
    """Every number is above the limit."""
    numbers = _numbers(found)
    return Check(what=what, relation=">", expected=float(limit), found=float(numbers.min()), passed=bool((numbers > limit).all()))


def same(what: str, found: Any, expected: Any) -> Check:
    """Equal: numbers, names, sets."""
    return Check(what=what, relation="is", expected=expected, found=found, passed=bool(found == expected))


def names(found: Collection[Any]) -> set[str]:
    """A set of what is printed."""
    return {str(one) for one in found}


def _numbers(values: ArrayLike) -> NDArray[np.float64]:
    numbers = np.atleast_1d(np.asarray(values, dtype=np.float64)).ravel()
    assert numbers.size, "nothing was found to check"
    return numbers
