"""Where does the difference between the two models' activations matter for what they predict next?

One model runs, and at one site its activation at the studied position is replaced (Vig 2020; Meng 2022; across models with the prompt held
fixed: Prakash 2024, arXiv 2402.14811). With D = KL(p_tuned || p_base), the total effect:

    tuned<-base, KL increase   KL(p_tuned || p_tuned[site <- a_base]) / D      is the tuned activation there necessary?
    base<-tuned, recovery      1 - KL(p_tuned || p_base[site <- a_tuned]) / D  is the tuned activation there sufficient?

0: the site does not matter. 1: it carries all of the change that reaches this position (after the last block `resid_post` is always near 1).
The two are not complements: where either of two sites suffices, recovery is 1 at both and KL increase 0 at both.

**Conditions** say how the patched-in activation was made; each is a way to guess the tuned model's activation:

    identity    the other model's own activation on this prompt
    shift       a_base + (mu_tuned - mu_base): the base's activation, moved by the mean difference over the training split
    mean        mu_tuned: what the tuned model has on average, the same on every prompt
    resample    the tuned model's activation on another prompt
    oracle      the running model's own activation: changes nothing, to rounding

In `tuned<-base` a guess that is right breaks nothing, so shift far below identity means that the change is mostly one constant vector. In
`base<-tuned` mean and resample near identity mean that what recovers the tuned behaviour is not about this prompt.

When it misleads: a single site hides behind others that are redundant (self-repair, McGrath 2023), so look at windows of blocks too; an effect
at one position is not the effect at all of them; and a patched-in activation can be one that the running model never has (compare `resample`).
Logit differences are linear where KL saturates (Heimersheim & Nanda 2024, arXiv 2404.15255), so both are given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mechdiff.architectures.sites import Site
from mechdiff.engine.replay import Variant, Write


@dataclass(frozen=True, kw_only=True)
class Both:
    """Both models' states at the same places: of each prompt, or their mean over prompts."""

    base: Float[Tensor, "layer *prompt pos d"]
    tuned: Float[Tensor, "layer *prompt pos d"]


def written_state(
    arm: str, direction: str, states: Both, *, means: Both | None = None, donor: Float[Tensor, "layer prompt pos d"] | None = None
) -> Float[Tensor, "layer prompt pos d"]:
    """The states that an arm writes; `donor` are the tuned model's states on other prompts, the means those of the fit split."""
    own, other = (states.tuned, states.base) if direction == "tuned<-base" else (states.base, states.tuned)
    if arm == "identity":
        return other
    if arm == "oracle":
        return own
    if arm == "resample":
        assert donor is not None
        return donor
    assert means is not None
    if arm == "shift":
        return states.base + (means.tuned - means.base)[:, None]
    return means.tuned[:, None].expand_as(states.tuned)


def variants(
    kind: str, layers: Sequence[int], written: Float[Tensor, "layer prompt pos d"] | Mapping[int, Tensor], width: int = 1
) -> list[Variant]:
    """One variant for each of `layers`: `written[block]` at `kind`, at that block and the `width - 1` blocks above it."""
    return [{Site(layer, kind): Write(value=written[layer]) for layer in range(first, first + width)} for first in layers]
