"""The command line prints which runs there are and how far one has come."""

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from mechdiff.cli.flags import errors
from mechdiff.cli.printing import duration, in_bytes, titled
from mechdiff.digits import fixed, percent

if TYPE_CHECKING:
    from mechdiff.cli.listing import Listed
    from mechdiff.store.tables import Status

EVERY = 2.0
"""Seconds between two looks at a run."""
SAID = {"running": "is running", "stopped": "has stopped: the same command goes on from here", "finished": "is finished"}


def show_runs(found: "Sequence[Listed]", folder: Path) -> None:
    """A line a run."""
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    table = titled(
        f"{len(found)} run{'s' * (len(found) != 1)} in {folder}",
        "run",
        "base -> tuned",
        "state",
        "date (UTC)",
        "D, nats",
        "95 %",
        "n",
        "size",
    )
    for column in table.columns:
        column.no_wrap = column.header != "base -> tuned"
    for one in found:
        name = "." if one.path == folder else str(one.path.relative_to(folder))
        state = one.state if one.state in ("finished", "damaged") else f"{one.state}, {percent(one.share)}"
        d = "" if one.d_nats is None else fixed(one.d_nats)
        ends = "" if one.d_low is None or one.d_high is None else f"{fixed(one.d_low)} to {fixed(one.d_high)}"
        pair = f"{one.base} -> {one.tuned}"
        table.add_row(escape(name), escape(pair), state, one.date[:16].replace("T", " "), d, ends, str(one.n or ""), in_bytes(one.bytes))
    console.print(table)
    for one in found:
        if one.said:
            console.print(f"[yellow]damaged[/] {escape(one.said)}")


def show_status(found: "Status") -> None:
    """How far a run has come, stage by stage."""
    console = Console()
    console.print(_headline(found))
    console.print(_stages(found))
    for line in found.log:
        console.print(line, style="dim", markup=False, highlight=False)


def _headline(found: "Status") -> str:
    left = f"; about {duration(found.left)} left for one process" if found.left and found.state != "finished" else ""
    return f"[bold]{percent(found.share)}[/] of the work is done; the run {SAID[found.state]}{left}"


def _stages(found: "Status") -> Table:
    table = titled("Stages", "stage", "cells", "of", "seconds")
    for stage, (done, cells, seconds) in found.stages.items():
        table.add_row(stage, str(done), str(cells), fixed(seconds, 1))
    return table


def watched(look: "Callable[[], Status]", sleep: Callable[[float], None], *, silent: bool = False) -> "Status":
    """The state of a run once it runs no more. Until then a table on a terminal, elsewhere a line for each percent."""
    console = errors()
    drawn = console.is_terminal and not console.is_dumb_terminal and not silent
    said = ""
    with Live(console=console, transient=True, auto_refresh=False) if drawn else nullcontext() as live:
        while (found := look()).state == "running":
            if isinstance(live, Live):
                table = _stages(found)
                table.title = _headline(found)
                live.update(table, refresh=True)
            elif not silent and (line := _headline(found)).split(" of the work")[0] != said:
                said = line.split(" of the work")[0]
                console.print(line, soft_wrap=True)
            sleep(EVERY)
    return found
