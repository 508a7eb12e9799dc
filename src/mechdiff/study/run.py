"""A plan is run: the cells that are missing are computed, the rows written, the record handed back.

First the engine checks itself on each model and states are captured; prompts that break a model are then left out. All else runs in the order that
schedule.py computes.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import polars as pl

from mechdiff.rows import empty
from mechdiff.shares import as_of_base
from mechdiff.store.run_folder import RunFolder, cell_hash
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution, answered
from mechdiff.study.manifest import lineage_of, rendered_lines, run_record
from mechdiff.study.prepare import Broken, Prepared, prepare
from mechdiff.study.schedule import first_stages, schedule
from mechdiff.study.stages import decoded, stages_of

Progress = Callable[[str, float], None]
"""Called with what is running now, and the share of the whole that is done (0 to 1)."""


class Crew(Protocol):
    """Who computes cells: this process, or workers elsewhere (on_ray.py)."""

    def compute(self, cells: Sequence[Cell], started: Callable[[Cell], None]) -> Iterator[Cell]:
        """Computes cells of one stage and side, none of which needs another of them, and puts them into the run's store; yields each when it is
        there. `started` is called when a cell is begun."""

    def anew(self, execution: Execution) -> "Crew":
        """The same for another plan."""

    def record(self) -> dict[str, Any]:
        """What the run's record says of it."""


@dataclass(frozen=True, kw_only=True)
class SoFar:
    """How far a run has come."""

    done: int
    cells: int
    share: float
    """Of its work, by operations."""
    now: str
    """What was computed last."""
    waits: frozenset[str]
    """Measures that have nothing for a reader yet."""
    tables: Callable[[], tuple[pl.DataFrame, list[dict[str, Any]], dict[str, Any]]]
    """Rows of the stages that are finished, prompts as in prompts.jsonl, and the record that goes with these; loads every finished cell."""


Step = Callable[[Callable[[], SoFar]], None]
"""Called before the first cell, and after each group of cells that belong together, with what says how far the run has come by then."""


def compute_cell(run: Execution, cell: Cell) -> None:
    """Computes one cell and puts it into the store, with what its stage warned of; one line of the log."""
    warned = len(run.folder.warnings)
    started = time.perf_counter()
    with run.prepared.pair.use(cell.side) if cell.side else nullcontext() as model:  # type: ignore[arg-type]
        frame, tensors = stages_of(run.prepared.experiments)[cell.stage].compute(run, cell, model)
    spent = time.perf_counter() - started
    warnings = run.folder.warnings[warned:]
    run.folder.store(cell.key, frame, tensors, seconds=spent, notes={"warnings": warnings} if warnings else None)
    run.folder.log("computed", cell=cell.title, prompts=len(cell.items), seconds=spent, name=cell_hash(cell.key)[:12])


@dataclass
class Here:
    """This process computes, one cell after the other."""

    execution: Execution

    def compute(self, cells: Sequence[Cell], started: Callable[[Cell], None]) -> Iterator[Cell]:
        for cell in cells:
            started(cell)
            compute_cell(self.execution, cell)
            yield cell

    def anew(self, execution: Execution) -> "Here":
        return Here(execution)

    def record(self) -> dict[str, Any]:
        return {}


def execute(
    prepared: Prepared,
    folder: RunFolder,
    progress: Progress = lambda what, share: None,
    crew: Crew | None = None,
    step: Step = lambda look: None,
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Computes the missing cells and writes rows.parquet; returns the rows and the run's record, which the caller writes last.

    Raises SelfCheckError, ModelError, RunError. What was finished before an exception stays, and is not computed again.
    """
    return _Run(prepared, folder, progress, crew, step).execute()


class _Run:
    """How far an execution has come."""

    def __init__(self, prepared: Prepared, folder: RunFolder, progress: Progress, crew: Crew | None, step: Step) -> None:
        self.prepared, self.folder, self.progress, self.step = prepared, folder, progress, step
        self.cells, self.stages = prepared.plan.cells, stages_of(prepared.experiments)
        self.execution = Execution(prepared, folder)
        self.crew = crew or Here(self.execution)
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self.left = sum(cell.flops for cell in self.cells if not folder.has(cell.key))
        self.loaded: str | None = None
        """The model that ran last."""
        self.now = ""
        """The cell that was begun or finished last."""

    def execute(self) -> tuple[pl.DataFrame, dict[str, Any]]:
        self.folder.log("started", cells=len(self.cells), missing=sum(not self.folder.has(cell.key) for cell in self.cells))
        self.step(self._so_far)
        self._compute(first_stages(self.stages, "capture"))
        if broken := broken_prompts(self.execution):
            self._leave_out(broken)
        self._compute(self.stages)
        self.folder.log("all_there", cells=len(self.cells))
        rows, seconds, kept = self._collected(self.cells)
        self.folder.write_rows([rows])
        self.folder.write_prompts(rendered_lines(self.prepared))
        return rows, self._record(rows, seconds, kept, self.execution, frozenset())

    def _collected(self, cells: Sequence[Cell]) -> tuple[pl.DataFrame, Counter[str], list[str]]:
        """The rows of finished cells, the seconds that each stage took, and what they warned of."""
        finished = [self.folder.load(cell.key) for cell in cells]
        frames = [self._told(cell, one.frame) for cell, one in zip(cells, finished, strict=True)]
        rows = pl.concat([empty(), *frames], rechunk=True)  # in hundreds of pieces a look takes fifty times as long
        seconds: Counter[str] = Counter()
        for cell, one in zip(cells, finished, strict=True):
            seconds[cell.stage] += one.record["seconds"]
        return rows, seconds, [warning for one in finished for warning in one.record["notes"].get("warnings", ())]

    @cached_property
    def _family(self) -> dict[str, Any]:
        """The pair's lineage, for which all weights are read: once, and not for each look at a run that goes on."""
        return lineage_of(self.prepared)

    def _record(
        self, rows: pl.DataFrame, seconds: Counter[str], kept: Sequence[str], execution: Execution, waits: frozenset[str]
    ) -> dict[str, Any]:
        """The run's record, without the measures that wait."""
        checks = {cell.key["side"]: decoded(self.folder.load(cell.key).tensors) for cell in execution.cells if cell.stage == "selfcheck"}
        record = run_record(self.prepared, rows, engines=self.execution.engines, selfcheck=checks, seconds=seconds, started=self.started)
        records = [one.record(execution) for name, one in self.prepared.experiments.items() if name not in waits]
        lost = [f"prompt {name} ({split}) is left out of everything: {why}" for split, name, why in self.prepared.broken]
        skipped = [*record["skipped"], *(one for each in records for one in each.pop("skipped", ()))]
        told = [*(warning for one in records for warning in one.pop("warnings", ())), *kept, *self.folder.warnings]
        asked = [name for name in self.prepared.study.measures if name not in waits]
        return {
            **record,
            "lineage": self._family,
            **{name: value for one in records for name, value in one.items()},
            **self.crew.record(),
            "skipped": [*skipped, *silent(asked, rows, skipped)],
            "left_out": [list(one) for one in self.prepared.broken],
            "warnings": list(dict.fromkeys([*self._family["warnings"], *record["warnings"], *lost, *told])),
        }

    def _so_far(self) -> SoFar:
        """How far it has come. A measure waits while a stage that readers want first is missing or, of one that has none, any."""
        there = Counter(cell.stage for cell in self.cells if self.folder.has(cell.key))
        missing = {cell.stage for cell in self.cells} - {
            stage for stage, n in Counter(cell.stage for cell in self.cells).items() if there[stage] == n
        }
        own = {name: [stage for stage in one.stages if stage.name in missing] for name, one in self.prepared.experiments.items()}
        first = {name: any(stage.soon for stage in one.stages) for name, one in self.prepared.experiments.items()}
        waits = frozenset(name for name, left in own.items() if any(stage.soon or not first[name] for stage in left))
        without = missing | {stage.name for name in waits for stage in self.prepared.experiments[name].stages}

        def tables() -> tuple[pl.DataFrame, list[dict[str, Any]], dict[str, Any]]:
            finished = [cell for cell in self.cells if cell.stage not in without]
            rows, seconds, kept = self._collected(finished)
            execution = Execution(self.prepared, self.folder)
            execution.cells = tuple(finished)
            return rows, list(rendered_lines(self.prepared)), self._record(rows, seconds, kept, execution, waits)

        total = sum(cell.flops for cell in self.cells)
        return SoFar(
            done=there.total(),
            cells=len(self.cells),
            share=1 - self.left / total if total else 0.0,
            now=self.now,
            waits=waits,
            tables=tables,
        )

    def _told(self, cell: Cell, frame: pl.DataFrame) -> pl.DataFrame:
        """A cell's rows as they stand in the run's: what is over the base's answers is named so where both models' are read."""
        return as_of_base(frame) if self.prepared.study.answers.of == "both" and answered(cell) == "base" else frame

    def _compute(self, stages: Collection[str]) -> None:
        """The missing cells of these stages."""
        missing = [cell for cell in self.cells if not self.folder.has(cell.key)]
        planned = [{"name": cell_hash(cell.key), "stage": cell.stage, "side": cell.side, "flops": cell.flops} for cell in self.cells]
        self.folder.write_plan({"cells": planned, "cells_at": self.prepared.options.cells, "started": self.started})
        self.left = sum(cell.flops for cell in missing)
        both = not self.prepared.pair.one_at_a_time
        for group in [group for group in schedule(self.stages, missing, self.loaded, both=both) if group.stage.name in stages]:
            self.loaded = (self.loaded, *group.models)[-1]
            for cell in self.crew.compute(group.cells, self._say):
                self.left -= cell.flops
                self._say(cell)
            self.step(self._so_far)

    def _leave_out(self, broken: Broken) -> None:
        """Goes on as the same study without these prompts."""
        for split, name, why in broken:
            self.folder.log("left_out", prompt=name, split=split, why=why)
        self.prepared.pair.release()
        self.loaded = None
        self.prepared = prepare(self.prepared.study, self.prepared.options, self.prepared.experiments, broken=broken)
        self.cells = self.prepared.plan.cells
        self.execution = Execution(self.prepared, self.folder)
        self.crew = self.crew.anew(self.execution)

    def _say(self, cell: Cell) -> None:
        self.now = cell.title
        self.progress(cell.title, 1 - self.left / sum(one.flops for one in self.cells))


def silent(measures: Collection[str], rows: pl.DataFrame, skipped: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The measures that were asked for, gave no row, and are not among what is said to be skipped."""
    there = set(rows["measure"]) | {one["what"].split()[0].rstrip(":") for one in skipped}
    return [{"what": name, "why": "it was asked for, ran, and gave no number"} for name in measures if name not in there]


def broken_prompts(run: Execution) -> Broken:
    """Prompts on which a model's states or law hold NaN or infinity: one such prompt would spoil every number that several are made of."""
    found: dict[tuple[str, str], str] = {}
    for cell in run.cells:
        if cell.stage != "capture":
            continue
        tensors = run.folder.load(cell.key).tensors
        fine = ~np.isnan(tensors["logits"]).any(-1) & (tensors["logits"].max(-1) < np.inf)
        for kind in cell.key["kinds"]:
            fine &= np.isfinite(tensors[kind]).all((0, 2, 3))
        for name in np.array(cell.key["ids"])[~fine].tolist():
            found.setdefault((cell.key["split"], name), f"the {cell.side} model's activations on it hold NaN or infinity")
    return tuple((split, name, why) for (split, name), why in found.items())
