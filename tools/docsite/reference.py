"""The reference is made from the code: commands from typer, Python from docstrings, study files from their models, tables from their columns."""

import inspect
import re
from collections.abc import Iterable, Iterator
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from docsite import source_comments

LIST_LIKE = (list, tuple, set)
TYPES = {"str": "text", "int": "whole number", "float": "number", "Path": "path"}


def cell(text: object) -> str:
    """A cell of a Markdown table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def table(head: Iterable[str], lines: Iterable[Iterable[object]]) -> str:
    head = list(head)
    rows = [head, ["---"] * len(head), *([cell(one) for one in line] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


# --- the command line ---------------------------------------------------------------------------------------------------


def commands() -> dict[str, Any]:
    """Every command by its name, as typer reads them."""
    import typer

    from mechdiff.cli.main import app

    return dict(sorted(typer.main.get_command(app).commands.items()))  # type: ignore[attr-defined]


def _values(parameter: Any) -> str:
    """What an option takes: its choices, or its type."""
    kind = parameter.type_descriptor.annotation
    if getattr(parameter, "is_flag", False):
        return "flag"
    if parameter.metavar:
        return f"`{parameter.metavar}`"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{one.value}`" for one in kind)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{one}`" for one in get_args(kind))
    if get_origin(kind) in LIST_LIKE:
        return f"{TYPES.get(getattr(get_args(kind)[0], '__name__', ''), 'text')}, may be given again"
    return TYPES.get(getattr(kind, "__name__", ""), "text")


def _parameter(one: Any) -> tuple[str, str, str, str]:
    names = one.metavar or one.name.upper() if one.opts == [one.name] else ", ".join([*one.opts, *one.secondary_opts])
    default = one.default.value if isinstance(one.default, Enum) else one.default
    shown = f"`{default}`" if one.show_default and default not in (None, False, (), []) and not callable(default) else ""
    return f"`{names}`", _values(one) if one.opts != [one.name] else "", one.help or "", shown


def command_line() -> str:
    """reference/cli.md: every command with every argument and option."""
    page = [
        "# Command line",
        "`mechdiff COMMAND --help` says the same in the terminal. What each command is for, with examples: [Commands](../USAGE.md).",
    ]
    for name, command in commands().items():
        if command.hidden:
            continue
        page.append(f"## mechdiff {name}")
        sentences, examples = _examples(command.help or "")
        page.append(sentences)
        panels: dict[str, list[tuple[str, str, str, str]]] = {}
        for one in command.params:
            if not one.hidden:
                kind = "Arguments" if one.opts == [one.name] else one.rich_help_panel or "Options"
                panels.setdefault(kind, []).append(_parameter(one))
        for panel, lines in panels.items():
            head = ("name", "takes", "meaning", "default")
            if panel == "Arguments":  # they take what their name says
                head, lines = ("name", "meaning"), [(line[0], line[2]) for line in lines]
            page.append(f"**{panel}**\n\n" + table(head, lines))
        if examples:
            page.append(examples)
    return "\n\n".join(page) + "\n"


def _examples(text: str) -> tuple[str, str]:
    """A command's sentences, and its examples as a block: what stands behind `Examples:`, one command a line."""
    sentences, _, examples = inspect.cleandoc(text).partition("Examples:")
    shell = [line.strip() for line in examples.splitlines() if line.strip()]
    return sentences.strip(), "```bash\n" + "\n".join(shell) + "\n```" if shell else ""


# --- Python -------------------------------------------------------------------------------------------------------------


def _annotation(given: Any) -> str:
    text = given if isinstance(given, str) else inspect.formatannotation(given)
    return re.sub(r"(?:\w+\.)+(\w+)", r"\1", text.replace("'", ""))


def _signature(what: Any) -> str:
    """The arguments with their types and defaults, one a line where they are many."""
    said, after_star = [], False
    signature = inspect.signature(what)
    for one in signature.parameters.values():
        if one.name == "self":
            continue
        if one.kind is one.KEYWORD_ONLY and not after_star:
            said.append("*")
        after_star = after_star or one.kind in (one.KEYWORD_ONLY, one.VAR_POSITIONAL)
        stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        kind = "" if one.annotation is one.empty else f": {_annotation(one.annotation)}"
        default = "" if one.default is one.empty else f" = {'...' if '<' in repr(one.default) else repr(one.default)}"
        said.append(f"{stars}{one.name}{kind}{default}")
    returned = "" if signature.return_annotation is signature.empty else f" -> {_annotation(signature.return_annotation)}"
    line = ", ".join(said)
    return f"({line}){returned}" if len(line) < 90 else "(\n    " + ",\n    ".join(said) + f",\n){returned}"


def _docstring(what: Any) -> str:
    """A docstring as Markdown: what is indented stays a block, examples are Python."""
    text = inspect.getdoc(what) or ""
    return re.sub(
        r"((?:^ *>>> .*\n?(?:^(?! *$).*\n?)*)+)", lambda found: "\n```pycon\n" + inspect.cleandoc(found[0]) + "\n```\n", text, flags=re.M
    )


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties, in the order of the source."""
    seen = set()
    for one in kind.__mro__:
        if one.__module__.startswith("mechdiff"):
            for name, member in vars(one).items():
                if (
                    not name.startswith("_")
                    and name not in seen
                    and (callable(member) or isinstance(member, property | staticmethod | classmethod))
                ):
                    seen.add(name)
                    yield name, member


def python() -> str:
    """reference/python.md: every public name with its signature and docstring."""
    import mechdiff

    page = ["# Python", "`import mechdiff` loads nothing heavy; each name is loaded when it is first used."]
    for name in sorted(mechdiff.__all__, key=lambda one: (one[0].isupper(), one)):
        what = getattr(mechdiff, name)
        page.append(f"## mechdiff.{name}")
        if not callable(what):
            page.append(f"`{what!r}`")
            continue
        if not isinstance(what, type):
            page.append(f"```python\n{name}{_signature(what)}\n```\n\n{_docstring(what)}")
            continue
        page.append(_docstring(what))
        for method, member in _members(what):
            given = member.fget if isinstance(member, property) else getattr(member, "func", getattr(member, "__func__", member))
            if not callable(given):
                continue
            is_value = isinstance(member, property)
            page.append(f"### {name}.{method}\n\n```python\n{method}{'' if is_value else _signature(given)}\n```\n\n{_docstring(given)}")
    return "\n\n".join(page) + "\n"


# --- study files --------------------------------------------------------------------------------------------------------


def _kind(annotation: Any) -> str:
    """What a key takes, in words."""
    if annotation is type(None):
        return "nothing"
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{one}`" for one in get_args(annotation))
    arguments = get_args(annotation)
    name = getattr(annotation, "__name__", str(annotation))
    if get_origin(annotation) in LIST_LIKE:
        return "list of " + _kind(arguments[0])
    if get_origin(annotation) is dict:
        return "mapping"
    if hasattr(annotation, "__metadata__"):
        return _kind(arguments[0])
    if arguments:  # a union
        return " or ".join(dict.fromkeys(_kind(one) for one in arguments))
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true, false"}.get(name, name.lower())


def keys(kind: Any) -> list[tuple[str, str, str, str]]:
    """(key, what it takes, default, meaning) of a section of a study file."""
    comments = source_comments.of_fields(kind)
    lines = []
    for name, field in kind.model_fields.items():
        default = "required" if field.is_required() else f"`{_plain(field.default)}`"
        lines.append((f"`{name}`", _kind(field.annotation), default, comments.get(name) or field.description or ""))
    return lines


def _plain(value: Any) -> str:
    """A default as it would stand in YAML."""
    import yaml

    if hasattr(value, "model_dump"):
        value = value.model_dump()
    text = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True, width=1000, allow_unicode=True)
    return text.removesuffix("...\n").strip() or "''"


def study_files() -> str:
    """reference/study-files.md: every key that a study file may have."""
    from mechdiff.measures.catalogue import OPTIONS
    from mechdiff.study import config

    head = ("key", "takes", "default", "meaning")
    page = [
        "# Study files",
        "Every key of a study file. What a study is, with an example: [Studies](../STUDIES.md). A key that is not here is an error.",
        "## The study\n\n" + table(head, keys(config.StudyConfig)),
    ]
    for name, kind in (("pair", config.Pair), ("pair.shape", config.Shape), ("prompts", config.Prompts), ("answers", config.Answers)):
        page.append(f"## {name}\n\n{inspect.getdoc(kind)}\n\n{table(head, keys(kind))}")
    for name, kind in OPTIONS.items():
        lines = keys(kind)
        page.append(
            f"## measures: {name}\n\n[What it measures](../measures/{name}.md).\n\n{table(head, lines) if lines else 'It has no options.'}"
        )
    return "\n\n".join(page) + "\n"


# --- tables -------------------------------------------------------------------------------------------------------------


def tables() -> str:
    """reference/tables.md: the columns of a run's tables."""
    from mechdiff import rows
    from mechdiff.statistics import summary

    source = Path(rows.__file__).read_text()
    start = source.index("SCHEMA:")
    comments = source_comments.in_text(source[start : source.index("\n}\n", start) + 3])
    known = {name: said for name, said in comments.items() if name in rows.SCHEMA}
    lists = re.findall(r"^\| (`.+?`) \| (.+) \|$", inspect.getdoc(summary) or "", re.M)
    said = {one: text for names, text in lists for one in re.findall(r"`(\w+)`", names)}
    kinds = {"String": "text", "Int64": "whole number", "Float64": "number"}

    def lines(schema: dict[str, Any], meanings: dict[str, str]) -> list[tuple[str, str, str]]:
        return [(f"`{name}`", kinds.get(str(kind), str(kind)), meanings.get(name, "")) for name, kind in schema.items()]

    head = ("column", "type", "meaning")
    page = [
        "# Tables",
        "A run's folder has two tables in Parquet. What the keys in them mean (metrics, conditions, directions, sites, splits): "
        "[Terms](../TERMS.md), or `mechdiff terms KEY`.",
        f"## rows.parquet\n\n{_body(rows)}\n\n{table(head, lines(rows.SCHEMA, known))}",
        "## summary.parquet\n\nOne row for each group of rows that differ only in `prompt`: the columns above without `prompt` and `value`, and "
        "these.\n\n" + table(head, lines({name: kind for name, kind in summary.SUMMARY.items() if name not in rows.SCHEMA}, said)),
    ]
    return "\n\n".join(page) + "\n"


def _body(module: Any) -> str:
    return inspect.getdoc(module) or ""


def imported(place: str) -> Any:
    """What `package.module:name` names."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


PAGES = {
    "reference/cli.md": command_line,
    "reference/python.md": python,
    "reference/study-files.md": study_files,
    "reference/tables.md": tables,
}
"""The pages of the reference, by where they stand on the site."""
