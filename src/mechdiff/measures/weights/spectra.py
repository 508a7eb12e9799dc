"""How large is a weight change, of what rank, and is it more than noise? The singular values of the change say it.

With dW = W_tuned - W_base [d_out, d_in] and s_1 >= s_2 >= ... its singular values (their squares sum to ||dW||_F^2):

    spectral_norm       s_1: the most that dW moves any input of norm 1
    stable_rank         ||dW||_F^2 / s_1^2: between 1 (one direction) and min(d_out, d_in) (all alike)
    energy_rank_90      how many of the largest s_i^2 make 90 % of their sum
    numerical_rank      how many s_i stand above what rounding alone would make
    spectral_norm_null  the s_1 of noise of the same size: ||dW||_F (sqrt(d_out) + sqrt(d_in)) / sqrt(d_out d_in). A change near it has no
                        direction of its own; a low-rank one is far above it.

**The threshold of the numerical rank.** The tuned weights are stored rounded, and their rounding errors are in dW with full rank. An error is
spread evenly over one unit in the last place, ulp, so its variance is ulp^2 / 12; three are counted, the weight's own and two in making the
change (a product and its scale). A matrix of independent errors has no singular value above about (largest norm of a row + largest norm
of a column) of their standard deviations (Bandeira & van Handel 2016, arXiv 1408.6185; sqrt(d_out) + sqrt(d_in) where all are alike). Values
above 1.5 times that count: errors are not quite independent, and up to 1.34 was seen over merged LoRAs of rank 1 to 16 in three precisions.
A LoRA merged in float32 shows its exact rank; merged in bfloat16 its small directions sink under the floor (then the rank is too low, not
too high), and the others stand out as a cliff. Weights stored in float32 that are all bfloat16 numbers count as bfloat16. Of factors (an
adapter, unmerged) the rank is that of their product, to float64 rounding.

Matrices with both sides above a limit are not decomposed in full: a block Krylov space (Musco & Musco 2015, arXiv 1504.05477) gives the top of the
spectrum from below, and `error` bounds how far each value can be from a singular value of dW. The Frobenius norm stays exact.

**Intruder dimensions** (Shuttleworth 2024, arXiv 2410.21228): top-k left singular vectors of W_tuned whose largest |cosine| with any left singular
vector of W_base is below epsilon: directions that the fine-tune put among the largest of the matrix. Vectors of nearly equal singular
values mix under any change, so compare with another fine-tune of the same base rather than with 0.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mechdiff.models.adapters import Factors
from mechdiff.models.changes import squared

ENERGY_PERCENTS = (50, 90, 99)
_MARGIN = 1.5
_BLOCK, _STEPS = 24, 8
"""Of the Krylov space: starting vectors and steps; it has _BLOCK * _STEPS dimensions."""


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Singular values of a matrix."""

    values: Float64[Tensor, " rank"]
    """The largest first: all that are not 0 by construction, or the top of them."""
    frobenius: float
    """sqrt of the sum of all squares."""
    complete: bool
    """No value is left out."""
    error: Float64[Tensor, " rank"]
    """A singular value of the matrix lies within this of each value; 0 where the decomposition is complete (rounding aside)."""
    floor: float
    """Values above this are more than rounding."""

    @property
    def stable_rank(self) -> float:
        return self.frobenius**2 / float(self.values[0]) ** 2

    def energy_rank(self, percent: int | float) -> int | None:
        """How many of the largest values make this percentage of the sum of squares; None where it lies beyond the known ones."""
        reached = self.values.square().cumsum(0) >= percent / 100 * self.frobenius**2 * (1 - 1e-12)
        return int(reached.int().argmax()) + 1 if reached.any() else None

    @property
    def numerical_rank(self) -> int | None:
        """How many values stand above the floor; None where that may go on beyond the known ones."""
        above = int((self.values > self.floor).sum())
        return above if self.complete or above < len(self.values) else None


def spectrum(change: Float[Tensor, "d_out d_in"], *, floor: float = 0.0, exact_up_to: int = 1024, top: int = 64) -> Spectrum:
    """The singular values of a matrix: all, in float64, where a side has at most `exact_up_to`; else the `top` largest, in float32."""
    if min(change.shape) > exact_up_to:
        values, error = top_values(change, top)
        floor = max(floor, 16 * torch.finfo(torch.float32).eps * float(values[0]))
        return Spectrum(values=values, frobenius=math.sqrt(squared(change)), complete=False, error=error, floor=floor)
    tall = (change if change.shape[0] >= change.shape[1] else change.T).double()
    square = torch.linalg.qr(tall, mode="r").R if tall.shape[0] > tall.shape[1] else tall
    values = torch.linalg.svdvals(square)
    return Spectrum(values=values, frobenius=math.sqrt(squared(change)), complete=True, error=torch.zeros_like(values), floor=floor)


def spectrum_of_factors(factors: Factors) -> Spectrum:
    """The exact singular values of left @ right, from the QR of the factors: at most `rank` of them, whatever the matrix's size."""
    values = torch.linalg.svdvals(_core(factors)[2])
    floor = float(values[0]) * max(len(factors.left), factors.right.shape[1]) * torch.finfo(torch.float64).eps
    frobenius = float(values.square().sum().sqrt())
    return Spectrum(values=values, frobenius=frobenius, complete=True, error=torch.zeros_like(values), floor=floor)


def _core(factors: Factors) -> tuple[Float64[Tensor, "d_out k"], Float64[Tensor, "d_in k"], Float64[Tensor, "k k"]]:
    """Orthonormal bases of the columns of left and the rows of right, and the product between them."""
    left, right = torch.linalg.qr(factors.left), torch.linalg.qr(factors.right.T)
    return left.Q, right.Q, left.R @ right.R.T


def top_values(change: Float[Tensor, "d_out d_in"], top: int) -> tuple[Float64[Tensor, " rank"], Float64[Tensor, " rank"]]:
    """The `top` largest singular values from below, and for each how far the nearest true one can be; by block Krylov iteration, seeded."""
    _, values, error = _krylov(change.float(), top)
    return values.double(), error.double()


def _krylov(a: Float[Tensor, "d_out d_in"], top: int) -> tuple[Float[Tensor, "d_out rank"], Float[Tensor, " rank"], Float[Tensor, " rank"]]:
    steps = max(_STEPS, math.ceil(2 * top / _BLOCK))
    start = torch.randn(a.shape[1], _BLOCK, generator=torch.Generator().manual_seed(0)).to(a.device)
    basis = torch.linalg.qr(a @ start).Q
    while basis.shape[1] < min(steps * _BLOCK, *a.shape):
        new = a @ (a.T @ basis[:, -_BLOCK:])
        basis = torch.linalg.qr(torch.cat([basis, new / new.norm()], dim=1)).Q
    inner, values, right = torch.linalg.svd(basis.T @ a, full_matrices=False)
    left = (basis @ inner)[:, :top]
    error = (a @ right[:top].T - left * values[:top]).norm(dim=0)
    return left, values[:top], error


# ---- what the values are held against ----------------------------------------------------------------------------------------------


def spectral_norm_null(frobenius: float, d_out: int, d_in: int) -> float:
    """The largest singular value, in the mean, of a matrix of independent entries with this Frobenius norm."""
    return frobenius * (math.sqrt(d_out) + math.sqrt(d_in)) / math.sqrt(d_out * d_in)


def rounding_floor(tuned: Float[Tensor, "d_out d_in"], change: Float[Tensor, "d_out d_in"] | None = None) -> float:
    """The largest singular value that rounding to the precision of these weights can have made: theirs, and twice the change's own."""
    rows, columns = torch.zeros(len(tuned), dtype=torch.float64), torch.zeros(tuned.shape[1], dtype=torch.float64)
    precision = torch.finfo(effective_dtype(tuned))
    chunk = max(1, (1 << 22) // max(1, tuned.shape[1]))
    for first in range(0, len(tuned), chunk):
        squares = _ulp(tuned[first : first + chunk], precision).square()
        if change is not None:
            squares += 2 * _ulp(change[first : first + chunk], precision).square()
        rows[first : first + chunk] = squares.sum(1, dtype=torch.float64) / 12
        columns += squares.sum(0, dtype=torch.float64) / 12
    return _MARGIN * (math.sqrt(float(rows.max())) + math.sqrt(float(columns.max())))


def _ulp(values: Float[Tensor, "d_out d_in"], precision: torch.finfo) -> Float[Tensor, "d_out d_in"]:
    """One unit in the last place of each value, were it stored in this precision."""
    exponent_bits = values.float().contiguous().view(torch.int32) & 0x7F800000
    return exponent_bits.view(torch.float32).clamp(min=precision.tiny) * precision.eps


def effective_dtype(tensor: Float[Tensor, "..."]) -> torch.dtype:
    """The coarsest of bfloat16, float16 and the tensor's own dtype that holds all its values exactly."""
    for dtype in (torch.bfloat16, torch.float16):
        if tensor.dtype == dtype or torch.equal(tensor.to(dtype).to(tensor.dtype), tensor):
            return dtype
    return tensor.dtype


def intruder_dimensions(base: Float[Tensor, "d_out d_in"], tuned: Float[Tensor, "d_out d_in"], *, k: int = 10, epsilon: float = 0.5) -> int:
    """How many of the top k left singular vectors of `tuned` have |cosine| below epsilon with every left singular vector of `base`."""
    ours, theirs = _left_vectors(base.double()), _left_vectors(tuned.float())[:, :k].double()
    return int(((ours.T @ theirs).abs().amax(0) < epsilon).sum())


def _left_vectors(m: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "d_out rank"]:
    """Left singular vectors, the largest value's first, from the smaller Gram matrix; those of values lost in its rounding left out.

    In float64 these are values under 1e-7 of the largest, in float32 (where only the first vectors are wanted) 3e-3.
    """
    lost = 1e-14 if m.dtype == torch.float64 else 1e-5
    if m.shape[0] <= m.shape[1]:
        squares, vectors = torch.linalg.eigh(m @ m.T)
        return vectors.flip(1)[:, squares.flip(0) > lost * squares[-1]]
    squares, vectors = torch.linalg.eigh(m.T @ m)
    kept = squares > lost * squares[-1]
    return (m @ (vectors[:, kept] / squares[kept].sqrt())).flip(1)


def left_directions(
    change: Float[Tensor, "d_out d_in"] | Factors, k: int, *, exact_up_to: int = 1024
) -> tuple[Float[Tensor, "d_out rank"], Float[Tensor, " rank"]]:
    """The top k left singular vectors of a change, and their singular values."""
    if isinstance(change, Factors):
        left, _, core = _core(change)
        inner, values, _ = torch.linalg.svd(core)
        return (left @ inner)[:, :k], values[:k]
    if min(change.shape) > exact_up_to:
        vectors, values, _ = _krylov(change.float(), k)
        return vectors, values
    vectors, values, _ = torch.linalg.svd(change.double(), full_matrices=False)
    return vectors[:, :k], values[:k]
