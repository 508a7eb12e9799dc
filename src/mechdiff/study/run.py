"""Run a plan: compute the cells that are missing, write the rows, hand back the record.

Order: captures with the base, captures with the tuned model, what needs states alone, then each direction with the model that runs. So each
model is loaded at most twice, also where only one fits into memory; and the engine checks itself on a model before it gives a number.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from mechdiff.engine.activations import Clean, capture
from mechdiff.engine.models import Model
from mechdiff.engine.rendering import Rendered
from mechdiff.engine.replay import ENGINES, Engine
from mechdiff.engine.selfcheck import self_check
from mechdiff.engine.sites import Site
from mechdiff.errors import RunError, StudyError
from mechdiff.measures import divergence, patching, similarity
from mechdiff.rows import empty
from mechdiff.study.artifacts import RunFolder
from mechdiff.study.manifest import engines, run_record
from mechdiff.study.plan import NEED_FIT, Cell, n_positions, unit_of
from mechdiff.study.prepare import Prepared

Progress = Callable[[str, float], None]
"""Called with what is running now, and the share of the whole that is done (0 to 1)."""

Result = tuple[pl.DataFrame, dict[str, np.ndarray]]


def execute(prepared: Prepared, folder: RunFolder, progress: Progress = lambda what, share: None) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Computes the missing cells and writes rows.parquet; returns the rows and the run's record, which the caller writes last.

    Raises SelfCheckError, ModelError, RunError. What was finished before an exception stays, and is not computed again.
    """
    return _Run(prepared, folder, progress).execute()


@dataclass(frozen=True, kw_only=True)
class States:
    """What a capture of several prompts kept."""

    kinds: dict[str, Float[Tensor, "layer prompt pos d"]]
    logits: Float[Tensor, "prompt vocab"]


class _Run:
    """One execution: the folder, what is loaded, and how far it has come."""

    def __init__(self, prepared: Prepared, folder: RunFolder, progress: Progress) -> None:
        self.prepared, self.folder, self.progress = prepared, folder, progress
        self.cells = prepared.plan.cells
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self.seconds: dict[str, float] = {}
        self.engines = engines(prepared)
        self._states: dict[tuple[str, str, str], States] = {}
        self._cleans: tuple[Any, list[Clean]] = (None, [])

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
        checks = {cell.key["side"]: _decoded(self.folder.load(cell.key).tensors) for cell in self.cells if cell.stage == "selfcheck"}
        record = run_record(self.prepared, rows, engines=self.engines, selfcheck=checks, seconds=self.seconds, started=self.started)
        return rows, {**record, "warnings": [*record["warnings"], *self.folder.warnings]}

    def _compute(self, cells: Sequence[Cell], model: Model | None, done: float, total: float) -> float:
        for cell in cells:
            self.progress(cell.title, done / total)
            started = time.perf_counter()
            frame, tensors = STAGES[cell.stage](self, cell, model)
            spent = time.perf_counter() - started
            self.folder.store(cell.key, frame, tensors, seconds=spent)
            self.folder.log(f"{cell.title}, {len(cell.items)} prompts: {spent:.2f} s")
            self.seconds[cell.stage] = self.seconds.get(cell.stage, 0.0) + spent
            done += cell.flops
        return done

    # ---- what cells are computed from

    def engine(self, model: Model, position: str) -> Engine:
        """The engine for one model and window: whole sequences where edits are at all positions."""
        name = self.engines[model.side][0]
        return ENGINES["relay" if name == "replay" and position == "all" else name]

    def prompt(self, split: str, name: str) -> Rendered:
        return self.prepared.rendered[split][name]

    def ids(self, cell: Cell, name: str) -> tuple[int, ...]:
        one = self.prompt(cell.key["split"], name)
        return one.ids_base if cell.side == "base" else one.ids_tuned

    def captures(self, side: str, split: str, position: str) -> list[Cell]:
        """The capture cells of one model on one split, in the order of its shards."""
        wanted = (side, split, position)
        return [cell for cell in self.cells if cell.stage == "capture" and (cell.side, cell.key["split"], cell.key["position"]) == wanted]

    def states(self, side: str, split: str, position: str, ids: Sequence[str] | None = None) -> States:
        """The captured states of a split (in the order of its shards), or of the one shard that holds just `ids`."""
        shards = self.captures(side, split, position)
        if ids is not None:
            return self._joined([cell for cell in shards if cell.key["ids"] == ids])
        if (side, split, position) not in self._states:
            self._states[side, split, position] = self._joined(shards)
        return self._states[side, split, position]

    def _joined(self, shards: Sequence[Cell]) -> States:
        loaded = [self.folder.load(cell.key).tensors for cell in shards]
        kinds = {kind: torch.cat([torch.from_numpy(part[kind]) for part in loaded], 1) for kind in shards[0].key["kinds"]}
        return States(kinds=kinds, logits=torch.cat([torch.from_numpy(part["logits"]) for part in loaded]))

    def cleans(self, cell: Cell, model: Model) -> list[Clean]:
        """The running model's clean passes of a cell's prompts, kept for the next cells of the same shard."""
        wanted = (model.side, cell.key["split"], cell.key["ids"])
        if self._cleans[0] != wanted:
            keep = self.engine(model, cell.key["position"]) is ENGINES["replay"]
            self._cleans = (None, [])
            found = [capture(model, self.ids(cell, name), [], [0], keep_cache=keep) for name in cell.key["ids"]]
            self._cleans = (wanted, found)
        return self._cleans[1]


# ---- what each stage does ----------------------------------------------------------------------------------------------------------


def _selfcheck(run: _Run, cell: Cell, model: Model | None) -> Result:
    assert model
    prompts = [run.ids(cell, name) for name in cell.key["ids"]]
    found = self_check(model, prompts, kinds=cell.key["kinds"], engine=run.engine(model, "decision")).record()
    return empty(), {
        name: np.frombuffer(value.encode(), np.uint8) if isinstance(value, str) else np.array(value) for name, value in found.items()
    }


def _decoded(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: bytes(value).decode() if value.dtype == np.uint8 else value.item() for name, value in tensors.items()}


def _capture(run: _Run, cell: Cell, model: Model | None) -> Result:
    assert model
    kinds = cell.key["kinds"]
    sites = [Site(layer, kind) for layer in range(model.shape.n_layers) for kind in kinds]
    cleans = []
    for name in cell.key["ids"]:
        where = _positions(run.prompt(cell.key["split"], name), cell.key["position"], model.side)
        cleans.append(capture(model, run.ids(cell, name), sites, where))
    tensors = {
        kind: torch.stack(
            [torch.stack([clean.states[Site(layer, kind)] for clean in cleans]) for layer in range(model.shape.n_layers)]
        ).float().cpu().numpy()
        for kind in kinds
    }  # fmt: skip
    tensors["logits"] = torch.stack([clean.logits[: run.prepared.vocab] for clean in cleans]).cpu().numpy()
    return empty(), tensors


def _positions(one: Rendered, position: str, side: str) -> list[int]:
    """Token indices of a window in one model's tokens. They must be its last tokens, all of them, in both models."""
    n_pos = n_positions(position)
    pairs = one.positions[-n_pos:] if n_pos else one.positions
    length = n_pos or len(one.ids_base)
    for which, ids in enumerate((one.ids_base, one.ids_tuned)):
        if [pair[which] for pair in pairs] != list(range(len(ids) - length, len(ids))):
            raise StudyError(
                f"positions {position}: the last tokens of prompt {one.prompt.id!r} are not the same places for both models. "
                "Use position decision, or policy same_text."
            )
    return [pair[0 if side == "base" else 1] for pair in pairs]


def _divergence(run: _Run, cell: Cell, model: Model | None) -> Result:
    split = cell.key["split"]
    base, tuned = (run.states(side, split, "decision").logits for side in ("base", "tuned"))
    return divergence.measure(base, tuned, cell.key["ids"], split), {}


def _similarity(run: _Run, cell: Cell, model: Model | None) -> Result:
    split, kind = cell.key["split"], cell.key["kind"]
    states = {side: run.states(side, split, "decision").kinds[kind][:, :, 0] for side in ("base", "tuned")}
    base, tuned = ({Site(layer, kind): states[side][layer] for layer in cell.key["layers"]} for side in ("base", "tuned"))
    return similarity.measure(base, tuned, cell.key["ids"], split, permutations=cell.key["permutations"], seed=cell.key["seed"]), {}


def _patching(run: _Run, cell: Cell, model: Model | None) -> Result:
    assert model
    key = cell.key
    engine = run.engine(model, key["position"])
    side_states = {side: run.states(side, key["split"], key["position"], key["ids"]) for side in ("base", "tuned")}
    base, tuned = (side_states[side].kinds[key["kind"]] for side in ("base", "tuned"))
    written = patching.written_state(key["arm"], key["direction"], base, tuned, **_arm_states(run, cell))
    columns = {"direction": key["direction"], "split": key["split"], "arm": key["arm"], "unit": unit_of(key["position"], key["width"])}
    cleans = run.cleans(cell, model)

    def sweep(part: slice) -> list[pl.DataFrame]:
        try:
            return [
                patching.measure(
                    model, engine, cleans[part], kind=key["kind"], layers=key["layers"], width=key["width"],
                    written=written[:, part].to(model.device), base_logits=side_states["base"].logits[part].to(model.device),
                    tuned_logits=side_states["tuned"].logits[part].to(model.device), prompt_ids=key["ids"][part], columns=columns, floor=key["floor"],
                )
            ]  # fmt: skip
        except torch.OutOfMemoryError as error:
            n = len(key["ids"][part])
            if n == 1:
                raise RunError(f"one prompt's {len(key['layers'])} variants do not fit on {model.device}. Lower --max-rows.") from error
            run.folder.log(f"out of memory with {n} prompts in a pass: halved")
            middle = part.start + n // 2
            return sweep(slice(part.start, middle)) + sweep(slice(middle, part.stop))

    return pl.concat(sweep(slice(0, len(key["ids"])))), {}


def _arm_states(run: _Run, cell: Cell) -> dict[str, Tensor]:
    """What an arm needs beside the prompts' own states: means over fit, or another prompt's tuned state."""
    key = cell.key
    if key["arm"] in NEED_FIT:
        means = {side: run.states(side, "fit", key["position"]).kinds[key["kind"]].mean(1) for side in ("base", "tuned")}
        return {"mean_base": means["base"], "mean_tuned": means["tuned"]}
    if key["arm"] == "resample":
        everyone = [name for shard in run.captures("tuned", key["split"], key["position"]) for name in shard.key["ids"]]
        donor = patching.donors(len(everyone), key["seed"])
        chosen = [donor[everyone.index(name)] for name in key["ids"]]
        return {"donor": run.states("tuned", key["split"], key["position"]).kinds[key["kind"]][:, chosen]}
    return {}


STAGES: dict[str, Callable[[_Run, Cell, Model | None], Result]] = {
    "selfcheck": _selfcheck,
    "capture": _capture,
    "divergence": _divergence,
    "similarity": _similarity,
    "patching": _patching,
}

_ORDER: tuple[tuple[str, Any], ...] = (
    ("selfcheck", "base"),
    ("capture", "base"),
    ("selfcheck", "tuned"),
    ("capture", "tuned"),
    ("divergence", None),
    ("similarity", None),
    ("patching", "tuned"),
    ("patching", "base"),
)
