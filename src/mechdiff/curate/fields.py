"""A row of a source becomes a prompt: which field is the text, the category, the options, the answer?

    --preset choice     a question with options (one column that holds a list, or columns A, B, C, D) and the right one
    --preset maths      a problem and a final answer (`#### 42`, \\boxed{42}, or the bare answer)

The right option may be told by its text, its letter or its number. Whether numbers count from 0 or from 1 cannot be seen from one row, so it is
never guessed: say `answer_from: zero` or `one`.
"""

import hashlib
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from mechdiff.errors import PromptError
from mechdiff.measures.behaviour.answers import final_answer

TEXT = ("text", "question", "prompt", "instruction", "problem", "query", "input")
CATEGORY = ("category", "subject", "type", "topic", "meta.category", "meta.subject")
OPTIONS = ("options", "choices")
LETTERS = tuple(string.ascii_uppercase)
ANSWER = ("answer", "label", "solution", "target", "final_answer")

Preset = Literal["plain", "choice", "maths"]
AnswerFrom = Literal["auto", "text", "letter", "zero", "one"]


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The names of a source's fields; None: the first of the usual names that a row has. `a.b` is the field b of a mapping a."""

    preset: Preset = "plain"
    text: str | None = None
    category: str | None = None
    options: str | None = None
    answer: str | None = None
    id: str | None = None
    answer_from: AnswerFrom = "auto"
    """How the right option is told; auto: by its letter or its text."""
    separator: str | None = None
    """Between options that stand in one text."""
    letters: bool = False
    """Print the options into the prompt behind letters, and ask for the letter."""


def fields_of(*, preset: str, answer_from: str, **names: Any) -> Fields:
    """Fields from words. Raises PromptError for one that is none."""
    for what, given, allowed in (("preset", preset, get_args(Preset)), ("answer_from", answer_from, get_args(AnswerFrom))):
        if given not in allowed:
            raise PromptError(f"{what}: given {given!r}, expected one of {', '.join(allowed)}.")
    return Fields(preset=cast(Preset, preset), answer_from=cast(AnswerFrom, answer_from), **names)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What a row became."""

    text: str
    category: str | None
    options: tuple[str, ...]
    label: str | None
    id: str | None

    @property
    def whole(self) -> str:
        """Text and options: what makes two prompts the same."""
        return "\n".join((self.text, *self.options))


def candidate(row: Mapping[str, Any], fields: Fields, place: str) -> Candidate | str:
    """The prompt of a row, or why there is none. PromptError where the row has what is asked for and it cannot be read."""
    text = _first(row, fields.text, TEXT)
    if text is None or not str(text).strip():
        return "no text"
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        return f"the text is a {type(text).__name__}: name a field in it, such as --text messages.content, or write one text a row"
    text = str(text).strip()
    category = _first(row, fields.category, CATEGORY)
    answer = _first(row, fields.answer, ANSWER)
    options: tuple[str, ...] = ()
    label = None if answer is None else str(answer).strip() or None
    if fields.preset == "choice":
        options = _options(row, fields)
        if len([option for option in options if option]) < 2 - (fields.separator is not None):
            return "no options"
        if label is None:
            return "no answer"
        options, label = _right_option(options, label, fields, f"{place}: ")
        if not label:
            return "the right option is empty"
        options = tuple(option for option in options if option)
        if len(set(options)) < len(options):
            return "options that are the same"
        if fields.letters:
            listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
            label = LETTERS[options.index(label)]
            text, options = f"{text}\n{listed}", LETTERS[: len(options)]
    elif fields.preset == "maths":
        label = label and _final(label)
        if not label:
            return "no final answer"
    given = _first(row, fields.id, ("id",))
    return Candidate(
        text=text,
        category=None if category is None else str(category),
        options=options,
        label=label,
        id=None if given is None else str(given),
    )


def _final(answer: str) -> str | None:
    """The final answer in a solution; a bare answer is its own."""
    marked = "\\boxed{" in answer or "####" in answer
    return final_answer(answer) if marked or len(answer.split()) > 3 else answer


def _first(row: Mapping[str, Any], asked: str | None, usual: Sequence[str]) -> Any:
    for name in (asked,) if asked else usual:
        found: Any = row
        for part in name.split(".") if name not in row else [name]:
            found = found.get(part) if isinstance(found, Mapping) else None
        if found is not None:
            return found
    return None


def _options(row: Mapping[str, Any], fields: Fields) -> tuple[str, ...]:
    """In their places: an empty one is "", so that letters and numbers still tell the right one."""
    found = _first(row, fields.options, OPTIONS)
    if isinstance(found, Mapping):  # Hub data sets: {"text": [...], "label": [...]}
        found = found.get("text")
    if isinstance(found, str) and fields.separator:
        found = found.split(fields.separator)
    if isinstance(found, list | tuple):
        return tuple("" if one is None else str(one).strip() for one in found)
    last = max((place for place, letter in enumerate(LETTERS) if letter in row), default=-1)
    return tuple("" if row.get(letter) is None else str(row[letter]).strip() for letter in LETTERS[: last + 1])


def _right_option(options: tuple[str, ...], answer: str, fields: Fields, place: str) -> tuple[tuple[str, ...], str]:
    """The options, and the right one's text. With a separator the options are distractors, among which the answer takes a place by its hash."""
    if fields.separator is not None and answer not in options:
        at = int(hashlib.sha256(answer.encode()).hexdigest(), 16) % (len(options) + 1)
        return (*options[:at], answer, *options[at:]), answer
    letter = LETTERS.index(answer.upper()) if answer.upper() in LETTERS[: len(options)] else None
    told = fields.answer_from
    if told in ("zero", "one"):
        if not answer.lstrip("-").isdigit() or not 0 <= int(answer) - (told == "one") < len(options):
            raise PromptError(
                f"{place}the answer is {answer!r}, expected the number of one of {len(options)} options, counted from {told}."
            )
        return options, options[int(answer) - (told == "one")]
    if told == "auto" and letter is not None and answer in options and options[letter] != answer:
        raise PromptError(
            f"{place}the answer {answer!r} is the letter of one option and the text of another. Say --answer-from letter or text."
        )
    if told != "text" and letter is not None and answer not in options:
        return options, options[letter]
    if answer in options and told != "letter":
        if told == "auto" and answer.isdigit() and int(answer) <= len(options):
            raise PromptError(
                f"{place}the answer {answer!r} is the text of an option and may be the number of one. Say --answer-from text, zero or one."
            )
        return options, answer
    hint = " Say --answer-from zero or one if it is a number." if answer.isdigit() else ""
    raise PromptError(f"{place}the answer {answer!r} is none of the options {list(options)!r}, nor the letter of one.{hint}")
