"""These are the maps of other studies, which run only where a study file names them.

Not anchored: they predict the target itself, so with few rows they fail even where the two models are one. Each says so below five rows for each
feature, and gives the held-out R2 that it reaches between the source and itself (1 for an estimator that can be believed).

    ridge                 ridge regression of the target (lambda by cross-validation)
    standardised_ridge    the same between standardised states: each side less its mean, over its standard deviation, feature by feature
    pca                   least squares between the top q principal components of both
    procrustes            the rotation and scale of least squares (Schoenemann 1966), between widths that may differ
    whitened_procrustes   whiten, rotate, scale, colour: covariances shrunk towards a multiple of the identity, eigenvalues kept above a floor

The last two may be cut: fitted between the top `cut` principal components of each side, the target's mean elsewhere. A cut map is no low-rank change:
from the source to itself it is the projection on those components, which takes away what lies outside.

Anchored, with a further idea:

    logit_subspace        ridge of the change, of which only the part inside the top q directions of an unembedding is written; with
                          mode="interchange" nothing is learned: the other model's state inside them, the running model's own outside
    per_cluster           for each k-means cluster of the fit states the whole set's anchored ridge, plus a ridge of what that leaves there:
                          it shrinks to the whole set's map. Small clusters use that map as it is
    rank_truncated        the coefficients of the anchored ridge cut to their k largest singular values (not those of what they fit), then scaled
    rescaled              the anchored ridge, its centred output scaled to the target's variance on the fit split
    norm_matched          the anchored ridge, each output scaled to the norm of its input times mean |Y| / mean |X|
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Float64
from scipy.cluster.vq import kmeans2
from torch import Tensor

from mechdiff.errors import StudyError
from mechdiff.maps.affine import Affine
from mechdiff.maps.anchored import Fit, Pairs, anchored, anchored_ridge, few_rows, folds
from mechdiff.maps.regression import cross_validated, decompose, ridge

ENOUGH = 5
"""Rows for each feature from which an unanchored map can be believed."""

MODES = ("ridge", "interchange")
SMALL_CLUSTER = 16
"""A cluster with fewer rows gets no map of its own."""


def _judged(pairs: Pairs, solve: Callable[[Pairs], Affine], lam: float | None = None) -> Fit:
    """What an unanchored family finds, its score between the source and itself, and a warning where the rows are few."""
    n, d = pairs.source.shape
    score = identical_score(pairs, solve)
    said = f"{n} rows for {d} features: a map that is not anchored needs {ENOUGH} each; from the source to itself its held-out R2 is {score:.2f}"
    return Fit(affines=(solve(pairs),), lam=lam, warnings=(said,) if n < ENOUGH * d else (), identical_score=score)


def identical_score(pairs: Pairs, solve: Callable[[Pairs], Affine]) -> float:
    """Held-out R2 between the source and itself, over the folds; NaN if nothing varies."""
    error = total = 0.0
    for held, rest in folds(pairs) if pairs.source.shape[1] else ():
        part = Pairs.of(pairs.source[rest], pairs.source[rest], pairs.groups[rest])
        one = solve(part).embedded(*part.kept, *part.means)
        error += float((one(pairs.source[held]) - pairs.source[held]).square().sum())
        total += float((pairs.source[held] - pairs.source[rest].mean(0)).square().sum())
    return 1 - error / total if total else float("nan")


def _linear(pairs: Pairs, left: Float64[Tensor, "d_source rank"], right: Float64[Tensor, "rank d_target"]) -> Affine:
    return Affine(mean_in=pairs.mean_source, mean_out=pairs.mean_target, diagonal=None, left=left, right=right)


def _projected_target(pairs: Pairs) -> Tensor:
    assert pairs.decomposed.left is not None
    return pairs.decomposed.left.T @ (pairs.target - pairs.mean_target)


def plain_ridge(pairs: Pairs, lam: float | None = None) -> Fit:
    lam = cross_validated(pairs.source, pairs.target, pairs.groups).lambda_ if lam is None else lam
    return _judged(pairs, lambda part: _linear(part, *ridge(part.decomposed, _projected_target(part), lam)), lam)


def standardised_ridge(pairs: Pairs, lam: float | None = None) -> Fit:
    """Every feature counts alike, however wide it is: on the source's side for the penalty, on the target's for the choice of it."""

    def standardised(part: Pairs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        spread, spread_target = part.source.std(0, correction=0), part.target.std(0, correction=0)
        return (part.source - part.mean_source) / spread, (part.target - part.mean_target) / spread_target, spread, spread_target

    def solve(part: Pairs) -> Affine:
        x, y, spread, spread_target = standardised(part)
        found = decompose(x)
        assert found.left is not None
        left, right = ridge(found, found.left.T @ y, penalty)
        return _linear(part, left / spread[:, None], right * spread_target)

    penalty = cross_validated(*standardised(pairs)[:2], pairs.groups).lambda_ if lam is None else lam
    return _judged(pairs, solve, penalty)


def pca(pairs: Pairs, q: int = 64) -> Fit:
    def solve(part: Pairs) -> Affine:
        axes, kept = decompose(part.target).right[:q], slice(0, q)
        left = part.decomposed.right[kept].T / part.decomposed.singular[kept]
        return _linear(part, left, (_projected_target(part)[kept] @ axes.T) @ axes)

    return _judged(pairs, solve)


def procrustes(pairs: Pairs, cut: int | None = None) -> Fit:
    def solve(part: Pairs) -> Affine:
        one, other = part.decomposed, decompose(part.target)
        assert one.left is not None
        assert other.left is not None
        inner = one.singular[:cut, None] * (one.left[:, :cut].T @ other.left[:, :cut]) * other.singular[:cut]
        u, values, vh = torch.linalg.svd(inner, full_matrices=False)
        scale = values.sum() / one.singular[:cut].square().sum()
        return _linear(part, one.right[:cut].T @ u * scale, vh @ other.right[:cut])

    return _cut(_judged(pairs, solve), pairs, cut)


def whitened_procrustes(pairs: Pairs, shrinkage: float = 0.1, floor: float = 1e-3, cut: int | None = None) -> Fit:
    def solve(part: Pairs) -> Affine:
        x, y = part.source - part.mean_source, part.target - part.mean_target
        if not x.any() or not y.any():  # nothing to whiten: the mean
            return _linear(part, x.new_zeros(x.shape[1], 0), x.new_zeros(0, x.shape[1]))
        if cut is None:
            return _linear(part, *_whitened(x, y, shrinkage, floor))
        axes, axes_target = part.decomposed.right[:cut], decompose(part.target).right[:cut]
        kept = min(len(axes), len(axes_target))
        left, right = _whitened(x @ axes[:kept].T, y @ axes_target[:kept].T, shrinkage, floor)
        return _linear(part, axes[:kept].T @ left, right @ axes_target[:kept])

    return _cut(_judged(pairs, solve), pairs, cut)


def _cut(found: Fit, pairs: Pairs, cut: int | None) -> Fit:
    """With a warning where the states have fewer principal components than were asked for."""
    spanned = min(len(pairs.decomposed.singular), len(decompose(pairs.target).singular)) if cut else 0
    if not cut or cut <= spanned:
        return found
    return replace(
        found, warnings=(f"cut at {cut} principal components, of which the states it is fitted on have {spanned}", *found.warnings)
    )


def _whitened(
    x: Float64[Tensor, "row d"], y: Float64[Tensor, "row d"], shrinkage: float, floor: float
) -> tuple[Float64[Tensor, "d rank"], Float64[Tensor, "rank d"]]:
    """The two factors of the map between centred states."""
    n, d = x.shape
    basis = torch.linalg.qr(torch.cat([x, y]).T).Q if 2 * n < d else torch.eye(d, dtype=torch.float64)
    x, y = x @ basis, y @ basis
    whiten, _ = _roots(x, d, shrinkage, floor)
    whiten_target, colour = _roots(y, d, shrinkage, floor)
    u, values, vh = torch.linalg.svd(whiten @ x.T @ y @ whiten_target)
    scale = values.sum() / (x @ whiten).square().sum()
    return basis @ whiten @ u * scale, vh @ colour @ basis.T


def _roots(centred: Tensor, d: int, shrinkage: float, floor: float) -> tuple[Tensor, Tensor]:
    """The inverse square root and the square root of the shrunk covariance; `d` is the width that its mean variance is over."""
    covariance = centred.T @ centred / max(1, len(centred) - 1)
    values, vectors = torch.linalg.eigh((1 - shrinkage) * covariance)
    values = (values + shrinkage * covariance.trace() / d).clamp_min(floor * values[-1])
    return vectors / values.sqrt() @ vectors.T, vectors * values.sqrt() @ vectors.T


def logit_directions(readout: Float[Tensor, "vocab d"], q: int) -> Float64[Tensor, "d q"]:
    """The q directions of the residual stream that an unembedding reads most: its top right singular vectors, orthonormal."""
    gram = sum(
        (part.double().T @ part.double() for part in readout.split(1 << 14)), torch.zeros(readout.shape[1], readout.shape[1]).double()
    )
    return torch.linalg.eigh(gram).eigenvectors[:, -q:]


def logit_subspace(pairs: Pairs, directions: Tensor | None = None, lam: float | None = None, mode: str = "ridge") -> Fit:
    """`directions` `[d, q]`: see `logit_directions`. Of an interchange, the projection onto them is all there is."""
    if mode not in MODES:
        raise StudyError(f"map logit_subspace: given mode {mode!r}, expected one of: {', '.join(MODES)}.")
    d = len(pairs.kept[0])
    if directions is None or len(directions) != d:
        given = "none" if directions is None else f"directions of width {len(directions)}"
        raise StudyError(f"map logit_subspace: given {given}, expected directions of the unembedding for states of width {d}.")
    if mode == "interchange":
        zero, given_directions = torch.zeros(d, dtype=torch.float64), directions.double()
        return Fit(affines=(Affine(mean_in=zero, mean_out=zero, diagonal=None, left=given_directions, right=given_directions.T),))
    inside = directions[pairs.kept[0]]
    found = anchored_ridge(pairs, lam)
    [one] = found.affines
    return replace(found, affines=(anchored(pairs, one.left, (one.right @ inside) @ inside.T),))


def per_cluster(pairs: Pairs, k: int = 4, seed: int = 0) -> Fit:
    whole = anchored_ridge(pairs)
    if len(pairs.source) < 2 * SMALL_CLUSTER:
        said = f"{len(pairs.source)} rows are too few for clusters of {SMALL_CLUSTER}: one map of all rows"
        return replace(whole, warnings=(said, *whole.warnings))
    means, members = kmeans2(pairs.source.numpy(), k, minit="++", seed=seed)
    labels, affines, small = torch.from_numpy(members).long(), [], 0
    for cluster in range(k):
        rows = (labels == cluster).nonzero()[:, 0]
        if len(rows) < SMALL_CLUSTER:
            small += 1
            affines.append(whole.affines[0])
            continue
        affines.append(_refined(pairs, whole.affines[0], rows))
    centres = pairs.means[0].expand(k, -1).clone()
    centres[:, pairs.kept[0]] = torch.from_numpy(means)
    said = f"{small} of {k} clusters have fewer than {SMALL_CLUSTER} rows and get the map of all rows"
    return Fit(affines=tuple(affines), lam=whole.lam, centres=centres, warnings=((said,) if small else ()) + few_rows(pairs))


def _refined(pairs: Pairs, whole: Affine, rows: Tensor) -> Affine:
    """The whole set's map plus an anchored ridge of what it leaves of these rows: at an infinite penalty, their mean error."""
    source = pairs.source[rows]
    part = Pairs.of(source, source + pairs.target[rows] - whole(source), pairs.groups[rows])
    more = anchored_ridge(part).affines[0].embedded(*part.kept, *part.means)
    mean_out = whole(more.mean_in) + more.mean_out - more.mean_in
    left, right = torch.cat([whole.left, more.left], 1), torch.cat([whole.right, more.right])
    return Affine(mean_in=more.mean_in, mean_out=mean_out, diagonal=whole.diagonal, left=left, right=right)


def rank_truncated(pairs: Pairs, rank: int | None = None, lam: float | None = None) -> Fit:
    lam = pairs.validated.lambda_of_ranks if lam is None else lam
    rank = pairs.validated.rank_one_se if rank is None else rank
    left, right = ridge(pairs.decomposed, pairs.projected, lam)
    q, r = torch.linalg.qr(left)
    u, values, vh = torch.linalg.svd(r @ right, full_matrices=False)
    left, right = q @ u[:, :rank], values[:rank, None] * vh[:rank]
    fitted = (pairs.source - pairs.mean_source) @ left @ right
    size = float(fitted.square().sum())
    scale = float((fitted * pairs.varying).sum()) / size if size else 1.0
    return Fit(affines=(anchored(pairs, left, scale * right),), lam=lam, warnings=few_rows(pairs))


def rescaled(pairs: Pairs, lam: float | None = None) -> Fit:
    found = anchored_ridge(pairs, lam)
    [one] = found.affines
    spread = (one(pairs.source) - pairs.mean_target).square().sum()
    scale = float(((pairs.target - pairs.mean_target).square().sum() / spread).sqrt()) if spread else 1.0
    return replace(found, affines=(anchored(pairs, one.left, scale * one.right, scale),))


def norm_matched(pairs: Pairs, lam: float | None = None) -> Fit:
    found = anchored_ridge(pairs, lam)
    ratio = pairs.norms[1] / pairs.norms[0] if pairs.norms[0] else 1.0
    return replace(found, norm_ratio=float(ratio))
