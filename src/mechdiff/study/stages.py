"""What each stage of a plan does: from a cell, the execution, and the model that runs where one does, to rows and tensors."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from mechdiff import labels
from mechdiff.engine.activations import Clean, capture
from mechdiff.engine.models import Model
from mechdiff.engine.norms import NORMED, norms_of
from mechdiff.engine.rendering import spans
from mechdiff.engine.selfcheck import self_check
from mechdiff.engine.sites import Site
from mechdiff.measures import divergence, factorial, patching, similarity
from mechdiff.measures.counterfactuals import LOCATING, labelled
from mechdiff.measures.outcome import kl_nats
from mechdiff.rows import empty, rows
from mechdiff.study.attribution import attribute
from mechdiff.study.baselines import graft, inputs, weigh
from mechdiff.study.behaviour import behave
from mechdiff.study.cells import Cell
from mechdiff.study.closer import closer, fisher, rank_curve, ranks
from mechdiff.study.execution import Execution, Result, States, positions
from mechdiff.study.head_network import attention, head_network, looks
from mechdiff.study.heads import every_head, head_orders, head_sets
from mechdiff.study.mapping import fits, patched
from mechdiff.study.options import DIRECTIONS
from mechdiff.study.planner import NEED_FIT
from mechdiff.study.steer import side_effects, steer, steered_controls, steered_prompts, steered_texts
from mechdiff.study.swayed import sway
from mechdiff.study.texts import texts

Stage = Callable[[Execution, Cell, Model | None], Result]


def _selfcheck(run: Execution, cell: Cell, model: Model | None) -> Result:
    assert model
    prompts = [run.ids(cell, name) for name in cell.key["ids"]]
    sound = [ids for ids in prompts if capture(model, ids, [], [len(ids) - 1]).logits.isfinite().all()]  # the others will be left out
    found = self_check(model, sound or prompts, kinds=cell.key["kinds"], engine=run.engine(model, "decision")).record()
    return empty(), {
        name: np.frombuffer(value.encode(), np.uint8) if isinstance(value, str) else np.array(value) for name, value in found.items()
    }


def decoded(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """What `_selfcheck` stored, by name: a file of tensors comes back in any order, and a page must not."""
    return {name: bytes(value).decode() if value.dtype == np.uint8 else value.item() for name, value in sorted(tensors.items())}


def _capture(run: Execution, cell: Cell, model: Model | None) -> Result:
    assert model
    kinds, layers = cell.key["kinds"], cell.key["layers"]
    sites = [Site(layer, kind) for layer in layers for kind in kinds]
    cleans = []
    for name in cell.key["ids"]:
        one = run.prompt(cell.key["split"], name)
        if cell.key["position"] == "words":
            cleans.append(_pooled(capture(model, run.ids(cell, name), sites, range(len(run.ids(cell, name)))), spans(one, model.side)))
        else:
            cleans.append(capture(model, run.ids(cell, name), sites, positions(one, cell.key["position"], model.side)))
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


def _divergence(run: Execution, cell: Cell, model: Model | None) -> Result:
    split = cell.key["split"]
    base, tuned = (run.states(side, split, "decision").logits for side in ("base", "tuned"))
    found = divergence.measure(base, tuned, cell.key["ids"], split, run.prepared.tokens)
    texts = [run.prompt(split, name).prompt.text for name in cell.key["ids"]]
    cut = {side: run.prepared.pair.tokenizer(side)(texts, add_special_tokens=False)["input_ids"] for side in ("base", "tuned")}
    counts = {side: [len(ids) for ids in of_side] for side, of_side in cut.items()}
    return pl.concat([found, divergence.fragmentation(texts, counts, cell.key["ids"], split)]), {}


def _native(run: Execution, cell: Cell, model: Model | None) -> Result:
    """D under each model's own template, and how far that template alone moves each model from the study's text."""
    names, split = cell.key["ids"], cell.key["split"]
    own = {side: run.states(side, "native", "decision", names).logits for side in ("base", "tuned")}
    frames = [divergence.measure(own["base"], own["tuned"], names, split, run.prepared.tokens, unit="native")]
    for side, laws in own.items():
        moved = kl_nats(laws, run.states(side, split, "decision", names).logits)
        columns = {"measure": "divergence", "split": split, "unit": "native", "prompt": names}
        frames.append(rows(moved.numpy(), metric=f"kl_native_{side}_nats", **columns))
    return pl.concat(frames), {}


def _similarity(run: Execution, cell: Cell, model: Model | None) -> Result:
    split, kind, position = cell.key["split"], cell.key["kind"], cell.key["position"]
    captured = {side: run.states(side, split, position) for side in ("base", "tuned")}
    base, tuned = ({Site(layer, kind): one.kinds[kind][layer, :, 0] for layer in cell.key["layers"]} for one in captured.values())
    found = similarity.measure(
        base, tuned, cell.key["ids"], split, permutations=cell.key["permutations"], seed=cell.key["seed"],
        clusters=run.clusters(split, cell.key["ids"]), normed=_normed(captured, base, tuned),
    )  # fmt: skip
    return found.with_columns(unit=pl.lit(labels.window_unit(1, position), pl.String)), {}


def _normed(
    captured: Mapping[str, States], base: similarity.States, tuned: similarity.States
) -> tuple[similarity.States, similarity.States]:
    """The states after each model's norm that reads them, at the sites where both have one."""
    found: tuple[dict[Site, Tensor], dict[Site, Tensor]] = ({}, {})
    for site in base:
        if site.kind not in captured["base"].norms or site.kind not in captured["tuned"].norms:
            continue
        x = captured["base"].norms[site.kind].apply(site.layer, base[site])
        y = captured["tuned"].norms[site.kind].apply(site.layer, tuned[site])
        if x is not None and y is not None:
            found[0][site], found[1][site] = x.float(), y.float()  # no more exact than the states: what does not vary must not seem to
    return found


def _patching(run: Execution, cell: Cell, model: Model | None) -> Result:
    assert model
    key = cell.key
    base, tuned = (run.states(side, key["split"], key["position"], key["ids"]).kinds[key["kind"]] for side in ("base", "tuned"))
    written = patching.written_state(key["arm"], key["direction"], base, tuned, **_arm_states(run, cell))
    variants = patching.variants(key["kind"], key["layers"], written, key["width"])
    named = labelled(
        len(variants), measure="patching", direction=key["direction"], split=key["split"], arm=key["arm"], layer=list(key["layers"]),
        site=key["kind"], unit=labels.window_unit(key["width"], key["position"]),
    )  # fmt: skip
    return run.variants(cell, model, variants, named, floor=key["floor"], metrics=LOCATING), {}


def _arm_states(run: Execution, cell: Cell) -> dict[str, Tensor]:
    """What an arm needs beside the prompts' own states: means over fit, or another prompt's tuned state."""
    key = cell.key
    if key["arm"] in NEED_FIT:
        means = {side: run.states(side, "fit", key["position"]).kinds[key["kind"]].mean(1) for side in ("base", "tuned")}
        return {"mean_base": means["base"], "mean_tuned": means["tuned"]}
    return {"donor": run.donors("tuned", cell)} if key["arm"] == "resample" else {}


def _crossing(run: Execution, cell: Cell, model: Model | None) -> Result:
    assert model
    key = cell.key
    position, other = key["position"], "base" if model.side == "tuned" else "tuned"
    states = {side: run.states(side, key["split"], position, key["ids"]) for side in ("base", "tuned")}
    chosen = [states[other].layers.index(layer) for layer in key["layers"]]
    found = factorial.crossed(
        model, run.engine(model, position), run.cleans(cell, model), layers=key["layers"],
        written=states[other].kinds["resid_post"][chosen].to(model.device),
        base_logits=states["base"].logits.to(model.device), tuned_logits=states["tuned"].logits.to(model.device), tokens=run.prepared.tokens,
    )  # fmt: skip
    return empty(), {score: values.numpy() for score, values in found.items()}


def _factorial(run: Execution, cell: Cell, model: Model | None) -> Result:
    key = cell.key
    base, tuned = (run.states(side, key["split"], "decision").logits for side in ("base", "tuned"))
    names = [name for shard in run.captures("base", key["split"], "decision") for name in shard.key["ids"]]
    runs = {
        arm: factorial.scores(law[:, None], base, tuned, n_shared=run.prepared.tokens.n_shared)
        for arm, law in (("bb", base), ("tt", tuned))
    }
    runs = {arm: {score: values.expand(len(key["layers"]), -1) for score, values in found.items()} for arm, found in runs.items()}
    unedited = {}
    for arm, clean, direction in (("bt", "tt", DIRECTIONS[0]), ("tb", "bb", DIRECTIONS[1])):
        wanted = (direction, key["split"], key["position"])
        parts = [c for c in run.cells if c.stage == "crossing" and (c.key["direction"], c.key["split"], c.key["position"]) == wanted]
        at = [name for part in parts for name in part.key["ids"]]
        loaded = [run.folder.load(part.key).tensors for part in parts]
        order = [at.index(name) for name in names]
        joined = {score: torch.cat([torch.from_numpy(part[score]) for part in loaded], 1)[:, order] for score in factorial.SCORES}
        runs[arm], unedited[clean] = {score: values[1:] for score, values in joined.items()}, joined[factorial.SCORES[0]][0]
    columns = {"split": key["split"], "unit": labels.window_unit(1, key["position"])}
    return factorial.measure(runs, key["layers"], names, columns=columns, unedited=unedited), {}


STAGES: dict[str, Stage] = {
    "inputs": inputs,
    "weights": weigh,
    "grafting": graft,
    "selfcheck": _selfcheck,
    "capture": _capture,
    "divergence": _divergence,
    "native": _native,
    "similarity": _similarity,
    "texts": texts,
    "patching": _patching,
    "crossing": _crossing,
    "factorial": _factorial,
    "fits": fits,
    "transport": patched,
    "closer": closer,
    "rank": ranks,
    "fisher": fisher,
    "rank_curve": rank_curve,
    "steering": steer,
    "steered": steered_prompts,
    "side_effects": side_effects,
    "steered_controls": steered_controls,
    "steered_texts": steered_texts,
    "heads": every_head,
    "head_orders": head_orders,
    "head_sets": head_sets,
    "head_network": head_network,
    "looks": looks,
    "attention": attention,
    "attribution": attribute,
    "behaviour": behave,
    "behaviour_edits": sway,
}
