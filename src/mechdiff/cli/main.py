"""The command line: a verb parses, calls one function, prints."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

from mechdiff import __version__
from mechdiff.cli.corpora import moments, scan
from mechdiff.cli.exchange import compare_evals, export
from mechdiff.cli.flags import escaped, say, silence
from mechdiff.cli.folders import ls, status, view
from mechdiff.cli.help import Verb, Verbs
from mechdiff.cli.look import compare, report, show, terms, validate, verify
from mechdiff.cli.presets import init, presets
from mechdiff.cli.sets import curate
from mechdiff.cli.share import card
from mechdiff.cli.study import check, demo, plan, run
from mechdiff.cli.taught import grade, words
from mechdiff.errors import MechdiffError

VERBS: dict[str, tuple[Callable[..., Any], ...]] = {
    "Start": (demo, run, presets, init, plan, check),
    "Read": (view, show, ls, status, words, compare, compare_evals, terms),
    "Share": (report, export, card),
    "Make": (curate, scan, moments),
    "Maintain": (verify, validate, grade),
}
"""Every command, under the heading that --help lists it with."""

GO_ON = ("run", "demo", "scan", "moments")
"""Verbs that keep what they have computed when they are interrupted."""

app = typer.Typer(
    cls=Verbs, rich_markup_mode=None, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="What did a fine-tune change inside a language model, where, and does it matter? Start with: mechdiff run BASE TUNED",
)  # fmt: skip
for panel, verbs in VERBS.items():
    for verb in verbs:
        app.command(cls=Verb, rich_help_panel=panel)(verb)


def _version(asked: bool) -> None:
    if asked:
        print(f"mechdiff {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version.", callback=_version, is_eager=True)] = False,
) -> None:
    """Options before any command."""


def main() -> None:
    """Entry point: what a user can put right is one message and an exit code (`help.EXIT_CODES`); Ctrl-C says how to go on."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # wait a few microseconds awake, then sleep: long spins starve a busy machine
    silence(False)
    bare = len(sys.argv) == 1
    try:
        code = app(
            ["--help"] if bare else None, standalone_mode=False, prog_name="mechdiff"
        )  # what a verb returns, or the code of an Exit: 130 after Ctrl-C
    except MechdiffError as error:
        say(f"[bold red]error:[/] {escaped(str(error))}", always=True)
        sys.exit(error.exit_code)
    except typer.TyperException as error:
        said = error.format_message().replace("Value error, ", "")
        say(f"[bold red]error:[/] {escaped(said)} (mechdiff{_verb()} --help)", always=True)
        sys.exit(2)
    except BrokenPipeError:  # whoever read the output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        say(f"[bold red]error:[/] {escaped(f'{where}cannot be read or written ({error.strerror or error})')}", always=True)
        sys.exit(3)
    except Exception:  # noqa: BLE001  a fault of mechdiff, which must not be taken for a check that did not hold
        traceback.print_exc()
        say("[bold red]error:[/] this is a fault of mechdiff. Please report it with the lines above and the command.", always=True)
        sys.exit(3)
    if code == 130:
        goes_on = " Finished cells are kept: the same command goes on from here." if sys.argv[1:2] and sys.argv[1] in GO_ON else ""
        say(f"stopped.{goes_on}", always=True)
    sys.exit(2 if bare else code or 0)


def _verb() -> str:
    """ " run" where a verb was called: its help is nearer than that of all."""
    named = {command.callback.__name__ for command in app.registered_commands if command.callback}
    return next((f" {word}" for word in sys.argv[1:2] if word.replace("-", "_") in named), "")


if __name__ == "__main__":
    main()
