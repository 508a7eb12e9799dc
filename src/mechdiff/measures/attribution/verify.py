"""Attributions are computed once more from gradients of whole forward passes."""

import torch
from torch import Tensor

from mechdiff import labels, shares
from mechdiff.architectures.sites import Site
from mechdiff.audit import answers, whole
from mechdiff.audit.distributions import NotRecomputed, Row
from mechdiff.audit.rerun import Rerun
from mechdiff.measures.attribution.plan import AttributionOptions
from mechdiff.measures.heads.verify import again as heads_again
from mechdiff.measures.heads.verify import players, run_with_heads
from mechdiff.rows import OVERLAP


def again(run: Rerun, row: Row) -> float:
    """True effects on m, and gradients of whole passes."""
    options = run.prepared.study.asked(AttributionOptions)
    assert options
    if options.metric != "law":
        raise NotRecomputed(f"attribution's metric {options.metric}")
    if row["arm"] == "grad_x_act":
        return _times_activation(run, row)
    if row["direction"] in labels.WITHIN:
        raise NotRecomputed("heads against their own mean")
    if row["metric"].endswith("_answer_logits"):
        return _over_answer(run, row)
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


def _times_activation(run: Rerun, row: Row) -> float:
    """The gradient of m at a head's contribution, times that contribution."""
    side, split, prompt, site = labels.runner(row["direction"]), row["split"], row["prompt"], Site(row["layer"], row["site"])
    if not run.prepared.tokens.all_shared:
        raise NotRecomputed("two vocabularies")
    base, tuned = (run.law(one, split, prompt) for one in ("base", "tuned"))
    by_id = _by_id(run, side, tuned.softmax(-1) - base.softmax(-1))
    with run.model(side) as model:
        gradient = whole.gradients(model, run.ids(side, split, prompt), [site], by_id)[site]
    weights = run.output(side, row["layer"]).double()
    z = run.state(side, split, prompt, Site(row["layer"], "z"))[-1].double().reshape(len(weights), -1)
    head = labels.head_of(row["unit"])
    assert head is not None
    return float(gradient.double() @ (z[head] @ weights[head, : z.shape[1]]))


def _over_answer(run: Rerun, row: Row) -> float:
    """The sum over an answer's positions of gradient times difference; a true effect as twice the overlap of the patched run."""
    side, other = labels.sides(row["direction"])
    if row["metric"] == "effect_answer_logits":
        overlap = heads_again(run, row | {"metric": shares.over(OVERLAP, shares.ANSWER)})
        return 2 * overlap if side == "base" else -2 * overlap
    split, prompt, site = row["split"], row["prompt"], Site(row["layer"], row["site"])
    ids, n_places = answers.read(run, side, split, prompt)
    key = ("gradient over an answer", side, split, prompt, site)
    if key not in run.cached:
        base, tuned = (answers.clean(run, one, split, prompt) for one in ("base", "tuned"))
        weights = (tuned.double().softmax(-1) - base.double().softmax(-1)) / n_places
        by_id = torch.stack([_by_id(run, side, one) for one in weights])
        with run.model(side) as model:
            run.cached[key] = whole.gradients_along(model, ids, site, by_id)
    if row["site"] != "attn_proj":
        moved = (
            answers.states(run, other, split, prompt, [site])[site].double()
            - answers.states(run, side, split, prompt, [site])[site].double()
        )
        return float((run.cached[key] * moved).sum())
    z = {one: answers.states(run, one, split, prompt, [Site(row["layer"], "z")])[Site(row["layer"], "z")].double() for one in (side, other)}
    head = labels.head_of(row["unit"].partition(",")[0])
    given = {
        one: z[one].reshape(n_places, len(run.output(one, row["layer"])), -1)[:, head] @ run.output(one, row["layer"])[head].double()
        for one in z
    }
    return float((run.cached[key] * (given[other] - given[side])).sum())


def _by_id(run: Rerun, side: str, weights: Tensor) -> Tensor:
    """Weights of listed tokens as the model itself numbers them."""
    found = torch.zeros(run.nets[side].shape.vocab, dtype=torch.float64)
    found[torch.from_numpy(run.prepared.tokens.ids[side])] = weights
    return found
