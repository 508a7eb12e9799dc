"""Distances from own states are computed once more: states by whole forward passes, the covariance as a d x d matrix, inverted."""

from typing import Any

import torch
from torch import Tensor

from mechdiff import labels
from mechdiff.architectures.sites import Site
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
    if row["arm"] in labels.PATCHES:
        return patched(run, row, site, 1)[-1].double()
    if row["arm"] == "add":
        if not (file := run.path / "steering" / f"{site}.safetensors").is_file():
            raise NotRecomputed("vectors are kept at the closer layers alone")
        return own + (1.0 if row["strength"] is None else row["strength"]) * load_vector(file)[1].double()
    if row["arm"] not in labels.MAPS:
        raise NotRecomputed("projections into subspaces, which are fits")
    way = "tuned_to_base" if row["direction"] == "tuned<-tuned" else "base_to_tuned"
    if not (file := run.path / "maps" / f"{site}.{row['arm']}.{way}.safetensors").is_file():
        raise NotRecomputed("maps are kept at the closer layers alone")
    source = run.state("tuned" if way == "tuned_to_base" else "base", row["split"], row["prompt"], site)
    return load_map(file).transform(source)[-1].double()


def _others(run: Rerun, side: str, site: Site, prompt: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Mean and shrunk covariance of the states on the prompts of other parts."""
    options = run.prepared.study.asked(OffManifoldOptions)
    assert options
    names = [(split, name) for split in SPLITS if split in run.prepared.rendered for name in run.names(split)]
    clusters = clusters_of([run.prepared.rendered[split][name].prompt for split, name in names])
    order = list(dict.fromkeys(clusters))
    part = {name: order.index(cluster) % options.folds for name, cluster in zip(names, clusters, strict=True)}
    key: Any = ("own states", side, site, part[prompt])
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
