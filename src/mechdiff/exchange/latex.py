"""Text, numbers and tables become LaTeX that compiles with pdfLaTeX, whatever models and prompts are called.

Signs that TeX reads (`_`, `%`, `#`) are escaped, mathematical ones become mathematics, and a letter that pdfLaTeX's standard fonts lack (Cyrillic, an
emoji) is written as its code point, U+04D9: it compiles, and a reader sees what to replace.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

READ = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "[": "{[}", "]": "{]}",
}  # fmt: skip
SIGNS = {
    "−": "$-$", "×": r"$\times$", "‖": r"$\Vert$", "Δ": r"$\Delta$", "δ": r"$\delta$", "µ": r"$\mu$", "←": r"$\leftarrow$", "→": r"$\rightarrow$",
    "≤": r"$\leq$", "≥": r"$\geq$", "±": r"$\pm$", "≈": r"$\approx$", "≠": r"$\neq$", "∞": r"$\infty$", "²": r"$^{2}$", "·": r"$\cdot$",
    "…": r"\ldots{}",
    "–": "--", "—": "---", "“": "``", "”": "''", "‘": "`", "’": "'", "\u00a0": "~", "\u202f": r"\,", "↵": r"$\hookleftarrow$", "⟨": r"$\langle$",
    "⟩": r"$\rangle$", "λ": r"$\lambda$", "σ": r"$\sigma$", "∈": r"$\in$", "∑": r"$\sum$", "√": r"$\surd$", "\n": " ", "\t": " ",
}  # fmt: skip
RAISED = {**{letter: str(i) for i, letter in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}, "⁻": "-"}
_POWER = re.compile("[" + "".join(letter for letter in RAISED if letter != "²") + "²]+")
DIGITS = "ABCDEFGHIJ"
"""A macro's name has letters alone."""


def escaped(text: object) -> str:
    """Text from anywhere, so that LaTeX prints it as it is."""
    found, place, text = [], 0, str(text)
    for power in _POWER.finditer(text):
        found += [_letter(one) for one in text[place : power.start()]]
        found.append("$^{" + "".join(RAISED[one] for one in power[0]) + "}$")
        place = power.end()
    return "".join([*found, *(_letter(one) for one in text[place:])])


def _letter(one: str) -> str:
    if one in READ:
        return READ[one]
    if one in SIGNS:
        return SIGNS[one]
    if one.isascii() or ("\u00c0" <= one <= "\u017f" and one not in "ĿŀŉŸ"):  # the letters of T1
        return one if one.isprintable() else f"U+{ord(one):04X}"
    return f"U+{ord(one):04X}"


def macro(*names: str) -> str:
    """The name of a macro: "how_much", 0 is \\mdHowMuchA."""
    parts = [part for name in names for part in re.split(r"[^A-Za-z0-9]+", name) if part]
    text = "".join(part[0].upper() + part[1:] for part in parts)
    return "\\md" + re.sub(r"\d", lambda digit: DIGITS[int(digit[0])], text)


def place(number: int) -> str:
    """A, B, ..., Z, BA, BB: a number as letters."""
    return (place(number // 26) if number >= 26 else "") + chr(ord("A") + number % 26)


def defined(name: str, content: str, says: str = "") -> str:
    """A line that defines a macro, with what it is as a comment."""
    comment = " ".join(says.split()).replace("%", "percent")
    return f"\\newcommand{{{name}}}{{{content}}}" + (f"  % {comment}" if comment else "")


def booktabs(columns: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str, label: str, align: str = "") -> Iterator[str]:
    """Lines of a table, over the text's width where it has more than four columns; `align`: as tabular has it, by default the first column left and
    the others right."""
    wide = len(columns) > 4
    star = "*" if wide else ""
    yield rf"\begin{{table{star}}}[t]"
    yield rf"  \centering\small\caption{{{escaped(caption)}}}\label{{tab:{label}}}"
    yield rf"  \resizebox{{\ifdim\width>\linewidth\linewidth\else\width\fi}}{{!}}{{\begin{{tabular}}{{{align or 'l' + 'r' * (len(columns) - 1)}}}"
    yield r"    \toprule"
    yield f"    {' & '.join(escaped(name) for name in columns)} \\\\"
    yield r"    \midrule"
    for row in rows:
        yield f"    {' & '.join(escaped(cell) for cell in row)} \\\\"
    yield r"    \bottomrule"
    yield r"  \end{tabular}}"
    yield rf"\end{{table{star}}}"
    yield ""
