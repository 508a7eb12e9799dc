"""Linear maps between activations are fitted, and applied in a running model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from mechdiff import labels
from mechdiff.engine import counterfactuals
from mechdiff.engine.counterfactuals import labelled
from mechdiff.maps.by_name import logit_directions
from mechdiff.maps.maps import Map, is_the_mean
from mechdiff.measures.patching import formula as patching_formula
from mechdiff.measures.transport import formula
from mechdiff.measures.transport.formula import Maps, Sample
from mechdiff.measures.weights.formula import readout
from mechdiff.models.pair import Model
from mechdiff.rows import empty, rows
from mechdiff.store.disk import as_bytes
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result

ROWS_FOR_THREADS = 128
"""Rows from which linear algebra gains by several threads."""

LOGIT_SUBSPACES = ("logit_subspace", "logit_subspace_joint")


# ---- what maps are fitted on -------------------------------------------------------------------------------------------------------


def sample(run: Execution, cell: Cell, kind: str, layer: int, position: str | None = None) -> Sample:
    """The rows that maps are fitted on at one site; `position`: at these of each prompt, whatever the study's `rows_per_prompt`."""
    k = cell.key["settings"].get("rows_per_prompt", 1) if "settings" in cell.key else 1
    position = position or ("decision" if k == 1 else f"spread_{k}")
    states = {side: run.states(side, "fit", position) for side in ("base", "tuned")}
    base, tuned = (one.kinds[kind][one.layers.index(layer)] for one in states.values())
    return Sample(base=base.flatten(0, 1), tuned=tuned.flatten(0, 1), groups=groups(run, "fit").repeat_interleave(base.shape[1]))


def groups(run: Execution, split: str) -> Tensor:
    """Numbers of the prompts' clusters, in the order of the captured states."""
    names = [name for shard in run.captures("base", split, "decision") for name in shard.key["ids"]]
    found = run.clusters(split, names)
    return torch.tensor([sorted(set(found)).index(name) for name in found])


def decision_sample(run: Execution, split: str, kind: str, layer: int) -> Sample | None:
    """The states at the decision position of one split; None where the study lacks it."""
    if not run.captures("base", split, "decision"):
        return None
    base, tuned = (run.states(side, split, "decision").kinds[kind][layer, :, 0] for side in ("base", "tuned"))
    return Sample(base=base, tuned=tuned, groups=groups(run, split))


def fitted(run: Execution, cell: Cell, kind: str, layer: int, shuffled: bool = False) -> Maps:
    """The maps of one site; `shuffled`: of pairs that do not belong together."""
    fit = sample(run, cell, kind, layer)
    if shuffled:
        order = formula.others_rows(groups(run, "fit").tolist(), cell.key["settings"]["rows_per_prompt"], seed=cell.key["seed"])
        fit = Sample(base=fit.base, tuned=fit.tuned[order], groups=fit.groups)
    arms = (*formula.TRIVIAL, *cell.key["settings"]["maps"])
    with few_threads(len(fit.base)):
        on_select = decision_sample(run, "select", kind, layer)
        return formula.fit_maps(arms, fit, on_select, settings=map_settings(run, cell), seed=cell.key["seed"])


def map_settings(run: Execution, cell: Cell) -> dict[str, dict[str, Any]]:
    """Constructor arguments by arm."""
    asked, seed = cell.key["settings"], cell.key["seed"]
    found: dict[str, dict[str, Any]] = {
        "pca": {"q": asked["dimensions"]},
        "per_cluster": {"k": asked["clusters"], "seed": seed},
        "procrustes": {"cut": asked["cut"]},
        "whitened_procrustes": {"cut": asked["cut"], "shrinkage": asked["shrinkage"]},
    }
    return found | {arm: {"directions": logit_subspace(run, arm, asked["dimensions"])} for arm in LOGIT_SUBSPACES if arm in asked["maps"]}


def logit_subspace(run: Execution, arm: str, q: int) -> Float[Tensor, "d q"]:
    """What the tuned model's unembedding reads most, or both models' (`logit_subspace_joint`)."""

    def found() -> Tensor:
        read = [readout(run.changes.tuned), *([readout(run.changes.base)] if arm == "logit_subspace_joint" else [])]
        return logit_directions(torch.cat(read), q)

    return run.once(("logit directions", arm, q), found)


def maps_at(run: Execution, cell: Cell, layer: int, *, shuffled: bool = False) -> Maps:
    """The maps of one site, fitted once an execution."""
    kind = cell.key["kind"]
    return run.once(("maps", kind, layer, shuffled), lambda: fitted(run, cell, kind, layer, shuffled))


# ---- every layer -------------------------------------------------------------------------------------------------------------------


@contextmanager
def few_threads(n_rows: int) -> Iterator[None]:
    """While open, small matrices are handled by one thread: more of them wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if n_rows < ROWS_FOR_THREADS else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fits(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of how well every map fits; tensors: the report prompts' states under each map, both ways, and what each fit chose."""
    kind = cell.key["kind"]
    values: list[dict[str, Any]] = []
    states: dict[str, list[np.ndarray]] = {}
    said: dict[str, dict[str, Any]] = {}
    with few_threads(len(run.prepared.rendered["fit"]) * cell.key["settings"]["rows_per_prompt"]):
        _fit_layers(run, cell, values, states, said)
    tensors = {name: np.stack(parts) for name, parts in states.items()}
    return table(values, measure="transport", site=kind), tensors | {"said": as_bytes(said)}


def _fit_layers(
    run: Execution, cell: Cell, values: list[dict[str, Any]], states: dict[str, list[np.ndarray]], said: dict[str, dict[str, Any]]
) -> None:
    """Fits each layer's maps and adds what was found."""
    kind, names = cell.key["kind"], cell.key["ids"]
    for layer in cell.key["layers"]:
        maps, fit, held_out = fitted(run, cell, kind, layer), sample(run, cell, kind, layer), decision_sample(run, "report", kind, layer)
        assert held_out
        for way, source, target in (("there", "base", "tuned"), ("back", "tuned", "base")):
            for arm, one in getattr(maps, way).items():
                at = {"direction": labels.direction_of(target, source), "layer": layer, "arm": arm, "rank": one.rank_}
                found = list(_fit_values(maps, way, arm, fit, held_out, names))
                values += [{**at, **value} for value in found]
                states.setdefault(f"{arm}.{way}", []).append(one.transform(getattr(held_out, source)).float().numpy())
                states.setdefault(f"{arm}.{way}.rank", []).append(np.array(one.rank_))
                train = {value["metric"]: value["value"] for value in found if value["split"] == "fit"}
                flag = {"is_the_mean": True} if _learned_the_mean(one, train) else {}
                said.setdefault(f"{arm}.{way}", {})[f"L{layer}"] = one.record() | flag
        values += [
            {"direction": labels.BASE_INTO_TUNED, "layer": layer, **value}
            for value in _of_another_prompt(fit, held_out, names, cell.key["seed"])
        ]
        for arm in cell.key["settings"]["maps"]:
            values += [
                {"direction": labels.BASE_INTO_TUNED, "layer": layer, "arm": arm, "rank": maps.there[arm].rank_, "split": "report",
                 "metric": "r2_change", "control": labels.draw("permuted", draw), "value": value}
                for draw, value in enumerate(formula.permuted_quality(
                    maps.there[arm], fit, held_out, draws=cell.key["permutations"], seed=cell.key["seed"],
                ))
            ]  # fmt: skip


def _learned_the_mean(one: Map, train: Mapping[str, float]) -> bool:
    """Of a reduced-rank map, whether it is the mean shift; of one that is not anchored (it was held against itself), whether it is the mean."""
    if not one.rank_ or (one.family != "rrr" and one.identical_score_ is None):
        return False
    return is_the_mean(train["r2_change" if one.family == "rrr" else "r2"], one.rank_, one.n_)


def _fit_values(maps: Maps, way: str, arm: str, fit: Sample, held_out: Sample, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Values of one map on the prompts it was fitted on and on the report prompts."""
    source, target = ("base", "tuned") if way == "there" else ("tuned", "base")
    one, other = (maps.there[arm], maps.back[arm]) if way == "there" else (maps.back[arm], maps.there[arm])
    mean = getattr(fit, target).double().mean(0)
    for split, states in (("fit", fit), ("report", held_out)):
        x, y = getattr(states, source), getattr(states, target)
        by_prompt = names if split == "report" and way == "there" else None
        yield from _of_split(split, formula.quality(one.transform(x), x, y, mean), by_prompt)
        yield {"split": split, "metric": "cycle_error", "value": formula.cycle_error(one, other, x)}


def _of_split(split: str, quality: Mapping[str, Tensor], names: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """Values of one split; what is known by row for each prompt of `names`, or else as its mean."""
    for metric, value in quality.items():
        if value.ndim == 0:
            yield {"split": split, "metric": metric, "value": float(value)}
        elif names is None:
            yield {"split": split, "metric": metric, "value": float(value.mean())}
        else:
            yield from (
                {"split": split, "metric": metric, "prompt": name, "value": v} for name, v in zip(names, value.tolist(), strict=True)
            )


def _of_another_prompt(fit: Sample, held_out: Sample, names: Sequence[str], seed: int) -> Iterator[dict[str, Any]]:
    """How well the tuned state of another prompt fits: it has the tuned states' mean and covariance, and knows nothing of this prompt."""
    if len(names) < 2:
        return
    written = held_out.tuned[counterfactuals.donors(held_out.groups.tolist(), seed)]
    quality = formula.quality(written, held_out.base, held_out.tuned, fit.tuned.double().mean(0))
    yield from ({"arm": "resample", **value} for value in _of_split("report", quality, names))


def table(values: Sequence[Mapping[str, Any]], **constant: Any) -> pl.DataFrame:
    """Rows of the contract from values with some of its columns."""
    given = {name: [value.get(name) for value in values] for name in {name for value in values for name in value}}
    return rows(given.pop("value", []), **given, **constant)


def per_prompt(found: Sequence[tuple[Mapping[str, Any], Iterable[float]]], prompts: Sequence[str], **constant: Any) -> pl.DataFrame:
    """Rows of the contract from (columns, a value for each of the prompts)."""
    values = [{**what, "prompt": name, "value": float(value)} for what, each in found for name, value in zip(prompts, each, strict=True)]
    return table(values, **constant) if values else empty()


def patched(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of one map written at every layer of one running model."""
    assert model
    key = cell.key
    states, ranks = written(run, cell)
    if (done := _patched_already(run, cell)) is not None:
        rank_of = pl.DataFrame({"layer": list(key["layers"]), "rank": ranks}, schema={"layer": pl.Int64, "rank": pl.Int64})
        same = done.drop("rank").join(rank_of, on="layer", how="left", maintain_order="left").select(done.columns)
        return same.with_columns(measure=pl.lit("transport"), direction=pl.lit(key["direction"])), {}
    variants = patching_formula.variants(key["kind"], key["layers"], dict(zip(key["layers"], states, strict=True)))
    named = labelled(
        len(variants), measure="transport", direction=key["direction"], split=key["split"], layer=list(key["layers"]), site=key["kind"],
        arm=key["arm"], rank=ranks,
    )  # fmt: skip
    return run.variants(cell, model, variants, named, floor=key["floor"]), {}


def _patched_already(run: Execution, cell: Cell) -> pl.DataFrame | None:
    """The rows of patching that wrote these very states into this very model: what learns nothing is one of its arms too."""
    key = cell.key
    if key["arm"] in ("shift", "mean") and key["settings"]["rows_per_prompt"] > 1:
        return None  # means over other positions
    direction = {"tuned<-base": "tuned<-base", "base<-base": "base<-tuned", "base<-tuned": "base<-tuned"}.get(key["direction"])
    wanted = {**{name: key[name] for name in ("split", "position", "kind", "arm", "ids", "seed")}, "direction": direction, "width": 1}
    alike = [one for one in run.cells if one.stage == "patching" and {name: one.key[name] for name in wanted} == wanted]
    found = [one for one in alike if list(one.key["layers"]) == list(key["layers"])]
    return run.folder.load(found[0].key).frame.filter(pl.col("control").is_null()) if found else None


def written(run: Execution, cell: Cell) -> tuple[Tensor, list[int | None]]:
    """`[layer, prompt, pos, d]` that an arm writes, and the measured rank of each layer's map."""
    key = cell.key
    arm, kind, layers = key["arm"], key["kind"], key["layers"]
    towards, source = ("base", "tuned") if key["direction"] == "tuned<-tuned" else ("tuned", "base")
    if key["direction"] == "base<-tuned":
        return run.states("tuned", key["split"], "decision", key["ids"]).kinds[kind][list(layers)], [0] * len(layers)
    if arm == "resample":
        return run.donors(towards, cell)[list(layers)], [None] * len(layers)
    ((owner, held),) = [(c, run.tensors(c)) for c in run.cells if c.stage == "fits" and c.key["kind"] == kind]
    way = "there" if source == "base" else "back"
    at = [owner.key["ids"].index(name) for name in key["ids"]]
    return torch.from_numpy(held[f"{arm}.{way}"][:, at])[:, :, None], [int(r) for r in held[f"{arm}.{way}.rank"]]
