"""Can a linear map of activations carry the change from one model to the other?

At one site, x is the base's activation on a prompt and y the tuned model's activation on the same. A map T is fitted on the training split
(maps.py) and asked two questions that must not be mixed (Lenc & Vedaldi 2015; Csiszárik 2021; direct matching: Balogh & Jelasity 2025, arXiv
2412.11299):

    KL with the map, tuned<-base   KL(p_tuned || p_tuned[site <- T(x)]) in nats         0: the map found the tuned activation
    recovery, base<-base           1 - KL(p_tuned || p_base[site <- T(x)]) / D          1: the base, mapped, predicts as the tuned model does

and `tuned<-tuned` patches the map back, fitted from tuned to base, into the tuned model: it should remove the change. With tuned<-base the
condition `identity` patches in x itself (KL_raw, which over D is patching's KL increase); with base<-base it patches in what is there already and
recovers nothing. The ceiling of recovery is the tuned activation itself, patched into the base (`base<-tuned`, identity).

**Strength** s patches in own + s (T(x) - own), own being the running model's clean activation: 0 changes nothing, 1 is the map. Near 0 the KL grows
as s^2 for any map, so that "a weaker patch does less harm" is no finding about a map.

How well T fits, on the prompts it was fitted on and on others:

    r2             1 - |Y - T(X)|^2 / |Y - mean Y|^2         of the activations: near 1 for the identity already, where a fine-tune changed little
    r2_change      1 - |Y - T(X)|^2 / |D - mean D|^2         of the change D = Y - X: 0 for a constant shift, NaN where D does not vary
    cosine         of T(x) and y; `cosine_centred` both less the mean of y; `cosine_of_mean` of y and that mean: what no map explains
    cka_mapped     debiased CKA of T(X) and Y (blind to rotations, scale and shift: similarity.py)
                   Beside both: the condition `resample`, the tuned activation of another prompt: the tuned mean and covariance, nothing more
    norm_ratio     mean |T(x)| / mean |y|
    cycle_error    |T_back(T(X)) - X| / |X - mean X|

A map is a finding only if it beats the best of identity, shift and mean on prompts that it has not seen, beats refits with the changes permuted
against the activations (control `permuted`), and its own layer beats the map of another one patched there (`bogus_map`).

When it misleads: with fewer rows than dimensions a map sees the change only inside the span of its activations; and a patched-in activation of
small error may still leave the path that the model reads (Makelov 2023, arXiv 2311.17030): compare with `random_subspace`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from mechdiff.engine.counterfactuals import donors
from mechdiff.maps.anchored import Pairs, differs
from mechdiff.maps.maps import Map
from mechdiff.maps.refits import exchanged, permutations, permuted_r2
from mechdiff.maps.regression import Examples
from mechdiff.measures.similarity import formula as similarity_formula

TRIVIAL = ("identity", "shift", "mean")
"""Maps that learn nothing about the single prompt."""

PROCRUSTES_SHARE = 10
"""One permutation refit of Procrustes for so many of the regressions."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """States of both models at one site; row by row the same place of the same prompt."""

    base: Float[Tensor, "row d_base"]
    tuned: Float[Tensor, "row d_tuned"]
    groups: Int[Tensor, " row"]
    """Which source item a row is of: prompts of one cluster, and all positions of a prompt, are in one group."""

    @property
    def change(self) -> Float64[Tensor, "row d"]:
        """From base to tuned, of models of one width."""
        return self.tuned.double() - self.base.double()

    @property
    def examples(self) -> Examples:
        """Of the change by the base's state."""
        return Examples(inputs=self.base, targets=self.change, groups=self.groups)


@dataclass(frozen=True, kw_only=True)
class Maps:
    """The fitted maps of one site by arm, both ways."""

    there: dict[str, Map]
    """From base to tuned."""
    back: dict[str, Map]
    """From tuned to base."""


def fit_maps(
    arms: Sequence[str],
    fit: Sample,
    select: Sample | None,
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    back: bool = True,
    seed: int = 0,
) -> Maps:
    """The arms fitted on `fit`; some choose a penalty on `select`. `settings` are constructor arguments by arm."""

    def fitted(source: str, target: str) -> dict[str, Map]:
        sides = {"base": fit.base, "tuned": fit.tuned}
        chosen_on = None if select is None else (getattr(select, source), getattr(select, target))
        pairs = Pairs.of(sides[source], sides[target], fit.groups, chosen_on, seed=seed)
        return {arm: Map(arm, **(settings or {}).get(arm, {})).fit_pairs(pairs) for arm in arms}

    return Maps(there=fitted("base", "tuned"), back=fitted("tuned", "base") if back else {})


def quality(
    mapped: Float[Tensor, "row d"],
    source: Float[Tensor, "row d_source"],
    target: Float[Tensor, "row d"],
    mean_target: Float64[Tensor, " d"],
) -> dict[str, Float64[Tensor, "..."]]:
    """`r2`, `r2_change`, `cosine_of_mean`, `cka_mapped`, `norm_ratio`, and by row `cosine`, `cosine_centred`; `mean_target` of the fit split."""
    mapped, source, target = mapped.double(), source.double(), target.double()
    error = (target - mapped).square().sum()
    change = target - source if source.shape == target.shape else torch.full_like(target, torch.nan)

    def varies(states: Tensor) -> Tensor:
        total = (states - states.mean(0)).square().sum()
        return total if differs(states, target) else torch.full_like(total, torch.nan)

    return {
        "r2": 1 - error / varies(target),
        "r2_change": 1 - error / varies(change),
        "cosine_of_mean": _cosine(target, mean_target.expand_as(target)).mean(),
        "cka_mapped": torch.tensor(similarity_formula.linear_cka(mapped, target), dtype=torch.float64),
        "norm_ratio": mapped.norm(dim=-1).mean() / target.norm(dim=-1).mean(),
        "cosine": _cosine(mapped, target),
        "cosine_centred": _cosine(mapped - mean_target, target - mean_target),
    }


def _cosine(a: Float64[Tensor, "row d"], b: Float64[Tensor, "row d"]) -> Float64[Tensor, " row"]:
    """NaN where either is zero."""
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def cycle_error(there: Map, back: Map, states: Float[Tensor, "row d"]) -> float:
    """How far a state is from itself after both maps, as a share of how far states are from their mean; NaN for a single state."""
    states = states.double()
    spread = (states - states.mean(0)).norm()
    return float((back.transform(there.transform(states)) - states).norm() / spread) if spread else math.nan


def permuted_quality(fitted: Map, fit: Sample, test: Sample, *, draws: int, seed: int) -> list[float]:
    """r2 of the change on `test` of refits of a map from base to tuned whose changes were permuted among the prompts of `fit`.

    None for families without such a null, or one prompt.
    """
    if len(fit.groups.unique()) < 2:
        return []
    if fitted.family in ("anchored_ridge", "rrr"):
        rank = fitted.rank_ if fitted.family == "rrr" else None
        return [float(r2) for r2 in permuted_r2(fit.examples, test.examples, draws=draws, seed=seed, rank=rank)]
    if fitted.family == "anchored_procrustes":
        return list(_permuted_procrustes(fitted, fit, test, draws=max(1, draws // PROCRUSTES_SHARE), seed=seed))
    return []


def _permuted_procrustes(fitted: Map, fit: Sample, test: Sample, *, draws: int, seed: int) -> Iterator[float]:
    change = fit.change
    for order in permutations(fit.groups, draws, seed):
        refitted = Map("anchored_procrustes", lam=fitted.lambda_).fit(fit.base, fit.base.double() + change[order], groups=fit.groups)
        yield float(
            quality(refitted.transform(test.base), test.base, test.tuned, torch.zeros(change.shape[1], dtype=torch.float64))["r2_change"]
        )


def others_rows(clusters: Sequence[object], rows_per_prompt: int, *, seed: int) -> Int[Tensor, " row"]:
    """Row numbers with whole prompts exchanged so that each gets the rows of a prompt of another cluster."""
    return exchanged(torch.arange(len(clusters)).repeat_interleave(rows_per_prompt), torch.tensor(donors(clusters, seed)))


def projected_at_random(change: Float[Tensor, "*row d"], rank: int, *, seed: int) -> Float[Tensor, "*row d"]:
    """The written change seen in a random subspace of `rank` dimensions, at its own norm: what any subspace of that size would do."""
    d = change.shape[-1]
    basis = torch.linalg.qr(torch.randn(d, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    inside = change.double() @ basis @ basis.T
    size = change.double().norm(dim=-1, keepdim=True) / inside.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return (inside * size).to(change.dtype)
