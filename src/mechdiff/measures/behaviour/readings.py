"""What may a final answer stand for? A text read as numbers, tuples, sets, lists, intervals, dates, or an expression (values.py compares them).

Nothing is computed here: a fraction of plain numbers is read exactly, and whatever is more is left as an expression.
"""

import unicodedata
from dataclasses import dataclass
from fractions import Fraction

import regex

LONGEST_ANSWER = 200
"""Characters of an answer that are read: what is longer is no final answer."""
_DEEPEST = 3
"""Brackets within brackets that are read."""

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_REWRITTEN = (
    (r"[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda found: f"^{{{found[0].translate(_SUPERSCRIPTS)}}}"),  # before NFKC makes 23 of 2³
    (r"[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]", lambda found: " " + unicodedata.normalize("NFKC", found[0]).replace("⁄", "/")),
)
_SPELLINGS = (
    (r"\\left\b|\\right\b|\\!|\\displaystyle\b", ""),
    (r"\\(?:text|mathrm|textbf|mbox|operatorname)\{([^{}]*)\}", r" \1 "),
    (r"\\[,;:> ]|~|\\quad\b|\\qquad\b", " "),
    (r"\{,\}", ","),
    (r"\\[dt]frac", r"\\frac"),
    (r"\\%", "%"), (r"\\\$", "$"),
    (r"\\leqslant\b|\\leq\b|\\le\b|≤", "<="), (r"\\geqslant\b|\\geq\b|\\ge\b|≥", ">="), (r"\\lt\b", "<"), (r"\\gt\b", ">"),
    (r"\+?\s*(?:\\infty\b|∞)", "oo"), (r"\\cup\b|∪", "∪"), (r"\\in\b|∈", "∈"),
    (r"\^\s*\{?\s*\\circ\s*\}?", "°"), (r"\\\{|\\lbrace\b", "⦃"), (r"\\\}|\\rbrace\b", "⦄"), ("−|–|—", "-"),
)  # fmt: skip

_UNITS = {
    "$": "dollar", "usd": "dollar", "€": "euro", "eur": "euro", "£": "pound", "₸": "tenge", "теңге": "tenge", "тенге": "tenge", "kzt": "tenge",
    "₽": "ruble", "rub": "ruble", "рубль": "ruble", "рубля": "ruble", "рублей": "ruble", "metre": "m", "meter": "m", "метр": "m", "метра": "m",
    "метров": "m", "м": "m", "centimetre": "cm", "centimeter": "cm", "см": "cm", "kilometre": "km", "kilometer": "km", "км": "km", "kilogram": "kg",
    "кг": "kg", "gram": "g", "г": "g", "°": "degree", "hr": "hour", "h": "hour", "minute": "min", "sec": "s", "second": "s",
}  # fmt: skip
"""Spellings of one unit (without a plural's s)."""
_GLUED = r"(?:cm|mm|km|dm|kg|mg|ml|ms|min|hr|hrs|kHz|Hz|MHz|kW|kWh|Pa|kPa|см|мм|км|кг|мл|мин|тг|руб)(?:\^\{?[23]\}?)?"
"""Units that stand right behind their number; behind a space so does one letter of `_LETTERS`, and any word of three letters."""
_LETTERS = r"[mgslhtVWAJNKCFмгслтчВ]"


@dataclass(frozen=True)
class Form:
    """One reading of an answer."""

    kind: str
    """number, ordered, set, list, union, fixed (a date, a time, a range), or expression."""
    text: str = ""
    value: Fraction | None = None
    unit: str | None = None
    ends: str = ""
    """Brackets of what is ordered."""
    parts: tuple["Reading", ...] = ()
    variable: str | None = None
    """What the answer is said to be the value of."""


Reading = tuple[Form, ...]
"""All that a text may stand for."""


def plain(answer: str) -> str:
    """An answer in one spelling: no dollars around it, one minus, LaTeX's spaces and brackets as plain ones, powers and fractions as such."""
    text = answer
    for pattern, made in _REWRITTEN:
        text = regex.sub(pattern, made, text)
    text = unicodedata.normalize("NFKC", text).strip()
    if regex.fullmatch(r"\$[^$]*\$", text):
        text = text[1:-1]
    for spelling, common in _SPELLINGS:
        text = regex.sub(spelling, common, text)
    return regex.sub(r"\s+", " ", text).strip(" =").rstrip(".").strip()


# ---- reading -----------------------------------------------------------------------------------------------------------------------


def read(text: str, depth: int = 0) -> Reading:
    """What a text in plain spelling may stand for."""
    text = text.strip()
    if depth > _DEEPEST or not text:
        return (Form("fixed", text),)
    for reader in (_assigned, _fixed, _union, _inequality, _bracketed):
        if (found := reader(text, depth)) is not None:
            return found
    number = _number(text)
    items = _split(text, ",;" if ";" not in text else ";")
    named = [one for one in regex.split(r"\s+(?:or|and|and/or|или|және|немесе)\s+", text) if one]
    forms: list[Form] = [number] if number else []
    if len(items) > 1 and all(item.strip() for item in items) and (number is None or regex.fullmatch(r"-?\d+,\d+", text)):
        forms.append(Form("list", parts=tuple(read(item, depth + 1) for item in items)))
    elif len(named) > 1 and number is None:
        forms.append(Form("list", parts=tuple(read(item, depth + 1) for item in named)))
    return tuple(forms) or (Form("expression", text),)


def _assigned(text: str, depth: int) -> Reading | None:
    """x = 5, f(x) = 5, x in (0, 1); of a chain of equal numbers (3 + 4 = 7) the last one."""
    named = regex.fullmatch(r"(\p{L}(?:_\{?\w+\}?)?|\p{L}\(\p{L}\))\s*[=∈]\s*([^=<>∈]+)", text)
    if named:
        name = named[1].replace(" ", "")
        return tuple(Form(one.kind, one.text, one.value, one.unit, one.ends, one.parts, name) for one in read(named[2], depth + 1))
    sides = text.split("=")
    chained = len(sides) > 1 and not regex.search(r"[<>]=?|\p{L}", text)
    return read(sides[-1], depth + 1) if chained and all(side.strip() for side in sides) else None


def _fixed(text: str, depth: int) -> Reading | None:
    """A date, a time of day or a range: by the numbers in it; a ratio is a number."""
    day = regex.fullmatch(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})|(\d{1,2})[-/.](\d{1,2})[-/.](\d{4}|\d{2})", text)
    clock = regex.fullmatch(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d))?", text)
    span = regex.fullmatch(r"(\d+(?:\.\d+)?)\s?-\s?(\d+(?:\.\d+)?)", text)
    for kind, found in (("day", day), ("clock", clock), ("span", span)):
        if found:
            return (Form("fixed", f"{kind} {' '.join(str(Fraction(part)) for part in found.groups() if part)}"),)
    ratio = regex.fullmatch(r"(\d+)\s?:\s?(\d+)", text)
    return (Form("number", value=Fraction(int(ratio[1]), int(ratio[2]))),) if ratio and int(ratio[2]) else None


def _union(text: str, depth: int) -> Reading | None:
    pieces = _split(text, "∪")
    return (Form("union", parts=tuple(read(piece, depth + 1) for piece in pieces)),) if len(pieces) > 1 else None


def _inequality(text: str, depth: int) -> Reading | None:
    """a < x <= b, x > a: the interval of x."""
    pieces = [piece.strip() for piece in regex.split(r"(<=|>=|<|>)", text)]
    signs, sides = pieces[1::2], pieces[::2]
    if not signs or len(signs) > 2 or any(not side for side in sides):
        return None
    if len({sign[0] for sign in signs}) > 1:
        return None
    if signs[0][0] == ">":
        sides, signs = sides[::-1], signs[::-1]
    closed = ["=" in sign for sign in signs]
    if len(signs) == 2:
        low, name, high = sides
    elif regex.fullmatch(r"\p{L}(?:_\{?\w+\}?)?", sides[0]):
        (name, high), low, closed = sides, "-oo", [False, *closed]
    else:
        (low, name), high, closed = sides, "oo", [*closed, False]
    if not regex.fullmatch(r"\p{L}(?:_\{?\w+\}?)?", name):
        return None
    ends = ("[" if closed[0] else "(") + ("]" if closed[1] else ")")
    return (Form("ordered", ends=ends, parts=(read(low, depth + 1), read(high, depth + 1)), variable=name),)


def _bracketed(text: str, depth: int) -> Reading | None:
    """(1,2), [0,1), {1,2}; brackets around one thing are that thing."""
    opening, closing = text[0], text[-1]
    if opening not in "([{⦃" or closing not in ")]}⦄" or _depths(text)[:-1].count(0) or _depths(text)[-1] != 0:
        return None
    items = _split(text[1:-1], ";" if ";" in text else ",")
    if any(not item.strip() for item in items):
        return None
    if opening in "{⦃":
        return (Form("set", parts=tuple(read(item, depth + 1) for item in items)),) if closing in "}⦄" else None
    if len(items) == 1:
        return read(text[1:-1], depth + 1) if opening == "(" and closing == ")" else None
    return (Form("ordered", ends=opening + closing, parts=tuple(read(item, depth + 1) for item in items)),)


def _depths(text: str) -> list[int]:
    """How many brackets are open behind each letter."""
    found, depth = [], 0
    for letter in text:
        depth += (letter in "([{⦃") - (letter in ")]}⦄")
        found.append(depth)
    return found


def _split(text: str, marks: str) -> list[str]:
    """The text between marks that stand in no bracket; digit groups (1,234) stay whole."""
    pieces, start = [], 0
    for place, depth in enumerate(_depths(text)):
        grouped = text[place] == "," and regex.match(r"\d{3}(?:[^\d]|$)", text[place + 1 :]) and regex.search(r"\d$", text[:place])
        if depth == 0 and text[place] in marks and not (grouped and marks == ",;"):
            pieces.append(text[start:place])
            start = place + 1
    return [*pieces, text[start:]]


# ---- numbers -----------------------------------------------------------------------------------------------------------------------

_DECIMAL = r"\d+(?:\.\d+)?|\.\d+"
_WRITTEN = (
    (r"(?P<whole>\d+)\s(?P<over>\d+)\s?/\s?(?P<under>\d+)", "mixed"),
    (rf"(?P<over>{_DECIMAL})\s?/\s?(?P<under>{_DECIMAL})", "fraction"),
    (rf"(?P<number>{_DECIMAL})(?:[eE]|\s?(?:\\times|\\cdot|[×·*])\s?10\^)\{{?(?P<power>[-+]?\d{{1,3}})\}}?", "scientific"),
    (r"(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?)", "groups by comma"),
    (r"(?P<number>\d{1,3}(?: \d{3})+(?:[.,]\d+)?)", "groups by space"),
    (r"(?P<number>\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?|\d{1,3}(?:\.\d{3})+,\d+)", "groups by point"),
    (r"(?P<number>\d+,\d+)", "decimal comma"),
    (r"(?P<number>\d{1,2})!", "factorial"),
    (rf"(?P<number>{_DECIMAL})", "plain"),
)  # fmt: skip
_AROUND = regex.compile(
    r"(?:in\s+)?(?P<before>[$€£¥₸₽])?\s?(?P<sign>[-+\s]*)(?P<inner>[$€£¥₸₽])?\s?(?P<body>[\d.](?:.*\d)?!?\}?)"
    rf"(?P<unit>\s?[%°$€£¥₸₽]|{_GLUED}|\s{_GLUED}|\s°?{_LETTERS}(?:\^\{{?[23]\}}?)?(?:\s?/\s?\p{{L}}+)?"
    r"|\s(?!(?:sqrt|and|или|және)\b)\p{L}{3,}[\p{L}\s/.^{}\d]*)?"
)


def _number(text: str) -> Form | None:
    """The number that a text is, exactly, with its unit; None where it is none."""
    found = _AROUND.fullmatch(text)
    value = _exact(found["body"]) if found else None
    if found is None or value is None:
        return None
    units = [one.strip() for one in (found["before"], found["inner"], found["unit"]) if one]
    sign = -1 if (found["sign"] or "").count("-") % 2 else 1
    return Form("number", value=sign * value, unit=_unit(units[0]) if units else None)


def _exact(body: str) -> Fraction | None:
    for pattern, how in _WRITTEN:
        if not (found := regex.fullmatch(pattern, body)):
            continue
        if how in ("mixed", "fraction"):
            under = Fraction(found["under"])
            return (int(found["whole"]) if how == "mixed" else 0) + Fraction(found["over"]) / under if under else None
        if how == "factorial":
            return Fraction(_factorial(int(found["number"]))) if int(found["number"]) <= 20 else None
        digits = found["number"].replace(" ", "")
        if how == "groups by comma":
            digits = digits.replace(",", "")
        elif how == "groups by point":
            digits = digits.replace(".", "").replace(",", ".")
        value = Fraction(digits.replace(",", "."))
        return value * Fraction(10) ** int(found["power"]) if how == "scientific" else value
    return None


def _factorial(n: int) -> int:
    return n * _factorial(n - 1) if n > 1 else 1


def _unit(written: str) -> str:
    """A unit in one spelling."""
    bare = written.strip(" .").casefold()
    known = _UNITS.get(bare) or _UNITS.get(bare.removesuffix("s"))
    return known or (bare.removesuffix("s") if len(bare) > 3 else bare)
