"""No table of the page has a number that its prompts cannot carry, whichever measure writes it; and all are written alike.

Every section of planted runs, and of a run of every measure, is made; every cell with an interval is looked at. A new measure is in the catalogue, so
in the run of every measure, and cannot evade this.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from mechdiff.measures.catalogue import CHAPTERS, NUMBERS
from mechdiff.report import parts
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import INTERVAL
from mechdiff.report.sections import all_sections
from mechdiff.statistics import summary
from mechdiff.statistics.intervals import FEW, FEWEST
from report.planted_run import planted_manifest, planted_rows
from report.planted_sections import planted_factorial, planted_grafting, planted_weights, weights_manifest

CHANGED = 4
OTHERS = r"\(\s*[−-]?\d[\d.]*( %)? to |\(95|95 %:|\d to [−-]?\d+\.\d"
"""Ways to write an interval that are not `shown`'s."""
OF_N = re.compile(r"\(n\u00a0=\u00a0(\d+)\)")


def cells(run: Run) -> Iterator[tuple[str, str, str]]:
    """Table, head of the column and text of every cell of every section."""
    for section in all_sections(run, CHAPTERS):
        for part in section.parts:
            if isinstance(part, dict) and part["kind"] == "table":
                name = f"{section.id}: {part['title'] or part['folded']}"
                yield from ((name, column, cell) for row in part["rows"] for column, cell in zip(part["columns"], row, strict=True))


def planted(n: int) -> Run:
    rows = planted_rows(n_layers=7, n_prompts=n, changed=CHANGED, permutations=40)
    more = [
        planted_weights(n_layers=7, changed=CHANGED),
        planted_grafting(rows, changed=CHANGED),
        planted_factorial(rows, n_layers=7, changed=CHANGED),
    ]
    table = pl.concat([rows, *more])
    manifest = planted_manifest(n_layers=7, n_prompts=n, changed=CHANGED) | weights_manifest(changed=CHANGED)
    return Run(rows=table, summary=summary.summarise(table, NUMBERS), manifest=manifest)


@pytest.mark.parametrize("n", [4, 8, 24])
def test_an_interval_stands_on_as_many_prompts_as_carry_it(n: int) -> None:
    found = [(name, column, cell) for name, column, cell in cells(planted(n)) if INTERVAL.search(cell)]
    if n < FEWEST:
        assert not found
    assert n < FEWEST or len(found) > 20
    for name, column, cell in found:
        said = OF_N.search(cell)
        assert (said is not None and int(said[1]) == n) if n < FEW else said is None, f"{name}, {column}: {cell}"


def test_so_it_does_in_a_run_of_every_measure(every_measure: Path) -> None:
    """Its six report prompts are few: every interval says of how many prompts it is, but for those of more."""
    run = parts.load(every_measure / "run")
    found = [(name, column, cell) for name, column, cell in cells(run) if INTERVAL.search(cell)]
    assert len({name for name, _, _ in found}) > 8
    without = [f"{name}, {column}: {cell}" for name, column, cell in found if not OF_N.search(cell)]
    assert not [one for one in without if not one.startswith(MORE)]


MORE = ("behaviour: ", "divergence: D on the training and validation prompts")
"""Tables whose numbers are of ten prompts and more."""


@pytest.mark.parametrize("n", [4, 24])
def test_numbers_are_written_alike(n: int) -> None:
    _alike(planted(n))


def test_numbers_of_every_measure_are_written_alike(every_measure: Path) -> None:
    _alike(parts.load(every_measure / "run"))


def _alike(run: Run) -> None:
    for name, column, cell in cells(run):
        assert not re.search(OTHERS, cell), f"{name}, {column}: {cell}"
        assert not re.search(r"(?:^|[\s(\[])-\d", cell), f"a hyphen for a minus in {name}, {column}: {cell}"
        assert "e-0" not in cell, f"an exponent of a programmer in {name}, {column}: {cell}"
        assert "95 %" not in column, f"{name}, {column}: said once, below the table"


def test_what_brackets_are_is_said_once_below_each_table() -> None:
    for section in all_sections(planted(24), CHAPTERS):
        for part in section.parts:
            if isinstance(part, dict) and part["kind"] == "table":
                has = any(INTERVAL.search(cell) for row in part["rows"] for cell in row)
                assert bool(part["key"]) == has
                assert not any("CI" in cell for row in part["rows"] for cell in row)
