"""What each stage of a plan does: from a cell, the execution, and the model that runs where one does, to rows and tensors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from mechdiff.engine.activations import capture
from mechdiff.engine.models import Model
from mechdiff.engine.rendering import Rendered
from mechdiff.engine.selfcheck import self_check
from mechdiff.engine.sites import Site
from mechdiff.errors import RunError, StudyError
from mechdiff.measures import divergence, factorial, patching, similarity
from mechdiff.rows import empty
from mechdiff.study.baselines import graft, inputs, weigh
from mechdiff.study.cells import Cell, n_positions, unit_of
from mechdiff.study.execution import Execution
from mechdiff.study.options import DIRECTIONS
from mechdiff.study.plan import NEED_FIT
from mechdiff.study.texts import texts

Result = tuple[pl.DataFrame, dict[str, np.ndarray]]
Stage = Callable[[Execution, Cell, Model | None], Result]


def _selfcheck(run: Execution, cell: Cell, model: Model | None) -> Result:
    assert model
    prompts = [run.ids(cell, name) for name in cell.key["ids"]]
    found = self_check(model, prompts, kinds=cell.key["kinds"], engine=run.engine(model, "decision")).record()
    return empty(), {
        name: np.frombuffer(value.encode(), np.uint8) if isinstance(value, str) else np.array(value) for name, value in found.items()
    }


def decoded(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: bytes(value).decode() if value.dtype == np.uint8 else value.item() for name, value in tensors.items()}


def _capture(run: Execution, cell: Cell, model: Model | None) -> Result:
    assert model
    kinds, layers = cell.key["kinds"], cell.key["layers"]
    sites = [Site(layer, kind) for layer in layers for kind in kinds]
    cleans = []
    for name in cell.key["ids"]:
        where = _positions(run.prompt(cell.key["split"], name), cell.key["position"], model.side)
        cleans.append(capture(model, run.ids(cell, name), sites, where))
    tensors = {
        kind: torch.stack(
            [torch.stack([clean.states[Site(layer, kind)] for clean in cleans]) for layer in layers]
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


def _divergence(run: Execution, cell: Cell, model: Model | None) -> Result:
    split = cell.key["split"]
    base, tuned = (run.states(side, split, "decision").logits for side in ("base", "tuned"))
    return divergence.measure(base, tuned, cell.key["ids"], split), {}


def _similarity(run: Execution, cell: Cell, model: Model | None) -> Result:
    split, kind = cell.key["split"], cell.key["kind"]
    states = {side: run.states(side, split, "decision").kinds[kind][:, :, 0] for side in ("base", "tuned")}
    base, tuned = ({Site(layer, kind): states[side][layer] for layer in cell.key["layers"]} for side in ("base", "tuned"))
    return similarity.measure(base, tuned, cell.key["ids"], split, permutations=cell.key["permutations"], seed=cell.key["seed"]), {}


def _patching(run: Execution, cell: Cell, model: Model | None) -> Result:
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


def _arm_states(run: Execution, cell: Cell) -> dict[str, Tensor]:
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


def _crossing(run: Execution, cell: Cell, model: Model | None) -> Result:
    assert model
    key = cell.key
    position, other = key["position"], "base" if model.side == "tuned" else "tuned"
    states = {side: run.states(side, key["split"], position, key["ids"]) for side in ("base", "tuned")}
    chosen = [states[other].layers.index(layer) for layer in key["layers"]]
    found = factorial.crossed(
        model, run.engine(model, position), run.cleans(cell, model), layers=key["layers"],
        written=states[other].kinds["resid_post"][chosen].to(model.device),
        base_logits=states["base"].logits.to(model.device), tuned_logits=states["tuned"].logits.to(model.device),
    )  # fmt: skip
    return empty(), {score: values.numpy() for score, values in found.items()}


def _factorial(run: Execution, cell: Cell, model: Model | None) -> Result:
    key = cell.key
    base, tuned = (run.states(side, key["split"], "decision").logits for side in ("base", "tuned"))
    names = [name for shard in run.captures("base", key["split"], "decision") for name in shard.key["ids"]]
    runs = {arm: factorial.scores(law[:, None], base, tuned) for arm, law in (("bb", base), ("tt", tuned))}
    runs = {arm: {score: values.expand(len(key["layers"]), -1) for score, values in found.items()} for arm, found in runs.items()}
    unedited = {}
    for arm, clean, direction in (("bt", "tt", DIRECTIONS[0]), ("tb", "bb", DIRECTIONS[1])):
        parts = [c for c in run.cells if c.stage == "crossing" and (c.key["direction"], c.key["position"]) == (direction, key["position"])]
        at = [name for part in parts for name in part.key["ids"]]
        loaded = [run.folder.load(part.key).tensors for part in parts]
        order = [at.index(name) for name in names]
        joined = {score: torch.cat([torch.from_numpy(part[score]) for part in loaded], 1)[:, order] for score in factorial.SCORES}
        runs[arm], unedited[clean] = {score: values[1:] for score, values in joined.items()}, joined[factorial.SCORES[0]][0]
    columns = {"split": key["split"], "unit": unit_of(key["position"], 1)}
    return factorial.measure(runs, key["layers"], names, draws=key["swaps"], seed=key["seed"], columns=columns, unedited=unedited), {}


STAGES: dict[str, Stage] = {
    "inputs": inputs,
    "weights": weigh,
    "grafting": graft,
    "selfcheck": _selfcheck,
    "capture": _capture,
    "divergence": _divergence,
    "similarity": _similarity,
    "texts": texts,
    "patching": _patching,
    "crossing": _crossing,
    "factorial": _factorial,
}
