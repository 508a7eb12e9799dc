"""Attributions are computed once more from gradients of whole forward passes."""

import torch
from torch import Tensor

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.audit import whole
from mechdiff.audit.distributions import NotRecomputed, Row
from mechdiff.audit.rerun import Rerun
from mechdiff.measures.attribution.plan import AttributionOptions
from mechdiff.measures.heads.verify import players, run_with_heads


def again(run: Rerun, row: Row) -> float:
    """True effects on m, and gradients of whole passes."""
    options = run.prepared.study.asked(AttributionOptions)
    assert options
    if options.metric != "law":
        raise NotRecomputed(f"attribution's metric {options.metric}")
    if row["direction"] in labels.WITHIN:
        raise NotRecomputed("heads against their own mean")
    split, prompt = row["split"], row["prompt"]
    side, other = labels.sides(row["direction"])
    shared = run.prepared.tokens.n_shared
    base, tuned = (run.law(one, split, prompt)[:shared] for one in ("base", "tuned"))
    if not run.prepared.tokens.all_shared:
        raise NotRecomputed("two vocabularies")
    weights = tuned.softmax(-1) - base.softmax(-1)
    if row["metric"] == "effect_logits":
        return float(weights @ (run_with_heads(run, row, players(run, row))[-1] - run.law(side, split, prompt)))
    site, by_id = Site(row["layer"], row["site"]), _by_id(run, side, weights)
    both = {one: run.state(one, split, prompt, site)[-1].double() for one in (side, other)}
    change = both[other] - both[side]
    if row["unit"] is not None:
        z = {one: run.state(one, split, prompt, Site(row["layer"], "z"))[-1].double() for one in (side, other)}
        parts_of = {one: z[one].reshape(len(run.output(one, row["layer"])), -1) for one in z}
        by_head = {one: torch.einsum("hk,hkd->hd", parts_of[one], run.output(one, row["layer"]).double()) for one in z}
        change = (by_head[other] - by_head[side])[labels.head_of(row["unit"])]
        path = (by_head[other] - by_head[side]).sum(0)
    else:
        path = change
    steps = [0.0] if row["arm"] == "grad_x_diff" else [(i + 0.5) / options.steps for i in range(options.steps)]
    key = ("gradient", side, split, prompt, site, row["arm"])
    if key not in run.cached:
        with run.model(side) as model:
            ids = run.ids(side, split, prompt)
            found = [whole.gradients(model, ids, [site], by_id, {site: (step * path).float()})[site] for step in steps]
        run.cached[key] = torch.stack(found).mean(0)
    return float(run.cached[key] @ change)


def _by_id(run: Rerun, side: str, weights: Tensor) -> Tensor:
    """Weights of listed tokens as the model itself numbers them."""
    found = torch.zeros(run.nets[side].shape.vocab, dtype=torch.float64)
    found[torch.from_numpy(run.prepared.tokens.ids[side])] = weights
    return found
