"""When are tokens of two tokenizers one token? By what they stand for, and by their place: never by how a tokenizer flags them. No torch here.

A token is one in both where

1. both tokenizers write it alike in the same letters, at the same id: whatever else they say of it;
2. else both stand for the same bytes of text, or are special and have the same name;
3. else one is special and the other was added as text of the same content.

A fine-tune's tools flip the flags of a token (`special`, `normalized`, `lstrip`), and move it from the vocabulary proper to the added ones and back:
`<think>` stays `<think>`. Where it is special in one tokenizer it is special for the pair: it stands for no text of either model. A plain token that
merely spells the name of the other tokenizer's special one, at another id (`<s>` among pieces of HTML), is another token.

**Renamed tokens** stand at one row of both models under two names, in two vocabularies that are otherwise one: `<|reserved_special_token_5|>` becomes
`<tool_call>`, or a row that had no name gets one. By their names they are two tokens; with `same_rows` they are one, under the tuned model's name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Piece = bytes | str | None
"""What a token stands for: bytes of text, the name of a special token, or nothing."""

LINEAGE = 0.9
"""Share of the smaller vocabulary's tokens that stand at the same ids, from which on a row is the same row of both."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The tokens of one tokenizer, by id."""

    pieces: tuple[Piece, ...]
    kind: str
    """`byte-level`, `SentencePiece`, `WordPiece` or `plain` (a token is its own text)."""
    byte_tokens: frozenset[int]
    """Ids of SentencePiece's byte tokens, which may stand for the same byte as a common token."""
    written: tuple[str | None, ...] = ()
    """How each token is written, in the tokenizer's own letters; empty where that is not known."""
    added: frozenset[int] = frozenset()
    """Ids of tokens that stand beside the vocabulary proper, as their own text."""

    def spelled(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token; of special ones none, as of rows of the unembedding that no token has."""
        return [piece if isinstance(piece := self.pieces[i] if i < len(self.pieces) else None, bytes) else b"" for i in ids]

    def text(self, *ids: int) -> str:
        """Tokens that follow one another as text, for people: bytes that are no whole character as `<0xD2>`, special tokens by their names."""
        said, held = "", b""
        for i in ids:
            piece = self.pieces[i] if i < len(self.pieces) else None
            if isinstance(piece, bytes):
                held += piece
            else:
                said, held = said + spelled(held) + spelled(piece), b""
        return said + spelled(held)


def spelled(piece: bytes | str | None) -> str:
    """A token as text; bytes that are part of a character as `<0x9D>`."""
    if not isinstance(piece, bytes):
        return piece or ""
    return "".join(f"<0x{ord(one) - 0xDC00:02X}>" if "\udc80" <= one <= "\udcff" else one for one in piece.decode(errors="surrogateescape"))


@dataclass(frozen=True, kw_only=True)
class Agreed:
    """Two vocabularies in which each token that stands at one id of both says the same of itself."""

    base: Vocabulary
    tuned: Vocabulary
    flags: tuple[str, ...]
    """Tokens that are special in one tokenizer alone."""
    renamed: tuple[tuple[int, str | None, str | None], ...]
    """(id, the base's name, the tuned model's) of tokens at one row of both under two names; None: a row that had no name."""


def agreed(base: Vocabulary, tuned: Vocabulary, *, rows: Mapping[str, int] | None = None, same_rows: bool = False) -> Agreed:
    """The two, with flags that differ settled; with `same_rows` also the names. `rows` of the unembeddings: default as many as tokens."""
    pieces = {"base": list(base.pieces), "tuned": list(tuned.pieces)}
    bytes_ = {"base": set(base.byte_tokens), "tuned": set(tuned.byte_tokens)}
    flags = []
    for i in _same_place(base, tuned):
        one, other = base.pieces[i], tuned.pieces[i]
        if one == other:
            continue
        piece = next((piece for piece in (one, other) if isinstance(piece, str)), one)
        flags += [base.written[i] or ""] if isinstance(piece, str) else []
        for side in pieces:
            pieces[side][i] = piece
            bytes_[side].discard(i)
    settled = [
        replace(one, pieces=tuple(pieces[side]), byte_tokens=frozenset(bytes_[side])) for side, one in (("base", base), ("tuned", tuned))
    ]
    names = _renamed(base, tuned, rows or {side: len(own) for side, own in pieces.items()})
    if same_rows and names:
        said = pieces["base"] + [None] * (max(i for i, _, _ in names) + 1 - len(base.pieces))
        for i, _, _ in names:
            said[i] = tuned.pieces[i]
        settled[0] = replace(settled[0], pieces=tuple(said), byte_tokens=settled[0].byte_tokens - {i for i, _, _ in names})
    return Agreed(base=settled[0], tuned=settled[1], flags=tuple(flags), renamed=() if same_rows else tuple(names))


def matched(vocabularies: Mapping[str, Vocabulary], rows: Mapping[str, int]) -> list[tuple[int, int]]:
    """(base id, tuned id) of every token that both have, in the base's order; of vocabularies that are `agreed`.

    A byte token and a common token may stand for the same byte, and several tokens for the same text: tokens of one id are matched first, then the
    first common token with the first common token, byte tokens with byte tokens, then what is left over by its bytes alone, and then by its content.
    """
    base, tuned = vocabularies["base"], vocabularies["tuned"]
    pairs = [(i, i) for i in _same_place(base, tuned) if i < min(rows.values())]
    taken = {i for i, _ in pairs}
    left: dict[str, dict[Any, list[int]]] = {"base": {}, "tuned": {}}
    for side, vocabulary in vocabularies.items():
        for i, piece in enumerate(vocabulary.pieces[: rows[side]]):
            if piece is not None and i not in taken:
                left[side].setdefault((piece, i in vocabulary.byte_tokens), []).append(i)
    for _ in ("of one kind", "of any kind"):
        rest: dict[str, dict[Any, list[int]]] = {"base": {}, "tuned": {}}
        both = {key: list(zip(left["base"].get(key, ()), left["tuned"].get(key, ()), strict=False)) for key in left["base"] | left["tuned"]}
        for key, found in both.items():
            pairs += found
            for side in rest:
                rest[side].setdefault((key[0], None), []).extend(left[side].get(key, ())[len(found) :])
        left = rest
    return sorted([*pairs, *_by_content(vocabularies, left)])


def _same_place(base: Vocabulary, tuned: Vocabulary) -> list[int]:
    """Ids at which both tokenizers write the same, in the same letters."""
    if base.kind != tuned.kind:
        return []
    both = enumerate(zip(base.written, tuned.written, strict=False))
    return [i for i, (one, other) in both if one is not None and one == other]


def _by_content(vocabularies: Mapping[str, Vocabulary], left: Mapping[str, Mapping[Any, list[int]]]) -> list[tuple[int, int]]:
    """Of what is left: tokens that are special in one tokenizer and added as text of the same content in the other."""
    by_side: dict[str, dict[bytes, list[int]]] = {}
    for side, vocabulary in vocabularies.items():
        ids = [i for (piece, _), found in left[side].items() for i in found if isinstance(piece, str) or i in vocabulary.added]
        by_side[side] = {}
        for i in ids:
            piece = vocabulary.pieces[i]
            by_side[side].setdefault(piece.encode() if isinstance(piece, str) else piece or b"", []).append(i)
    return [pair for content, ids in by_side["base"].items() for pair in zip(ids, by_side["tuned"].get(content, ()), strict=False)]


def _renamed(base: Vocabulary, tuned: Vocabulary, rows: Mapping[str, int]) -> list[tuple[int, str | None, str | None]]:
    """Tokens of the tuned model, of its own by name, at a row that the base has too: under a name that the tuned model lacks, or under none."""
    same = len(_same_place(base, tuned))
    if same < LINEAGE * min(sum(name is not None for name in one.written) for one in (base, tuned)) or not same:
        return []
    known = {side: {name for name in one.written if name is not None} for side, one in (("base", base), ("tuned", tuned))}
    found: list[tuple[int, str | None, str | None]] = []
    for i, new in enumerate(tuned.written[: min(rows.values())]):
        old = base.written[i] if i < len(base.written) else None
        if new is not None and new != old and new not in known["base"] and old not in known["tuned"]:
            found.append((i, old, new))
    return found
