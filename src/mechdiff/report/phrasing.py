"""Numbers, lists and texts are put into words here.

Shares are written as numbers from 0 to 1, divergences in nats with three digits, intervals always beside their estimate.
"""

import math
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from mechdiff.statistics.intervals import FEWEST
from mechdiff.statistics.simulated import ENOUGH

_MEASURED: ContextVar[tuple[float | None, float | None]] = ContextVar("coverage of intervals of means and of shares", default=(None, None))

SHOWN = {"\n": "↵\n", "\t": "→\t", "\r": "␍"}
TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
INTERACTION = "under 0 both do less together than the sum of each alone, over 0 more"
"""What an interaction of two parts means: what both do together less the sum of each alone."""
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def nats(value: float | None) -> str:
    """Three digits; powers of ten below a thousandth."""
    if value is None or value != value:
        return "not defined"
    if value in (float("inf"), float("-inf")):
        return "infinite"
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 9.995e-4:
        digits, power = f"{value:.1e}".split("e")
        return f"{digits} × 10{str(int(power)).translate(SUPERSCRIPTS)}".replace("-", "−")
    return _minus(f"{value:#.3g}".removesuffix("."))


def power_of_ten(value: float) -> str:
    """ "10⁻⁴" """
    return f"10{str(round(math.log10(value))).translate(SUPERSCRIPTS)}"


def share(value: float | None, digits: int = 2) -> str:
    """A share of D, or a CKA; never -0.00."""
    if value is None or value != value:
        return "–"
    text = f"{value:.{digits}f}"
    return _minus(text if float(text) else text.removeprefix("-"))


def between(low: float | None, high: float | None, *, digits: int | None = None) -> str:
    """An interval as "6.78 to 9.06"; empty if there is none. With `digits`, fixed decimals."""
    if low is None or high is None or low != low or high != high:
        return ""
    return f"{nats(low)} to {nats(high)}" if digits is None else f"{share(low, digits)} to {share(high, digits)}"


def with_interval(
    value: float | None, low: float | None, high: float | None, *, digits: int | None = None, coverage: float | None = None
) -> str:
    """ "7.69 (95 %: 6.77 to 9.16)"; "(88 % interval: ...)" where intervals like it held the truth no more often in simulations.

    `coverage` says how often; without, it is what `measured` said of means, and of shares where decimals are given as `digits`. These become one
    more where the interval would vanish in them.
    """
    if coverage is None:
        coverage = _MEASURED.get()[digits is not None]
    if digits is not None and low is not None and high is not None and high - low < 2 * 10**-digits:
        digits += 1
    estimate = nats(value) if digits is None else share(value, digits)
    ends = between(low, high, digits=digits)
    return f"{estimate} ({level(coverage)}: {ends})" if ends else estimate


@contextmanager
def measured(means: float | None, shares: float | None) -> Iterator[None]:
    """While open, sentences say how often intervals of means, and of shares of D, held the truth in simulations of a run like this one."""
    token = _MEASURED.set((means, shares))
    try:
        yield
    finally:
        _MEASURED.reset(token)


def level(coverage: float | None) -> str:
    """What an interval is called: "95 %", or the share of simulations in which it held the truth, where that is under ENOUGH."""
    return "95 %" if coverage is None or coverage >= ENOUGH else f"{100 * coverage:.0f} % interval"


def shown(
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    n: int | None = None,
    *,
    digits: int | None = None,
    line: str = " ",
) -> str:
    """A table's cell: "0.64 (0.39 to 0.84)", and no more than `n` prompts can carry.

    Under FEWEST prompts the value and n alone; without ends, or with ends that are the value, the value alone. `line` stands between the value and
    its ends.
    """
    if value is None or value != value:
        return "–"
    cell = nats(value) if digits is None else share(value, digits)
    known = low is not None and high is not None and low == low and high == high
    if n is not None and n < FEWEST:
        cell += f"{line}(n\u00a0=\u00a0{n})"
    elif known and low != high:
        cell += f"{line}({between(low, high, digits=digits)})"
    return cell


def prompts(n: int, kind: str = "") -> str:
    """ "1 prompt", "12 report prompts"."""
    return f"{n} {kind}{' ' * bool(kind)}prompt{'s' * (n != 1)}"


def listed(names: Iterable[object]) -> str:
    """ "a, b and c"."""
    words = [str(name) for name in names]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"


def visible(text: object) -> str:
    """Text from a model or a prompt with line ends, control characters and changes of writing direction made visible."""
    return "".join(SHOWN.get(letter) or (f"\\u{ord(letter):04x}" if _hides(letter) else letter) for letter in str(text))


def _hides(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(letter) in TURNS


def _minus(text: str) -> str:
    return text.replace("e-", "e−").replace("-", "−") if text.startswith("-") else text


def with_ends(value: float | None, low: float | None, high: float | None) -> str:
    """ "0.81 (0.77 to 0.84)", for a cell of a table."""
    ends = between(low, high, digits=2)
    return f"{share(value)} ({ends})" if ends and value is not None else share(value)
