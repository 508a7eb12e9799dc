"""The lower half of one model runs under the upper half of the other."""

import torch

from mechdiff import labels
from mechdiff.labels import CROSSED
from mechdiff.measures.factorial import formula
from mechdiff.models.pair import Model
from mechdiff.rows import empty
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution, answered
from mechdiff.study.experiment import Result


def crossing(run: Execution, cell: Cell, model: Model | None) -> Result:
    assert model
    key = cell.key
    states = run.states_of(cell, "base" if model.side == "tuned" else "tuned")
    written = states.kinds["resid_post"][[states.layers.index(layer) for layer in key["layers"]]].to(model.device)
    subject, clean = run.subject(cell, model, run.cleans(cell, model)), run.clean(cell, device=str(model.device))
    found = formula.crossed(subject, key["layers"], written, clean, run.max_rows)
    return empty(), {score: values.numpy() for score, values in found.items()}


def cross(run: Execution, cell: Cell, model: Model | None) -> Result:
    key, names = cell.key, cell.key["ids"]
    clean, lengths = (run.clean(cell), run.lengths(cell)) if answered(cell) else (run.clean(cell, position="decision"), None)
    runs = {arm: formula.scored(law[:, None], clean, lengths) for arm, law in (("bb", clean.base), ("tt", clean.tuned))}
    runs = {arm: {score: values.expand(len(key["layers"]), -1) for score, values in found.items()} for arm, found in runs.items()}
    unedited = {}
    for arm, same, direction in (("bt", "tt", CROSSED[0]), ("tb", "bb", CROSSED[1])):
        wanted = (direction, key["split"], key["position"], answered(cell))
        crossings = [one for one in run.cells if one.stage == "crossing"]
        parts = [one for one in crossings if (*(one.key[name] for name in ("direction", "split", "position")), answered(one)) == wanted]
        at = [name for part in parts for name in part.key["ids"]]
        loaded = [run.folder.load(part.key).tensors for part in parts]
        order = [at.index(name) for name in names]
        joined = {score: torch.cat([torch.from_numpy(part[score]) for part in loaded], 1)[:, order] for score in runs["bb"]}
        runs[arm] = {score: values[1:] for score, values in joined.items()}
        unedited[same] = {score: values[0] for score, values in joined.items() if score.startswith("kl_tuned")}
    columns = {"split": key["split"], "unit": labels.window_unit(1, key["position"])}
    return formula.measure(runs, key["layers"], names, columns=columns, unedited=unedited), {}
