"""Interpolated runs are computed once more: whole passes of a network whose tensors are mixed in float64, logits by hand, states by plain hooks."""

from itertools import pairwise

import torch
from torch import Tensor

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.audit import whole
from mechdiff.audit.distributions import NotRecomputed, Row, run_with, top1
from mechdiff.audit.rerun import Rerun
from mechdiff.audit.whole import Put
from mechdiff.measures.interpolation.plan import LOGITS, OF_TUNED, REPEATED, WEIGHTS
from mechdiff.models.modules import parts


def again(run: Rerun, row: Row) -> float:
    """The distribution at the row's strength, and its distance from one of the two models."""
    if row["metric"] == REPEATED:
        raise NotRecomputed("what answers repeat")
    base, tuned = (run.law(side, row["split"], row["prompt"]) for side in ("base", "tuned"))
    logits = _logits(run, row, base, tuned)
    if row["metric"] in ("top1_same", OF_TUNED):
        return top1(logits, int((base if row["metric"] == "top1_same" else tuned).argmax()))
    return whole.kl(tuned if row["metric"] == "kl_other_nats" else base, logits)


def _logits(run: Rerun, row: Row, base: Tensor, tuned: Tensor) -> Tensor:
    strength = row["strength"]
    if row["arm"] == LOGITS:
        return base.double() + strength * (tuned.double() - base.double())
    if row["arm"] == WEIGHTS:
        return _of_weights(run, row)
    site = Site(row["layer"], row["site"])
    own, other = (run.state(side, row["split"], row["prompt"], site).double() for side in ("base", "tuned"))
    return run_with(run, row, lambda: {site: Put(value=own + strength * (other - own))})


def _of_weights(run: Rerun, row: Row) -> Tensor:
    """All tensors of the base's network in between, or those of the row's modules, then its own again."""
    strength, groups = row["strength"], labels.set_of(row["unit"])
    key = ("interpolated", row["split"], row["prompt"], strength, row["unit"])
    if key not in run.cached:
        base, tuned = run.nets["base"], run.nets["tuned"]
        named, new = (dict(model.net.named_parameters(remove_duplicate=False)) for model in (base, tuned))
        if any(
            (named[one] is named[two]) != (new[one] is new[two]) for one, two in pairwise(sorted(named, key=lambda name: id(named[name])))
        ):
            raise NotRecomputed("a tensor that stands in two places of the base and is two in the tuned model")
        unit_of = {name: f".{unit}." for name, unit in parts(base).items()}
        moved = [name for name in named if row["unit"] is None or any(f".{part}." in unit_of.get(name, "") for part in groups)]
        kept = {name: named[name].data for name in moved}
        try:
            for name, own in kept.items():
                other = new[name].data
                named[name].data = own if torch.equal(own, other) else (own.double() + strength * (other.double() - own.double())).to(own)
            run.cached[key] = run.prepared.tokens.place(whole.logits(base, run.ids("base", row["split"], row["prompt"])), "base")
        finally:
            for name, own in kept.items():
                named[name].data = own
    return run.cached[key]
