"""A corpus is scanned chunk by chunk: both models read each text once, and of a text one row is kept, never one of a token.

The chunk is the unit of work and of storage: a cell, stored once, whole or not at all, known by the models, the texts and what is asked, and found
again by the next command. One cell before them holds the directions that texts are held against. Any process may compute any cell.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mechdiff.architectures.lookup import shape_of
from mechdiff.architectures.sizes import QUANTIZED
from mechdiff.engine.choice import engine_for
from mechdiff.errors import PromptError, StudyError
from mechdiff.models.pair import SIDES, Pair
from mechdiff.prompts.rendering import Rendered, render
from mechdiff.prompts.sets import Prompt
from mechdiff.prompts.templates import PromptPolicy
from mechdiff.prompts.vocabularies import Tokens, shared_tokens, vocabulary_of
from mechdiff.scanning.texts import Text, Texts
from mechdiff.scanning.tokens import Head
from mechdiff.store.run_folder import cell_hash
from mechdiff.study.cells import Cell
from mechdiff.study.prepare import ENGINE_VERSION

VERSION = 2
"""Of a scan's cells: what was scanned before by other rules is scanned again."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a scan can be told."""

    corpus: str
    field: str = "text"
    """Which holds the text."""
    longest: int = 512
    """Tokens of a text that are read."""
    chunk: int = 256
    """Texts of a chunk."""
    matrices: int = 4
    """The largest changes of weights whose directions texts are held against."""
    vectors: tuple[str, ...] = ()
    """Files of steering vectors, the same."""

    def __post_init__(self) -> None:
        for name, least in (("longest", 2), ("chunk", 1), ("matrices", 0)):
            if getattr(self, name) < least:
                raise StudyError(f"--{name} {getattr(self, name)}: expected {least} or more.")


@dataclass(frozen=True, kw_only=True)
class Read:
    """One text as both models read it, up to the last token at which both have read the same bytes."""

    number: int
    id: str
    ids: dict[str, tuple[int, ...]]
    """By side."""
    pairs: tuple[tuple[int, int], ...]
    """Tokens (i_base, i_tuned) at which both have read the same bytes; the last is the last token of both."""
    refused: str = ""
    """Why no model reads it, if none does: it has no tokens then."""

    @property
    def scored(self) -> tuple[tuple[int, int], ...]:
        """Those that something follows."""
        return self.pairs[:-1]

    @property
    def alike(self) -> bool:
        """Both models read the same tokens."""
        return self.ids["base"] == self.ids["tuned"]


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A pair and a corpus."""

    pair: Pair
    asked: Asked
    heads: dict[str, Head | None] = field(default_factory=dict, repr=False, compare=False)
    """By side, once asked for."""

    @cached_property
    def texts(self) -> Texts:
        return Texts(given=self.asked.corpus, named=self.asked.field, chunk=self.asked.chunk)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Of the unembeddings, by side."""
        return {side: int(self.pair.config(side).get_text_config().vocab_size) for side in SIDES}

    @cached_property
    def tokens(self) -> Tokens:
        """Of both vocabularies."""
        base, tuned = (vocabulary_of(self.pair.tokenizer(side)) for side in SIDES)
        return shared_tokens(base, tuned, rows_base=self.rows["base"], rows_tuned=self.rows["tuned"])

    @cached_property
    def _key(self) -> dict[str, Any]:
        models: dict[str, Any] = {side: self.pair.source(side).files() for side in SIDES}
        vectors = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in self.asked.vectors if Path(path).is_file()]
        if len(vectors) < len(self.asked.vectors):
            absent = next(path for path in self.asked.vectors if not Path(path).is_file())
            raise StudyError(f"--vectors {absent}: no such file. Give a file of RUN/steering: .safetensors or .gguf.")
        return {
            "models": cell_hash(models), "dtype": self.pair.dtype, "version": [ENGINE_VERSION, VERSION], "longest": self.asked.longest,
            "matrices": self.asked.matrices, "vectors": vectors, "first": self.texts.chunks[0],
        }  # fmt: skip

    @cached_property
    def directions(self) -> Cell:
        """Random ones are drawn from states on the first chunk."""
        return Cell(stage="directions", key={**self._key, "stage": "directions"}, items=(), side=None, flops=1.0)

    @cached_property
    def chunks(self) -> tuple[Cell, ...]:
        keys = [{**self._key, "stage": "scan", "number": number, "texts": texts} for number, texts in enumerate(self.texts.chunks)]
        return tuple(Cell(stage="scan", key=key, items=(), side=None, flops=1.0) for key in keys)

    @property
    def cells(self) -> tuple[Cell, ...]:
        return (self.directions, *self.chunks)

    @property
    def hash(self) -> str:
        """Of all that decides the numbers."""
        return cell_hash({**self._key, "stage": "corpus", "chunks": list(self.texts.chunks)})

    def text(self) -> str:
        """What is scanned, in YAML, for the folder."""
        told = {"base": self.pair.base.ref, "tuned": self.pair.tuned.ref, "dtype": self.pair.dtype, **asdict(self.asked)}
        return "".join(f"{name}: {json.dumps(value)}\n" for name, value in told.items())

    @property
    def bytes(self) -> float:
        """Memory of one process: both models and half as much again."""
        return 1.5 * sum(self.pair.weights(side).bytes(self.pair.dtype) for side in SIDES)

    @cached_property
    def alone(self) -> bool:
        """Whether each text runs by itself: where what a model computes depends on what else is in the pass."""
        engines = [engine_for(self.pair.config(side), self.asked.longest)[0] for side in SIDES]
        return engines != ["replay", "replay"] or self.pair.dtype in QUANTIZED

    def read(self, texts: Sequence[Text]) -> list[Read]:
        """Texts as both models read them; what a tokenizer cannot take stops no scan: it is `refused`."""
        assert self.tokens.n_shared  # else, and for a tokenizer that refuses every text, an error was raised
        try:
            return [self._cut(text, one) for text, one in zip(texts, self._rendered(texts), strict=True)]
        except PromptError:
            return [self._alone(text) for text in texts]

    def _alone(self, text: Text) -> Read:
        try:
            (one,) = self._rendered([text])
        except PromptError as error:
            why = str(error).removeprefix(f"prompt {text.id!r}: ").partition(". ")[0]
            return _refused(text, why)
        return self._cut(text, one)

    def _rendered(self, texts: Sequence[Text]) -> list[Rendered]:
        prompts = [Prompt(id=one.id, text=one.text) for one in texts]
        base, tuned, limit = self.pair.tokenizer("base"), self.pair.tokenizer("tuned"), 1 << 62
        return render(prompts, base, tuned, PromptPolicy(policy="raw"), max_base=limit, max_tuned=limit)

    def _cut(self, text: Text, one: Rendered) -> Read:
        """Up to `longest`; tokens that are the same in both vocabularies are pairs, one by one, whatever the tokenizers say of their ends."""
        pairs = [pair for pair in one.positions if max(pair) < self.longest] or [one.positions[0]]
        base, tuned = pairs[-1]
        ids = {"base": one.ids_base[: base + 1], "tuned": one.ids_tuned[: tuned + 1]}
        for side in SIDES:
            if max(ids[side]) >= self.rows[side]:
                return _refused(text, f"the {side} model has no row for one of its tokens")
        if self.tokens.equal and ids["base"] == ids["tuned"]:
            pairs = [(i, i) for i in range(base + 1)]
        return Read(number=text.number, id=text.id, ids=ids, pairs=tuple(pairs))

    def seen(self, texts: Sequence[Text]) -> dict[int, str]:
        """Of each text, by its number, what the models read of it; all of it where they read none."""
        found = {}
        for text, one in zip(texts, self.read(texts), strict=True):
            (encoding,) = self.pair.tokenizer("base")([text.text], verbose=False).encodings if one.pairs else (None,)
            found[text.number] = text.text[: encoding.offsets[len(one.ids["base"]) - 1][1]] if encoding else text.text
        return found

    @cached_property
    def longest(self) -> int:
        """Tokens of a text that both models have room for."""
        return min(self.asked.longest, *(shape_of(self.pair.config(side)).context for side in SIDES))


def _refused(text: Text, why: str) -> Read:
    return Read(number=text.number, id=text.id, ids={"base": (), "tuned": ()}, pairs=(), refused=why)
