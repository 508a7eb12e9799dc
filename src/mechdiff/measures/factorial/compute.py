"""The lower half of one model runs under the upper half of the other."""

import torch

from mechdiff import labels
from mechdiff.engine.counterfactuals import Subject
from mechdiff.engine.outcome import CleanLogits
from mechdiff.labels import CROSSED
from mechdiff.measures.factorial import formula
from mechdiff.models.pair import Model
from mechdiff.rows import empty
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result


def crossing(run: Execution, cell: Cell, model: Model | None) -> Result:
    assert model
    key = cell.key
    position, other = key["position"], "base" if model.side == "tuned" else "tuned"
    states = {side: run.states(side, key["split"], position, key["ids"]) for side in ("base", "tuned")}
    chosen = [states[other].layers.index(layer) for layer in key["layers"]]
    written = states[other].kinds["resid_post"][chosen].to(model.device)
    tokens, logits = run.prepared.tokens, {side: held.logits.to(model.device) for side, held in states.items()}
    subject = Subject(model=model, engine=run.engine(model, position), cleans=run.cleans(cell, model), tokens=tokens)
    found = formula.crossed(subject, key["layers"], written, CleanLogits(**logits, n_shared=tokens.n_shared))
    return empty(), {score: values.numpy() for score, values in found.items()}


def cross(run: Execution, cell: Cell, model: Model | None) -> Result:
    key = cell.key
    base, tuned = (run.states(side, key["split"], "decision").logits for side in ("base", "tuned"))
    names = [name for shard in run.captures("base", key["split"], "decision") for name in shard.key["ids"]]
    clean = CleanLogits(base=base, tuned=tuned, n_shared=run.prepared.tokens.n_shared)
    runs = {arm: formula.scores(law[:, None], clean) for arm, law in (("bb", base), ("tt", tuned))}
    runs = {arm: {score: values.expand(len(key["layers"]), -1) for score, values in found.items()} for arm, found in runs.items()}
    unedited = {}
    for arm, same, direction in (("bt", "tt", CROSSED[0]), ("tb", "bb", CROSSED[1])):
        wanted = (direction, key["split"], key["position"])
        parts = [c for c in run.cells if c.stage == "crossing" and (c.key["direction"], c.key["split"], c.key["position"]) == wanted]
        at = [name for part in parts for name in part.key["ids"]]
        loaded = [run.folder.load(part.key).tensors for part in parts]
        order = [at.index(name) for name in names]
        joined = {score: torch.cat([torch.from_numpy(part[score]) for part in loaded], 1)[:, order] for score in formula.SCORES}
        runs[arm], unedited[same] = {score: values[1:] for score, values in joined.items()}, joined[formula.SCORES[0]][0]
    columns = {"split": key["split"], "unit": labels.window_unit(1, key["position"])}
    return formula.measure(runs, key["layers"], names, columns=columns, unedited=unedited), {}
