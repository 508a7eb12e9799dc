"""What the page is made of: sections of figures with captions, tables, notes and texts. Plain data; `page` renders it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from mechdiff.report.drawing import Figure


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run folder holds, read once."""

    rows: pl.DataFrame
    summary: pl.DataFrame
    manifest: dict
    prompts: list[dict] = field(default_factory=list)
    """What the models read: `split id sha256 text_base ...`, as in prompts.jsonl."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A figure in its place on the page; `page` draws and writes it."""

    name: str
    chart: Figure
    options: dict = field(default_factory=dict)
    caption: str
    reading: str
    """Which explanation of reading.html belongs to it."""


@dataclass(frozen=True, kw_only=True)
class Section:
    id: str
    title: str
    parts: list[Any] = field(default_factory=list)
    """Drawn figures, and dicts for the template: tables, lists, notes."""
    lead: list[str] = field(default_factory=list)
    """Sentences at its head."""


def table(columns: Iterable[str], rows: Iterable[Iterable[str]], *, title: str = "", folded: str = "", stacked: bool = False) -> dict:
    """A table for the template; `folded` hides it behind a line that opens it, `stacked` breaks cells at line ends, the second column being words."""
    return {
        "kind": "table",
        "columns": list(columns),
        "rows": [list(row) for row in rows],
        "title": title,
        "folded": folded,
        "stacked": stacked,
    }


def note(text: str) -> dict:
    return {"kind": "note", "text": text}
