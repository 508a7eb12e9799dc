"""What a user has at hand becomes a prompt file: a file of another tool, a data set, a text in quotes, lists from Python.

A JSON Lines file whose every line has the keys of a prompt is taken as it is. Anything else is read as `mechdiff curate` reads it, equal prompts
once, and written beside mechdiff's other cached files, under a name that holds its content's hash.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechdiff.curate.curation import Curation, Recipe, curate, write
from mechdiff.curate.raw import READERS, Row, Source, open_source
from mechdiff.errors import PromptError
from mechdiff.models.sources import cache_folder
from mechdiff.prompts.sets import KEYS

Prompts = str | Path | Sequence[str | Mapping[str, Any] | Sequence[Mapping[str, Any]]]
"""A path, a Hub id, a text; or a list of texts, of objects as in a file, and of conversations (lists of messages)."""

_PATH = re.compile(r"[/~]|\.{1,2}/")
_HUB = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?(@\S+)?")
EXPECTED = (
    "a file (.jsonl, .json, .csv, .tsv, .parquet, .txt), a folder saved by `datasets`, OWNER/NAME[:CONFIGURATION][@SPLIT], or a text of several "
    'words ("What is 2+2?")'
)


@dataclass(frozen=True, kw_only=True)
class Given:
    """Prompts as a study reads them."""

    path: Path
    """A JSON Lines file of prompts."""
    said: tuple[str, ...] = ()
    """What was made of what was given: rows read and dropped, fields that are kept beside the text."""


def prompt_file(given: Prompts) -> Given:
    """The prompt file of what was given. Raises PromptError where nothing in it can be asked."""
    source = _source(given)
    if isinstance(source, Path):
        return Given(path=source)
    made = curate([source], Recipe(near=1, keep_fields=True))
    name = f"{re.sub(r'[^A-Za-z0-9_-]+', '-', Path(source.name).stem)[:40].strip('-') or 'prompts'}-{_hash(made)}"
    folder = cache_folder() / "prompts" / name
    write(made, folder, one_file=True, overwrite=True)
    return Given(path=folder / "prompts.jsonl", said=tuple(_said(made, source)))


def _source(given: Prompts) -> Source | Path:
    """Where rows are read from; a file that needs no reading as its path."""
    if not isinstance(given, str | Path):
        return _rows("the list of prompts", [_row(one, place) for place, one in enumerate(given, start=1)])
    if isinstance(given, str) and _is_text(given):
        return _rows("the text", [{"text": given}])
    if isinstance(given, str) and not (_PATH.match(given) or Path(given).exists() or Path(given).suffix or _HUB.fullmatch(given)):
        raise PromptError(f"prompts: given {given!r}, expected {EXPECTED}.")
    source = open_source(str(given))
    return Path(given).expanduser() if source.kind == "jsonl" and all(row.keys() <= set(KEYS) for row in source.rows()) else source


def _is_text(given: str) -> bool:
    """Whether this is a text and no name of a file or a data set: it has white space, no ending of a file, and nothing of its name is there."""
    try:
        there = Path(given).expanduser().exists()
    except OSError:  # a name that is too long for any file
        there = False
    named = bool(_PATH.match(given)) or Path(given).suffix.lower() in READERS
    return not there and not named and any(letter.isspace() for letter in given.strip())


def _row(one: Any, place: int) -> Row:
    if isinstance(one, str):
        return {"text": one}
    if isinstance(one, Mapping):
        return dict(one)
    if isinstance(one, Sequence) and one and all(isinstance(turn, Mapping) for turn in one):
        return {"messages": list(one)}
    raise PromptError(f"prompts, entry {place}: given {one!r}, expected a text, an object with a `text`, or a list of messages.")


def _rows(name: str, rows: list[Row]) -> Source:
    return Source(name=name, kind="given", rows=lambda: iter(rows), sha256=None)


def _hash(made: Curation) -> str:
    return hashlib.sha256(repr(made.prompts).encode()).hexdigest()[:12]


def _said(made: Curation, source: Source) -> Iterable[str]:
    dropped = [f"{n} {reason}" for step in made.record["steps"] for reason, n in step["reasons"].items()]
    read, kept = made.record["rows_read"], made.record["kept"]
    yield f"{source.name}: {kept} prompt{'s' * (kept != 1)} of {read} row{'s' * (read != 1)}" + (
        f" (left out: {', '.join(dropped)})" if dropped else ""
    )
    if fields := made.record["kept_fields"]:
        yield f"{source.name}: the fields {', '.join(fields)} are no part of the prompts; they are kept in their meta"
