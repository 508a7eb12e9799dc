"""Rows are read from any source, one after the other: JSON Lines, JSON, CSV, TSV, Parquet, plain text, a data set on disk or on the Hub.

A file is streamed where its format allows it, and a run that has enough stops reading. Nothing is interpreted here: a row is a mapping from
the source's own names to its values.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechdiff.errors import PromptError

Row = dict[str, Any]

_BATCH = 4096


@dataclass(frozen=True, kw_only=True)
class Source:
    """One thing that rows are read from."""

    name: str
    """As the user gave it; in the record a path's last part."""
    kind: str
    rows: Callable[[], Iterator[Row]]
    sha256: str | None
    """Of the file; None for what is streamed from elsewhere."""


def open_source(given: str, *, paragraphs: bool = False) -> Source:
    """The source that a path or a Hub id names. `paragraphs`: in plain text blank lines separate prompts, else every line is one.

    Raises PromptError where there is nothing to be read, with the kinds that there are.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        return Source(name=path.name, kind="data set on disk", rows=lambda: _from_disk(path), sha256=None)
    if path.is_file():
        kind = path.suffix.lower()
        if kind not in READERS:
            raise PromptError(
                f"{given}: given a {kind or 'nameless'} file, expected one of {', '.join(READERS)}, or a folder saved by `datasets`."
            )
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        read = READERS[kind]
        return Source(
            name=path.name, kind=kind[1:], rows=lambda: _paragraphs(path) if paragraphs and kind == ".txt" else read(path), sha256=digest
        )
    if given.startswith((".", "/", "~")) or path.suffix.lower() in READERS:
        raise PromptError(f"{given}: no such file. Give a path to {', '.join(READERS)}, a folder saved by `datasets`, or a Hub id.")
    return Source(name=given, kind="Hub data set", rows=lambda: _from_hub(given), sha256=None)


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield _object(_parsed(line, f"{path.name}, line {number}"), f"{path.name}, line {number}")


def _json(path: Path) -> Iterator[Row]:
    told = _parsed(path.read_text(encoding="utf-8-sig"), path.name)
    lists = [value for value in told.values() if isinstance(value, list)] if isinstance(told, dict) else [told]
    if len(lists) != 1 or not isinstance(lists[0], list):
        raise PromptError(f"{path.name}: expected a list of objects, or one object that holds one list.")
    for number, row in enumerate(lists[0], start=1):
        yield _object(row, f"{path.name}, entry {number}")


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{place}: malformed JSON ({error}). Write one JSON object a line (.jsonl), or one list (.json).") from error


def _object(row: object, place: str) -> Row:
    if not isinstance(row, dict):
        raise PromptError(f"{place}: a JSON {type(row).__name__}, not an object with named fields.")
    return row


_MORE = "(more columns than the header)"


def _separated(separator: str) -> Callable[[Path], Iterator[Row]]:
    def read(path: Path) -> Iterator[Row]:
        csv.field_size_limit(1 << 24)
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter=separator, restkey=_MORE, strict=True)
            try:
                for row in reader:
                    if _MORE in row or None in row.values():
                        n = len(reader.fieldnames or ())
                        what = "more" if _MORE in row else "fewer"
                        raise PromptError(
                            f"{path.name}, line {reader.line_num}: a row with {what} than the {n} columns of the first one. "
                            "A text with a comma or a line end needs quotes around it."
                        )
                    yield row
            except csv.Error as error:
                raise PromptError(f"{path.name}, line {reader.line_num}: {error}. The first row must name the columns.") from error

    return read


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow.lib
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(_BATCH):
            yield from batch.to_pylist()
    except pyarrow.lib.ArrowException as error:
        raise PromptError(f"{path.name}: cannot be read as Parquet ({error}).") from error


def _lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as stream:
        yield from ({"text": line.strip()} for line in stream if line.strip())


def _paragraphs(path: Path) -> Iterator[Row]:
    pieces = path.read_text(encoding="utf-8-sig").replace("\r\n", "\n").split("\n\n")
    yield from ({"text": piece.strip()} for piece in pieces if piece.strip())


def _decoded(read: Callable[[Path], Iterator[Row]]) -> Callable[[Path], Iterator[Row]]:
    def rows(path: Path) -> Iterator[Row]:
        try:
            yield from read(path)
        except UnicodeDecodeError as error:
            raise PromptError(f"{path.name}: not UTF-8 (at byte {error.start + 1}). Save the file as UTF-8.") from error

    return rows


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _decoded(_json_lines),
    ".json": _decoded(_json),
    ".csv": _decoded(_separated(",")),
    ".tsv": _decoded(_separated("\t")),
    ".parquet": _parquet,
    ".txt": _decoded(_lines),
}


def _from_disk(path: Path) -> Iterator[Row]:
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError, OSError) as error:
        raise PromptError(f"{path}: a folder, but no data set that `datasets` saved ({error}). Give the files in it one by one.") from error
    parts = found.values() if isinstance(found, datasets.DatasetDict) else [found]
    for part in parts:
        yield from part


def _from_hub(given: str) -> Iterator[Row]:
    """`owner/name`, `owner/name:configuration` and `...@split`."""
    import datasets

    name, _, split = given.partition("@")
    name, _, configuration = name.partition(":")
    try:
        found = datasets.load_dataset(name, configuration or None, split=split or None, streaming=True)
        parts = found.values() if isinstance(found, dict) else [found]
        for part in parts:
            yield from part
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PromptError(
            f"{given}: neither a file or folder here nor a data set that could be read from the Hub ({said}). "
            "Give a path, or OWNER/NAME[:CONFIGURATION][@SPLIT] with a network."
        ) from error
