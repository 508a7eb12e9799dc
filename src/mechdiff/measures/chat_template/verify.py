"""The four pairings of template and model are computed once more by whole forward passes and the definitions."""

from torch import Tensor

from mechdiff.audit import whole
from mechdiff.audit.distributions import Row, divergent
from mechdiff.audit.rerun import Rerun
from mechdiff.measures.chat_template.plan import split_of

SIGNS = {"nats": (-1, "kl_tuned_nats"), "logits": (1, "logit_diff_divergent"), "linear_nats": (1, "linear_nats")}


def again(run: Rerun, row: Row) -> float:
    """A score of one pairing, a side of their square, or an effect made of all four."""

    def law(arm: str) -> Tensor:
        template, weights = ({"b": "base", "t": "tuned"}[letter] for letter in arm)
        return run.law(weights, split_of(template, run.prepared.rendered), row["prompt"])[: run.prepared.tokens.n_shared]

    def score(arm: str, what: str) -> float:
        own, both = law("bb"), law("tt")
        if what == "linear_nats":
            return float(((both.softmax(-1) - own.softmax(-1)) * (law(arm) - own)).sum())
        return whole.kl(both, law(arm)) if what == "kl_tuned_nats" else divergent(law(arm), own, both)

    metric, arm = row["metric"], row["arm"]
    if metric in ("kl_template_nats", "kl_weights_nats"):
        one = arm[0]
        return whole.kl(law(f"t{one}"), law(f"b{one}")) if metric == "kl_template_nats" else whole.kl(law(f"{one}t"), law(f"{one}b"))
    if arm is not None:
        return score(arm, metric)
    name = next(name for name in ("template_effect", "weights_effect", "interaction") if metric.startswith(name))
    sign, what = SIGNS[metric.removeprefix(f"{name}_")]
    bb, bt, tb, tt = (sign * score(one, what) for one in ("bb", "bt", "tb", "tt"))
    return {"template_effect": (tb - bb + tt - bt) / 2, "weights_effect": (bt - bb + tt - tb) / 2, "interaction": tt - tb - bt + bb}[name]
