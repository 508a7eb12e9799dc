"""The crossed runs are computed once more by whole forward passes."""

from torch import Tensor

from mechdiff import shares
from mechdiff.architectures.sites import Site
from mechdiff.audit import answers, whole
from mechdiff.audit.distributions import NotRecomputed, Row, divergent, window
from mechdiff.audit.rerun import Rerun
from mechdiff.audit.whole import Put


def again(run: Rerun, row: Row) -> float:
    """Four runs of two halves, and the effects made of them."""
    if row["control"] not in (None, "no_op"):
        raise NotRecomputed("label swaps are random draws of the rows above")
    if what := answers.what_of(row["metric"]):
        return _over_answer(run, row, what)
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


def _over_answer(run: Rerun, row: Row, what: str) -> float:
    """The same with the residual stream of every position of the answer, scored at each of them."""
    split, prompt, metric = row["split"], row["prompt"], row["metric"]
    base, tuned = (answers.clean(run, side, split, prompt) for side in ("base", "tuned"))

    def laws(arm: str) -> Tensor:
        if arm in ("bb", "tt"):
            return base if arm == "bb" else tuned
        up, down = ("tuned", "base") if arm == "tb" else ("base", "tuned")
        site = Site(row["layer"], "resid_post")
        key = ("half over an answer", arm, split, prompt, site)
        if key not in run.cached:
            run.cached[key] = answers.laws(
                run, down, split, prompt, {site: Put(value=answers.states(run, up, split, prompt, [site])[site])}
            )
        return run.cached[key]

    def score(arm: str, name: str) -> float:
        ways = {
            "kl_tuned_nats": lambda b, t, one: whole.kl(t, one),
            "linear_nats": lambda b, t, one: float(((t.softmax(-1) - b.softmax(-1)) * (one - b)).sum()),
        }
        values = [ways[name](*at) for at in zip(base, tuned, laws(arm), strict=True)]
        return answers.together(what, base, tuned, values)

    if row["arm"] is not None:
        return score(row["arm"], next(name for name in ("kl_tuned_nats", "linear_nats") if shares.over(name, what) == metric))
    signs = {"nats": (-1, "kl_tuned_nats"), "linear_nats": (1, "linear_nats")}
    effects = ("upstream_effect", "downstream_effect", "interaction")
    effect, unit = next((one, unit) for one in effects for unit in signs if shares.over(f"{one}_{unit}", what) == metric)
    sign, name = signs[unit]
    bb, bt, tb, tt = (sign * score(arm, name) for arm in ("bb", "bt", "tb", "tt"))
    return {effects[0]: (tb - bb + tt - bt) / 2, effects[1]: (bt - bb + tt - tb) / 2, effects[2]: tt - tb - bt + bb}[effect]
