"""How do one model's activations lie at one site? Every measure of similarity is made of these matrices.

`u_centred` is K = XXᵀ without its diagonal and with rows that sum to 0 (Székely & Rizzo 2014): the inner product of two such is the unbiased HSIC₁,
and their cosine is debiased CKA. From it follow CKA without each prompt, and under other pairings of the prompts, with no state read again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

TOP = 3
"""Coordinates of largest variance that `without_top` leaves out."""

_NOISE = 1e-24
"""A sum of squares below this share of what it is made of is rounding."""


def u_centred(gram: Float64[Tensor, "prompt prompt"]) -> Float64[Tensor, "prompt prompt"]:
    """The Gram matrix with zero diagonal and zero row sums: HSIC₁ is (A * B).sum() / (N (N−3)) of two such. 0 where that is rounding."""
    n = len(gram)
    if n < 4:
        return torch.zeros_like(gram)
    hollow = gram.clone().fill_diagonal_(0)
    mean = hollow.sum(1) / (n - 2)
    found = (hollow - mean[:, None] - mean + mean.sum() / (n - 1)).fill_diagonal_(0)
    return torch.zeros_like(gram) if found.square().sum() <= _NOISE * gram.square().sum() else found


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How one model's states lie at one site: what every measure here is made of, computed once."""

    gram: Float64[Tensor, "prompt prompt"]
    """Inner products of the centred states; 0 if the states do not vary beyond their dtype's rounding."""
    u_centred: Float64[Tensor, "prompt prompt"]
    """The U-centred inner products; 0 if there are fewer than 4 prompts or all are equally alike."""
    shape: Float64[Tensor, "prompt axis"]
    """The centred states at unit norm, in coordinates of at most as many axes as prompts; NaN if the states do not vary."""


def geometry(states: Float[Tensor, "prompt d"]) -> Geometry:
    """The geometry of these states, in float64 on the CPU."""
    centred = _centred(states)
    n, d = centred.shape
    shape = torch.linalg.qr(centred.T, mode="r").R.T if n < d and centred.isfinite().all() else centred
    gram = centred @ centred.T
    return Geometry(gram=gram, u_centred=u_centred(gram), shape=shape / centred.norm())


def hollow(states: Float[Tensor, "prompt d"]) -> Float64[Tensor, "prompt prompt"]:
    """The U-centred inner products alone."""
    centred = _centred(states)
    return u_centred(centred @ centred.T)


def _centred(states: Float[Tensor, "prompt d"]) -> Float64[Tensor, "prompt d"]:
    """Less their mean; 0 where that is rounding in their dtype."""
    x = states.detach().cpu().double()
    centred = x - x.mean(0)
    return torch.zeros_like(centred) if centred.norm() <= 16 * torch.finfo(states.dtype).eps * x.norm() else centred


def cosine(a: Float64[Tensor, "prompt prompt"], b: Float64[Tensor, "prompt prompt"]) -> float:
    """CKA of the two Gram matrices, U-centred (debiased) or merely centred; 0/0 is NaN."""
    return float((a * b).sum() / (a.norm() * b.norm()))


def without_each(base: Float64[Tensor, "prompt prompt"], tuned: Float64[Tensor, "prompt prompt"]) -> Float64[Tensor, " prompt"]:
    """From the U-centred matrices of all N: HSIC₁ without prompt i is a constant times Σ AB − 2 (N−2)/(N−3) Σ_j A_ij B_ij."""
    n = len(base)
    if n < 5:
        return torch.full((n,), torch.nan, dtype=torch.float64)
    rows_of = torch.stack([base * tuned, base.square(), tuned.square()]).sum(2)
    total = rows_of.sum(1, keepdim=True)
    cross, *own = total - 2 * (n - 2) / (n - 3) * rows_of
    base_size, tuned_size = (size.where(size > 1e-12 * all_of, torch.nan).sqrt() for size, all_of in zip(own, total[1:], strict=True))
    return cross / (base_size * tuned_size)


def without_top(
    base: Float[Tensor, "prompt d_base"], tuned: Float[Tensor, "prompt d_tuned"]
) -> tuple[Float[Tensor, "prompt kept_base"], Float[Tensor, "prompt kept_tuned"]]:
    """Both models' states without those coordinates."""
    widths = [_widths(states) for states in (base, tuned)]
    if base.shape == tuned.shape:
        widths = [widths[0] + widths[1]] * 2
    base, tuned = (
        states[:, width.argsort(descending=True, stable=True)[TOP:].sort().values]
        for states, width in zip((base, tuned), widths, strict=True)
    )
    return base, tuned


def _widths(states: Float[Tensor, "prompt d"]) -> Float64[Tensor, " d"]:
    """Each coordinate's share of the variance."""
    squares = (states.double() - states.double().mean(0)).square().sum(0).cpu()
    return (squares / squares.sum()).nan_to_num(0.0)


def pairings(clusters: Sequence[object], draws: int, seed: int) -> Int64[Tensor, "draw prompt"]:
    """Random orders of the prompts. Prompts of one cluster go together to the place of a cluster with as many: they are one observation."""
    generator = torch.Generator().manual_seed(seed)
    members: dict[object, list[int]] = {}
    for prompt, cluster in enumerate(clusters):
        members.setdefault(cluster, []).append(prompt)
    by_size: dict[int, list[list[int]]] = {}
    for group in members.values():
        by_size.setdefault(len(group), []).append(group)
    alike = [torch.tensor(groups) for groups in by_size.values()]
    orders = torch.empty(draws, len(clusters), dtype=torch.int64)
    for order in orders:
        for groups in alike:
            order[groups] = groups[torch.randperm(len(groups), generator=generator)]
    return orders


def permuted_cka(
    base: Float64[Tensor, "site prompt prompt"], tuned: Float64[Tensor, "site prompt prompt"], orders: Int64[Tensor, "draw prompt"]
) -> Float64[Tensor, "draw site"]:
    """Debiased CKA from U-centred matrices, the tuned model's prompts in each order."""
    n = base.shape[1]
    i, j = torch.triu_indices(n, n, 1)
    pairs = (base / base.norm(dim=(1, 2), keepdim=True))[:, i, j].T.contiguous()
    table = (tuned / tuned.norm(dim=(1, 2), keepdim=True)).flatten(1).T.contiguous()  # sites side by side: one gather serves all
    found = torch.empty(len(orders), len(base), dtype=torch.float64)
    for draw, order in enumerate(orders):
        found[draw] = 2 * table.index_select(0, order[i] * n + order[j]).mul_(pairs).sum(0)
    return found
