"""What do gradients say of swapping each head, all at once, without running any of the swaps?

One model runs clean, and m is a number that is linear in its logits. If a component's output (a head's contribution, an MLP's, a whole site) were
moved by D to what the other model has there, m would change by about

    grad_x_diff            g . D,              g = dm/da at the running model's clean run: one backward pass for all components
    integrated_gradients   mean_s g(s) . D,    g(s) at own + s D_all, s at the midpoints of [0, 1], the heads of one block moved together

The first is attribution patching (Nanda 2023; Syed 2023, arXiv 2310.10348), wrong by the curvature: its relative error grows with the size of D.
The second is integrated gradients (Sundararajan 2017, arXiv 1703.01365) along the joint path of a block's heads, which is the Aumann-Shapley value
of the game "swap these heads": over the heads of a block it adds up to m(all heads swapped) - m(clean), up to the step size (completeness).

m must be linear in the logits: the gradient of a KL divergence at its own reference is 0. Three are offered, each pointing to the tuned model:

    law         sum_v (p_tuned(v) - p_base(v)) z_v     always defined; between the two models it differs by KL(t||b) + KL(b||t)
    divergent   z[tuned's top-1 token] - z[base's]                undefined (NaN) where both choose the same token
    label       z[first token of the label] - mean z

So in `tuned<-base` what carries the change is negative, in `base<-tuned` positive. Estimates are compared with true patches on every run, for the
top heads and for random ones: where the rank correlation is low, believe the patches.

**Over answers** (study/answers.py) m is the mean over an answer's positions of what `law` is at each of them, D is patched at all of these
positions, and g . D is a sum over them. It is always `law`, which is linear at every position; its true effect is twice the Fisher overlap of
patched runs.

**Importance of a head in each model** (directions base<-base and tuned<-tuned): the same gradient against the head's own mean over the training
prompts, as if its contribution were replaced by that mean (mean ablation). Heads that are important in one model and not in the other are the
model's own heads.

**Gradient times activation** (`grad_x_act`, the same directions) is the gradient against the head's whole contribution: what m would lose if it
were replaced by 0, which no head's is; so it has the sign of what the head adds, the other that of what the mean in its place adds. It is what
other studies call a head's change of importance, and stands beside the other by name.

When it misleads: a saturated softmax has no gradient where a patch has an effect, and effects of opposite sign cancel (Kramar 2024, AtP*).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechdiff.engine.outcome import CleanLogits
from mechdiff.errors import PromptError


def weights_of(
    metric: str,
    base_logits: Float[Tensor, "prompt vocab"],
    tuned_logits: Float[Tensor, "prompt vocab"],
    label_tokens: Sequence[int] | None = None,
    *,
    n_shared: int | None = None,
) -> Float[Tensor, "prompt vocab"]:
    """The weights of m, summing to 0 over the vocabulary; a row of NaN where it is undefined. `label_tokens`: each prompt's, for `label`.

    m is made of the first `n_shared` tokens, those that both models have, and of their laws on them; the others weigh nothing.
    """
    weights = torch.zeros_like(tuned_logits, dtype=torch.float32)
    shared, base_logits, tuned_logits = weights[:, :n_shared], base_logits[:, :n_shared], tuned_logits[:, :n_shared]
    if metric == "law":
        shared += tuned_logits.double().softmax(-1).float() - base_logits.double().softmax(-1).float()
        return weights
    every = torch.arange(len(weights))
    if metric == "label":
        assert label_tokens is not None
        shared -= 1 / shared.shape[1]
        weights[every, list(label_tokens)] += 1
        weights[torch.tensor(label_tokens) >= shared.shape[1]] = torch.nan
        return weights
    first, other = tuned_logits.argmax(-1), base_logits.argmax(-1)
    weights[every, first] += 1
    weights[every, other] -= 1
    weights[first == other] = torch.nan
    return weights


def label_token(prompt: str, label: str | None, tokenizer: object) -> int:
    """The token that a prompt's label begins with. PromptError where there is none."""
    ids = tokenizer(label, add_special_tokens=False)["input_ids"] if label else []  # type: ignore[operator]
    if not ids:
        raise PromptError(
            f"attribution.metric label: the prompt {prompt!r} has no label. Give every prompt a `label`, or use the metric law."
        )
    return int(ids[0])


def by_head(gradient: Float[Tensor, "prompt *place d"], change: Float[Tensor, "prompt *place head d"]) -> Float[Tensor, "prompt head"]:
    """g . D of each head, summed over places."""
    found = torch.einsum("p...d,p...hd->p...h", gradient.double(), change.double())
    return found.flatten(1, -2).sum(1) if found.ndim > 2 else found


def over_places(clean: CleanLogits, lengths: Sequence[int]) -> Float[Tensor, "row vocab"]:
    """The weights of m over answers, of so many positions each: `law` at each position, as its part of the mean."""
    weights = weights_of("law", clean.base, clean.tuned, n_shared=clean.n_shared)
    parts = torch.tensor([1 / n for n in lengths for _ in range(n)], device=weights.device)
    return weights * parts[:, None]


def midpoints(steps: int) -> list[float]:
    """Where on the path from own (0) to other (1) gradients are taken."""
    return [(step + 0.5) / steps for step in range(steps)]
