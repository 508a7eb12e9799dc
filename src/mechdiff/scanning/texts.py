"""Texts come from any source that `curate` reads, in chunks: each is a unit of work and of storage, and is known by what its texts are."""

import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

from mechdiff.curate.raw import open_source
from mechdiff.errors import PromptError


@dataclass(frozen=True, kw_only=True)
class Text:
    """One text of a corpus."""

    number: int
    """From 0, in the order of the source; texts without a letter or mark are not counted."""
    id: str
    text: str


@dataclass(kw_only=True)
class Texts:
    """A source of texts, streamed: no more than a chunk of it is in memory."""

    given: str
    """JSON Lines, JSON, CSV, TSV, Parquet, plain text (a text a line), a folder saved by `datasets`, or a Hub id."""
    named: str = "text"
    """The field that holds the text."""
    chunk: int = 256
    """Texts of a chunk."""
    _at: int = field(default=0, repr=False)
    _stream: Iterator[Text] | None = field(default=None, repr=False)

    def __iter__(self) -> Iterator[Text]:
        number = 0
        for place, row in enumerate(open_source(self.given).rows(), start=1):
            text = row.get(self.named)
            if not isinstance(text, str):
                raise PromptError(
                    f"{self.given}, text {place}: {self.named!r} is {text!r}, expected a string; its fields are {', '.join(map(str, row))}. "
                    "Name the one that holds the text with --field."
                )
            if text.strip():
                name = row.get("id")
                yield Text(number=number, id=f"text-{number + 1}" if name in (None, "") else str(name), text=text)
                number += 1

    @cached_property
    def chunks(self) -> tuple[str, ...]:
        """The SHA-256 of each chunk's ids and texts; reads the source once."""
        found, stream = [], iter(self)
        while texts := list(islice(stream, self.chunk)):
            found.append(hashlib.sha256(json.dumps([(one.id, one.text) for one in texts]).encode()).hexdigest())
        if not found:
            raise PromptError(f"{self.given} holds no texts. Give JSON Lines with a `text` in every line, text, CSV or Parquet.")
        return tuple(found)

    def of(self, number: int) -> list[Text]:
        """The texts of one chunk; the next one is read on from there."""
        if self._stream is None or number < self._at:
            self._at, self._stream = 0, iter(self)
        for _ in islice(self._stream, (number - self._at) * self.chunk):
            pass
        self._at = number + 1
        return list(islice(self._stream, self.chunk))

    def some(self, numbers: Collection[int]) -> dict[int, Text]:
        """The texts of these numbers, in one pass."""
        last = max(numbers, default=-1)
        return {one.number: one for one in islice(self, last + 1) if one.number in numbers}
