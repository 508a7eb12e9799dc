"""The command line: a verb parses, calls one function, prints."""

import os
import sys

import typer

from mechdiff.cli.corpora import moments, scan
from mechdiff.cli.exchange import compare_evals, export
from mechdiff.cli.flags import escaped, say
from mechdiff.cli.look import compare, grade, report, show, terms, validate, verify, words
from mechdiff.cli.presets import init, presets
from mechdiff.cli.sets import curate
from mechdiff.cli.share import card
from mechdiff.cli.study import check, demo, plan, run, status
from mechdiff.errors import MechdiffError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False,
    help="What did a fine-tune change inside a language model, where, and does it matter?",
)  # fmt: skip
for verb in (
    demo,
    run,
    presets,
    init,
    scan,
    moments,
    status,
    plan,
    check,
    curate,
    report,
    export,
    card,
    show,
    terms,
    words,
    grade,
    compare,
    compare_evals,
    verify,
    validate,
):
    app.command()(verb)


def main() -> None:
    """Entry point: what a user can put right is one message and exit code 1; Ctrl-C says how to go on."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # wait a few microseconds awake, then sleep: long spins starve a busy machine
    try:
        code = app(standalone_mode=False)  # what a verb returns, or the code of an Exit: 130 after Ctrl-C
    except MechdiffError as error:
        say(f"[bold red]error:[/] {escaped(str(error))}")
        sys.exit(1)
    except typer.TyperException as error:
        say(f"[bold red]error:[/] {escaped(error.format_message())} (mechdiff --help)")
        sys.exit(2)
    if code == 130:
        say("stopped. Finished cells are kept: the same command goes on from here.")
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
