"""Help is printed as plain text, by panels, with examples as a docstring gives them; rich's own layout would take four times as long to import.

A verb's docstring is its help: sentences, then, if there are any, `Examples:` and one command a line.
"""

import inspect
import re
import textwrap
from collections.abc import Iterable
from functools import cache
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from mechdiff.cli import flags

EXAMPLES = "Examples:"
OTHER = "Options"
EXIT_CODES = (
    ("0", "done"),
    ("1", "a check did not hold: verify, validate, check, grade of a broken seal, status --watch of a run that died, --fail-on"),
    ("2", "wrong use: an option, a file, a model or a run that is not there or does not fit"),
    ("3", "the machine cannot do it: memory, disk, no GPU, a missing package; or a fault of mechdiff, with its traceback"),
    ("130", "interrupted; the same command goes on from there"),
)
"""What the command line ends with, and when."""


def divided(docstring: str | None) -> tuple[list[str], list[str]]:
    """The paragraphs of a verb's docstring, and the commands of its examples."""
    text, _, examples = inspect.cleandoc(docstring or "").partition(EXAMPLES)
    paragraphs = [" ".join(one.split()) for one in text.split("\n\n") if one.strip()]
    return paragraphs, [line.strip() for line in examples.splitlines() if line.strip()]


def _written(formatter: Any, name: str, rows: Iterable[tuple[str, str]]) -> None:
    if found := list(rows):
        with formatter.section(name):
            formatter.write_dl(found)


@cache
def _quiet() -> Any:
    """-q as typer makes it."""

    def asked(quiet: flags.Quiet = False) -> None:
        """It stands on every verb, and no verb is told of it."""

    made = typer.Typer(add_completion=False)
    made.command()(asked)
    return next(param for param in typer.main.get_command(made).params if param.name == "quiet")


class Verb(TyperCommand):
    """One command: its sentences, arguments, options by panel, and examples. Every verb has -q."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if not any(param.name == "quiet" for param in self.params):
            self.params.append(_quiet())

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.format_usage(ctx, formatter)
        paragraphs, examples = divided(self.help)
        for paragraph in paragraphs:
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(paragraph)
        panels: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                argument = param.param_type_name == "argument"
                panels.setdefault("Arguments" if argument else getattr(param, "rich_help_panel", None) or OTHER, []).append(record)
        order = ["Arguments", *flags.PANELS, *(name for name in panels if name not in flags.PANELS), OTHER]
        for name in dict.fromkeys(order):
            _written(formatter, name, panels.get(name, ()))
        if examples:
            formatter.write("\nExamples:\n" + textwrap.indent("\n".join(examples), "  ") + "\n")


class Verbs(TyperGroup):
    """All commands, by panel, and what the exit codes say."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.format_usage(ctx, formatter)
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(self.help or "")
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            panels.setdefault(command.rich_help_panel or "Commands", []).append(
                (name, re.split(r"(?<=[.?]) ", divided(command.help)[0][0])[0])
            )
        for panel, rows in panels.items():
            _written(formatter, panel, rows)
        _written(formatter, OTHER, filter(None, (param.get_help_record(ctx) for param in self.get_params(ctx))))
        _written(formatter, "Exit codes", EXIT_CODES)
        formatter.write("\nmechdiff COMMAND --help has every option of a command, and examples.\n")
