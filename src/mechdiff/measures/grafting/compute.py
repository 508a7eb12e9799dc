"""Modules of the tuned model are put into the base, alone, greedily and in order."""

import polars as pl
import torch
from torch import Tensor

from mechdiff.engine.activations import matrix_inputs
from mechdiff.errors import ModelError
from mechdiff.measures.grafting import formula
from mechdiff.models.modules import changes_of
from mechdiff.models.pair import Model
from mechdiff.rows import empty
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result

INPUT_POSITIONS = 4
"""Positions of each prompt, evenly spaced and the last among them, whose states weigh a change."""


def inputs(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Tensors: what enters every matrix that may have changed, on a few prompts, `[row, d_in]` by the tensor's name."""
    assert model
    changes = run.changes
    touched = set(changes.touched())
    names = [name for name in changes.names if len(changes.base.shape(name)) == 2 and changes.places.get(name) in touched]
    parts: dict[str, list[Tensor]] = {}
    for prompt in cell.key["ids"]:
        ids = run.ids(cell, prompt)
        at = sorted({(i + 1) * len(ids) // INPUT_POSITIONS - 1 for i in range(min(INPUT_POSITIONS, len(ids)))})
        for name, states in matrix_inputs(model, ids, names, at).items():
            parts.setdefault(name, []).append(states)
    return empty(), {name: torch.cat(states).numpy() for name, states in parts.items()}


# ---- grafting ----------------------------------------------------------------------------------------------------------------------


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
        run.folder.warnings.append(f"grafting arm truncate is left out: {error}")
        return empty(), {}


def _lattice(run: Execution, split: str, model: Model, cell: Cell) -> formula.Lattice:
    if split not in run.lattices:
        names = [name for shard in run.captures("base", split, "decision") for name in shard.key["ids"]]
        kept = [name for name in names if name in cell.key[split]]
        at = [names.index(name) for name in kept]
        logits = {side: run.states(side, split, "decision").logits[at] for side in ("base", "tuned")}
        changes = next((other.changes for other in run.lattices.values()), None) or changes_of(run.prepared.pair, model)
        prompts = formula.Prompts(
            split=split, names=kept, ids=[run.prompt(split, name).ids_base for name in kept],
            base_logits=logits["base"], tuned_logits=logits["tuned"],
        )  # fmt: skip
        run.lattices[split] = formula.lattice(model, changes, prompts)
    return run.lattices[split]
