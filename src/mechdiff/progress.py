"""A run started from Python shows how far it is: a bar in a terminal, one line that renews itself in a notebook, else a line every ten seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

Shown = Callable[[str, float], None]
"""Called with what is running now, and the share of the whole that is done (0 to 1)."""
EVERY = {"lines": 10.0, "notebook": 0.5}
"""Seconds between two lines."""
CELLS = 24


@contextmanager
def shown(on: bool = True) -> Iterator[tuple[Shown, Callable[[str], None]]]:
    """What shows progress, and what says a line. `on` False: nothing is shown."""
    if not on:
        yield (lambda what, share: None), (lambda line: None)
    elif display := _notebook():
        yield _in_notebook(display)
    elif sys.stderr.isatty():
        with _bar() as bar:
            task = bar.add_task("preparing", total=1.0)
            yield (
                lambda what, share: bar.update(task, description=what[:34], completed=share),
                lambda line: bar.console.print(line, markup=False, highlight=False, soft_wrap=True),
            )
    else:
        yield _in_lines()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def line_of(what: str, share: float, seconds: float) -> str:
    """ "patching L3   41 %, 2 min" of what runs now and how long it has run."""
    spent = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    return f"{what[:34]:34} {share:4.0%}, {spent}"


def _in_lines() -> tuple[Shown, Callable[[str], None]]:
    started = last = time.monotonic()

    def show(what: str, share: float) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= EVERY["lines"]:
            last = now
            _say(line_of(what, share, now - started))

    return show, _say


def _in_notebook(display: Any) -> tuple[Shown, Callable[[str], None]]:
    started, last, handle = time.monotonic(), 0.0, None

    def show(what: str, share: float) -> None:
        nonlocal last, handle
        now = time.monotonic()
        if now - last < EVERY["notebook"] and share < 1:
            return
        last, full = now, round(CELLS * share)
        text = f"{'█' * full}{'░' * (CELLS - full)} {line_of(what, share, now - started)}"
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


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:34}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
    )
    return Progress(*columns, TimeRemainingColumn(elapsed_when_finished=False), console=Console(stderr=True))
