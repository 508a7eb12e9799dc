"""Modules of the tuned model are put into the base, alone, greedily and in order."""

from typing import Any

import polars as pl
import torch

from mechdiff import labels
from mechdiff.errors import ModelError
from mechdiff.measures.grafting import formula
from mechdiff.models.modules import ChangedUnits, changes_of
from mechdiff.models.pair import Model
from mechdiff.rows import empty
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution, answered
from mechdiff.study.experiment import Result


def graft(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of some arms. What several cells start from, a trace of each model, is made once."""
    assert model
    arm = cell.key["arm"]
    bench = _lattice(run, "report", model, cell)
    if arm == "curves":
        low, high = cell.key["blocks"]
        here = [unit for unit in bench.changes.units if low <= unit.first(model.shape.n_layers) < high]
        found = formula.curves(bench, here, cell.key["points"])
        return pl.concat([formula.ends(bench), found]) if low < 0 else found, {}
    choosing = _lattice(run, "select", model, cell) if cell.key["select"] else None
    if not bench.changes.units:
        return empty(), {}
    if arm == "greedy":
        assert choosing
        return formula.searched(bench, choosing, candidates=cell.key["candidates"], picks=cell.key["picks"]), {}
    try:
        return formula.truncation(bench, formula.few(bench, choosing, cell.key["candidates"])), {}
    except ModelError as error:
        run.folder.warnings.append(f"grafting condition truncate is left out: {error}")
        return empty(), {}


def _lattice(run: Execution, split: str, model: Model, cell: Cell) -> formula.Lattice:
    def made() -> formula.Lattice:
        names = [name for shard in run.captures("base", split, "decision") for name in shard.key["ids"]]
        kept = [name for name in names if name in cell.key[split]]
        at = [names.index(name) for name in kept]
        ids = [run.prompt(split, name).ids_base for name in kept]
        logits: dict[str, Any] = {side: run.states(side, split, "decision").logits[at] for side in ("base", "tuned")}
        read = cell.key["answer"]["ids"] if split == "report" and "answer" in cell.key else []
        said = dict(zip(read, run.answers("base", read, answered(cell)), strict=True))
        if said:
            position = labels.answer_position(cell.key["answer"]["tokens"])
            for side, laws in logits.items():
                over = dict(zip(read, run.states(side, split, position, read, answered(cell)).logits, strict=True))
                rest = [over[name][1 : len(said[name])] if name in said else law[:0] for name, law in zip(kept, laws[:, None], strict=True)]
                logits[side] = torch.cat([part for law, behind in zip(laws, rest, strict=True) for part in (law[None], behind)])
        prompts = formula.Prompts(
            split=split, names=kept, ids=[(*one, *said.get(name, ())[:-1]) for name, one in zip(kept, ids, strict=True)],
            base_logits=logits["base"], tuned_logits=logits["tuned"],
            n_places=[len(said.get(name, [0])) for name in kept], answered=[name in said for name in kept],
        )  # fmt: skip
        return formula.lattice(model, units_changed(run, model), prompts)

    return run.once(("lattice", split, answered(cell) if split == "report" else None), made)


def proof(run: Execution) -> None:
    """Raises ModelError where the tuned weights do not fit into the base."""
    with run.prepared.pair.use("base") as base:
        units_changed(run, base)


def units_changed(run: Execution, model: Model) -> ChangedUnits:
    """The units that can be grafted into the base, `model`."""
    return run.once("changed units", lambda: changes_of(run.prepared.pair, model))
