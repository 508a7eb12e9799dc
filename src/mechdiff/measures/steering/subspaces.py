"""In which directions do the tuned model's activations lie from the base's?

At one site, with a_b and a_t the two models' states on the same prompts of the fit split and d_i = a_t,i - a_b,i:

    mean   = mean_i d_i                      what the fine-tune adds on every prompt: the steering vector
    u_1    = mean / ||mean||
    u_2..  = right singular vectors of (d_i - mean), made orthogonal to u_1, by falling singular value
    U_k    = [u_1 .. u_k],  P_k = U_k U_k'

So U_1 is the difference of means (the vector of activation addition: Turner 2023, arXiv 2308.10248; Arditi 2024, arXiv 2406.11717) and U_k adds what
differs from prompt to prompt. With **contrast**, the mean difference on neutral prompts is taken off the mean first: what is left is what the
change does on the study's prompts beyond what it does everywhere.

Two numbers say how far to trust the mean. `relative_size` = ||mean|| / mean ||a_b||: 0, the change has no constant part here; 1, it is as long as a
state. `split_half_cosine`: between the means of two random halves of the prompts; 1, every half gives the same direction; near 0, the mean is noise.

Nothing to see: where a direction is no longer than rounding (one millionth of a state) it is left out, so identical models have no directions
at all: rank 0 and a mean of exactly 0.

**Controls.** `random_basis`: a random subspace of the same dimension. `label_swapped`: the names base and tuned exchanged on a random half of the
prompts (d_i -> -d_i), and the mean built again. What all prompts share cancels; what is left is as long as the mean would be by chance, so it is used
as it comes, not stretched to the real mean's length. It is a control of the mean alone: turned signs leave the span of the differences as it is, so
U_k with k > 1 would come out nearly the same.

When it misleads: a direction of large variance need not be one that the model reads (hold the effect against a random subspace), and the mean over
prompts of one kind is also the mean of what is common to that kind (hold it against neutral prompts).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mechdiff.maps.affine import ROUNDING


def split_half_cosine(differences: Float64[Tensor, "prompt d"], *, seed: int) -> float:
    """The cosine of the mean differences of two random halves of the prompts."""
    order = torch.randperm(len(differences), generator=torch.Generator().manual_seed(seed))
    one, other = (differences[part].mean(0) for part in order.tensor_split(2))
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


@dataclass(frozen=True, kw_only=True)
class Subspace:
    """The directions of a change at one site, the mean first; all on the CPU."""

    mean: Float64[Tensor, " d"]
    """The steering vector, unscaled; zeros where there is none."""
    basis: Float64[Tensor, "d rank"]
    """Orthonormal columns; rank 0 where the two models' states are the same."""
    origin: Float64[Tensor, " d"]
    """The base's mean state."""
    relative_size: float
    """||mean|| / mean norm of a state of the base."""
    split_half_cosine: float | None
    """None where there is no mean, or only one prompt."""

    @property
    def rank(self) -> int:
        return self.basis.shape[1]

    def leading(self, k: int) -> Float64[Tensor, "d k"]:
        return self.basis[:, :k]


def change_subspace(
    base: Float[Tensor, "prompt d"],
    tuned: Float[Tensor, "prompt d"],
    k: int,
    *,
    contrast: Float[Tensor, " d"] | None = None,
    seed: int = 0,
) -> Subspace:
    """At most `k` directions of the change; `contrast` is the mean difference on neutral prompts."""
    base, tuned = base.double(), tuned.double()
    length = float(base.norm(dim=-1).mean())
    differences = tuned - base
    mean = differences.mean(0) - (0 if contrast is None else contrast.double())
    return _built(differences, mean, base.mean(0), length, k, seed)


def label_swapped(
    base: Float[Tensor, "prompt d"], tuned: Float[Tensor, "prompt d"], *, contrast: Float[Tensor, " d"] | None = None, seed: int
) -> Float64[Tensor, " d"]:
    """The mean difference with the two models' names exchanged on a random half of the prompts (an odd one out keeps its own)."""
    swap = torch.randperm(len(base), generator=torch.Generator().manual_seed(seed)) < len(base) // 2
    sign = 1 - 2 * swap.double()
    differences = tuned.double() - base.double() - (0 if contrast is None else contrast.double())
    return (sign[:, None] * differences).mean(0)


def _built(
    differences: Float64[Tensor, "prompt d"], mean: Float64[Tensor, " d"], origin: Float64[Tensor, " d"], length: float, k: int, seed: int
) -> Subspace:
    least = ROUNDING * length
    if float(mean.norm()) <= least:
        mean = torch.zeros_like(mean)
    first = mean[:, None] / mean.norm() if mean.any() else mean.new_zeros(len(mean), 0)
    rest = differences - differences.mean(0)
    rest = rest - (rest @ first) @ first.T
    _, singular, right = torch.linalg.svd(rest, full_matrices=False)
    rest_basis = right[singular > least * len(rest) ** 0.5].T
    basis = torch.cat([first, rest_basis], 1)[:, :k]
    cosine = split_half_cosine(differences - differences.mean(0) + mean, seed=seed) if mean.any() and len(differences) > 1 else None
    return Subspace(
        mean=mean, basis=basis, origin=origin, relative_size=float(mean.norm()) / length if length else 0.0, split_half_cosine=cosine
    )


def random_basis(d: int, k: int, *, seed: int) -> Float64[Tensor, "d k"]:
    """Orthonormal columns in a direction that chance alone decides."""
    made = torch.randn(d, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(made)[0]


def random_vector(like: Float64[Tensor, " d"], *, seed: int) -> Float64[Tensor, " d"]:
    """A random direction, as long as `like`."""
    return random_basis(len(like), 1, seed=seed)[:, 0] * like.norm()
