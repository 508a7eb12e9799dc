"""Numbers, lists and texts are put into words here.

Shares are written in percent, divergences in nats with three digits, intervals as [low, high] beside their estimate: `shown` in the cell of a table,
`with_interval` in a sentence. No other function writes an interval, so that none stands on fewer prompts than carry it.
"""

import itertools
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from mechdiff.statistics.intervals import FEW, FEWEST
from mechdiff.statistics.simulated import ENOUGH
from mechdiff.terms import of_split

_MEASURED: ContextVar[tuple[float | None, float | None, int | None]] = ContextVar(
    "coverage of intervals of means and of shares, and the number of prompts", default=(None, None, None)
)
LEVEL = re.compile(r"\[(\d+ % CI): ")
"""How an interval begins that says what its ends are."""
HEAD = re.compile(r"\bL(\d+)\.head[ \u00a0](\d+)\b")
"""A head by the name of its rows; sentences and tables call it L21H5."""
INTERVAL = re.compile(
    r"\[(?:\d+ % CI: )?(?P<low>[^\s\[\],]+(?: × 10[⁻⁰¹²³⁴-⁹]+)?), (?P<high>[^\s\[\],]+(?: × 10[⁻⁰¹²³⁴-⁹]+)?)\](?P<few>[ \u00a0]\(n\u00a0=\u00a0\d\))?"
)
"""An interval, and the number of its prompts where that is small."""

BYTE, CUT = re.compile(r"<0x([0-9A-Fa-f]{2})>"), "\ufffd"
"""A byte that is part of a character, as a token; and what stands for the rest of one that was cut."""
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
    """A share from 0 to 1 in percent: "14 %" of two digits, "14.2 %" of three; "0.31 %" and "99.8 %" where these would print none or all."""
    if value is None or value != value:
        return "–"
    return f"{_percent(value, digits)} %"


def decimal(value: float | None, digits: int = 2) -> str:
    """A number that is no share (a correlation, a CKA, a ratio) with fixed decimals; never -0.00."""
    if value is None or value != value:
        return "–"
    text = f"{value:.{digits}f}"
    return _minus(text if float(text) else text.removeprefix("-"))


def plain(value: float) -> str:
    """A number that was set, as it was set: a strength of "−0.5"."""
    return _minus(f"{value:g}")


def between(low: float | None, high: float | None, *, digits: int | None = None, decimals: int | None = None) -> str:
    """An interval as "[6.78, 9.06]"; empty if there is none. `digits`: the ends of a share, in percent; `decimals`: numbers with fixed decimals."""
    if low is None or high is None or low != low or high != high:
        return ""
    return f"[{_end(low, digits, decimals)}, {_end(high, digits, decimals)}]"


def with_interval(
    value: float | None,
    low: float | None,
    high: float | None,
    *,
    digits: int | None = None,
    decimals: int | None = None,
    coverage: float | None = None,
    n: int | None = None,
) -> str:
    """ "7.69 [95 % CI: 6.77, 9.16]" for a sentence; "[88 % CI: ...]" where intervals like it held the truth no more often in simulations.

    `coverage` says how often; without, it is what `measured` said of means, and of shares where these are given as `digits`. Shares become one
    more digit where the interval would vanish in them. There is no interval under FEWEST prompts, and where nothing varies. In a text, `said_once`
    leaves the first "95 % CI".
    """
    if low is not None and high is not None and math.isclose(low, high, rel_tol=1e-9):  # nothing varies from prompt to prompt
        return _value(value, digits, decimals)
    if coverage is None:
        coverage = _MEASURED.get()[digits is not None]
    if digits is not None and low is not None and high is not None and high - low < 2 * 10**-digits:
        digits += 1
    n = _MEASURED.get()[2] if n is None else n
    estimate, ends = _value(value, digits, decimals), between(low, high, digits=digits, decimals=decimals)
    if not ends or (n is not None and n < FEWEST):
        return estimate
    return f"{estimate} [{level(coverage)}: {ends[1:]}"


@contextmanager
def measured(means: float | None, shares: float | None, n: int | None = None) -> Iterator[None]:
    """While open, sentences say how often intervals of means, and of shares of D, held the truth in simulations of a run like this one.

    `n`: how many prompts (clusters of them) stand behind what names no other number.
    """
    token = _MEASURED.set((means, shares, n))
    try:
        yield
    finally:
        _MEASURED.reset(token)


def level(coverage: float | None) -> str:
    """What an interval is called: "95 % CI", or by the share of simulations in which it held the truth, where that is under ENOUGH."""
    return "95 % CI" if coverage is None or coverage >= ENOUGH else f"{100 * coverage:.0f} % CI"


def heads_called(layer: int | None, heads: Sequence[int]) -> str:
    """Heads of one layer as the field calls them: L21H5, and L21H5,7."""
    return f"L{layer}H{','.join(map(str, sorted(heads)))}"


def said_once(texts: Iterable[str]) -> list[str]:
    """The same texts; the first interval alone says what its ends are, "1.2 [95 % CI: 1.0, 1.4] ... 0.3 [0.1, 0.5]", or each where they differ."""
    texts = [HEAD.sub(r"L\1H\2", text) for text in texts]
    names = [found[1] for text in texts for found in LEVEL.finditer(text)]
    if len(set(names)) > 1:
        return texts
    count = itertools.count()
    return [LEVEL.sub(lambda found: found[0] if next(count) == 0 else "[", text) for text in texts]


def bare(text: str) -> str:
    """A table's cell: its intervals do not say what they are, for the table does."""
    return HEAD.sub(r"L\1H\2", LEVEL.sub("[", text))


def key_of(cells: Iterable[str]) -> str:
    """What brackets mean in a table of these cells; empty where none has any."""
    found = [(text, INTERVAL.search(text)) for text in cells]
    if not any(interval for _, interval in found):
        return ""
    names = {name for text, _ in found for name in LEVEL.findall(text)} or {level(_MEASURED.get()[0])}
    few = f"; grey: fewer than {FEW} prompts" if any(interval and interval["few"] for _, interval in found) else ""
    return f"[low, high]: {' or '.join(sorted(names))}{few}."


def shown(
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    n: int | None = None,
    *,
    digits: int | None = None,
    decimals: int | None = None,
    line: str = " ",
) -> str:
    """A table's cell: "0.64 [0.39, 0.84]", and no more than `n` prompts can carry; without `n`, as many as `measured` says.

    Under FEWEST prompts the value and n alone; under FEW n beside the interval, which the page then greys; without ends, or with ends that are the
    value, the value alone. `digits`: a share from 0 to 1, in percent; `decimals`: a number with fixed decimals. `line` stands between the value and
    its ends.
    """
    if value is None or value != value:
        return "–"
    n = _MEASURED.get()[2] if n is None else n
    cell, ends = _value(value, digits, decimals), between(low, high, digits=digits, decimals=decimals)
    if not ends or low == high:
        return cell if ends or n is None or n >= FEWEST else f"{cell}{line}{_of(n)}"
    if n is not None and n < FEWEST:
        return f"{cell}{line}{_of(n)}"
    return f"{cell}{line}{ends}" + (f" {_of(n)}" if n is not None and n < FEW else "")


def _of(n: int) -> str:
    return f"(n\u00a0=\u00a0{n})"


def _value(value: float | None, digits: int | None, decimals: int | None) -> str:
    return share(value, digits) if digits is not None else decimal(value, decimals) if decimals is not None else nats(value)


def _end(value: float, digits: int | None, decimals: int | None) -> str:
    return _percent(value, digits) if digits is not None else _value(value, None, decimals)


def _percent(value: float, digits: int) -> str:
    text = f"{100 * value:.{max(digits - 2, 0)}f}"
    if float(text) == 0:
        small = f"{100 * value:.2g}" if abs(value) >= 1e-5 else f"{'<' if value > 0 else '>-'}0.001"
        return _minus(small) if value else "0"
    if abs(float(text)) == 100 and abs(value) < 1:
        finer = f"{100 * value:.1f}"
        text = text if abs(float(finer)) == 100 else finer
    return _minus(text)


def prompts(n: int, kind: str = "") -> str:
    """ "1 prompt", "12 test prompts" of the split "report"."""
    kind = of_split(kind)
    return f"{n} {kind}{' ' * bool(kind)}prompt{'s' * (n != 1)}"


def listed(names: Iterable[object]) -> str:
    """ "a, b and c"."""
    words = [str(name) for name in names]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"


def visible(text: object) -> str:
    """Text from a model or a prompt with line ends, control characters, changes of writing direction and lone bytes (⟨D2⟩) made visible.

    What was cut inside a character ends in "…".
    """
    text = BYTE.sub(r"⟨\1⟩", str(text))
    text = f"{text.rstrip(CUT)}…" if text.endswith(CUT) and text.rstrip(CUT) else text
    return "".join(SHOWN.get(letter) or (f"\\u{ord(letter):04x}" if _hides(letter) else letter) for letter in str(text))


def _hides(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(letter) in TURNS


def _minus(text: str) -> str:
    return text.replace("-", "−")
