"""Every state that patching, maps, steering and swaps of heads write at the decision position is held against the running model's own states there.

And what patches write along answers against the running model's own states along them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mechdiff import labels
from mechdiff.measures.heads.bench import block, units
from mechdiff.measures.off_manifold import formula
from mechdiff.measures.off_manifold.formula import Cloud
from mechdiff.measures.off_manifold.plan import SPLITS
from mechdiff.measures.patching import compute as patching
from mechdiff.measures.patching.hot import closer_layers
from mechdiff.measures.steering import compute as steering
from mechdiff.measures.steering.plan import SteeringOptions
from mechdiff.measures.transport import compute as transport
from mechdiff.models.pair import SIDES, Model
from mechdiff.prompts.sets import clusters_of
from mechdiff.rows import empty
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution, answered
from mechdiff.study.experiment import Result


@dataclass(frozen=True, kw_only=True)
class Written:
    """States that one edit writes at one layer."""

    columns: dict[str, Any]
    """What its rows are called, as by the measure that writes it."""
    names: Sequence[str]
    states: Float[Tensor, "prompt d"]


@dataclass(frozen=True, kw_only=True)
class Own:
    """The running model's own states at one site, each prompt's with what it is held against."""

    states: Float64[Tensor, "prompt d"]
    clouds: list[Cloud]
    """By prompt: of the prompts of the other parts."""

    def distances(self, places: Sequence[int], states: Float64[Tensor, "prompt d"]) -> list[float]:
        """Of states on the prompts at these places."""
        found = [0.0] * len(places)
        for one in {id(self.clouds[place]): self.clouds[place] for place in places}.values():
            here = [i for i, place in enumerate(places) if self.clouds[place] is one]
            for i, value in zip(here, one.distance(states[here]).tolist(), strict=True):
                found[i] = value
        return found


def held_against_own(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of every own state's distance, and of every write's distance and norm ratio."""
    side, kind = cell.key["runs"], cell.key["kind"]
    prompts = [(split, name) for split in SPLITS for shard in run.captures(side, split, "decision") for name in shard.key["ids"]]
    clusters = clusters_of([run.prompt(split, name).prompt for split, name in prompts])
    if len(set(clusters)) < 2:
        return empty(), {}
    writes: dict[int, list[Written]] = {}
    for one in _writes(run, side, kind):
        writes.setdefault(one.columns["layer"], []).append(one)
    states = [run.states(side, split, "decision").kinds[kind][:, :, 0] for split in SPLITS if run.captures(side, split, "decision")]
    parts = formula.parts(clusters, cell.key["folds"])
    reported = {name: i for i, (split, name) in enumerate(prompts) if split == "report"}
    values: list[dict[str, Any]] = []
    with transport.few_threads(len(prompts)):
        for layer in sorted(writes):
            own = _own(torch.cat([one[layer] for one in states]).double(), parts)
            at = {"direction": labels.direction_of(side, side), "layer": layer, "arm": "oracle", "metric": "mahalanobis_sd"}
            held_out = own.distances(range(len(prompts)), own.states)
            values += [{**at, "split": split, "prompt": name, "value": d} for (split, name), d in zip(prompts, held_out, strict=True)]
            for one in writes[layer]:
                places, written = [reported[name] for name in one.names], one.states.double()
                ratios = (written.norm(dim=-1) / own.states[places].norm(dim=-1)).tolist()
                for metric, found in (("mahalanobis_sd", own.distances(places, written)), ("norm_ratio", ratios)):
                    named = {**one.columns, "split": "report", "metric": metric}
                    values += [{**named, "prompt": name, "value": value} for name, value in zip(one.names, found, strict=True)]
    return transport.table(values, measure="off_manifold", site=kind), {}


def _own(states: Float64[Tensor, "prompt d"], parts: Sequence[Sequence[int]]) -> Own:
    clouds: list[Cloud | None] = [None] * len(states)
    for part in parts:
        seen = formula.cloud(states[[i for i in range(len(states)) if i not in set(part)]])
        for i in part:
            clouds[i] = seen
    return Own(states=states, clouds=[one for one in clouds if one])


def own_kind(arm: str, side: str) -> bool:
    """Whether a patch writes states of the running model itself, which are among those that writes are held against: it cannot be far from them."""
    return arm == "oracle" or (arm == "resample" and side == "tuned")


def _writes(run: Execution, side: str, kind: str) -> Iterator[Written]:
    """What cells of the study write into this model at sites of this kind, at the decision position of the report prompts."""
    here = {"kind": kind, "split": "report", "position": "decision"}
    for cell in run.cells:
        key = cell.key
        if {name: key.get(name) for name in here} != here or "direction" not in key or labels.runner(key["direction"]) != side:
            continue
        columns = {"direction": key["direction"], "arm": key.get("arm")}
        if cell.stage == "patching" and key["width"] == 1 and "answer" not in key and not own_kind(key["arm"], side):
            states = patching.written(run, cell)[:, :, 0]
            for layer in key["layers"]:
                yield Written(columns={**columns, "layer": layer}, names=key["ids"], states=states[layer])
        elif cell.stage == "transport" and key["arm"] in labels.MAPS:
            mapped, ranks = transport.written(run, cell)
            for layer, rank, state in zip(key["layers"], ranks, mapped[:, :, 0], strict=True):
                yield Written(columns={**columns, "layer": layer, "rank": rank}, names=key["ids"], states=state)
        elif cell.stage == "steering":
            yield from _steered(run, cell)
    if kind == "attn_proj":
        yield from _swapped(run, side)


def _swapped(run: Execution, side: str) -> Iterator[Written]:
    """What swaps of single heads, and of all heads of a block, make of the attention output projection's result."""
    other = "base" if side == "tuned" else "tuned"
    for cell in run.cells:
        if cell.stage != "heads" or cell.key["split"] != "report" or cell.side != side:
            continue
        held = {one: run.states(one, "report", "decision", cell.key["ids"]).kinds for one in (side, other)}
        for layer in cell.key["layers"]:
            change = block(run, layer, {one: kinds["z"][layer, :, 0] for one, kinds in held.items()}, side).change()
            own = held[side]["attn_proj"][layer, :, 0]
            for unit, heads in units(run, change.shape[1], groups=False):
                columns = {"direction": cell.key["direction"], "arm": "contribution", "layer": layer, "unit": unit}
                yield Written(columns=columns, names=cell.key["ids"], states=own + change[:, list(heads)].sum(1))


def _steered(run: Execution, cell: Cell) -> Iterator[Written]:
    side, key = labels.runner(cell.key["direction"]), cell.key
    own = run.states(side, "report", "decision", key["ids"]).kinds[key["kind"]][:, :, 0].double()
    options = run.prepared.study.asked(SteeringOptions)
    assert options
    for edit in steering.edits_of(run, cell, closer_layers(run, options)):
        if edit.control is None and edit.rank:
            ((site, push),) = edit.pushes.items()
            columns = {"direction": key["direction"], "layer": site.layer, "arm": edit.arm, "rank": edit.rank, "strength": edit.strength}
            yield Written(columns=columns, names=key["ids"], states=own[site.layer] + push(own[site.layer]))


def held_against_own_along_answers(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of the mean distance of own states along each answer, and of the mean distance and norm ratio of the other model's, written there."""
    key, side = cell.key, cell.key["runs"]
    clusters, lengths = run.clusters(key["split"], key["ids"]), run.lengths(cell)
    if len(set(clusters)) < 2:
        return empty(), {}
    parts = formula.parts(clusters, key["folds"])
    states = {one: run.states(one, key["split"], key["position"], key["ids"], answered(cell)) for one in SIDES}
    values: list[dict[str, Any]] = []
    with transport.few_threads(sum(lengths)):
        for layer in key["layers"]:
            place = states[side].layers.index(layer)
            along: dict[str, list[Tensor]] = {
                one: [state[:n].double() for state, n in zip(held.kinds[key["kind"]][place], lengths, strict=True)]
                for one, held in states.items()
            }
            for part in parts:
                seen = formula.cloud(torch.cat([state for i, state in enumerate(along[side]) if i not in set(part)]))
                for i in part:
                    at = {"layer": layer, "prompt": key["ids"][i]}
                    for source, arm in ((side, "oracle"), ("base" if side == "tuned" else "tuned", "identity")):
                        named = {**at, "direction": labels.direction_of(side, source), "arm": arm}
                        written = along[source][i]
                        values.append({**named, "metric": "mahalanobis_answer_sd", "value": float(seen.distance(written).mean())})
                        if arm == "identity":
                            ratio = written.norm(dim=-1) / along[side][i].norm(dim=-1)
                            values.append({**named, "metric": "norm_ratio_answer", "value": float(ratio.mean())})
    return transport.table(values, measure="off_manifold", site=key["kind"], split=key["split"], unit=key["position"]), {}


def clusters_record(run: Execution) -> dict[str, Any]:
    """For the record: `off_manifold` (the number of each prompt's cluster over all splits), where prompts of several splits share one."""
    cells = [cell for cell in run.cells if cell.stage == "off_manifold"]
    prompts = (
        [(split, name) for split in SPLITS for shard in run.captures("base", split, "decision") for name in shard.key["ids"]]
        if cells
        else []
    )
    clusters = clusters_of([run.prompt(split, name).prompt for split, name in prompts])
    of_split: dict[str, set[str]] = {}
    for (split, _), cluster in zip(prompts, clusters, strict=True):
        of_split.setdefault(cluster, set()).add(split)
    if all(len(splits) < 2 for splits in of_split.values()):
        return {}
    order, numbers = list(of_split), dict[str, dict[str, int]]()
    for (split, name), cluster in zip(prompts, clusters, strict=True):
        numbers.setdefault(split, {})[name] = order.index(cluster)
    return {"off_manifold": {"clusters": numbers}}
