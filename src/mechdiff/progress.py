"""How far a run has come is shown by a bar in a terminal, by one line that renews itself in a notebook, elsewhere by plain lines: one where a stage
begins, and one in a while. The command line and Python show the same.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Shown = Callable[[str, float], None]
"""Called with what is running now, and the share of the whole that is done (0 to 1)."""
EVERY = 30.0
"""Seconds after which a line is printed though no stage began."""
RENEWED = 0.5
"""Seconds after which a notebook's line is renewed."""
CELLS = 24
"""Of a notebook's bar."""


@contextmanager
def shown(on: bool = True) -> Iterator[tuple[Shown, Callable[[str], None]]]:
    """What shows progress, and what says a line, where a program runs a study. `on` False: nothing is shown."""
    if not on:
        yield (lambda what, share: None), (lambda line: None)
        return
    if display := _notebook():
        yield _in_notebook(display)
        return
    console = Console(stderr=True, highlight=False)
    made: Any = bars(console) if console.is_terminal and not console.is_dumb_terminal else lines(console)
    with made as bar:
        task = bar.add_task("preparing", total=1.0)
        yield (
            lambda what, share: bar.update(task, description=what[:34], completed=share),
            lambda line: bar.console.print(line, markup=False, highlight=False, soft_wrap=True),
        )


def _in_notebook(display: Any) -> tuple[Shown, Callable[[str], None]]:
    begun, last, handle = time.monotonic(), 0.0, None

    def show(what: str, share: float) -> None:
        nonlocal last, handle
        now = time.monotonic()
        if now - last < RENEWED and share < 1:
            return
        last, full = now, round(CELLS * share)
        text = f"{'█' * full}{'░' * (CELLS - full)} {share:4.0%}  {what[:34]}, {_clock(now - begun)}"
        told = {"text/plain": text, "text/html": f"<pre>{escape(text)}</pre>"}
        if handle is None:
            handle = display(told, raw=True, display_id=True)
        else:
            handle.update(told, raw=True)

    return show, lambda line: display({"text/plain": line, "text/html": f"<pre>{escape(line)}</pre>"}, raw=True)


def _notebook() -> Any:
    """IPython's display function where a notebook runs this; None elsewhere."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return sys.modules["IPython"].display.display if shell is not None and hasattr(shell, "kernel") else None


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
