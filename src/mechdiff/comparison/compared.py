"""A comparison holds what its page needs: the runs, their numbers, the differences, and the tables that all its sections have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from mechdiff.comparison.comparable import Loaded, Mark
from mechdiff.comparison.contrasts import Pair, said_n
from mechdiff.comparison.quantity import Main, Quantity
from mechdiff.report.parts import table
from mechdiff.report.phrasing import between, level, listed, nats, shown
from mechdiff.statistics import spread

LONG = 18
"""Characters from which a line of a cell may break."""
UNITS = {"parts": "", "share of parts": "share of all", "share of depth": "share of depth", "dimensions": "dimensions", "share": "share"}


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Runs beside one another."""

    runs: Sequence[Loaded]
    found: Mapping[str, Sequence[Quantity]]
    held: Sequence[Pair]
    marks: Sequence[Mark]
    locating: Sequence[str]
    """Names of the measures that say where a change is."""
    across_bases: bool
    along: pl.DataFrame
    """Shares of D along the layers, with simultaneous bands: `profiles.SCHEMA`."""
    apart: pl.DataFrame
    """Their differences; empty across bases, whose layers are not the same."""

    @property
    def names(self) -> list[str]:
        return [run.name for run in self.runs]

    def of_axis(self, *axes: str) -> list[tuple[str, str]]:
        """The numbers of some axes that any run has, in order."""
        return list(dict.fromkeys(one.key for numbers in self.found.values() for one in numbers if one.axis in axes))

    @property
    def main(self) -> list[Main]:
        """The main numbers that any run has: those of parts first, then those of directions, each in the order of the measures."""
        found = dict.fromkeys(one.main for numbers in self.found.values() for one in numbers if one.main)
        return sorted(found, key=lambda one: one.of == "directions")

    def one(self, run: str, key: tuple[str, str]) -> Quantity | None:
        return next((one for one in self.found[run] if one.key == key), None)


def own(of: Compared, keys: Sequence[tuple[str, str]], *, title: str = "", folded: str = "") -> list[dict]:
    """Each number of each run with its interval, and what it is of."""
    rows = []
    for key in keys:
        cells = [of.one(name, key) for name in of.names]
        units = listed(dict.fromkeys(_unit(one) for one in cells if one))
        rows.append((key[1], units, *(_cell(one) for one in cells)))
    return [table(("", "", *of.names), rows, title=title, folded=folded, stacked=True)] if rows else []


def _unit(one: Quantity) -> str:
    return (f"of {one.parts}" if one.parts else "") if one.unit == "parts" else UNITS.get(one.unit, one.unit)


def value_of(one: Quantity) -> str:
    """The number without its interval."""
    value = one.estimate.value
    if one.beyond:
        return f"> {nats(value - 1) if one.unit == 'share of depth' else f'{value - 1:.0f}'}"
    return (
        f"L{value:.0f}"
        if one.unit == "layer"
        else f"{value:.0f}"
        if one.unit in ("modules", "dimensions") and value == int(value)
        else nats(value)
    )


def ends_of(one: Quantity) -> str:
    """The ends of its interval; empty where it has none, or none of any width."""
    low, high = one.estimate.low, one.estimate.high
    if low != low or low == high:
        return ""
    return f"[L{low:.0f}, L{high:.0f}]" if one.unit == "layer" else between(low, high)


def _whole(line: str) -> str:
    """A line that breaks only where it is long."""
    return line.replace(" ", "\u00a0") if len(line) <= LONG else line


def _cell(one: Quantity | None) -> str:
    if one is None:
        return "–"
    ends = ends_of(one)
    lines = [value_of(one), *([ends] if ends else []), *([f"if uniform: {nats(one.null[0])}"] if one.null else [])]
    lines += [f"nothing there: {between(*one.nothing[1:])}"] if one.nothing else []
    lines += [f"no finding: {one.silent}"] if one.silent else []
    return "\n".join([*map(_whole, lines), *([one.where] if one.where else [])])


def differences(of: Compared, keys: Sequence[tuple[str, str]], *, folded: str = "The differences") -> list[dict]:
    """The difference of each two runs with its interval, p, q, and what would have been seen."""
    rows = []
    for pair in (pair for pair in of.held if pair.key in keys):
        made = pair.contrast
        q = "" if pair.q is None else nats(pair.q).replace(" ", "\u00a0")
        seen = "" if made.smallest != made.smallest or not made.smallest else nats(made.smallest)
        how = "paired" if made.paired else "unpaired"
        ends = shown(made.value, made.low, made.high, line="\n").replace(" ", "\u00a0")
        rows.append(
            (
                pair.key[1],
                f"{pair.one} − {pair.other}",
                ends,
                nats(made.p).replace(" ", "\u00a0"),
                q,
                seen,
                f"{said_n(made)}\n{how}".replace(" ", "\u00a0"),
            )
        )
    rows = [("" if i and row[0] == rows[i - 1][0] else row[0], *row[1:]) for i, row in enumerate(rows)]
    columns = ("", "", "difference", "p", "q", "detectable", "prompts")
    return [table(columns, rows, folded=folded, stacked=True)] if rows else []


def said(of: Compared, key: tuple[str, str]) -> str:
    """ "courtesy 1.24 [95 % CI: 1.21, 1.27] and kazakh 11.9 (...)"; empty where no run has it."""
    known = [(name, one) for name in of.names if (one := of.one(name, key))]
    return listed(f"{name} {with_ends(one)}" for name, one in known) if known else ""


def with_ends(one: Quantity) -> str:
    if one.silent:
        return f"no number ({one.silent})"
    jackknifed = len(one.estimate.contributions) > 0
    return value_of(one) + (f" [{level(spread.COVERAGE if jackknifed else None)}: {ends_of(one)[1:]}" if ends_of(one) else "")


def forest(of: Compared, keys: Sequence[tuple[str, str]]) -> pl.DataFrame:
    """Numbers for `charts_compare.numbers`."""
    rows = []
    for key in keys:
        for name in of.names:
            one = of.one(name, key)
            if one is None or one.silent:
                continue
            e, null = one.estimate, one.null or (None, None, None)
            known = e.low == e.low
            most = float(one.parts) if one.unit == "parts" and one.parts else None
            rows.append((key[1], name, e.value, e.low if known else None, e.high if known else None, null[1], null[2], most))
    schema = {"panel": pl.String, "line": pl.String, **dict.fromkeys(("value", "low", "high", "null_low", "null_high", "most"), pl.Float64)}
    return pl.DataFrame(rows, schema=schema, orient="row")
