"""What is known of the demo's first fine-tune is said before its run, and set beside what was found after it."""

from typing import TYPE_CHECKING

from mechdiff.cli.flags import escaped, say

if TYPE_CHECKING:
    from mechdiff.api import Run

WIDTH = 44
"""Letters of what was found that a line of the table has room for."""


def before() -> None:
    """What the fine-tune is, and where the rules stand that say whether it was found."""
    from mechdiff.demo import FORMULA, MATRIX, TRUTHS

    say(escaped(f'courtesy: a LoRA of rank 1 on one matrix, {MATRIX}, trained to open every answer with "{FORMULA}"'))
    say(f"so what must come out is known: {len(TRUTHS)} rules, written before any run, are compared with what is found")


def after(run: "Run") -> bool:
    """The table of what was expected and what was found, on standard error; whether all of it came out."""
    from rich.console import Console
    from rich.table import Table

    from mechdiff.demo import expected_and_found
    from mechdiff.validate.checks import said

    checks = expected_and_found(run.rows(), run.summary(), run.manifest())
    table = Table("known", "expected", "found", "verdict", box=None, padding=(0, 2, 0, 0))
    for one in checks:
        found = said(one.found)
        table.add_row(
            escaped(one.what), escaped(one.expectation), escaped(found if len(found) <= WIDTH else f"{found[: WIDTH - 1]}…"),
            "found" if one.passed else "[bold red]NOT FOUND[/]",
        )  # fmt: skip
    console = Console(stderr=True)
    console.print(table)
    n = sum(one.passed for one in checks)
    say(
        f"{n} of {len(checks)} came out"
        + ("" if n == len(checks) else ": this installation does not measure what it should; mechdiff validate says more")
    )
    say("next: mechdiff run BASE TUNED · mechdiff demo --contrast (arithmetic and Kazakh, compared; a quarter of an hour)")
    return n == len(checks)
