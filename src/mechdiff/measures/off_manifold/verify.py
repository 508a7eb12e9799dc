"""Distances from own states are computed once more: states by whole forward passes, the covariance as a d x d matrix, inverted."""

from typing import Any

import torch
from torch import Tensor

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.audit import answers
from mechdiff.audit.distributions import NotRecomputed, Row
from mechdiff.audit.rerun import Rerun
from mechdiff.maps.maps import load_map
from mechdiff.maps.vectors import load_vector
from mechdiff.measures.off_manifold.plan import SPLITS, OffManifoldOptions
from mechdiff.measures.patching.verify import written as patched
from mechdiff.prompts.sets import clusters_of


def again(run: Rerun, row: Row) -> float:
    """The norm ratio, or the distance by the definition."""
    site, side = Site(row["layer"], row["site"]), labels.runner(row["direction"])
    if row["metric"] in ("mahalanobis_answer_sd", "norm_ratio_answer"):
        return _along_answer(run, row, site)
    state = _written(run, row, site)
    if row["metric"] == "norm_ratio":
        return float(state.norm() / run.state(side, row["split"], row["prompt"], site)[-1].double().norm())
    mean, covariance = _others(run, side, site, (row["split"], row["prompt"]))
    moved = state - mean
    return float((moved @ torch.linalg.solve(covariance, moved)).sqrt())


def _written(run: Rerun, row: Row, site: Site) -> Tensor:
    """`[d]`, in float64."""
    side = labels.runner(row["direction"])
    own = run.state(side, row["split"], row["prompt"], site)[-1].double()
    if row["arm"] == "oracle":
        return own
    if row["arm"] == "contribution":
        return own + _swapped(run, row)
    if row["arm"] in labels.PATCHES:
        return patched(run, row, site, 1)[-1].double()
    if row["arm"] == "add":
        if not (file := run.path / "steering" / f"{site}.safetensors").is_file():
            raise NotRecomputed("vectors are kept at the selected layers alone")
        return own + (1.0 if row["strength"] is None else row["strength"]) * load_vector(file)[1].double()
    if row["arm"] not in labels.MAPS:
        raise NotRecomputed("projections into subspaces, which are fits")
    way = "tuned_to_base" if row["direction"] == "tuned<-tuned" else "base_to_tuned"
    if not (file := run.path / "maps" / f"{site}.{row['arm']}.{way}.safetensors").is_file():
        raise NotRecomputed("maps are kept at the selected layers alone")
    source = run.state("tuned" if way == "tuned_to_base" else "base", row["split"], row["prompt"], site)
    return load_map(file).transform(source)[-1].double()


def _swapped(run: Rerun, row: Row) -> Tensor:
    """`[d]`: what the other model's contributions of these heads are more than the running model's."""
    side, other = labels.sides(row["direction"])
    found = {}
    for one in (side, other):
        weights = run.output(one, row["layer"]).double()
        z = run.state(one, row["split"], row["prompt"], Site(row["layer"], "z"))[-1].double().reshape(len(weights), -1)
        found[one] = torch.einsum("hk,hkd->hd", z, weights[:, : z.shape[1]])
    heads = labels.heads_of(row["unit"], len(found[side]))
    return (found[other] - found[side])[heads].sum(0)


def _along_answer(run: Rerun, row: Row, site: Site) -> float:
    """The mean over the positions of an answer, of the norm ratio or of the distance from own states along the answers of other parts."""
    options = run.prepared.study.asked(OffManifoldOptions)
    assert options
    side, source = labels.sides(row["direction"])
    names = next(cell.key["ids"] for cell in run.prepared.plan.cells if cell.stage == "answer")

    def along(one: str, name: str) -> Tensor:
        key: Any = ("answer activations", one, row["split"], name, site)
        if key not in run.cached:
            run.cached[key] = answers.states(run, one, row["split"], name, [site])[site].double()
        found: Tensor = run.cached[key]
        return found

    written = along(source, row["prompt"])
    if row["metric"] == "norm_ratio_answer":
        return float((written.norm(dim=-1) / along(side, row["prompt"]).norm(dim=-1)).mean())
    clusters = clusters_of([run.prepared.rendered[row["split"]][name].prompt for name in names])
    order = list(dict.fromkeys(clusters))
    part = {name: order.index(cluster) % options.folds for name, cluster in zip(names, clusters, strict=True)}
    others = torch.cat([along(side, name) for name in names if part[name] != part[row["prompt"]]])
    moved, covariance = written - others.mean(0), shrunk(others - others.mean(0))
    return float((moved @ torch.linalg.solve(covariance, moved.T)).diagonal().sqrt().mean())


def _others(run: Rerun, side: str, site: Site, prompt: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Mean and shrunk covariance of the states on the prompts of other parts."""
    options = run.prepared.study.asked(OffManifoldOptions)
    assert options
    names = [(split, name) for split in SPLITS if split in run.prepared.rendered for name in run.names(split)]
    clusters = clusters_of([run.prepared.rendered[split][name].prompt for split, name in names])
    order = list(dict.fromkeys(clusters))
    part = {name: order.index(cluster) % options.folds for name, cluster in zip(names, clusters, strict=True)}
    key: Any = ("own activations", side, site, part[prompt])
    if key not in run.cached:
        states = torch.stack([run.state(side, *name, site)[-1].double() for name in names if part[name] != part[prompt]])
        run.cached[key] = states.mean(0), shrunk(states - states.mean(0))
    found: tuple[Tensor, Tensor] = run.cached[key]
    return found


def shrunk(centred: Tensor) -> Tensor:
    """Ledoit and Wolf's covariance of centred states, from its definition: the estimate's squared error against its distance from the target.

    NaN under three states.
    """
    n, d = centred.shape
    if n < 3:  # two states lie equally far from their mean: no error of their covariance can be seen
        return torch.full((d, d), torch.nan, dtype=centred.dtype)
    sample = centred.T @ centred / n
    target = torch.eye(d, dtype=sample.dtype) * sample.trace() / d
    away = (sample - target).square().sum()
    error = sum((torch.outer(one, one) - sample).square().sum() for one in centred) / n**2
    weight = min(1.0, float(error / away))
    return weight * target + (1 - weight) * sample
