"""A page is made of chapters, one a measure, and these of sections: figures, tables, notes and texts. Plain data; `page` renders it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from mechdiff.report import phrasing
from mechdiff.shares import answers_of, both_answers
from mechdiff.statistics.clusters import clustered, unit_names
from mechdiff.store.tables import read_manifest, read_prompts, read_rows, read_summary, read_verified

if TYPE_CHECKING:
    from mechdiff.report.headlines import Candidate
    from mechdiff.report.overview.strips import Strip

Figure = Callable[..., Any]
"""(rows, summary, manifest, *, width) to an altair chart, or None where its rows are absent."""
Question = Literal["how_much", "what", "where", "how_complicated", "what_else", "how_sure"]
"""The six that a reader wants answered first (overview/overview.py)."""
State = Literal["effect", "none", "absent", "waits"]
"""Of a section: something was found, nothing could be shown, it was not measured, or it is not computed yet."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run folder holds, read once (`load`)."""

    rows: pl.DataFrame
    """One row a unit: a prompt, or a cluster of prompts."""
    summary: pl.DataFrame
    manifest: dict
    prompts: list[dict] = field(default_factory=list)
    """What the models read: `split id cluster sha256 text_base ...`, as in prompts.jsonl."""
    prompt_rows: pl.DataFrame = field(default=None)  # type: ignore[assignment]
    """One row a prompt, for what shows single prompts; the same table where no two prompts share a cluster."""
    verified: dict[str, Any] | None = None
    """What `mechdiff verify` found of these rows; None where they were never checked."""
    over_base: "Run | None" = None
    """Of a study that reads both models' answers (all else here is over the tuned model's): the same run, as if the base's alone had been read."""

    def __post_init__(self) -> None:
        if self.prompt_rows is None:
            object.__setattr__(self, "prompt_rows", self.rows)

    @property
    def by_answers(self) -> tuple["Run", ...]:
        """This run, and beside it where both models' answers were read the same over the base's."""
        return (self, self.over_base) if self.over_base else (self,)

    def why_not(self, what: str) -> str:
        """What a section says behind its first words where a measure, or a part of one, was left out: ": " and the reasons; nothing without any."""
        reasons = list(dict.fromkeys(one["why"] for one in self.manifest.get("skipped") or () if one["what"] == what))
        return f": {'; '.join(reasons)}" if reasons else ""


def load(folder: str | Path) -> Run:
    """A finished run as its page and comparisons read it. Raises RunError where there is none, or its tables cannot be read."""
    place = Path(folder)
    found = assembled(read_rows(place), read_prompts(place), read_summary(place), read_manifest(place))
    return replace(found, verified=read_verified(place))


def assembled(raw: pl.DataFrame, prompts: list[dict], summary: pl.DataFrame, manifest: dict) -> Run:
    """A run of its tables: rows prompt by prompt, prompts as in prompts.jsonl, and what was made of both."""
    rows, manifest = clustered(raw, prompts), manifest | _units(prompts)
    if not both_answers(raw):
        return Run(rows=rows, summary=summary, manifest=manifest, prompts=prompts, prompt_rows=raw)

    def over(side: str, beside: Run | None = None) -> Run:
        tables: dict[str, Any] = {name: answers_of(of, side) for name, of in (("rows", rows), ("summary", summary), ("prompt_rows", raw))}
        config = manifest["config"] | {"answers": manifest["config"]["answers"] | {"of": side}}
        return Run(**tables, manifest=manifest | {"config": config}, prompts=prompts, over_base=beside)

    return over("tuned", over("base"))


def manifest_of(place: Path) -> dict:
    """A run's record, and as `units` the name of each prompt's cluster by split and prompt, where prompts of a split share one."""
    return read_manifest(place) | _units(read_prompts(place))


def _units(prompts: list[dict]) -> dict[str, Any]:
    names: dict[str, dict[str, str]] = {}
    for (split, prompt), unit in unit_names(prompts).items():
        names.setdefault(split, {})[prompt] = unit
    return {"units": names} if names else {}


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A figure in its place on the page; `page` draws and writes it."""

    name: str
    chart: Figure
    options: dict = field(default_factory=dict)
    caption: str
    reading: str
    """Which explanation of its folder's reading.html belongs to it; empty: none."""
    of: Run | None = None
    """Whose tables it is drawn from; None: those of the page's run."""
    main: bool = False
    """Whether it stands in view (`Section.parts`)."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """What the page says to one question: one finding, one figure and one table in view, and everything else folded behind them."""

    id: str
    title: str
    parts: list[Any] = field(default_factory=list)
    """Drawn figures, and dicts for the template: tables, lists, notes. In view are those that say `main`; where none does, the first figure, the
    first table that is not folded, and a note before both (`page.in_view`)."""
    lead: list[str] = field(default_factory=list)
    """Sentences at its head."""
    place: float | None = None
    """Its order on the page, where that is not its chapter's."""
    state: State | None = None
    """What the list of sections says of it at one look; None: "absent" where nothing but notes is here, else nothing."""


def is_absent(section: Section) -> bool:
    """Whether nothing but notes is here: what it asks was not measured, or has no answer."""
    return not section.lead and all(isinstance(part, dict) and part["kind"] == "note" for part in section.parts)


@dataclass(frozen=True, kw_only=True)
class Feed:
    """What a measure says to one of the six first questions."""

    says: Callable[[Run], list["Candidate"]]
    place: int
    """Who answers a question first: the lowest place. Who comes after says what there is still room for."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What both models answered to one prompt."""

    prompt: str
    """Its id."""
    asked: str
    base: str
    tuned: str


def nothing(run: Run) -> list[Any]:
    """What a chapter says that says nothing."""
    return []


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """What the page says of a measure."""

    sections: tuple[Callable[[Run], Section], ...]
    """Each makes a section of it, also where it was not measured: then the section says so."""
    lead: Callable[[Run], list[str]] = nothing
    """What stands at the head of the first of them: the measure's numbers in words."""
    needs: Literal["nothing", "effect", "shares"] = "nothing"
    """What there must be for the lead: nothing, any difference between the two models, or a D to take shares of (`sections.lead`)."""
    clause: Callable[[Run], list["Candidate"]] = nothing
    """What it adds to the verdict ..."""
    over_answers: Callable[[Run], list[str]] = nothing
    """Its lead where the two models' next tokens do not differ, and their whole answers may."""
    clause_over_answers: Callable[[Run], list["Candidate"]] = nothing
    """What it then adds to the verdict."""
    clause_of: Literal[1, 2, 3, 4, 5]
    """... and to which of its sentences (`verdict`)."""
    reading: Path
    """A template with a macro for each figure, of its name: how to read it, and when it misleads."""
    place: float
    """Its order on the page, which is not the order in which measures run."""
    shows: Callable[[Run], bool] | None = None
    """Whether it found something, as its dot in the list of sections says; None: whether a clause of it passes the gates of the verdict, or, of a
    measure that offers none, whether it has a lead."""
    feeds: Mapping[Question, Feed] = field(default_factory=dict)
    """What it says to the six first questions, of those that it can answer."""
    strips: Callable[[Run], list["Strip"]] = nothing
    """Its rows of the overview's figure, along the layers."""
    answers: Callable[[Run], list[Answers]] = nothing
    """Pairs of answers that the overview may show."""


def table(
    columns: Iterable[str], rows: Iterable[Iterable[str]], *, title: str = "", folded: str = "", stacked: bool = False, main: bool = False
) -> dict:
    """A table for the template; `folded` hides it behind a line that opens it, `stacked` breaks cells at line ends, the second column being words,
    `main` keeps it in view.

    What brackets are is said once, below it (`key`), not in its cells.
    """
    cells = [list(row) for row in rows]
    return {
        "kind": "table",
        "columns": list(columns),
        "rows": [[phrasing.bare(cell) for cell in row] for row in cells],
        "key": phrasing.key_of(cell for row in cells for cell in row),
        "title": title,
        "folded": folded,
        "stacked": stacked,
        **_in_view(main),
    }


def note(text: str, *, main: bool = False) -> dict:
    return {"kind": "note", "text": phrasing.said_once([text])[0], **_in_view(main)}


def _in_view(main: bool) -> dict[str, bool]:
    return {"main": True} if main else {}
