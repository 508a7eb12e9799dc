"""Run a plan: compute the cells that are missing, write the rows, hand back the record.

Order: captures with the base, captures with the tuned model, what needs states alone, then each direction with the model that runs, and again where
what is run was chosen by both directions. So each model is loaded a few times at most, also where only one fits into memory; and the engine checks
itself on a model before it gives a number.
"""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import polars as pl

from mechdiff.engine.models import Model
from mechdiff.study.artifacts import RunFolder
from mechdiff.study.attribution import attribution_record
from mechdiff.study.baselines import weights_record
from mechdiff.study.behaviour import behaviour_record
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.head_network import heads_record
from mechdiff.study.manifest import rendered_lines, run_record
from mechdiff.study.mapping import maps_record
from mechdiff.study.prepare import Prepared
from mechdiff.study.stages import STAGES, decoded
from mechdiff.study.steer import steering_record
from mechdiff.study.texts import texts_record

Progress = Callable[[str, float], None]
"""Called with what is running now, and the share of the whole that is done (0 to 1)."""


def execute(prepared: Prepared, folder: RunFolder, progress: Progress = lambda what, share: None) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Computes the missing cells and writes rows.parquet; returns the rows and the run's record, which the caller writes last.

    Raises SelfCheckError, ModelError, RunError. What was finished before an exception stays, and is not computed again.
    """
    return _Run(prepared, folder, progress).execute()


class _Run:
    """How far an execution has come."""

    def __init__(self, prepared: Prepared, folder: RunFolder, progress: Progress) -> None:
        self.prepared, self.folder, self.progress = prepared, folder, progress
        self.cells = prepared.plan.cells
        self.execution = Execution(prepared, folder)
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self.seconds: dict[str, float] = {}

    def execute(self) -> tuple[pl.DataFrame, dict[str, Any]]:
        missing = [cell for cell in self.cells if not self.folder.has(cell.key)]
        self.folder.log(f"{len(self.cells)} cells, {len(missing)} to compute")
        total = sum(cell.flops for cell in self.cells)
        done = total - sum(cell.flops for cell in missing)
        for stage, side in _ORDER:
            todo = [cell for cell in missing if (cell.stage, cell.side) == (stage, side)]
            if not todo:
                continue
            if side is None:
                done = self._compute(todo, None, done, total)
            else:
                with self.prepared.pair.use(side) as model:
                    done = self._compute(todo, model, done, total)
        rows = pl.concat([self.folder.load(cell.key).frame for cell in self.cells])
        self.folder.write_rows([rows])
        self.folder.write_prompts(rendered_lines(self.prepared))
        checks = {cell.key["side"]: decoded(self.folder.load(cell.key).tensors) for cell in self.cells if cell.stage == "selfcheck"}
        record = run_record(
            self.prepared, rows, engines=self.execution.engines, selfcheck=checks, seconds=self.seconds, started=self.started
        )
        maps, said = maps_record(self.execution), texts_record(self.execution)
        told = [*said.pop("text_warnings", []), *maps.get("transport", {}).get("warnings", []), *self.folder.warnings]
        return rows, {
            **record,
            **said,
            **weights_record(self.execution),
            **maps,
            **steering_record(self.execution),
            **heads_record(self.execution),
            **attribution_record(self.execution),
            **behaviour_record(self.execution),
            "warnings": [*record["warnings"], *told],
        }

    def _compute(self, cells: Sequence[Cell], model: Model | None, done: float, total: float) -> float:
        for cell in cells:
            self.progress(cell.title, done / total)
            started = time.perf_counter()
            frame, tensors = STAGES[cell.stage](self.execution, cell, model)
            spent = time.perf_counter() - started
            self.folder.store(cell.key, frame, tensors, seconds=spent)
            self.folder.log(f"{cell.title}, {len(cell.items)} prompts: {spent:.2f} s")
            self.seconds[cell.stage] = self.seconds.get(cell.stage, 0.0) + spent
            done += cell.flops
        return done


_ORDER: tuple[tuple[str, Any], ...] = (
    ("selfcheck", "base"),
    ("capture", "base"),
    ("selfcheck", "tuned"),
    ("capture", "tuned"),
    ("divergence", None),
    ("native", None),
    ("inputs", "base"),
    ("weights", None),
    ("grafting", "base"),
    ("similarity", None),
    ("fits", None),
    ("rank", None),
    ("texts", None),
    ("patching", "tuned"),
    ("crossing", "tuned"),
    ("patching", "base"),
    ("crossing", "base"),
    ("behaviour", "base"),
    ("factorial", None),
    ("transport", "base"),
    ("closer", "base"),
    ("fisher", "tuned"),
    ("transport", "tuned"),
    ("closer", "tuned"),
    ("behaviour", "tuned"),
    ("rank_curve", "tuned"),
    ("steering", "tuned"),
    ("steered", "tuned"),
    ("side_effects", "tuned"),
    ("heads", "tuned"),
    ("attribution", "tuned"),
    ("behaviour_edits", "tuned"),
    ("rank_curve", "base"),
    ("steering", "base"),
    ("steered", "base"),
    ("side_effects", "base"),
    ("heads", "base"),
    ("attribution", "base"),
    ("behaviour_edits", "base"),
    ("head_orders", "base"),
    ("head_sets", "base"),
    ("head_network", "base"),
    ("looks", "base"),
    ("head_orders", "tuned"),
    ("head_sets", "tuned"),
    ("head_network", "tuned"),
    ("looks", "tuned"),
    ("attention", None),
    ("steered_texts", None),
)
