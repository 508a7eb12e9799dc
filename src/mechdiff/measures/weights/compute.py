"""The weights of the two models are compared, tensor by tensor."""

import json
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from mechdiff.architectures.lookup import shape_of
from mechdiff.architectures.sizes import QUANTIZED
from mechdiff.engine.activations import matrix_inputs
from mechdiff.measures.weights import formula
from mechdiff.models.changes import Changes
from mechdiff.models.pair import Model
from mechdiff.rows import empty
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result

DECODED = 6
"""Largest changes of matrices that write into the residual stream, which the record holds in words."""

WRITERS = ("o_proj", "out_proj", "dense", "c_proj", "down_proj", "fc2", "w2", "dense_4h_to_h")
"""How the families call the last matrix of attention or MLP."""


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


def weigh(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of every tensor; tensors: spectra, and as text what could not be compared and what the largest changes write."""
    changes, config = run.changes, run.prepared.pair.config("base")
    entered = [one for one in run.cells if one.stage == "inputs"]
    held = run.folder.load(entered[0].key).tensors if entered else {}
    frame, spectra = formula.measure(
        changes, config, heads=cell.key["heads"], exact_up_to=cell.key["exact_up_to"],
        states={name: torch.from_numpy(states) for name, states in held.items()},
    )  # fmt: skip
    dtype = run.prepared.pair.dtype
    rounded = f"matrices are compared as the files hold them; the models that ran held them rounded to {dtype}"
    limits = formula.limits(changes, config, exact_up_to=cell.key["exact_up_to"])
    said = {
        "statements": [*changes.statements, *limits, *([rounded] if dtype in QUANTIZED else [])],
        "decoded": _decoded(run, changes, frame),
    }
    return frame, {**spectra, "said": np.frombuffer(json.dumps(said).encode(), np.uint8)}


def _decoded(run: Execution, changes: Changes, frame: pl.DataFrame) -> list[dict[str, Any]]:
    """The top direction of the largest changes that are written into the residual stream, as tokens of the tuned unembedding."""
    d_model = shape_of(run.prepared.pair.config("base")).d_model
    moved = frame.filter(pl.col("metric") == "relative_norm", pl.col("value") > 0, pl.col("site").is_in(["attn", "mlp"]))
    writers = [name for name in moved.sort("value", descending=True)["unit"] if _writes(changes, name, d_model)][:DECODED]
    if not writers:
        return []
    vocabulary, unembedding = run.prepared.vocabularies["tuned"], formula.readout(changes.tuned)
    found = []
    for name in writers:
        change = changes.change(name)
        for one in formula.decoded_directions(change.factors or change.delta(), unembedding, k=1, n_tokens=8):
            up, down = ([vocabulary.text(token) for token in end] for end in one.ids.tolist())
            found.append({"tensor": name, "singular_value": one.singular_value, "share": one.share, "up": up, "down": down})
    return found


def _writes(changes: Changes, name: str, d_model: int) -> bool:
    """A matrix whose output is added to the residual stream: the attention's or MLP's last."""
    last = name.removesuffix(".weight").rpartition(".")[2]
    shape = changes.base.shape(name)
    return len(shape) == 2 and shape[0] == d_model and last in WRITERS


def weights_record(run: Execution) -> dict[str, Any]:
    """For the record: `weights` (spectra by tensor, statements, decoded directions)."""
    cells = [cell for cell in run.cells if cell.stage == "weights"]
    if not cells:
        return {}
    found = run.folder.load(cells[0].key)
    tensors = dict(found.tensors)
    said = json.loads(bytes(tensors.pop("said")).decode())
    why = "; ".join(run.changes.statements) or "the two models' files have no tensor in common that can be compared"
    left_out = [{"what": "weights", "why": why}] if found.frame.is_empty() else []
    return {
        "skipped": left_out,
        "weights": {**said, "spectra": {name: [float(f"{value:.6g}") for value in values] for name, values in tensors.items()}},
    }
