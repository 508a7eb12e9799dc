"""Are two final answers worth the same?

A text is read as what it may stand for, and two texts are the same answer where they have a reading in common; both ways round give one result.

    a number       1/2, 0.5, 50%, 3 1/2, 1e3, 2:4, 1,234 and 1 234 (digit groups), 3,5 and 1.234,5 (a decimal comma); compared as exact fractions
    with a unit    5 cm is 5, not 5 m: a unit may be left out, and is not converted; 50% is 50 (the sign left out) and 0.5, not 0.5%
    ordered        (1,2), [0,1), 0 <= x < 1: by the brackets and part by part; an inequality is its interval
    a set          {1,2} = {2,1}, also of intervals (joined by a union sign); {5} is 5
    a list         1, 2 (no brackets): a set to a set or a list, a tuple to a tuple
    a date, a time of day, a range of numbers: only itself; 3-5 is not -2
    an expression  sympy: numbers to 50 digits, formulas by math-verify (both ways round must hold)

Between "1,2" and "1.2" the comma is a decimal one; between "1,2" and "{2,1}" it parts a list; "1,2" and "2,1" are two numbers. "1,234" is read in the
English way alone. What cannot be read is equal to its own text only. Two numbers that differ in the tenth digit are two: 0.3333333333 is not 1/3.
"""

import logging
import threading
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import regex

from mechdiff.measures.behaviour.readings import LONGEST_ANSWER, Form, Reading, plain, read

_SECONDS = 3
_HUGE = regex.compile(r"\^\s*\{?\s*-?\d{4,}|\*\*|\^[^^]*\^[^^]*\^|\d{40,}|!")
"""What sympy would work on for hours: no final answer looks like this."""


def same_value(answer: str, label: str) -> bool:
    """Whether two final answers are worth the same. Never raises; what is too long or too large to be one is worth nothing."""
    sides = [plain(one) for one in (answer, label)]
    if any(not one or len(one) > LONGEST_ANSWER for one in sides):
        return False
    first, second = (read(one) for one in sides)
    return _same(first, second) or (sides[0] == sides[1] and bool(sides[0]))


# ---- comparing ---------------------------------------------------------------------------------------------------------------------


def _same(first: Reading, second: Reading) -> bool:
    """Whether two texts have a reading in common. Where both may be numbers, they are read as numbers: 1,2 and 2,1 are two."""
    numbers = [[form for form in one if form.kind == "number"] for one in (first, second)]
    pairs: Iterable[tuple[Form, Form]] = [(a, b) for a in first for b in second]
    if all(numbers):
        pairs = [(a, b) for a in numbers[0] for b in numbers[1]]
    return any(_one(a, b) for a, b in pairs)


def _one(a: Form, b: Form) -> bool:
    if a.variable and b.variable and a.variable != b.variable:
        return False
    kinds = {a.kind, b.kind}
    if kinds == {"number"}:
        return _same_number(a, b)
    if kinds == {"ordered"}:
        return a.ends == b.ends and _in_order(a, b)
    if kinds == {"list", "ordered"}:
        return a.ends + b.ends in ("()", "[]") and _in_order(a, b)
    if kinds <= {"set", "list"} or kinds == {"union"}:
        return _as_sets(a, b)
    if kinds == {"fixed"}:
        return a.text == b.text
    single = next((form for form in (a, b) if form.kind in ("set", "union") and len(form.parts) == 1), None)
    if single is not None:
        return _same(single.parts[0], (b if single is a else a,))
    if kinds <= {"number", "expression"}:
        return _same_expression(a, b)
    return False


def _in_order(a: Form, b: Form) -> bool:
    return len(a.parts) == len(b.parts) and all(_same(x, y) for x, y in zip(a.parts, b.parts, strict=True))


def _as_sets(a: Form, b: Form) -> bool:
    within = all(any(_same(x, y) for y in b.parts) for x in a.parts)
    return within and all(any(_same(x, y) for x in a.parts) for y in b.parts)


def _same_number(a: Form, b: Form) -> bool:
    """Exactly equal, in one unit or with one left out; a percent sign is left out too, or says hundredths."""
    assert a.value is not None
    assert b.value is not None
    if a.unit and b.unit:
        return a.unit == b.unit and a.value == b.value
    if "%" in (a.unit, b.unit):
        percent, other = (a.value, b.value) if a.unit == "%" else (b.value, a.value)
        return other in (percent, percent / 100)
    return a.value == b.value


# ---- expressions -------------------------------------------------------------------------------------------------------------------


def _same_expression(a: Form, b: Form) -> bool:
    """By sympy, at least one side being no plain number."""
    if any(_HUGE.search(form.text) for form in (a, b)):
        return False
    try:
        first, second = _sympy(a), _sympy(b)
        if first is None or second is None:
            return bool(a.text) and a.text.replace(" ", "") == b.text.replace(" ", "")
        return _equal(first, second)
    except (ValueError, TypeError, ArithmeticError, AttributeError, RecursionError, SyntaxError, NotImplementedError, TimeoutError):
        return False


def _sympy(form: Form) -> Any:
    """What math-verify makes of an expression, decimals as exact fractions; None where it makes nothing of it."""
    import sympy

    return sympy.Rational(form.value.numerator, form.value.denominator) if form.value is not None else _parsed(form.text)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Any:
    import sympy
    from math_verify import parse  # a second: sympy

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    latex = regex.sub(r"\boo\b", r"\\infty", text.replace("⦃", r"\{").replace("⦄", r"\}"))
    found = parse(f"${latex}$", parsing_timeout=_seconds())
    if not found or isinstance(found[0], str):
        return None
    return found[0].xreplace({number: sympy.Rational(str(number)) for number in found[0].atoms(sympy.Float)})


def _equal(first: Any, second: Any) -> bool:
    from math_verify import verify
    from math_verify.utils import timeout

    if all(getattr(one, "is_number", False) for one in (first, second)):
        return bool(timeout(_seconds())(_equal_numbers)(first, second))
    return bool(verify(first, second, timeout_seconds=_seconds()) and verify(second, first, timeout_seconds=_seconds()))


def _equal_numbers(first: Any, second: Any) -> bool:
    """To 50 digits; infinities are equal with their sign."""
    import sympy

    exact = [one.doit().evalf(60) for one in (first, second)]
    if any(one.is_finite is not True for one in exact):
        return exact[0] == exact[1] and exact[0] in (sympy.oo, -sympy.oo)
    return bool(abs(exact[0] - exact[1]) <= max(1, abs(exact[0])) * 10**-50)


def _seconds() -> int | None:
    return _SECONDS if threading.current_thread() is threading.main_thread() else None  # its timeouts are signals
