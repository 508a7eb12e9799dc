"""The crossed runs are computed once more by whole forward passes."""

from torch import Tensor

from mechdiff.architectures.sites import Site
from mechdiff.audit import whole
from mechdiff.audit.distributions import NotRecomputed, Row, divergent, window
from mechdiff.audit.rerun import Rerun
from mechdiff.audit.whole import Put


def again(run: Rerun, row: Row) -> float:
    """Four runs of two halves, and the effects made of them."""
    if row["control"] not in (None, "no_op"):
        raise NotRecomputed("label swaps are random draws of the rows above")
    split, prompt, n_pos = row["split"], row["prompt"], window(row["unit"])[1]
    base, tuned = (run.law(side, split, prompt)[: run.prepared.tokens.n_shared] for side in ("base", "tuned"))

    def law(arm: str) -> Tensor:
        if arm in ("bb", "tt"):
            return base if arm == "bb" else tuned
        up, down = ("tuned", "base") if arm == "tb" else ("base", "tuned")
        site = Site(row["layer"], "resid_post")
        key = ("half", arm, split, prompt, site, n_pos)
        if key not in run.cached:
            run.cached[key] = run.run(down, split, prompt, {site: Put(value=run.state(up, split, prompt, site, n_pos))})
        return run.cached[key][: run.prepared.tokens.n_shared]

    def score(arm: str, what: str) -> float:
        if what == "linear_nats":
            return float(((tuned.softmax(-1) - base.softmax(-1)) * (law(arm) - base)).sum())
        return whole.kl(tuned, law(arm)) if what == "kl_tuned_nats" else divergent(law(arm), base, tuned)

    if row["arm"] is not None:
        return score(row["arm"], row["metric"])
    name = next(name for name in ("upstream_effect", "downstream_effect", "interaction") if row["metric"].startswith(name))
    sign, what = {"nats": (-1, "kl_tuned_nats"), "logits": (1, "logit_diff_divergent"), "linear_nats": (1, "linear_nats")}[
        row["metric"].removeprefix(f"{name}_")
    ]
    bb, bt, tb, tt = (sign * score(arm, what) for arm in ("bb", "bt", "tb", "tt"))
    return {"upstream_effect": (tb - bb + tt - bt) / 2, "downstream_effect": (bt - bb + tt - tb) / 2, "interaction": tt - tb - bt + bb}[
        name
    ]
