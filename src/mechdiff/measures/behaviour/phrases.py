"""Refusals, neutral openings and styles are recognised by lists, one a language, which a user may replace or add to.

A file `LANGUAGE.yaml` (`en`, `kk`, `ru` ship) has

    refusal:          regular expressions of refusals, held against the opening of an answer
    refusal_openings: openings of a refusal, whose probability is the soft refusal
    neutral_openings: openings of an answer that helps, of about the same length
    style:            class -> {words: literal phrases, patterns: regular expressions}

Patterns are Unicode-aware and blind to case; texts are normalised (NFC) and curly quotes made straight before they are held against them.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex
import yaml

from mechdiff.errors import StudyError

SHIPPED = Path(__file__).parents[2] / "data" / "behaviour"
_KEYS = ("refusal", "refusal_openings", "neutral_openings", "style")
_QUOTES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "“": '"', "”": '"', "«": '"', "»": '"'})


@dataclass(frozen=True, kw_only=True)
class Phrases:
    """The lists of one language."""

    language: str
    refusal: tuple[regex.Pattern[str], ...]
    refusal_openings: tuple[str, ...]
    neutral_openings: tuple[str, ...]
    style: Mapping[str, tuple[regex.Pattern[str], ...]]
    """By class."""


def read_phrases(own: Path | str | None = None) -> dict[str, Phrases]:
    """Language -> its lists: those that ship, and a user's file or folder of files over them (a language of its own replaces one that ships)."""
    found = {path.stem: _read(path) for path in sorted(SHIPPED.glob("*.yaml"))}
    if own is None:
        return found
    place = Path(own)
    files = sorted(place.glob("*.yaml")) if place.is_dir() else [place]
    if not files:
        raise StudyError(
            f"behaviour.patterns: the folder {own} holds no LANGUAGE.yaml. Write one, for example en.yaml, with {', '.join(_KEYS)}."
        )
    return found | {path.stem: _read(path) for path in files}


def normalised(text: str) -> str:
    """A text as patterns see it."""
    return unicodedata.normalize("NFC", text).translate(_QUOTES)


def _read(path: Path) -> Phrases:
    try:
        told = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StudyError(f"behaviour.patterns: {path} cannot be read as YAML ({str(error).splitlines()[0]}).") from error
    if not isinstance(told, dict) or set(told) != set(_KEYS):
        given = ", ".join(map(str, told)) if isinstance(told, dict) else type(told).__name__
        raise StudyError(f"behaviour.patterns: {path} has {given}; it must have exactly {', '.join(_KEYS)}.")
    lists = {key: _texts(told[key], f"{path}, {key}") for key in _KEYS[:3]}
    if not isinstance(told["style"], dict):
        raise StudyError(f"behaviour.patterns: {path}, style: given {told['style']!r}, expected classes, each with words or patterns.")
    return Phrases(
        language=path.stem,
        refusal=tuple(_compiled(pattern, f"{path}, refusal") for pattern in lists["refusal"]),
        refusal_openings=lists["refusal_openings"],
        neutral_openings=lists["neutral_openings"],
        style={str(name): _markers(told["style"][name], f"{path}, style.{name}") for name in told["style"]},
    )


def _texts(given: Any, place: str) -> tuple[str, ...]:
    if not isinstance(given, list) or not given or not all(isinstance(one, str) and one.strip() for one in given):
        raise StudyError(f"behaviour.patterns: {place}: given {given!r}, expected a list of texts, at least one.")
    return tuple(given)


def _markers(given: Any, place: str) -> tuple[regex.Pattern[str], ...]:
    if not isinstance(given, dict) or not given or set(given) - {"words", "patterns"}:
        raise StudyError(f"behaviour.patterns: {place}: given {given!r}, expected words: [...] or patterns: [...].")
    words = _texts(given["words"], f"{place}.words") if "words" in given else ()
    patterns = _texts(given["patterns"], f"{place}.patterns") if "patterns" in given else ()
    longest_first = sorted((regex.escape(normalised(word)) for word in words), key=len, reverse=True)
    literal = [rf"(?<![\p{{L}}\p{{M}}\p{{N}}'])(?:{'|'.join(longest_first)})(?![\p{{L}}\p{{M}}\p{{N}}])(?!'\p{{L}})"] if words else []
    return tuple(_compiled(pattern, place) for pattern in (*literal, *patterns))


def _compiled(pattern: str, place: str) -> regex.Pattern[str]:
    try:
        return regex.compile(normalised(pattern), regex.IGNORECASE | regex.MULTILINE | regex.V1)
    except regex.error as error:
        raise StudyError(f"behaviour.patterns: {place}: {pattern!r} is no regular expression ({error}).") from error


_OPENING = tuple("([{«“‘/$")
"""Behind these no space opens a text."""


def spaced(tokenizer: Any, before: str, ids: Sequence[int], text: str) -> str:
    """A text as it stands behind a prompt (`before`, whose tokens are `ids`): with a space, but for what ends in one, in a special token or open."""
    special = ids[-1] in tokenizer.all_special_ids
    opened = before[-1:] in _OPENING or (before[-1:] == '"' and before.count('"') % 2 == 1)
    return text if special or opened or before[-1:].isspace() or text[:1].isspace() else f" {text}"
