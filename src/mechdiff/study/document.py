"""A YAML document is read strictly, and what is wrong with it is said so that a person can put it right. No torch here.

Strictly: no key twice, no aliases, no tags, a date stays text. Said: dotted path, given value, allowed values, nearest
known name. The checks raise `PydanticCustomError`s with that content; `explained` turns pydantic's errors into sentences.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import ErrorDetails, PydanticCustomError

from mechdiff.errors import StudyError

LARGEST = 1_000_000
"""Bytes. A study is a page that a scientist can read; anything longer is some other file."""


Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A part of a study: known keys only, types as written, never changed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    gone: ClassVar[Mapping[str, str]] = {}
    """Keys of earlier versions, and what to do with them."""


class _Loader(yaml.SafeLoader):
    """Plain YAML: no key twice, no aliases (they can blow up a page to gigabytes), no tags, a date stays a text."""

    yaml_implicit_resolvers = {  # noqa: RUF012, PyYAML's own name and type
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":merge", ":value"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None or event.tag is not None:
            raise yaml.MarkedYAMLError(problem="anchors (&), aliases (*) and tags (!) have no meaning here", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (name := (key.tag, key.value)) in seen:
                    raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands here twice", problem_mark=key.start_mark)
                seen.add(name)
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> tuple[object, str]:
    """The content of the YAML file `path`, and its text."""
    text = _read_text(path)
    try:
        data = yaml.load(text, _Loader)
        for said in _texts(data):
            said.encode("utf-8")
        return data, text
    except UnicodeEncodeError as error:
        raise StudyError(f"{path}: half of a surrogate pair (a \\ud800-\\udfff escape). Write the character itself.") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise StudyError(f"{path}{line}: not a study in YAML: {error.problem or error.context}.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise StudyError(f"{path}: not a study in YAML: {str(error).splitlines()[0]}.") from error
    except RecursionError as error:
        raise StudyError(f"{path}: nested too deeply to be a study.") from error


def _texts(value: object) -> Iterator[str]:
    """Every text in it, keys too."""
    if isinstance(value, str):
        yield value
    for inner in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(inner)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        raise StudyError(f"{path}: no study can be read here ({error}). Give the path of a YAML file.") from error
    if len(content) > LARGEST:
        raise StudyError(f"{path}: longer than {LARGEST} bytes, so not a study. Give the path of a YAML file with pair and prompts.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StudyError(f"{path}: not UTF-8 text at byte {error.start}. A study is a YAML file in UTF-8.") from error


def wrong(given: object, expected: str, allowed: Iterable[str] = ()) -> PydanticCustomError:
    """The error of a check: `explained` puts `given`, `expected` and the nearest of `allowed` into one sentence."""
    return PydanticCustomError("wrong", "{expected}", {"expected": expected, "given": given, "allowed": list(allowed)})


def listed(given: object) -> list[Any]:
    """A list whose items differ."""
    if not isinstance(given, (list, tuple)):
        raise wrong(given, "a list")
    for place, item in enumerate(given):
        if item in given[:place]:
            raise wrong(item, "each item once")
    return list(given)


def some_of(allowed: tuple[str, ...]) -> Callable[[object], tuple[str, ...]]:
    """A check for a list of names out of `allowed`; the result is in the order of `allowed`, for order changes no result."""

    def check(given: object) -> tuple[str, ...]:
        for item in (items := listed(given)):
            if item not in allowed:
                raise wrong(item, f"some of {', '.join(allowed)}", allowed)
        if not items:
            raise wrong(given, f"at least one of {', '.join(allowed)}")
        return tuple(name for name in allowed if name in items)

    return check


def whole_numbers(given: object, least: int) -> tuple[int, ...]:
    """A list of different whole numbers from `least`, ascending."""
    for item in (items := listed(given)):
        if type(item) is not int or item < least:
            raise wrong(item, f"whole numbers from {least}")
    return tuple(sorted(items))


def short(value: object) -> str:
    """The value as a message shows it, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def nearest(given: object, allowed: Iterable[str]) -> str:
    """\" Did you mean x?", or nothing where no allowed name is near."""
    found = difflib.get_close_matches(str(given), list(allowed), n=1)
    return f" Did you mean {found[0]}?" if found else ""


_PLAIN = {
    "model_type": "a mapping of names to values",
    "string_type": "a text",
    "string_too_short": "a text that is not empty",
    "string_unicode": "a text that can be written as UTF-8",
    "int_type": "a whole number",
    "invalid_key": "a name as key",
}
"""What pydantic's types of fault expect, in plain words."""


Known = Mapping[tuple[str, ...], type[Section]]
"""Place -> the section that stands there, where it was chosen when the document was read."""


def explained(detail: ErrorDetails, root: type[Section], known: Known) -> str:
    """One fault as a sentence: where, what was given, what was expected, the nearest known name."""
    place, context = detail["loc"], detail.get("ctx", {})
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).lstrip(".") or "here"
    if detail["type"] == "extra_forbidden":
        section = _section(root, known, place[:-1])
        if gone := section.gone.get(str(place[-1])):
            return f"{where}: {gone}"
        fields = list(section.model_fields)
        return f"{where}: unknown key; known here: {', '.join(fields)}.{nearest(place[-1], fields)}"
    if detail["type"] == "missing":
        field = _section(root, known, place[:-1]).model_fields[str(place[-1])]
        return f"{where}: missing; expected {field.description or 'a value'}."
    expected = context.get("expected") or _PLAIN.get(detail["type"]) or detail["msg"].removeprefix("Input should be ")
    allowed = context.get("allowed", re.findall("'([^']*)'", expected))
    given = context.get("given", detail["input"])
    return f"{where}: given {short(given)}, expected {expected}.{nearest(given, allowed)}"


def _section(root: type[Section], known: Known, place: tuple[int | str, ...]) -> type[Section]:
    """The section that stands at `place` inside `root`."""
    if not place:
        return root
    if found := known.get(tuple(map(str, place))):
        return found
    kind = _section(root, known, place[:-1]).model_fields[str(place[-1])].annotation
    return next(option for option in (kind, *get_args(kind)) if isinstance(option, type) and issubclass(option, Section))
