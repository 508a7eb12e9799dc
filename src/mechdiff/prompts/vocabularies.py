"""Which tokens of two vocabularies are the same? Tokens match by the bytes that they stand for, never by their ids. No torch here.

A vocabulary numbers its tokens as it likes: one fine-tune adds tokens, another has a tokenizer of its own. What can be compared is the text
that a token adds. Each kind of tokenizer writes it in its own letters:

- **byte-level BPE** (GPT-2, Llama 3, Qwen, SmolLM): each byte is one printable character, a space is `Ġ`;
- **SentencePiece** (Llama 2, Gemma, Mistral): a space is `▁`, and what the vocabulary lacks is spelled in byte tokens `<0xE2>`;
- **WordPiece** (BERT): a word opens with a space that is not written, what continues it opens with `##`.

Special tokens stand for no text: they match by their name (`<|im_end|>`). How a tokenizer flags a token makes no other token of it (matching.py).
Rows of the unembedding behind the last token stand for nothing.

`Tokens` lists the tokens of both models once, those that both have first, then the base's own, then the tuned model's own, and `place`
writes either model's logits over this list. A token that a model does not have has logit -inf there: probability exactly 0. So what is
computed within one model is exact, and what compares two says whether it means all tokens or the shared ones.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mechdiff.errors import ModelError
from mechdiff.prompts.matching import Piece, Vocabulary, agreed, matched, spelled

if TYPE_CHECKING:
    from torch import Tensor


Relation = Literal["equal", "permuted", "extended", "reduced", "overlapping"]
"""The tuned vocabulary beside the base's: the same; the same with other ids; more; less; each with tokens of its own."""

SPECIAL = 256
"""The place of special tokens among first bytes."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """The vocabulary of a fast tokenizer of transformers. Raises ModelError for one whose letters are unknown."""
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} is a slow tokenizer, whose tokens cannot be read as bytes. Give a model with a tokenizer.json."
        )
    written = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = _kind(written)
    size = 1 + max([*tokenizer.get_vocab().values(), *tokenizer.added_tokens_decoder], default=-1)
    pieces: list[Piece] = [None] * size
    texts: list[str | None] = [None] * size
    byte_tokens, beside = set(), set()
    for text, i in tokenizer.get_vocab().items():
        pieces[i], texts[i] = _READ[kind](text), text
        if kind == "SentencePiece" and _BYTE_TOKEN.fullmatch(text):
            byte_tokens.add(i)
    proper = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    for i, added in tokenizer.added_tokens_decoder.items():
        texts[i] = added.content
        if not added.special and proper.get(added.content) == i:
            continue  # the vocabulary's own token, in its letters: to be added changes how text is cut, not what the token stands for
        pieces[i] = added.content if added.special else added.content.encode()
        byte_tokens.discard(i)
        beside.add(i)
    return Vocabulary(pieces=tuple(pieces), kind=kind, byte_tokens=frozenset(byte_tokens), written=tuple(texts), added=frozenset(beside))


def _kind(written: dict[str, Any]) -> str:
    """How a tokenizer.json writes text: by its decoder, which turns tokens back into it."""
    decoder = written.get("decoder") or {}
    steps = {step["type"] for step in decoder.get("decoders", [decoder]) if step}
    marks = {json.dumps(step.get("pattern")) for step in decoder.get("decoders", [decoder]) if step.get("type") == "Replace"}
    if "ByteLevel" in steps:
        return "byte-level"
    if steps & {"Metaspace", "ByteFallback"} or any("\\u2581" in mark for mark in marks):
        return "SentencePiece"
    return "WordPiece" if "WordPiece" in steps else "plain"


@lru_cache(1)
def _bytes_of_characters() -> dict[str, int]:
    """GPT-2's letters: printable bytes stand for themselves, the others for the characters from 256 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _read_byte_level(text: str) -> bytes:
    letters = _bytes_of_characters()
    return bytes(letters[c] for c in text) if all(c in letters for c in text) else text.encode()


def _read_sentence_piece(text: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(text)
    return bytes([int(byte[1], 16)]) if byte else text.replace("\u2581", " ").encode()


_READ = {
    "byte-level": _read_byte_level,
    "SentencePiece": _read_sentence_piece,
    "WordPiece": lambda text: text[2:].encode() if text.startswith("##") else f" {text}".encode(),
    "plain": str.encode,
}


# ---- two vocabularies --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """One list of the tokens of two models; see the module's text."""

    relation: Relation
    pieces: tuple[Piece, ...]
    ids: dict[str, np.ndarray]
    """Side ("base", "tuned") -> each token's id in that model, -1 where it has none."""
    n_shared: int
    """Tokens that both have: the first ones."""
    flags: tuple[str, ...] = ()
    """Tokens that are special in one tokenizer alone."""
    renamed: tuple[tuple[int, str | None, str | None], ...] = ()
    """(id, the base's name or None, the tuned model's) of rows that both models have under two names, which count as two tokens."""

    def __len__(self) -> int:
        return len(self.pieces)

    @property
    def equal(self) -> bool:
        return self.relation == "equal"

    @property
    def all_shared(self) -> bool:
        """Both models have the same tokens, under whatever ids."""
        return self.relation in ("equal", "permuted")

    def shared_ids(self, side: str) -> frozenset[int]:
        """That model's ids of the tokens that both have."""
        return frozenset(self.ids[side][: self.n_shared].tolist())

    def has(self, side: str) -> np.ndarray:
        """Which tokens of the list one model has, bool."""
        return self.ids[side] >= 0

    def place(self, logits: "Tensor", side: str) -> "Tensor":
        """Logits `[..., row of the unembedding]` of one model over this list `[..., token]`: -inf for tokens that it does not have."""
        if self.equal:
            return logits[..., : len(self)]
        import torch

        ids = torch.from_numpy(self.ids[side]).to(logits.device)
        return logits.index_select(-1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf)

    def shared(self, logits: "Tensor", side: str) -> "Tensor":
        """Logits of one model at the tokens that both have, in the order of the list."""
        if self.equal:
            return logits[..., : self.n_shared]
        import torch

        return logits.index_select(-1, torch.from_numpy(self.ids[side][: self.n_shared]).to(logits.device))

    def listed(self, side: str, ids: "Tensor") -> "Tensor":
        """Where one model's token ids stand in the list. Rows of its unembedding that are left out have no place: they are never said."""
        if self.equal:
            return ids
        import torch

        return torch.from_numpy(self._places[side]).to(ids.device)[ids]

    def places(self, side: str, ids: Sequence[int]) -> list[int]:
        """The same of a prompt's ids."""
        return list(ids) if self.equal else self._places[side][list(ids)].tolist()

    @cached_property
    def _places(self) -> dict[str, np.ndarray]:
        found = {}
        for side, ids in self.ids.items():
            places = np.zeros(ids.max() + 1, dtype=np.int64)
            places[ids[ids >= 0]] = np.flatnonzero(ids >= 0)
            found[side] = places
        return found

    @cached_property
    def first_bytes(self) -> np.ndarray:
        """The first byte of each token; SPECIAL for special ones and for rows that stand for nothing."""
        return np.array([piece[0] if isinstance(piece, bytes) and piece else SPECIAL for piece in self.pieces])

    def text(self, token: int) -> str:
        """A token as text, for people."""
        return spelled(self.pieces[token])

    def said(self) -> str:
        """The relation in words."""
        own = {side: int(self.has(side).sum()) for side in ("base", "tuned")}
        flags = f", {_some(self.flags)} special in one tokenizer alone" if self.flags else ""
        if self.equal:
            return f"one vocabulary of {len(self)} tokens{flags}"
        if self.relation == "permuted":
            return f"one vocabulary of {len(self)} tokens with other ids: they are matched by the bytes they stand for{flags}"
        only = {side: own[side] - self.n_shared for side in own}
        return (
            f"{own['base']} and {own['tuned']} tokens, {self.n_shared} of them shared by the bytes they stand for"
            f" ({only['base']} only in base, {only['tuned']} only in tuned){flags}"
        )

    def said_of_renamed(self) -> str:
        """Which rows both models have under two names, and what to do; empty where there are none."""
        if not self.renamed:
            return ""
        shown = [f"{i}: {old or 'no name'} in the base, {new} in the tuned model" for i, old, new in self.renamed]
        return (
            f"{_some(shown, 'row')} of both models under another name. By their names these are two tokens each, so what is said with them is "
            "outside D on shared tokens. If the fine-tune renamed reserved or unused rows, give pair.same_rows: true: each row is then one token."
        )


def shared_tokens(
    base: Vocabulary, tuned: Vocabulary, *, rows_base: int | None = None, rows_tuned: int | None = None, same_rows: bool = False
) -> Tokens:
    """The tokens of both; `rows_*` are the rows of the models' unembeddings (default: as many as tokens).

    Of equal vocabularies all rows that both have are listed. Of others those that stand for a token: rows behind the last one are left out.
    `same_rows`: renamed tokens are one (matching.py). Raises ModelError where no token is shared.
    """
    rows = {"base": rows_base or len(base.pieces), "tuned": rows_tuned or len(tuned.pieces)}
    both = agreed(base, tuned, rows=rows, same_rows=same_rows)
    base, tuned, few = both.base, both.tuned, min(rows.values())
    vocabularies = {"base": base, "tuned": tuned}
    if _padded(base.pieces, max(rows.values())) == _padded(tuned.pieces, max(rows.values())):
        ids = np.arange(few)
        return Tokens(relation="equal", pieces=_padded(base.pieces, few), ids={"base": ids, "tuned": ids}, n_shared=few, flags=both.flags)
    pairs = matched(vocabularies, rows)
    if not any(isinstance(base.pieces[i], bytes) for i, _ in pairs):
        raise ModelError(
            "the two models' vocabularies share no token, by the bytes that tokens stand for: nothing that they say can be compared."
        )
    found = {"base": {i for i, _ in pairs}, "tuned": {i for _, i in pairs}}
    own = {
        side: [i for i, piece in enumerate(vocabulary.pieces[: rows[side]]) if piece is not None and i not in found[side]]
        for side, vocabulary in vocabularies.items()
    }
    pieces = [*(base.pieces[i] for i, _ in pairs), *(base.pieces[i] for i in own["base"]), *(tuned.pieces[i] for i in own["tuned"])]
    none: dict[str, list[int]] = {side: [-1] * len(ids) for side, ids in own.items()}
    listed = {
        "base": [*(i for i, _ in pairs), *own["base"], *none["tuned"]],
        "tuned": [*(i for _, i in pairs), *none["base"], *own["tuned"]],
    }
    relations: dict[tuple[bool, bool], Relation] = {
        (False, False): "permuted", (False, True): "extended", (True, False): "reduced", (True, True): "overlapping",
    }  # fmt: skip
    return Tokens(
        relation=relations[bool(own["base"]), bool(own["tuned"])],
        pieces=tuple(pieces),
        ids={side: np.array(ids, dtype=np.int64) for side, ids in listed.items()},
        n_shared=len(pairs),
        flags=both.flags,
        renamed=both.renamed,
    )


def _some(names: Sequence[str], what: str = "token", shown: int = 3) -> str:
    """ "2 tokens (<a>, <b>)", and that there are more."""
    count = f"{len(names)} {what}{'s' * (len(names) != 1)}"
    return f"{count} ({', '.join(names[:shown])}{f' and {len(names) - shown} more' * (len(names) > shown)})"


def _padded(pieces: tuple[Piece, ...], n: int) -> tuple[Piece, ...]:
    return (*pieces[:n], *(None,) * (n - len(pieces)))
