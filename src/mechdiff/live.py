"""The page of a run stands before its first number and fills in as stages finish; a run that ends early leaves a page that says where it stopped.

A rebuild may take SHARE of the time since the last one: what a page takes to build is learned from the last. The page of a finished run is built anew
from its folder, so that it is the same to the byte as one that was built once.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mechdiff import rows
from mechdiff.errors import MechdiffError
from mechdiff.measures.catalogue import CHAPTERS, NUMBERS
from mechdiff.report.page import page_of
from mechdiff.report.parts import assembled
from mechdiff.statistics.summary import summarise
from mechdiff.study.prepare import Prepared
from mechdiff.study.run import SoFar

SHARE = 0.05
"""Of the time of a run that its page may take."""
EXPECTED = 2.0
"""Seconds that the first page with numbers is thought to take."""
EVERY = 10
"""Seconds after which a browser looks for a newer page."""


class LivePage:
    """The page of one run, from its start to its end."""

    def __init__(self, folder: Path, prepared: Prepared, log: Callable[..., None], clock: Callable[[], float] = time.monotonic) -> None:
        self.folder, self.prepared, self.log, self.clock = folder, prepared, log, clock
        self.took, self.since = EXPECTED, clock()
        self.content = self._empty()
        self.look: Callable[[], SoFar] | None = None
        """Says how far the run has come."""

    def step(self, look: Callable[[], SoFar]) -> None:
        """Writes the page: the first time without a number, then with all that is there, where that costs no more than SHARE of the time."""
        first, begun = self.look is None, self.clock()
        self.look = look
        if first:
            self._write(look())
        elif self.took <= SHARE * (begun - self.since):
            self._renew(look())
            self.since = self.clock()
            self.took = self.since - begun

    def _renew(self, so_far: SoFar) -> None:
        """The page with all that is there. No page ends a run of hours: where half a study cannot be shown, it stays, and the log says why."""
        before = self.content
        try:
            self.content = so_far.tables()
            self._write(so_far)
        except Exception as error:  # noqa: BLE001  whatever half a study raises
            self.content = before
            self.log("page_failed", why=f"{type(error).__name__}: {error}")

    def stopped(self, why: BaseException) -> None:
        """Says on the page where the run stopped, with the numbers that are on it."""
        if self.look is None:
            return
        so_far = self.look()
        reason = f" ({why})" if isinstance(why, MechdiffError) else ""
        last = f", at {so_far.now}" if so_far.now else ""
        self._write(so_far, f"This run stopped after {_tasks(so_far)}{last}{reason}. The same command goes on from there.")

    def _write(self, so_far: SoFar, stopped: str = "") -> None:
        raw, prompts, record = self.content
        running = f"This run is being computed: {_tasks(so_far)}, {so_far.share:.0%} of the work. This page fills in by itself."
        summary = summarise(raw, NUMBERS, prompts=prompts, seed=self.prepared.study.seed)
        content = assembled(raw, prompts, summary, record | {"waits": sorted(so_far.waits)})
        page_of(content, CHAPTERS, self.folder, alerts=[stopped or running], refresh=0 if stopped else EVERY)

    def _empty(self) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
        """The tables of a run that has no number yet."""
        study, pair = self.prepared.study, self.prepared.pair
        refs = {side: {"ref": pair.source(side).ref} for side in ("base", "tuned")}
        return rows.empty(), [], {"pair": refs, "config": study.model_dump(mode="json"), "quick": self.prepared.options.quick}


def _tasks(so_far: SoFar) -> str:
    return f"{so_far.done} of {so_far.cells} tasks"
