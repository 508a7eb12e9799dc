"""How far a command has come is shown by bars on a terminal, elsewhere by plain lines: one where a stage begins, and one in a while."""

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

EVERY = 30.0
"""Seconds after which a line is printed though no stage began."""


def bars(console: Console) -> Progress:
    """Bars for a terminal."""
    columns = (
        TextColumn("{task.description:34}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
    )
    return Progress(*columns, TimeRemainingColumn(elapsed_when_finished=False), console=console, disable=console.quiet)


class Lines:
    """Progress as lines of text, with the calls of rich's that verbs use."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.clock = console, clock
        self.begun = clock()
        self.tasks: list[tuple[set[str], float]] = []
        """Of each task the stages that were named, and when its last line was printed."""

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *ended: object) -> None:
        return None

    def add_task(self, description: str, total: float | None = None) -> int:
        self.tasks.append((set(), self.begun))
        self.update(len(self.tasks) - 1, description=description)
        return len(self.tasks) - 1

    def update(self, task: int, *, description: str = "", completed: float | None = None, **shown: Any) -> None:
        """A line where a stage (the first word) is named for the first time, or none was printed for `EVERY` seconds."""
        named, last = self.tasks[task]
        now = self.clock()
        whose, _, what = description.rpartition(": ")
        stage = f"{whose} {what.partition(' ')[0]}"
        if not description or (stage in named and now - last < EVERY):
            return
        self.tasks[task] = (named | {stage}, now)
        spent = now - self.begun
        share = "" if completed is None else f" {100 * completed:3.0f} %"
        left = f", about {_clock(spent * (1 - completed) / completed)} left" if completed and 0.02 < completed < 1 else ""
        self.console.print(f"{_clock(spent)}{share}  {description}{left}", markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    """ "0:08", "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def lines(console: Console) -> Lines:
    return Lines(console)
