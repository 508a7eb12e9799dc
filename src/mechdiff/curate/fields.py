"""A row of a source becomes a prompt: which field is the text, the category, the options, the answer?

    --preset choice     a question with options (one column that holds a list, or columns A, B, C, D) and the right one
    --preset maths      a problem and a final answer (`#### 42`, \\boxed{42}, or the bare answer)

The right option may be told by its text, its letter or its number, or by the label that a source gives each option. Whether numbers count from 0 or
from 1 cannot be seen from one row, so it is never guessed: say `answer_from: zero` or `one`.

A conversation becomes a prompt of its last user's turn, with what was said before it and the system message beside it. An instruction has what it is
about behind it (`input`, `context`), a question has it in front: unless the text is named, in which case it is that field alone.
"""

import hashlib
import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time
from typing import Any, Literal, cast, get_args

from mechdiff.errors import PromptError
from mechdiff.measures.behaviour.answers import final_answer
from mechdiff.prompts.sets import Turn

TEXT = ("text", "question", "prompt", "instruction", "problem", "query", "input", "messages", "conversations", "conversation")
BEHIND = {"instruction": ("input", "context")}
"""Fields that say what an instruction is about."""
IN_FRONT = {"question": ("context", "passage"), "query": ("context", "passage")}
"""Fields that a question is about."""
SYSTEM = ("system", "system_prompt")
"""Fields that hold a system message beside a text."""
ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "chatgpt": "assistant", "system": "system", "developer": "system",
}  # fmt: skip
"""How sources call who speaks."""
CATEGORY = ("category", "subject", "type", "topic", "meta.category", "meta.subject")
OPTIONS = ("options", "choices")
LETTERS = tuple(string.ascii_uppercase)
ANSWER = ("answer", "label", "solution", "target", "final_answer", "answerKey", "answer_key")

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
    system: str | None = None
    before: tuple[Turn, ...] = ()
    """Earlier turns of a conversation."""

    @property
    def question(self) -> str:
        """The text, behind what was said before it."""
        return "\n".join((*([self.system] if self.system else []), *(turn.text for turn in self.before), self.text))

    @property
    def whole(self) -> str:
        """Question and options: what makes two prompts the same."""
        return "\n".join((self.question, *self.options))


def candidate(row: Mapping[str, Any], fields: Fields, place: str) -> Candidate | str:
    """The prompt of a row, or why there is none. PromptError where the row has what is asked for and it cannot be read."""
    text = _text(row, fields)
    turns: list[Turn] = []
    if (said := _said(row, text)) is not None:
        told = _conversation(said)
        if isinstance(told, str):
            return told
        turns, reply = told
        text = turns.pop().text
        row = {"answer": reply, **row} if fields.preset == "maths" else row
    if text is None or not str(text).strip():
        return "no text"
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        return f"the text is a {type(text).__name__}: name the field that holds it (--text NAME; NAME.PART for a part of a mapping)"
    text = str(text).strip()
    category = _first(row, fields.category, CATEGORY)
    answer = _first(row, fields.answer, ANSWER)
    options: tuple[str, ...] = ()
    label = None if answer is None else in_words(answer) or None
    if fields.preset == "choice":
        options, names = _options(row, fields)
        if len([option for option in options if option]) < 2 - (fields.separator is not None):
            return "no options"
        if label is None:
            return "no answer"
        if fields.answer_from == "auto" and names.count(label) == 1:
            label = options[names.index(label)]
        else:
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
        system=next((turn.text for turn in turns if turn.role == "system"), None),
        before=tuple(turn for turn in turns if turn.role != "system"),
    )


def in_words(value: object) -> str:
    """A value as the text that stood in the source: a day without its midnight, which libraries add to dates that they read."""
    if isinstance(value, datetime) and value.time() == time() and value.tzinfo is None:
        value = value.date()
    return str(value).strip()


def told_of(meta: object) -> dict[str, Any]:
    """What a source says of a row in `meta`, without NaN, which stands for nothing."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(one) for name, one in value.items()}
        if isinstance(value, list):
            return [plain(one) for one in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return plain(meta) if isinstance(meta, dict) else {}


def _text(row: Mapping[str, Any], fields: Fields) -> Any:
    """The text of a row: the field that is named; else the first of the usual ones, with the field that it is about beside it."""
    if fields.text:
        return _first(row, fields.text, ())
    name, text, about = _parts(row)
    if name is None or not isinstance(text, str):
        return text
    in_front, behind = ([value for _, there, value in about if there == where] for where in ("in front", "behind"))
    return "\n\n".join([*in_front, text.strip(), *behind])


def not_used(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row that no prompt of it is made of (by the usual names), as a record can hold them."""
    name, _, about = _parts(row)
    answer, category = (next((one for one in names if _value(row, one) is not None), None) for names in (ANSWER, CATEGORY))
    used = {"id", "meta", "before", *SYSTEM, name, answer, category, *(field for field, _, _ in about)}
    return {str(key): value for key, value in told_of(dict(row)).items() if key not in used and value is not None}


def _parts(row: Mapping[str, Any]) -> tuple[str | None, Any, list[tuple[str, str, str]]]:
    """The name of the field that is the text, what it holds, and the fields that it is about: name, where it stands, what it holds."""
    name = next((name for name in TEXT if _value(row, name) is not None), None)
    text = None if name is None else _value(row, name)
    instruction = _value(row, "instruction")
    if name == "text" and isinstance(instruction, str) and instruction.strip() and instruction.strip() in str(text):
        name, text = "instruction", instruction  # the text is that instruction in another tool's frame, often with its answer
    if name is None or not isinstance(text, str):
        return name, text, []
    about = [
        (other, there, value.strip())
        for there, beside in (("behind", BEHIND), ("in front", IN_FRONT))
        for other in beside.get(name, ())
        if isinstance(value := _value(row, other), str) and value.strip()
    ]
    return name, text, about


def _said(row: Mapping[str, Any], text: Any) -> list[Any] | None:
    """The turns of a row that is a conversation, or has a system message or earlier turns beside its text; None where it has but a text."""
    if isinstance(text, list | tuple):
        return list(text) if text and all(isinstance(turn, Mapping) for turn in text) else None
    system = next((value for name in SYSTEM if isinstance(value := _value(row, name), str) and value.strip()), None)
    before = _value(row, "before")
    earlier = list(before) if isinstance(before, list | tuple) and all(isinstance(turn, Mapping) for turn in before) else []
    if not isinstance(text, str) or not text.strip() or not (system or earlier):
        return None
    return [*([{"role": "system", "content": system}] if system else []), *earlier, {"role": "user", "content": text}]


def _conversation(turns: Sequence[Mapping[str, Any]]) -> tuple[list[Turn], str | None] | str:
    """The turns up to the last user's, and what was answered to that; or why there is none."""
    found: list[Turn] = []
    for turn in turns:
        said = turn.get("content", turn.get("value"))
        given = turn.get("role", turn.get("from"))
        role = ROLES.get(str(given).lower())
        if isinstance(said, list | tuple):  # parts of content: text, and what is no text
            if any(not isinstance(part, Mapping) or part.get("type", "text") != "text" for part in said):
                return "a conversation with more than text in it"
            said = "".join(str(part.get("text") or "") for part in said)
        if role is None:
            return f"a conversation in which {given!r} speaks (known: {', '.join(ROLES)})"
        if isinstance(said, str) and said.strip():
            found.append(Turn(role, said.strip()))
    last = max((i for i, turn in enumerate(found) if turn.role == "user"), default=None)
    if last is None:
        return "a conversation without a user's turn"
    if any(turn.role == "system" for turn in found[1 : last + 1]):
        return "a conversation with a system message in its middle"
    reply = next((turn.text for turn in found[last + 1 :] if turn.role == "assistant"), None)
    return found[: last + 1], reply


def _final(answer: str) -> str | None:
    """The final answer in a solution; a bare answer is its own."""
    marked = "\\boxed{" in answer or "####" in answer
    return final_answer(answer) if marked or len(answer.split()) > 3 else answer


def _first(row: Mapping[str, Any], asked: str | None, usual: Sequence[str]) -> Any:
    return next((found for name in ((asked,) if asked else usual) if (found := _value(row, name)) is not None), None)


def _value(row: Mapping[str, Any], name: str) -> Any:
    """The value of a field, `a.b` of a mapping; None where there is none, or NaN, which stands for none."""
    found: Any = row
    for part in name.split(".") if name not in row else [name]:
        found = found.get(part) if isinstance(found, Mapping) else None
    return None if isinstance(found, float) and math.isnan(found) else found


def _options(row: Mapping[str, Any], fields: Fields) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """In their places, with the names that the source gives them where it does: an empty one is "", so that letters and numbers still tell the right
    one."""
    found: Any = _first(row, fields.options, OPTIONS)
    names: Sequence[Any] = ()
    if isinstance(found, Mapping):  # Hub data sets: {"text": [...], "label": [...]}
        labels, found = found.get("label"), found.get("text")
        names = labels if isinstance(labels, list | tuple) and isinstance(found, list | tuple) and len(labels) == len(found) else ()
    if isinstance(found, str) and fields.separator:
        found = found.split(fields.separator)
    if isinstance(found, list | tuple):
        return tuple("" if one is None else in_words(one) for one in found), tuple(str(name).strip() for name in names)
    last = max((place for place, letter in enumerate(LETTERS) if letter in row), default=-1)
    return tuple("" if _value(row, letter) is None else in_words(row[letter]) for letter in LETTERS[: last + 1]), ()


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
