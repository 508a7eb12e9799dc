"""Is the difference the chat template's, or the weights'?

A fine-tune often brings a chat template of its own, so what its users see differ from the base is two changes in one. Cross them: u is the model
whose template prints the prompt, v the model that reads it. Four runs, `bb bt tb tt` (template first); `bb` and `tt` are the two models as they are
used. Each is scored, at the last token of what is printed, by

    kl_tuned_nats         KL(p_tt || run): D for bb, 0 for tt
    logit_diff_divergent  logit of tt's top token less that of bb's: undefined where both have the same top token
    linear_nats           sum over tokens of (p_tt - p_bb) (z_run - z_bb), z the logits: 0 for bb, KL(tt || bb) + KL(bb || tt) for tt

as the halves of a network are in `measures/factorial/formula.py`, and the effects are those of that page: with g = -kl_tuned_nats, or one of the
others,

    template_effect = ((g_tb - g_bb) + (g_tt - g_bt)) / 2     what the tuned model's template brings, averaged over both models that read it
    weights_effect  = ((g_bt - g_bb) + (g_tt - g_tb)) / 2     what the tuned weights bring, averaged over both templates
    interaction     = g_tt - g_tb - g_bt + g_bb               what both bring together beyond the sum of each alone

The two effects add up to D in nats of KL. A change of the template alone (or of weights that no template can reach) has all of D in its effect, 0
in the other and in the interaction. Whether they build on each other is a question to the linear score: there changes that merely add do not
interact, while KL is quadratic. Beside them stand the four sides of the square, each a KL:

    kl_template_nats      KL(p under the tuned model's template || under the base's), of the model in `arm`
    kl_weights_nats       KL(p_tuned || p_base), both after the template of the model in `arm`

When it misleads: this D is of each model after its own template, not that of the rest of a run, whose models read one text; a model may never have
been trained on the other's template, and what it says behind it is then no one's intention; where a tokenizer lacks the other template's special
tokens it reads them as plain text. On two vocabularies all is of the tokens that both have.
"""

from collections.abc import Mapping, Sequence

import polars as pl
from jaxtyping import Float
from torch import Tensor

from mechdiff.engine.distributions import kl_nats
from mechdiff.engine.outcome import CleanLogits
from mechdiff.measures.factorial import formula as factorial_formula
from mechdiff.rows import rows

EFFECTS = dict(zip(factorial_formula.EFFECTS, ("template_effect", "weights_effect", "interaction"), strict=True))
"""By their names in a factorial of halves: the template is upstream of the weights."""

Laws = Mapping[str, Float[Tensor, "prompt vocab"]]
"""Logits by arm."""


def measure(laws: Laws, prompt_ids: Sequence[str], *, split: str, n_shared: int) -> pl.DataFrame:
    """Rows of the four runs, of the four sides of their square, and of the effects, per prompt."""
    clean = CleanLogits(base=laws["bb"], tuned=laws["tt"], n_shared=n_shared)
    place = {"measure": "chat_template", "split": split, "prompt": list(prompt_ids)}
    runs = {arm: {score: found[0] for score, found in factorial_formula.scores(law[:, None], clean).items()} for arm, law in laws.items()}
    frames = [rows(values.numpy(), arm=arm, metric=score, **place) for arm, by_score in runs.items() for score, values in by_score.items()]
    for score, unit, sign in zip(factorial_formula.SCORES, factorial_formula.UNITS, (-1, 1, 1), strict=True):
        found = factorial_formula.effects(*(sign * runs[arm][score].double()[None] for arm in factorial_formula.ARMS))
        frames += [rows(values[0].numpy(), metric=f"{EFFECTS[name]}_{unit}", **place) for name, values in found.items()]
    shared = {arm: law[..., :n_shared] for arm, law in laws.items()}
    for side, one in (("base", "b"), ("tuned", "t")):
        frames.append(rows(kl_nats(shared[f"t{one}"], shared[f"b{one}"]).numpy(), arm=side, metric="kl_template_nats", **place))
        frames.append(rows(kl_nats(shared[f"{one}t"], shared[f"{one}b"]).numpy(), arm=side, metric="kl_weights_nats", **place))
    return pl.concat(frames)
