"""Sums are enough for fits, CKA, subspaces and mean differences over more rows than memory holds.

What these need of n pairs of states x (base), y (tuned) is a few sums over rows, in float64, whose size does not depend on n:

    n, sum x, sum y, X'X, X'Y, Y'Y                                           means, covariances: ridge, reduced rank, axes of the change, biased CKA
    sum |x|^2, sum |x|^4, sum |x|^2 |y|^2, sum |x|^2 x, sum |x|^2 y, ...     what the diagonals of both Gram matrices took part in: debiased CKA

They add: shards may be summed anywhere, in any order, and merged. With K = XX', L = YY', both without their diagonals, Song's unbiased HSIC
(2012) is made of three numbers, none of which needs an n x n matrix:

    tr KL   = ||X'Y||^2 - sum_i k_i l_i                                       k_i = |x_i|^2, l_i = |y_i|^2
    1'K1    = |sum x|^2 - sum k
    1'KL1   = (sum x)' X'Y (sum y) - (sum x)' sum(l x) - (sum y)' sum(k y) + sum k l

All of it is about a **centre**, a fixed point for each model near its mean (the mean of the first rows): sums of products of large states would
lose the digits of what differs between them. Every number here is the same about any centre; moments about different ones do not add.

A row is a token's state or a prompt's; rows of one prompt depend on each other. Penalty and rank are chosen by K-fold cross-validation over *folds*:
one Moments for each, of whole prompts; what is fitted on the others is their sum. A fold's error is again made of its sums.

When it misleads: many rows of few prompts are not many rows; and with fewer rows than features the n x n forms (similarity.py, regression.py) give
the same numbers with more digits.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import torch
from jaxtyping import Float, Float64
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from mechdiff.errors import StudyError
from mechdiff.maps.affine import Affine
from mechdiff.maps.maps import Map
from mechdiff.maps.regression import LAMBDAS, SHRINK_LESS, WORTH, Decomposed, fitted_axes, last_least, ridge
from mechdiff.models.alignment import aligned

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Sums over pairs of states, about a centre."""

    n: int
    centre_x: Float64[Tensor, " d"]
    centre_y: Float64[Tensor, " d_y"]
    x: Float64[Tensor, " d"]
    y: Float64[Tensor, " d_y"]
    xx: Float64[Tensor, "d d"]
    xy: Float64[Tensor, "d d_y"]
    yy: Float64[Tensor, "d_y d_y"]
    kx: Float64[Tensor, " d"]
    """sum k x, and so on."""
    ky: Float64[Tensor, " d_y"]
    lx: Float64[Tensor, " d"]
    ly: Float64[Tensor, " d_y"]
    diagonals: Float64[Tensor, "5"]
    """sum k, sum l, sum k k, sum k l, sum l l."""
    length: Float64[Tensor, ""]
    """sum of the norms of x, not about the centre."""

    @classmethod
    def of(cls, base: Float[Tensor, "row d"], tuned: Float[Tensor, "row d_y"], centre: tuple[Tensor, Tensor] | None = None) -> "Moments":
        """Of these rows, about `centre` (their own means where None)."""
        base, tuned = base.double(), tuned.double()
        centre_x, centre_y = centre or (base.mean(0), tuned.mean(0))
        widths = {"x": len(centre_x), "y": len(centre_y)}
        zeros = {name: torch.zeros([widths[w] for w in name if w in "xy"], dtype=torch.float64) for name in SUMS}
        nothing = cls(n=0, centre_x=centre_x, centre_y=centre_y, **{**zeros, "diagonals": torch.zeros(5, dtype=torch.float64)})
        return nothing.taking(base, tuned)

    def taking(self, base: Float[Tensor, "row d"], tuned: Float[Tensor, "row d_y"]) -> "Moments":
        """With these rows too. The sums are added to where they are, so that a stream needs no more memory than one chunk: use what comes back."""
        base, tuned = base.double(), tuned.double()
        x, y = base - self.centre_x, tuned - self.centre_y
        k, l = x.square().sum(1), y.square().sum(1)  # noqa: E741
        for total, left, right in ((self.xx, x, x), (self.xy, x, y), (self.yy, y, y)):
            total.addmm_(left.T, right)
        for total, rows, weights in ((self.kx, x, k), (self.ky, y, k), (self.lx, x, l), (self.ly, y, l)):
            total.addmv_(rows.T, weights)
        self.x.add_(x.sum(0))
        self.y.add_(y.sum(0))
        self.diagonals.add_(torch.stack([k.sum(), l.sum(), k @ k, k @ l, l @ l]))
        self.length.add_(base.norm(dim=1).sum())
        return replace(self, n=self.n + len(x))

    @property
    def centre(self) -> tuple[Tensor, Tensor]:
        return self.centre_x, self.centre_y

    def __add__(self, other: "Moments") -> "Moments":
        """Of the rows of both. Raises StudyError for other centres."""
        return self._combined(other, 1)

    def __sub__(self, other: "Moments") -> "Moments":
        """Of the rows without those of the other, which must be among them."""
        return self._combined(other, -1)

    def _combined(self, other: "Moments", sign: int) -> "Moments":
        if not all(torch.equal(one, there) for one, there in zip(self.centre, other.centre, strict=True)):
            raise StudyError("moments about different centres do not add. Give every shard the same centre.")
        sums = {name: getattr(self, name) + sign * getattr(other, name) for name in SUMS}
        return replace(self, n=self.n + sign * other.n, **sums)

    # ---- means and covariances

    @property
    def mean_x(self) -> Float64[Tensor, " d"]:
        return self.centre_x + self.x / self.n

    @property
    def mean_y(self) -> Float64[Tensor, " d_y"]:
        return self.centre_y + self.y / self.n

    def mean_difference(self) -> Float64[Tensor, " d"]:
        """What the fine-tune adds on average."""
        return self.mean_y - self.mean_x

    def scatter(self) -> tuple[Float64[Tensor, "d d"], Float64[Tensor, "d d_y"], Float64[Tensor, "d_y d_y"]]:
        """X'X, X'Y, Y'Y of centred rows."""
        return (
            self.xx - torch.outer(self.x, self.x) / self.n,
            self.xy - torch.outer(self.x, self.y) / self.n,
            self.yy - torch.outer(self.y, self.y) / self.n,
        )

    def change_scatter(self) -> Float64[Tensor, "d d"]:
        """Z'Z of the centred change z = y - x."""
        xx, xy, yy = self.scatter()
        return xx + yy - xy - xy.T

    # ---- similarity

    def cka(self, *, debiased: bool = True) -> float:
        """Linear CKA of the two sets of states; NaN where undefined."""
        if not debiased:
            xx, xy, yy = (table.square().sum() for table in self.scatter())
            return float(xy / (xx * yy).sqrt())
        k, l, kk, kl, ll = self.diagonals  # noqa: E741
        n = self.n
        if n < 4:
            return float("nan")

        def hsic(
            one: Tensor, other: Tensor, cross: Tensor, weighed: Tensor, weighed_other: Tensor, sums: tuple[Tensor, Tensor, Tensor]
        ) -> Tensor:
            trace = cross.square().sum() - sums[2]
            totals = (one @ one - sums[0]) * (other @ other - sums[1])
            through = one @ cross @ other - one @ weighed - other @ weighed_other + sums[2]
            return trace + totals / ((n - 1) * (n - 2)) - 2 / (n - 2) * through

        both = hsic(self.x, self.y, self.xy, self.lx, self.ky, (k, l, kl))
        alone = hsic(self.x, self.x, self.xx, self.kx, self.kx, (k, k, kk)) * hsic(self.y, self.y, self.yy, self.ly, self.ly, (l, l, ll))
        return float(both / alone.sqrt()) if alone > 0 else float("nan")

    # ---- maps

    def decomposed(self) -> tuple[Decomposed, Float64[Tensor, "rank d_y"]]:
        """The base's states by their axes, and U'Z of the change."""
        xx, xy, _ = self.scatter()
        values, vectors = torch.linalg.eigh(xx)
        kept = values > values[-1] * len(values) * _EPS
        singular, right = values[kept].flip(0).sqrt(), vectors[:, kept].flip(1).T
        return Decomposed(mean=self.mean_x, singular=singular, right=right, left=None), right @ (xy - xx) / singular[:, None]

    def map(self, lam: float, rank: int | None = None) -> Map:
        """The anchored ridge map from the base's states to the tuned model's, or the reduced-rank one."""
        inputs, projected = self.decomposed()
        left, right = ridge(inputs, projected, lam)
        if rank is not None:
            axes = fitted_axes(inputs, projected, lam)[:, :rank]
            left, right = left @ (right @ axes), axes.T
        identity = torch.ones(len(self.x), dtype=torch.float64)
        affine = Affine(mean_in=self.mean_x, mean_out=self.mean_y, diagonal=identity, left=left, right=right)
        return Map.of(affine, "anchored_ridge" if rank is None else "rrr", lam=lam, n=self.n)

    # ---- files

    def save(self, path: Path, **more: str) -> None:
        """A safetensors file; `more` is kept as text."""
        tensors = {name: getattr(self, name).contiguous() for name in (*SUMS, "centre_x", "centre_y")}
        path.write_bytes(save(tensors, metadata={**more, "n": str(self.n)}))

    @classmethod
    def load(cls, path: Path) -> tuple["Moments", dict[str, str]]:
        """What `save` wrote, and the texts beside it."""
        with safe_open(path, "pt") as file:
            told = dict(file.metadata())
            return cls(n=int(told.pop("n")), **{name: aligned(file.get_tensor(name)) for name in file.keys()}), told  # noqa: SIM118


SUMS = ("x", "y", "xx", "xy", "yy", "kx", "ky", "lx", "ly", "diagonals", "length")


def merged(parts: Sequence[Moments]) -> Moments:
    """The sum, by a tree: neighbours first. The same parts in the same order give the same bits, wherever they were made."""
    while len(parts) > 1:
        parts = [reduce(Moments.__add__, parts[i : i + 2]) for i in range(0, len(parts), 2)]
    return parts[0]


def summed(chunks: Iterable[tuple[Tensor, Tensor]], centre: tuple[Tensor, Tensor] | None = None) -> Moments:
    """Of a stream of rows, a chunk in memory at a time; about the first chunk's means where no centre is given."""
    total: Moments | None = None
    for base, tuned in chunks:
        total = total.taking(base, tuned) if total else Moments.of(base, tuned, centre)
    if total is None:
        raise StudyError("no rows: nothing to sum.")
    return total


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What cross-validation over folds chose, and what it saw."""

    lam: float
    rank: int
    """The smallest within one standard error (over folds) of the best; 0 unless the best takes off WORTH of rank 0's error."""
    errors: Float64[Tensor, "fold rank"]
    """Held-out squared error a row, by rank from 0, at the penalty of ranks."""
    lam_of_ranks: float
    r2: float
    """Held-out share of the change that ridge explains."""


def chosen(folds: Sequence[Moments], lambdas: Sequence[float] = LAMBDAS) -> Chosen:
    """Penalty and rank of maps of the change, by cross-validation. Raises StudyError for fewer than two folds."""
    if len(folds) < 2:
        raise StudyError(f"cross-validation needs two folds or more, given {len(folds)}.")
    whole = merged(folds)
    parts = [_Held.of(whole - fold, fold) for fold in folds]
    errors = torch.stack([sum((part.error(lam) for part in parts), torch.tensor(0.0)) for lam in lambdas])
    best = lambdas[last_least(errors)]
    shares = SHRINK_LESS if 0 < best < float("inf") else (1.0,)
    n = 1 + min(len(part.inputs.singular) for part in parts)
    by_share = {best * share: torch.stack([part.by_rank(best * share, n) / part.held.n for part in parts]) for share in shares}
    lam_of_ranks = min(by_share, key=lambda lam: float(by_share[lam].mean(0).min()))
    by_rank = by_share[lam_of_ranks]
    top = int(by_rank.mean(0).argmin())
    excess = by_rank - by_rank[:, top : top + 1]
    allowed = excess.std(0) / len(folds) ** 0.5
    allowed[0] = allowed[0].clamp_min(WORTH * by_rank[:, 0].mean())
    rank = int((excess.mean(0) <= allowed).nonzero()[0])
    total = sum(float(part.total) for part in parts)
    return Chosen(
        lam=best, rank=rank, errors=by_rank, lam_of_ranks=lam_of_ranks, r2=1 - float(errors.min()) / total if total else float("nan")
    )


@dataclass(frozen=True, kw_only=True)
class _Held:
    """A fit on all folds but one, and the sums of that one about the fit's means."""

    inputs: Decomposed
    projected: Tensor
    held: Moments
    squares: Tensor
    """Held-out inputs' second moments, in the axes of the fit, over s on both sides."""
    cross: Tensor
    """... their products with the change."""
    total: Tensor
    """... the change's sum of squares."""

    @classmethod
    def of(cls, rest: Moments, held: Moments) -> "_Held":
        inputs, projected = rest.decomposed()
        within, xy, _ = held.scatter()
        off_x, off_z = held.mean_x - rest.mean_x, held.mean_difference() - rest.mean_difference()
        xx = within + held.n * torch.outer(off_x, off_x)
        xz = xy - within + held.n * torch.outer(off_x, off_z)
        zz = (held.change_scatter().diagonal() + held.n * off_z.square()).sum()
        axes = inputs.right.T / inputs.singular
        return cls(inputs=inputs, projected=projected, held=held, squares=axes.T @ xx @ axes, cross=axes.T @ xz, total=zz)

    def error(self, lam: float) -> Tensor:
        """Squared error of ridge on the held-out rows."""
        made = self.inputs.shrunk(lam)[:, None] * self.projected
        return self.total - 2 * (self.cross * made).sum() + ((self.squares @ made) * made).sum()

    def by_rank(self, lam: float, n: int) -> Tensor:
        """Squared error at ranks 0 to n - 1; beyond the last axis nothing changes."""
        axes = fitted_axes(self.inputs, self.projected, lam)[:, : n - 1]
        made = (self.inputs.shrunk(lam)[:, None] * self.projected) @ axes
        gained = 2 * ((self.cross @ axes) * made).sum(0) - ((self.squares @ made) * made).sum(0)
        return self.total - torch.nn.functional.pad(gained, (1, n - 1 - len(gained))).cumsum(0)
