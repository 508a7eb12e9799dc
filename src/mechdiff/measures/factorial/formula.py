"""Is a behaviour made by what lies below a block, above it, or only by both together?

Split both networks after block L and cross the halves: u is the model whose residual stream comes out of blocks 0..L (*upstream*), v the model
whose blocks above L and unembedding read it (*downstream*). Four runs, `bb bt tb tt` (upstream first); `bb` and `tt` are the two models as they are,
`tb` is base<-tuned at L.resid_post and `bt` is tuned<-base. Each is scored by

    kl_tuned_nats         KL(p_tuned || run): D for bb, 0 for tt
    logit_diff_divergent  logit of the tuned model's top token less that of the base's: undefined where both have the same top token
    linear_nats           sum over tokens of (p_tuned - p_base) (z_run - z_base), z the logits: 0 for bb, KL(tuned || base) + KL(base || tuned) for tt

The last two are linear in the logits. With g = -kl_tuned_nats, or one of these, so that more is nearer to the tuned model,

    upstream_effect   = ((g_tb - g_bb) + (g_tt - g_bt)) / 2      what a tuned upstream brings, averaged over both downstreams
    downstream_effect = ((g_bt - g_bb) + (g_tt - g_tb)) / 2      what a tuned downstream brings
    interaction       = g_tt - g_tb - g_bt + g_bb                what both bring together beyond the sum of each alone

The two main effects add up to g_tt - g_bb: D in nats of KL. **Whether the halves build on each other or repeat each other is a question to a linear
score alone**: halves whose changes of the logits du and dd merely add have an interaction of exactly 0 there, while KL, which is quadratic in small
changes, gives them -2 <du, dd>_F: half of D for two equal steps. In `linear_nats` an interaction over 0 means that the halves build on each other
(both alone do nothing: interaction = the whole), one under 0 that they are redundant (either suffices: interaction = minus the whole). At `all_pos`
the states of all positions are crossed, so the runs are the hybrid networks base[0..L] + tuned[L+1..] and the reverse, exactly; at the decision
position the tuned keys and values of earlier positions stay behind, and what flows through them counts as downstream. Over an answer the states of
all its positions are crossed, and the first and the last score are means over them; the prompt's keys and values stay the running model's.

**Null.** The effects are differences of runs on the same prompts and are tested as such: is their mean over prompts apart from 0? They are skewed (tt
costs nothing and bb costs D), so no test may take them for symmetric; and exchanging the names base and tuned is no null either, since the two main
effects add up to the same whole under both names, and cannot turn their signs. `report/intervals.mean_p` needs neither.

When it misleads: averaged main effects hide an interaction as large as they are, so read them together; a late half alone can push away from
the tuned model (its effect is negative there) while the whole change pulls towards it.
"""

from collections.abc import Mapping, Sequence

import polars as pl
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mechdiff import shares
from mechdiff.engine.counterfactuals import Subject, chunks, first_parting, over_answers
from mechdiff.engine.distributions import kl_nats, logit_diff_divergent
from mechdiff.engine.outcome import CleanLogits
from mechdiff.measures.patching.formula import variants
from mechdiff.rows import rows

ARMS = ("bb", "bt", "tb", "tt")
SCORES = ("kl_tuned_nats", "logit_diff_divergent", "linear_nats")
UNITS = ("nats", "logits", "linear_nats")
"""What effects in each score are called by: `interaction_nats` and so on."""
OVER_ANSWERS = ("kl_tuned_nats", "linear_nats")
"""Scores that are taken over answers too."""
EFFECTS = ("upstream_effect", "downstream_effect", "interaction")

Scores = dict[str, Float[Tensor, "run prompt"]]
"""By name of the score."""


def effects(
    bb: Float[Tensor, "layer prompt"],
    bt: Float[Tensor, "layer prompt"],
    tb: Float[Tensor, "layer prompt"],
    tt: Float[Tensor, "layer prompt"],
) -> dict[str, Float[Tensor, "layer prompt"]]:
    """Main effects and interaction of scores g in which more is nearer to the tuned model."""
    return {
        "upstream_effect": ((tb - bb) + (tt - bt)) / 2,
        "downstream_effect": ((bt - bb) + (tt - tb)) / 2,
        "interaction": tt - tb - bt + bb,
    }


def crossed(
    subject: Subject, layers: Sequence[int], written: Float[Tensor, "layer prompt pos d"], clean: CleanLogits, max_rows: int = 512
) -> Scores:
    """Scores of the unedited run (first) and of the runs of the subject on top of the other model's residual stream after each of `layers`.

    `written` has one entry for each of `layers`, at the last `pos` positions, or at every position of the answers. The result is `bt` where the
    tuned model runs, else `tb`. No pass has more than about `max_rows` rows.
    """
    chosen = variants("resid_post", layers, dict(zip(layers, written, strict=True)))
    lengths = None if subject.answers is None else [len(said) for said in subject.answers]
    parts = [
        scored(subject.logits(chosen[part]), clean, lengths) for part in chunks(len(chosen), max(1, max_rows // subject.rows - 1))
    ]  # the unedited run leads each of them
    return {name: torch.cat([one[name][min(i, 1) :] for i, one in enumerate(parts)]) for name in parts[0]}


def scored(logits: Float[Tensor, "place run vocab"], clean: CleanLogits, lengths: Sequence[int] | None) -> Scores:
    """All scores of each run: at the decision position, or over answers of so many positions those that have relatives there."""
    found = scores(logits, clean)
    if lengths is None:
        return found
    together = over_answers({name: found[name].T for name in OVER_ANSWERS}, lengths, first_parting(clean, lengths))
    return {name: values.T for name, values in together.items()}


def scores(logits: Float[Tensor, "prompt run vocab"], clean: CleanLogits) -> Scores:
    """All scores of each run, on the tokens that both models have, renormalised."""
    logits, base_logits, tuned_logits = (law[..., : clean.n_shared] for law in (logits, clean.base, clean.tuned))
    return {
        "kl_tuned_nats": kl_nats(tuned_logits[:, None], logits).T,
        "logit_diff_divergent": logit_diff_divergent(logits, tuned_logits[:, None], base_logits[:, None]).T,
        "linear_nats": torch.stack([linear_nats(*one) for one in zip(logits, base_logits, tuned_logits, strict=True)], 1),
    }


def linear_nats(
    logits: Float[Tensor, "run vocab"], base_logits: Float[Tensor, " vocab"], tuned_logits: Float[Tensor, " vocab"]
) -> Float64[Tensor, " run"]:
    """How far the logits of each run moved from the base's towards the tuned model's, on the CPU: sum of (p_tuned - p_base) (z_run - z_base).

    The base itself has 0 and the tuned model KL(tuned || base) + KL(base || tuned). Tokens that neither model can emit do not count.
    """
    weights = tuned_logits.double().softmax(-1) - base_logits.double().softmax(-1)
    return torch.where(weights == 0, 0.0, weights * (logits.double() - base_logits.double())).sum(-1).cpu()


def measure(
    runs: Mapping[str, Scores],
    layers: Sequence[int],
    prompt_ids: Sequence[str],
    *,
    columns: dict[str, str | None],
    unedited: Mapping[str, Mapping[str, Float[Tensor, " prompt"]]] | None = None,
) -> pl.DataFrame:
    """Rows of all four runs and of the effects, per prompt; `runs` by arm.

    `unedited` is kl_tuned_nats of both models' unedited rows in the same passes, by arm (`bb`, `tt`) and name (over answers it has others): how
    far they stray from D and 0 is the floor.
    """
    place = {"layer": [layer for layer in layers for _ in prompt_ids], "prompt": list(prompt_ids) * len(layers), "measure": "factorial"}
    frames = [
        rows(found.flatten().numpy(), arm=arm, metric=score, **place, **columns)
        for arm, by_score in runs.items()
        for score, found in by_score.items()
    ]
    for arm, strayed in (unedited or {}).items():
        for score, values in strayed.items():
            same = {"measure": "factorial", "arm": arm, "control": "no_op", "metric": score, "prompt": list(prompt_ids)}
            frames.append(rows(values.numpy(), **same, **columns))
    for score, unit, sign in zip(SCORES, UNITS, (-1, 1, 1), strict=True):
        for what in (None, *shares.OVER):
            here = shares.over(score, what) if what else score
            if here not in runs["bb"]:
                continue
            for name, values in effects(*(sign * runs[arm][here].double() for arm in ARMS)).items():
                metric = shares.over(f"{name}_{unit}", what) if what else f"{name}_{unit}"
                frames.append(rows(values.flatten().numpy(), metric=metric, **place, **columns))
    return pl.concat(frames)
