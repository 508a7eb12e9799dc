"""How many dimensions does the change have?

At one site D = Y - X is the change of the state from base to tuned. Reduced-rank regression (Izenman 1975) asks for the matrix of rank k that
predicts most of it from the state,

    argmin over rank(B) <= k of |D - mean D - (X - mean X) B|^2,

by cross-validation on the training split: the rank is the smallest k whose error is within one standard error of the best (regression.py). A
constant shift is free, so an added bias has rank 0, a rank-2 edit of W_O has rank 2 at that block's `attn_out`. Two numbers stand beside it:

    rank_uncentred   the mean change counted as a direction too: 0 for no change, 1 for a bias, and 1 for one direction written with a strength
                     that varies from prompt to prompt, if its mean stands out, whether or not the state predicts how
    the causal curve what maps of rank 0, 1, 2, 4, ... do in the running model: how many dimensions does the *behaviour* need? `rank_truncated`
                     is the older recipe (the largest singular values of the coefficients, which are not what fits best), and unit `fisher`
                     chooses dimensions by what they do to the next-token distribution: the error in the metric F = J'(diag p - pp')J (gradients.py)

r2_change is a share of the change's variance; `r2_change_cv` is 1 - error(k) / error(0), both cross-validated, so 0 at rank 0.

When it misleads: with N prompts no rank above `rank_limit` (the rows of the smallest training fold, less one) can be seen, so a rank near it is
that of the prompts and not of the change; few prompts make small directions invisible (read the curve, not the number); rank 0 says that the state
does not predict the change, not that it is the same on every prompt: `change_varying_squared` over `change_squared` is the share of it that varies;
the rank of the change at a site late in the network is that of everything upstream; a subspace patch can also reach paths that the model does not
use (Makelov 2023, arXiv 2311.17030): the random subspaces of the same size and the same written norm say what that is worth.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mechdiff.maps.affine import ROUNDING, Affine
from mechdiff.maps.anchored import Pairs, anchored, differs
from mechdiff.maps.maps import Map, check_ranks
from mechdiff.maps.regression import cross_validated, decompose, fitted_axes, ridge, strongest_axes
from mechdiff.measures.transport.formula import Sample
from mechdiff.rows import rows

FISHER_FLOOR = 1e-3
"""Directions that the law does not feel still count so much of the mean one."""


def ranks(full: int) -> list[int]:
    """0, 1, 2, 4, 8, ... and `full`."""
    doubling = [0, *(2**i for i in range(full.bit_length()) if 2**i < full)]
    return [*doubling, full] if full else [0]


def rank_uncentred(sample: Sample, *, seed: int = 0) -> int:
    """The rank of the change with its mean counted as a direction: cross-validated, by the one-standard-error rule."""
    tuned = sample.tuned.double()
    change = tuned - sample.base.double()
    if change.norm() <= ROUNDING * tuned.norm():
        return 0
    return cross_validated(sample.base, change, sample.groups, seed=seed, uncentred=True).rank_one_se


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What is explained of the change at each rank."""

    ranks: list[int]
    train: list[float]
    held_out: list[float]
    cross_validated: list[float]
    standard_error: list[float]
    """Of `cross_validated`, over prompts."""
    chosen: int
    best: int
    limit: int
    """The largest rank that so many fit prompts can show."""


def curve(fit: Sample, report: Sample, *, seed: int = 0) -> Curve:
    """r2 of the change by rank, on the fit rows, in cross-validation and on the report rows; NaN at rank 0 where the change does not vary."""
    if not differs(fit.tuned.double() - fit.base.double(), fit.tuned.double()):
        none = [float("nan")]
        return Curve(ranks=[0], train=none, held_out=none, cross_validated=none, standard_error=none, chosen=0, best=0, limit=0)
    change, held_out = fit.tuned.double() - fit.base.double(), report.tuned.double() - report.base.double()
    found = cross_validated(fit.base, change, fit.groups, seed=seed)
    inputs = decompose(fit.base)
    assert inputs.left is not None
    projected = inputs.left.T @ (change - change.mean(0))
    axes = fitted_axes(inputs, projected, found.lambda_of_ranks)
    left, right = ridge(inputs, projected, found.lambda_of_ranks)
    most = min(axes.shape[1], len(found.errors_by_rank) - 1)
    asked = sorted({*ranks(most), min(found.rank_one_se, most)})

    def explained(states: Tensor, target: Tensor) -> list[float]:
        along = ((states.double() - inputs.mean) @ left) @ (right @ axes)
        rest = target - change.mean(0)
        gained = ((2 * rest @ axes - along) * along).sum(0).cumsum(0)
        total = (target - target.mean(0)).square().sum()
        return [float((total - rest.square().sum() + (gained[k - 1] if k else 0)) / total) for k in asked]

    at_zero = found.errors_by_rank[0]
    less = (found.errors_of_prompts[:, :1] - found.errors_of_prompts) / at_zero
    return Curve(
        ranks=asked, train=explained(fit.base, change), held_out=explained(report.base, held_out),
        cross_validated=less.mean(0)[asked].tolist(), standard_error=(less.std(0) / len(less) ** 0.5)[asked].tolist(),
        chosen=found.rank_one_se, best=found.rank_best, limit=found.rank_limit,
    )  # fmt: skip


def varying(fit: Sample, report: Sample) -> tuple[Float64[Tensor, " prompt"], Float64[Tensor, " prompt"]]:
    """|d|^2 of each report prompt's change d, and what of it is not the mean change m of the fit prompts: n / (n + 1) |d - m|^2 for n of them.

    The factor takes off what the mean of n prompts errs by, so that a ratio of the two means is the share of the change that varies from prompt to
    prompt, whether or not the state predicts how: 0 for a constant vector.
    """
    mean = (fit.tuned.double() - fit.base.double()).mean(0)
    change, n = report.tuned.double() - report.base.double(), len(fit.base)
    return change.square().sum(-1), n / (n + 1) * (change - mean).square().sum(-1)


# ---- maps of each rank -------------------------------------------------------------------------------------------------------------


def fisher_weighted(pairs: Pairs, gradients: Float[Tensor, "draw d"], lam: float, asked: Sequence[int]) -> Iterator[tuple[int, Affine]]:
    """Maps of the `asked` ranks, each with its rank, that fit best in the Fisher metric of `gradients`: B W V_k V_k' W^-1, W = F^(1/2).

    Rank 0, and ranks beyond what was fitted, are left out; all are where the gradients are 0: no direction counts more than another then.
    """
    g = gradients.double()[:, pairs.kept[1]]
    values, vectors = torch.linalg.eigh(g @ g.T / len(g))
    kept = values > values[-1] * len(g) * torch.finfo(torch.float64).eps
    along = (g.T @ vectors[:, kept]) / (values[kept] * len(g)).sqrt()
    floor = FISHER_FLOOR * float(values[kept].sum()) / g.shape[1]
    if not floor:
        return

    def times(table: Tensor, power: float) -> Tensor:
        """table (F + floor)^power, F known on a few directions."""
        inside = table @ along
        return floor**power * table + (inside * ((values[kept] + floor) ** power - floor**power)) @ along.T

    left, right = ridge(pairs.decomposed, pairs.projected, lam)
    axes = strongest_axes(times(pairs.decomposed.shrunk(lam).sqrt()[:, None] * pairs.projected, 0.5))
    weighted, back = times(right, 0.5), times(axes.T, -0.5)
    for k in asked:
        if 1 <= k <= axes.shape[1]:
            yield k, anchored(pairs, left @ (weighted @ axes[:, :k]), back[:k])


def agreement(gradients: Float[Tensor, "draw d"]) -> float:
    """Cosine of the Fisher metrics of the first and the second half of the gradients, of other prompts: 1 where the metric has converged."""
    one, other = gradients.double().tensor_split(2)
    sizes = (one @ one.T).norm() * (other @ other.T).norm()
    return float((one @ other.T).square().sum() / sizes) if sizes else float("nan")


@dataclass(frozen=True, kw_only=True)
class RankedMap:
    """One map of the causal curve."""

    arm: str
    rank: int
    unit: str | None
    transform: Any
    """States to states."""


def curve_maps(fit: Sample, gradients: Float[Tensor, "draw d"] | None, *, seed: int = 0) -> list[RankedMap]:
    """Maps of each rank at one site: `rrr` from rank 0, and from rank 1 `rank_truncated` and the Fisher-weighted ones. Only rank 0 without variance.

    A rank is measured: a map of other than so many dimensions is left out.

    Raises StudyError (rank_not_applied) if a map has another rank than it is for.
    """
    pairs = Pairs.of(fit.base, fit.tuned, fit.groups)
    if not differs(pairs.change, pairs.target):
        return [RankedMap(arm="rrr", rank=0, unit=None, transform=Map("shift").fit_pairs(pairs).transform)]
    lam = cross_validated(pairs.source, pairs.change, pairs.groups, seed=seed).lambda_of_ranks
    if lam == float("inf"):  # nothing is predicted: show what the least shrunk maps do
        lam = 1.0
    asked = ranks(fitted_axes(pairs.decomposed, pairs.projected, lam).shape[1])
    found = []
    for arm in ("rrr", "rank_truncated"):
        maps = {k: Map(arm, rank=k, lam=lam).fit_pairs(pairs) for k in asked if k or arm == "rrr"}
        check_ranks(maps)
        found += [RankedMap(arm=arm, rank=k, unit=None, transform=one.transform) for k, one in maps.items() if one.rank_ == k]
    if gradients is not None and gradients.any():
        for k, thin in fisher_weighted(pairs, gradients, lam, asked):
            one = thin.embedded(*pairs.kept, *pairs.means)
            found += [RankedMap(arm="rrr", rank=k, unit="fisher", transform=one)] if one.rank_of_change() == k else []
    return found


# ---- the measure -------------------------------------------------------------------------------------------------------------------


def measure(
    fit: Sequence[Sample], report: Sequence[Sample], *, layers: Sequence[int], kind: str, prompt_ids: Sequence[str], seed: int = 0
) -> pl.DataFrame:
    """Rows for each of `layers` at one kind of site; `fit` and `report` hold one sample for each layer, report a row for each of `prompt_ids`."""
    frames = []
    for layer, fit_sample, report_sample in zip(layers, fit, report, strict=True):
        at = {"measure": "rank", "layer": layer, "site": kind, "arm": "rrr", "direction": "tuned<-base"}
        found = curve(fit_sample, report_sample, seed=seed)
        by_rank = {("fit", "r2_change"): found.train, ("report", "r2_change"): found.held_out,
                   ("fit", "r2_change_cv"): found.cross_validated, ("fit", "r2_change_cv_se"): found.standard_error}  # fmt: skip
        frames += [rows(values, **at, split=split, metric=metric, rank=found.ranks) for (split, metric), values in by_rank.items()]
        numbers = {"rank_chosen": found.chosen, "rank_best": found.best, "rank_uncentred": rank_uncentred(fit_sample, seed=seed)}
        numbers |= {"rank_limit": found.limit, "rank_prompts": len(fit_sample.groups.unique())}
        frames += [rows([float(value)], **at, split="fit", metric=metric) for metric, value in numbers.items()]
        for metric, squares in zip(("change_squared", "change_varying_squared"), varying(fit_sample, report_sample), strict=True):
            frames.append(rows(squares.numpy(), **at, split="report", metric=metric, prompt=list(prompt_ids)))
    return pl.concat(frames)
