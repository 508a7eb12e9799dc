"""Choices of experts are computed once more: whole passes, routers' weights exchanged inside a network, formulas from their definitions."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from mechdiff import labels
from mechdiff.architectures.lookup import routers_of
from mechdiff.audit.distributions import NotRecomputed, Row
from mechdiff.audit.rerun import Rerun
from mechdiff.measures.routing.plan import INPUTS_ALONE, JS, REPLACED, SET, TOP, WEIGHTS_ALONE
from mechdiff.models.pair import Model, Side

Read = list[dict[str, Any]]
"""Of each token: `scores` of all experts, and `weights` of the chosen ones by expert."""
RUNS = {None: ("tuned", "tuned"), INPUTS_ALONE: ("tuned", "base"), WEIGHTS_ALONE: ("base", "tuned"), "no_op": ("base", "base")}
"""Control -> whose network runs, and whose router chooses at the layer."""


def again(run: Rerun, row: Row) -> float:
    """At the row's layer: the base's pass, and that of a network whose router at this layer is the one that the control names."""
    runs, router = RUNS[row["control"]]
    if runs != router and run.prepared.pair.tuned.adapter:
        raise NotRecomputed("an adapter's router is not exchanged for its base's inside one network")
    pairs = run.prepared.rendered[row["split"]][row["prompt"]].positions
    if row["unit"] == labels.experts_unit("decision"):
        pairs = pairs[-1:]
    base = _read(run, "base", "base", row)
    other = _read(run, runs, router, row)
    values = [_moved(row["metric"], base[one], other[two if runs == "tuned" else one]) for one, two in pairs]
    return float(np.mean(values))


def _moved(metric: str, base: dict[str, Any], other: dict[str, Any]) -> float:
    ours, theirs = base["weights"], other["weights"]
    if metric == TOP:
        return float(min(ours, key=lambda e: (-ours[e], e)) != min(theirs, key=lambda e: (-theirs[e], e)))
    if metric == SET:
        return float(set(ours) != set(theirs))
    if metric == REPLACED:
        return len(set(ours) - set(theirs)) / len(ours)
    assert metric == JS
    p, q = _law(base), _law(other)
    middle = (p + q) / 2
    return float(sum((one * (np.log(one) - np.log(middle))).sum() for one in (p, q)) / 2)


def _law(one: dict[str, Any]) -> np.ndarray:
    """The gate over all experts: of the two laws the one in whose proportion the chosen experts' weights are."""
    scores, weights = one["scores"], one["weights"]
    exponentials = np.exp(scores - scores.max())
    laws = [exponentials / exponentials.sum(), (s := 1 / (1 + np.exp(-scores))) / s.sum()]
    if len(weights) < 2:
        raise NotRecomputed("with one expert a token its weight alone does not say which gate it is")
    chosen = list(weights)
    given = np.array([weights[e] for e in chosen])
    return min(laws, key=lambda law: np.abs(law[chosen] / law[chosen].sum() - given / given.sum()).max())


def _read(run: Rerun, runs: str, router: str, row: Row) -> Read:
    key = ("routers", runs, router, row["split"], row["prompt"], row["layer"])
    if key not in run.cached:
        paths = {side: routers_of(run.prepared.pair.config(cast(Side, side)))[row["layer"]] for side in (runs, router)}
        taken: dict[str, Tensor] = {}
        if router != runs:
            with run.model(router) as model:
                taken = {name: one.detach().clone() for name, one in _weights(model, row["layer"], paths[router])}
        with run.model(runs) as model, _exchanged(dict(_weights(model, row["layer"], paths[runs])), taken):
            run.cached[key] = _pass(model, run.ids(runs, row["split"], row["prompt"]), row["layer"], paths[runs])
    return cast(Read, run.cached[key])


def _weights(model: Model, layer: int, path: str) -> list[tuple[str, Tensor]]:
    """The router's own tensors, and those that the block around it holds for it: vectors beside it, one number an expert."""
    block, beside = model.blocks[layer], path.rpartition(".")[0]
    named = [*block.named_parameters(), *block.named_buffers()]
    return [(name, one) for name, one in named if name.startswith(f"{path}.") or (name.rpartition(".")[0] == beside and one.ndim == 1)]


@contextmanager
def _exchanged(own: Mapping[str, Tensor], taken: Mapping[str, Tensor]) -> Iterator[None]:
    before = {name: own[name].detach().clone() for name in taken}
    try:
        for name, value in taken.items():
            own[name].data.copy_(value)
        yield
    finally:
        for name, value in before.items():
            own[name].data.copy_(value)


def _pass(model: Model, ids: tuple[int, ...], layer: int, path: str) -> Read:
    kept: list[Any] = []
    handle = model.blocks[layer].get_submodule(path).register_forward_hook(lambda module, args, output: kept.append(output))
    try:
        with torch.no_grad():
            model.net(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
    finally:
        handle.remove()
    outputs = [one.reshape(-1, one.shape[-1]) for one in kept[0] if isinstance(one, Tensor) and one.numel() >= len(ids)]
    whole = [one for one in outputs if not one.is_floating_point()]
    if not whole:
        raise NotRecomputed("this router gives the weights of all experts and no list of those that it chose")
    scores = next(one for one in outputs if one.is_floating_point() and one.shape[-1] > int(whole[0].max()))
    weights = next(one for one in outputs if one.is_floating_point() and one is not scores and one.shape == whole[0].shape)
    numbers = (one.double().cpu().numpy() for one in (scores, weights))
    return [
        {"scores": s, "weights": dict(zip(chosen, w.tolist(), strict=True))}
        for s, w, chosen in zip(*numbers, whole[0].cpu().tolist(), strict=True)
    ]
