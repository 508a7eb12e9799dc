"""Grafts are computed once more with whole models."""

from typing import Any

import torch

from mechdiff import labels
from mechdiff.audit import answers, whole
from mechdiff.audit.distributions import NotRecomputed, Row
from mechdiff.audit.rerun import Rerun
from mechdiff.models.modules import Unit, parts


def again(run: Rerun, row: Row) -> float:
    """A hybrid network: tensors of the tuned model put into a copy of the base's, one whole pass."""
    if row["arm"] not in ("none", "all", "alone", "from_below", "from_above", "greedy"):
        raise NotRecomputed("changes cut to a rank")
    base, tuned = run.nets["base"], run.nets["tuned"]
    named, new = (dict(model.net.named_parameters(remove_duplicate=False)) for model in (base, tuned))
    unit_of = parts(base)
    changed = sorted({unit for name, unit in unit_of.items() if not torch.equal(named[name], new[name])})
    if row["arm"] == "greedy":
        chosen = {str(unit) for unit in changed if str(unit) in labels.set_of(row["unit"])}
    else:
        here = Unit(row["site"], row["layer"]) if row["site"] else None
        at = changed.index(here) if here else 0
        sets: dict[str, list[Any]] = {
            "none": [], "all": changed, "alone": [here], "from_below": changed[: at + 1], "from_above": changed[at:],
        }  # fmt: skip
        chosen = {str(unit) for unit in sets[row["arm"]]}
    over = answers.what_of(row["metric"])
    read, n_places = answers.read(run, "base", row["split"], row["prompt"]) if over else (run.ids("base", row["split"], row["prompt"]), 1)
    key = ("graft", row["split"], row["prompt"], tuple(sorted(chosen)), n_places)
    if key not in run.cached:
        kept = {name: named[name].data for name, unit in unit_of.items() if str(unit) in chosen}
        try:
            for name in kept:
                named[name].data = new[name].data
            run.cached[key] = whole.logits(base, read, everywhere=True)[-n_places:]
        finally:
            for name, tensor in kept.items():
                named[name].data = tensor
    grown = run.prepared.tokens.place(run.cached[key], "base")
    if over:
        return answers.of_laws(run, row, "base", grown)
    base_law, tuned_law = (run.law(side, row["split"], row["prompt"]) for side in ("base", "tuned"))
    grown = grown[0]
    return whole.overlap(base_law, tuned_law, grown) if row["metric"] == "fisher_overlap_nats" else whole.kl(tuned_law, grown)
