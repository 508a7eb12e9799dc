"""Does the running model have activations like those that are patched into it?

A patch can put in an activation that the running model never has; what such a patch does may be no more than what damage does (Makelov et al. 2023,
arXiv 2311.17030; Heimersheim & Nanda 2024, arXiv 2404.15255). With x the running model's own clean activations at one site and position over
prompts, mu their mean and S their covariance,

    distance     d(w) = sqrt((w - mu)' C^-1 (w - mu)),     C = (1 - a) S + a (tr S / d) I
    norm ratio   ||w|| / ||own||                           of the running model's own activation on the same prompt

for a patched-in activation w. `a` is Ledoit and Wolf's (2004), which makes C invertible where there are fewer prompts than dimensions.

An activation is far from a mean and a covariance that it had no part in, so own activations are held out too: prompts are dealt to parts, by
cluster, and every activation on a prompt, own or patched in, is compared with the own activations on all other parts. So a patch is as far as an
own activation where it is like one: of n held-out own distances it passes all with probability 1 / (n + 1) at most if it is exchangeable with them
(conformal prediction, Vovk 2005).

    0: the mean own activation.  1 in each of d directions: about sqrt(d).  Only the comparison with own distances says what is far.

When it misleads: a mean of own activations is near 0 by construction, and the model may never be there; within the covariance there may be
activations that the model never has (activations are no Gaussian), so a patch that is not far is not proved to be natural; and few prompts of one
kind have few own activations, beyond which the same model on other prompts may lie too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from mechdiff.maps.affine import ROUNDING

SMALLEST = 1e-12
"""Of the largest variance: below lies rounding."""
FEWEST = 3
"""States: of two, both lie equally far from their mean, so that nothing is shrunk and no variance is left in other directions."""


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """The mean and the shrunk covariance of some states, as their directions of variance and one variance for all others."""

    mean: Float64[Tensor, " d"]
    basis: Float64[Tensor, "d rank"]
    variances: Float64[Tensor, " rank"]
    rest: float
    """NaN where all states are the same, or fewer than FEWEST: nothing has a distance from them."""

    def distance(self, states: Float64[Tensor, "prompt d"]) -> Float64[Tensor, " prompt"]:
        """Mahalanobis distance of each state."""
        moved = states - self.mean
        along = moved @ self.basis
        outside = (moved.square().sum(-1) - along.square().sum(-1)).clamp(min=0)
        return ((along.square() / self.variances).sum(-1) + outside / self.rest).sqrt()


def cloud(states: Float64[Tensor, "prompt d"]) -> Cloud:
    """From products of states with one another, never a d x d matrix."""
    n, d = states.shape
    mean = states.mean(0)
    centred = states - mean
    gram = centred @ centred.T
    trace = float(gram.trace()) / n
    if n < FEWEST or trace <= (ROUNDING * float(mean.norm())) ** 2:
        return Cloud(mean=mean, basis=mean.new_zeros(d, 0), variances=mean.new_zeros(0), rest=float("nan"))
    shrinkage = ledoit_wolf(gram, d)
    values, vectors = torch.linalg.eigh(gram)
    kept = values > SMALLEST * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    rest = shrinkage * trace / d
    return Cloud(mean=mean, basis=centred.T @ (vectors / values.sqrt()), variances=(1 - shrinkage) * values / n + rest, rest=rest)


def ledoit_wolf(gram: Float64[Tensor, "prompt prompt"], d: int) -> float:
    """How far the covariance of centred states, whose products these are, is shrunk towards a multiple of the identity."""
    n = len(gram)
    spread, trace = float(gram.square().sum()) / n**2, float(gram.trace()) / n
    noise = (float(gram.diagonal().square().sum()) / n - spread) / n
    away = spread - trace**2 / d
    return min(1.0, max(noise, 0.0) / away) if away > 0 else 1.0


def parts(clusters: Sequence[object], folds: int) -> list[list[int]]:
    """Prompts, named by their clusters, dealt to at most so many parts; a cluster stays together."""
    dealt = {cluster: i % folds for i, cluster in enumerate(dict.fromkeys(clusters))}
    found: dict[int, list[int]] = {}
    for i, cluster in enumerate(clusters):
        found.setdefault(dealt[cluster], []).append(i)
    return [found[part] for part in sorted(found)]
