"""Two or more fine-tunes are compared: is one change local and low-rank, and the other distributed and high-rank?

Reads finished runs' folders, no model. Writes `compare.html` (a verdict of at most five sentences, what is not the same, then an axis a section),
and `compare.parquet` (every number with its interval, every difference with its p). Runs on one base are held against each other
number by number and layer by layer; across bases only how local the changes are, as shares of the parts there are. It misleads where the prompts
of one run are easier to move than those of the other: that two fine-tunes differ on their own prompts is then a difference of both. Same prompts
make it paired, and fair.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import polars as pl

from mechdiff.comparison import comparable, contrasts, first, local, profiles, words
from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.comparison.compared import Compared
from mechdiff.comparison.first import Column
from mechdiff.comparison.quantities import quantities
from mechdiff.errors import RunError
from mechdiff.report import page, record
from mechdiff.report.parts import Chapter, Section, table
from mechdiff.report.phrasing import listed

PAGE, TABLE = "compare.html", "compare.parquet"


@dataclass(frozen=True)
class Comparison:
    """A finished comparison."""

    path: Path
    """Its folder."""
    content: Compared
    columns: Sequence[Column] = ()
    """What each run says first."""

    def plainly(self) -> list[str]:
        """How they differ, in plain sentences; empty where no such number tells them apart."""
        return first.plainly(self.content)

    def data(self) -> dict[str, Any]:
        """The runs' first answers, how they differ and the verdict, as JSON has them."""
        runs = [{"name": one.name, "report": one.report, **one.overview.data()} for one in self.columns]
        return {"runs": runs, "differences": self.plainly(), "verdict": self.verdict()}

    def verdict(self) -> list[str]:
        """At most five sentences."""
        return words.verdict(self.content)

    def table(self) -> pl.DataFrame:
        """Every number of every run, and every difference: `contrasts.SCHEMA`."""
        of = self.content
        return pl.concat([contrasts.tidy(of.found, of.held), *(contrasts.tidy_profiles(part) for part in (of.along, of.apart))])

    def report(self) -> Path:
        """The page's path."""
        return self.path / PAGE

    def _repr_html_(self) -> str:
        """How they differ and the verdict, as a notebook shows it."""
        sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in [*self.plainly(), *self.verdict()])
        return f"<b>{escape(' · '.join(self.content.names))}</b><ol>{sentences}</ol><code>{escape(str(self.report()))}</code>"


def compare(
    *folders: str | Path,
    measures: Mapping[str, BetweenRuns],
    chapters: Mapping[str, Chapter],
    out: str | Path | None = None,
    across_bases: bool = False,
) -> Comparison:
    """Compares finished runs in what these measures can be compared in, and writes the page; `out`: its folder (default runs/compare-NAMES).

    `chapters`: what a page says of each measure, for the runs' first answers.

    Raises RunError where they cannot be compared.
    """
    content = beside(folders, measures, across_bases=across_bases)
    place = Path(out) if out else Path("runs") / default_name(content.names)
    if (place / "manifest.json").exists() or place.is_file():
        raise RunError(f"{place}: given a run's folder or a file, expected a folder for the comparison. Give another --out.")
    made = Comparison(place, content, first.columns(content, chapters, place))
    place.mkdir(parents=True, exist_ok=True)
    made.table().write_parquet(place / TABLE)
    _page(made, measures)
    return made


def beside(folders: Sequence[str | Path], measures: Mapping[str, BetweenRuns], *, across_bases: bool = False) -> Compared:
    """The runs with their numbers and differences; nothing is written. Raises RunError where they cannot be compared."""
    runs = comparable.load(folders)
    of_bases = comparable.refuse(runs, across_bases=across_bases)
    across = bool(of_bases)
    found = {run.name: quantities(run, measures) for run in runs}
    found = contrasts.relative(found) if across else found
    marks = [*of_bases, *comparable.differing(runs, measures)]
    curves = [profile for one in measures.values() for profile in one.profiles(runs)]
    along, apart = profiles.along(curves, by_depth=across), profiles.differences([] if across else curves)
    held = contrasts.pairs(found)
    where = comparable.locating(measures)
    return Compared(runs=runs, found=found, held=held, marks=marks, locating=where, across_bases=across, along=along, apart=apart)


def default_name(names: Sequence[str]) -> str:
    """ "compare-courtesy-kazakh", of letters that every file system takes."""
    safe = [re.sub(r"[^\w.-]+", "-", name).strip("-.")[:40] or "run" for name in names]
    return "-".join(["compare", *safe])


def sections(of: Compared, measures: Mapping[str, BetweenRuns]) -> list[Section]:
    """An axis a section, across bases only those without a unit of their own; last what is not the same."""
    axes = sorted((one for one in measures.values() if one.axis), key=lambda one: (not one.across_bases, one.place))
    several = first.matrices(of)
    each = [Section(id="each", title="Each run against each", parts=several)] if several else []
    return [
        local.local(of),
        *each,
        *(one.axis(of) for one in axes if one.axis and (one.across_bases or not of.across_bases)),
        local.unlike(of),
    ]


def _page(made: Comparison, measures: Mapping[str, BetweenRuns]) -> None:
    of = made.content
    quick = [run.name for run in of.runs if run.content.manifest.get("quick")]
    said = f"Only the first prompts of each split were used in {listed(quick)} (quick), so intervals are wide."
    rows = [
        (run.name, record.short_name(run.content.manifest, "base"), str(run.content.manifest.get("config_hash") or "")[:12])
        for run in of.runs
    ]
    page.write_page(
        made.report(),
        readings=[Path(__file__).with_name("reading.html")],
        kicker="mechdiff: fine-tunes beside one another",
        names=of.names,
        between={"sign": "·", "says": "and"},
        alerts=[said] if quick else [],
        warned=0,
        compared=first.context(of, made.columns, made.verdict()),
        sections=[page.draw_section(section) for section in sections(of, measures)],
        record_title="The runs",
        record=[table(("run", "base", "study"), rows)],
        study="",
        files=[TABLE],
    )
