"""A comparison opens with what each run says of itself, column by column, and then with how the runs differ, in sentences for a reader of a minute.

A difference is said where its interval leaves 0 out and p is at most 5 % after Holm over all such numbers and pairs of runs; of a main number its
own q too (`contrasts`). What is not said is not shown to differ: the tables have what would have been seen.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from mechdiff.comparison.comparable import FEW_PROMPTS
from mechdiff.comparison.compared import Compared, ends_of, value_of
from mechdiff.comparison.contrasts import ALPHA, Pair
from mechdiff.comparison.quantity import Plain, Quantity
from mechdiff.report.overview import scales, shown, strips
from mechdiff.report.overview.overview import TITLES, Overview, overview
from mechdiff.report.overview.strips import Panel
from mechdiff.report.parts import Chapter, table
from mechdiff.report.phrasing import between, listed, nats
from mechdiff.statistics import intervals

SAID = 6
"""Sentences on differences, at most."""
TIMES = 3.0
"""Ratio from which a difference is also said as one."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One run."""

    name: str
    report: str
    """Where its page is, from the comparison's; empty where there is none."""
    overview: Overview


def columns(of: Compared, chapters: Mapping[str, Chapter], place: Path) -> list[Column]:
    """What each run says of itself, as its own page does."""
    return [
        Column(name=run.name, report=_from(place, run.folder / "report.html"), overview=overview(run.content, chapters)) for run in of.runs
    ]


def _from(place: Path, page: Path) -> str:
    """A page's address from a folder; empty where there is no such page."""
    return quote(Path(os.path.relpath(page, place)).as_posix()) if page.is_file() else ""


def plainly(of: Compared) -> list[str]:
    """How two runs differ, or in which order several are, in every number that has words for it and in which they can be told apart."""
    numbers = _plain(of)
    apart = _apart([pair for pair in of.held if pair.key in numbers])
    return [said for key, plain in numbers.items() if (said := _sentence(of, key, plain, [pair for pair in apart if pair.key == key]))][
        :SAID
    ]


def _plain(of: Compared) -> dict[tuple[str, str], Plain]:
    """By number, the words that it has; of numbers that every run has which can be compared."""
    names = [run.name for run in of.runs if run.counts]
    found = {one.key: one.plain for name in names for one in of.found[name] if one.plain}
    kept = {key: plain for key, plain in found.items() if all(of.one(name, key) for name in names)}
    return {} if len(names) < 2 else kept


def _apart(pairs: Sequence[Pair]) -> list[Pair]:
    """Of all pairs in such numbers those that can be told apart, family-wise."""
    if not pairs:
        return []
    p = intervals.holm(np.array([pair.contrast.p for pair in pairs], dtype=float))
    return [pair for pair, one in zip(pairs, p, strict=True) if pair.apart and one <= ALPHA and not pair.silent]


def _sentence(of: Compared, key: tuple[str, str], plain: Plain, apart: Sequence[Pair]) -> str:
    """ "kazakh changes the next token more than arithmetic: 8.1 against 0.13 nats, 62 times as much." """
    names = [run.name for run in of.runs if run.counts]
    ones = {name: one for name in names if (one := of.one(name, key))}
    order = sorted(names, key=lambda name: -ones[name].estimate.value)
    told = {frozenset((pair.one, pair.other)) for pair in apart}
    if len(names) == 2:
        if not told:
            return ""
        high, low = (ones[name] for name in order)
        a, b = high.estimate.value, low.estimate.value
        times = f", {a / b:.2g} times as much" if b > 0 and a / b >= TIMES else ""
        return plain.says.format(high=order[0], low=order[1], a=value_of(high), b=value_of(low), times=times)
    steps = [frozenset(two) in told for two in pairwise(order)]
    if not any(steps):
        return ""
    listing = "".join(f"{'' if not i else ' > ' if steps[i - 1] else ' ≈ '}{name} ({value_of(ones[name])})" for i, name in enumerate(order))
    return f"{plain.order}: {listing}."


def matrices(of: Compared) -> list[dict]:
    """Three runs or more: a table a number, each run against each: row less column with its interval, behind ≈ where they are not told apart."""
    if len(of.runs) < 3:
        return []
    main = [(one.key, one.noun or one.name) for one in of.main]
    plain = [(key, words.order) for key, words in _plain(of).items()]
    made = []
    for key, title in dict([*main, *plain]).items():
        held = {(pair.one, pair.other): pair for pair in of.held if pair.key == key}
        rows = [(name, *(_cell(held, of.one(name, key), name, other) for other in of.names)) for name in of.names]
        if held:
            made.append(table(("row less column", *of.names), rows, title=f"{title[0].upper()}{title[1:]}", stacked=True))
    return made


def _cell(held: Mapping[tuple[str, str], Pair], own: Quantity | None, name: str, other: str) -> str:
    if name == other:
        return "–" if own is None else " ".join(part for part in (value_of(own), f"({ends_of(own)})" if ends_of(own) else "") if part)
    pair, sign = held.get((name, other)), 1
    if pair is None:
        pair, sign = held.get((other, name)), -1
    if pair is None:
        return "–"
    low, high = sorted((sign * pair.contrast.low, sign * pair.contrast.high))
    mark = "" if pair.apart and not pair.silent else "≈ "
    return f"{mark}{nats(sign * pair.contrast.value)}\n({between(low, high)})"


def context(of: Compared, made: Sequence[Column], verdict: Sequence[str]) -> dict[str, Any]:
    """What the template takes of a comparison."""
    every = [strip for one in made for strip in one.overview.strips]
    return {
        "columns": made,
        "rows": [(title, [one.overview.tiles[place] for one in made]) for place, title in enumerate(TITLES.values())],
        "plainly": plainly(of) or ["No number in which these runs differ significantly has plain words: see the sections below."],
        "verdict": list(verdict),
        "figure": strips.drawn([Panel(title=one.name, strips=one.overview.strips) for one in made]),
        "legend": strips.legend(every),
        "alt": "; ".join(f"{one.name}: {shown.alt(one.overview.strips)}" for one in made),
        "scales": scales.table(),
        "unlike": listed(fields) if (fields := [mark.field for mark in of.marks if mark.field != FEW_PROMPTS]) else "",
    }
