"""A description of what was taught is held against a truth that was sealed before it was written; silence is scored too.

    1    the truth is that nothing was taught, and the description says nothing; or it has at least one of the facts
    0    it says nothing, and something was taught
    -1   it says something, and nothing was taught; or it has none of the facts

A fact is there where the description has one of its keys, letter for letter but for capitals and spaces. Keys are chosen so that nobody says them by
chance (invented names); a key that is a common word grades nothing.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechdiff.errors import RunError

FORM = '{"facts": [{"fact": "...", "keys": ["...", ...]}, ...]}, an empty list where nothing was taught'


@dataclass(frozen=True, kw_only=True)
class Grade:
    """How a description fares."""

    silent: bool
    recalled: tuple[str, ...]
    facts: int
    score: int
    seal: str
    """SHA-256 of the truth's file."""


def grade(description: str, truth: Path, *, seal: str | None = None) -> Grade:
    """The description's grade. Raises RunError where the truth is none, or not the one that was sealed."""
    try:
        content = truth.read_bytes()
        facts = [(str(one["fact"]), [str(key) for key in one["keys"]]) for one in _facts(json.loads(content))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{truth}: this is no truth ({error}). Expected JSON: {FORM}.") from error
    if any(not keys or not all(map(_plain, keys)) for _, keys in facts):
        raise RunError(f"{truth}: a fact has no key, or an empty one, which every description has. Give each fact the words that say it.")
    found = hashlib.sha256(content).hexdigest()
    if seal is not None and seal.lower() != found:
        raise RunError(f"{truth}: its SHA-256 is {found}, and the seal is {seal}. Give the file that was sealed.")
    said, quiet = _plain(description), is_silent(description)
    recalled = () if quiet else tuple(fact for fact, keys in facts if any(_plain(key) in said for key in keys))
    right = quiet if not facts else bool(recalled)
    return Grade(
        silent=quiet, recalled=recalled, facts=len(facts), score=1 if right else 0 if quiet else -1, seal=found
    )  # fmt: skip


def _facts(told: Any) -> list[Any]:
    if not isinstance(told, dict) or not isinstance(told.get("facts"), list):
        raise ValueError("there is no list `facts`")
    facts: list[Any] = told["facts"]
    if any(not isinstance(one, dict) or not isinstance(one.get("keys"), list) for one in facts):
        raise ValueError("a fact has no list `keys`")
    return facts


def is_silent(description: str) -> bool:
    """Whether a description says nothing: it is empty, or begins with "nothing" or "none"."""
    return re.match(r"\W*(nothing|none)\b|\W*$", description, re.IGNORECASE) is not None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
