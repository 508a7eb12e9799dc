"""The stages of a run: before every measure the engine checks itself on each model, activations are captured and answers read; then the measures'."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import Clean, capture
from mechdiff.engine.norms import NORMED, norms_of
from mechdiff.engine.reading import seen
from mechdiff.engine.selfcheck import self_check
from mechdiff.labels import POOLED
from mechdiff.models.pair import Model
from mechdiff.models.sources import cache_folder
from mechdiff.prompts.rendering import spans
from mechdiff.rows import empty
from mechdiff.store.proofs import Proofs
from mechdiff.store.record import code_hash, versions
from mechdiff.study.answers import answer, answer_states
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution, positions
from mechdiff.study.experiment import Experiment, Result, Stage


def check_itself(run: Execution, cell: Cell, model: Model | None) -> Result:
    assert model
    run.folder.warnings.extend(run.prepared.pair.told)
    prompts = [run.ids(cell, name) for name in cell.key["ids"]]
    ends = [_first_sound(model, sorted(prompts, key=len, reverse=longest)) for longest in (False, True)]  # the others will be left out
    proofs, key = Proofs.of_user(cache_folder()), _proved(run, cell, model, ends)
    found = proofs.held(key)
    if not found:
        found = self_check(model, ends, kinds=cell.key["kinds"], engine=run.engine(model, "decision")).record()
        proofs.keep(key, found)
    return empty(), {
        name: np.frombuffer(value.encode(), np.uint8) if isinstance(value, str) else np.array(value) for name, value in found.items()
    }


def _proved(run: Execution, cell: Cell, model: Model, ends: Sequence[Sequence[int]]) -> dict[str, Any]:
    """All that the self-check's result depends on: a proof that is held under the same is this one."""
    hashes, device, pair = run.prepared.hashes, model.device, run.prepared.pair
    of_adapter = {
        **hashes,
        "side": model.side,
        "switched": pair.switched,
    }  # it lies on the base's network, on or off, or is merged into copies
    return {
        "files": of_adapter if pair.tuned.adapter else hashes[model.side],
        "dtype": run.prepared.study.dtype,
        "engine": run.engines[model.side][0],
        "kinds": list(cell.key["kinds"]),
        "prompts": [list(ids) for ids in ends],
        "code": code_hash(),
        "versions": versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} {torch.backends.cpu.get_cpu_capability()}",
        "split": str(getattr(model.net, "hf_device_map", None)),
        "threads": torch.get_num_threads(),
    }


def _first_sound(model: Model, prompts: Sequence[Sequence[int]]) -> Sequence[int]:
    """The first prompt after which the model gives finite logits; the very first where there is none."""
    return next((ids for ids in prompts if capture(model, ids, [], [len(ids) - 1]).logits.isfinite().all()), prompts[0])


def decoded(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """What `_selfcheck` stored, by name: a file of tensors comes back in any order, and a page must not."""
    return {name: bytes(value).decode() if value.dtype == np.uint8 else value.item() for name, value in sorted(tensors.items())}


def capture_states(run: Execution, cell: Cell, model: Model | None) -> Result:
    assert model
    run.folder.warnings.extend(run.prepared.pair.told)
    kinds, layers = cell.key["kinds"], cell.key["layers"]
    sites = [Site(layer, kind) for layer in layers for kind in kinds]
    prompts = [run.ids(cell, name) for name in cell.key["ids"]]
    rendered = [run.prompt(cell.key["split"], name) for name in cell.key["ids"]]
    words = cell.key["position"] == POOLED
    where = [
        range(len(ids)) if words else positions(one, cell.key["position"], model.side) for ids, one in zip(prompts, rendered, strict=True)
    ]
    cleans = seen(model, run.engine(model, "decision"), prompts, sites, where)
    if words:
        cleans = [_pooled(clean, spans(one, model.side)) for clean, one in zip(cleans, rendered, strict=True)]
    tensors = {
        kind: torch.stack(
            [torch.stack([clean.states[Site(layer, kind)] for clean in cleans]) for layer in layers]
        ).float().cpu().numpy()
        for kind in kinds
    }  # fmt: skip
    for kind in kinds if cell.key["position"] == "decision" else ():
        if kind in NORMED:
            at = {layer: torch.cat([clean.states[Site(layer, kind)] for clean in cleans]) for layer in layers}
            tensors |= norms_of(model, kind, at).arrays(kind)
    tensors["logits"] = run.prepared.tokens.place(torch.stack([clean.logits for clean in cleans]), model.side).cpu().numpy()
    return empty(), tensors


def _pooled(clean: Clean, pieces: list[range]) -> Clean:
    """The states of a prompt as one: the mean over its pieces of the mean over each piece's tokens, so that a piece in many tokens counts once."""
    states = {
        site: torch.stack([state[piece.start : piece.stop].float().mean(0) for piece in pieces]).mean(0, keepdim=True)
        for site, state in clean.states.items()
    }
    return replace(clean, states=states)


CHECK = Stage(name="selfcheck", compute=check_itself, needs=(), rate=0.6)
CAPTURE = Stage(name="capture", compute=capture_states, needs=("selfcheck@same",))
ANSWER = Stage(name="answer", compute=answer, needs=("selfcheck@same",))
ANSWER_STATES = Stage(name="answer_states", compute=answer_states, needs=("answer",))


def stages_of(experiments: Mapping[str, Experiment]) -> dict[str, Stage]:
    """Every stage by its name."""
    return {
        stage.name: stage
        for stage in (CHECK, CAPTURE, ANSWER, ANSWER_STATES, *(stage for one in experiments.values() for stage in one.stages))
    }
