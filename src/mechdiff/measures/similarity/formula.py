"""Where do the two models' activations differ, and is the difference more than a change of basis?

X and Y hold the two models' states at one site, a row for each prompt; K = XXᵀ and L = YYᵀ say how alike prompts look to each model.

- `cka`: linear CKA, the cosine of K and L once their own means are taken out. 1: prompts lie alike up to rotation, scale and shift.
  0: as alike as for unrelated models. **Debiased**: K and L lose their diagonal and are *U-centred* (Székely & Rizzo 2014; Song 2012,
  Nguyen 2021), which makes the inner product the unbiased HSIC₁. A small negative value is legal and means 0; it is never clipped.
- `cka_biased`: the same with the diagonals left in, as most papers report it. With fewer prompts than dimensions it is near 1 whatever
  the models: over random pairings of prompts its mean is exactly √(PR_base · PR_tuned)/(N−1).
- `cka_without_top3`: `cka` without the three coordinates of largest variance (as shares of each model's whole variance, added; the same three in
  both models, or each model's own where their widths differ). A network may have a coordinate that is a hundred times as wide as the others
  and hardly read: it alone makes `cka`, whatever the rest does. Layers for selection are chosen by this value.
- `cka_normed`: `cka` of what the model reads there: each model's states after its own norm that reads the site (`engine/norms.py` says which). Only
  of the residual stream, at the last prompt token, where both models have such a norm.
- `participation_ratio_base`, `_tuned`: PR = (Σλ)²/Σλ² over the eigenvalues of the states' sample covariance: how many directions they
  use, between 1 and N−1. A PR near N says that N, not the model, limits what is seen.
- `procrustes_distance`: ‖XQ − Y‖ for the best rotation Q, both centred and of unit norm; 0 for the same shape, at most √2. More
  sensitive than CKA (Ding 2021). Unrelated states are *not* at √2 (N = 150, d = 512: 0.81 with eigenvalues 1/i, 0.38 if
  isotropic), so read it beside its permuted draws.
- `mutual_knn`: the share of a prompt's k nearest others (cosine, centred) that both models agree on, averaged; k is 10, or half the other
  prompts if fewer than 20. Unrelated states share k/(N−1).
- `same_basis_change`: the mean of ‖y − x‖/‖x‖ over prompts, uncentred, no basis removed: 0 only if every state is the same. A fine-tune
  shares its base's basis, so this sees what the others forgive; it is the first number to read for a fine-tune.
- `cka_without_prompt`, `cka_without_top3_without_prompt`, `cka_normed_without_prompt`: the same without that prompt, for the jackknife; the three
  coordinates stay those of all prompts. (Drawing prompts with replacement repeats rows and inflates CKA.)
- control `permuted#i`: the value with the tuned model's prompts in random order, clusters of prompts whole and each in the place of another of its
  size. The same orders serve all sites.

When it misleads: a few extreme rows or dimensions can make all of CKA (Davari 2023); a high value does not mean the same function, and a
late, small, decisive edit moves it little. A measure that is not defined here (too few prompts, states that do not vary) is NaN;
`undefined` says why.
"""

import math
from collections.abc import Iterator, Mapping

import polars as pl
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.measures.similarity.geometry import TOP, Geometry, cosine, geometry, hollow, permuted_cka, without_each, without_top
from mechdiff.rows import WITHOUT, empty, rows

METRICS = (
    "cka",
    "cka_biased",
    "participation_ratio_base",
    "participation_ratio_tuned",
    "procrustes_distance",
    "mutual_knn",
    "same_basis_change",
    "cka_without_top3",
)
DEBIASED = ("cka", f"cka{WITHOUT}", "cka_without_top3", f"cka_without_top3{WITHOUT}")
PROCRUSTES_DRAWS = 19
"""Random pairings for the Procrustes distance, each of which costs a singular value decomposition: the fewest by which p can be 0.05."""

States = Mapping[Site, Float[Tensor, "prompt _"]]
"""One model's, by site."""


def linear_cka(base: Float[Tensor, "prompt d_base"], tuned: Float[Tensor, "prompt d_tuned"], *, debiased: bool = True) -> float:
    """Linear CKA of the two sets of states; NaN with fewer than 4 prompts, or 2 if biased."""
    return _cka(geometry(base), geometry(tuned), debiased=debiased)


def cka_without_top(base: Float[Tensor, "prompt d_base"], tuned: Float[Tensor, "prompt d_tuned"]) -> float:
    """Debiased CKA without the `TOP` coordinates of largest variance; NaN where no others are."""
    return cosine(*map(hollow, without_top(base, tuned)))


def participation_ratio(states: Float[Tensor, "prompt d"]) -> float:
    """(Σλ)²/Σλ² over the eigenvalues λ of the sample covariance, from traces of the Gram matrix."""
    return _participation_ratio(geometry(states))


def procrustes_distance(base: Float[Tensor, "prompt d_base"], tuned: Float[Tensor, "prompt d_tuned"]) -> float:
    """min over rotations Q of ‖XQ − Y‖, both centred and of unit Frobenius norm; the narrower is padded with zeros."""
    return _procrustes(geometry(base).shape, geometry(tuned).shape)


def mutual_knn(base: Float[Tensor, "prompt d_base"], tuned: Float[Tensor, "prompt d_tuned"], k: int | None = None) -> float:
    """The mean share of common members among each prompt's k nearest others, by cosine after centring."""
    return _mutual_knn(geometry(base), geometry(tuned), k or neighbourhood(len(base)))


def neighbourhood(n_prompts: int) -> int:
    """The k of `mutual_knn`: 10, or half the other prompts if fewer than 20; 0 if there are no neighbours to choose from."""
    return min(10, (n_prompts - 1) // 2)


def same_basis_change(base: Float[Tensor, "prompt d_base"], tuned: Float[Tensor, "prompt d_tuned"]) -> float:
    """The mean over prompts of ‖y − x‖/‖x‖; NaN if the widths differ, a base state is zero, or any is not finite."""
    if base.shape != tuned.shape or not tuned.isfinite().all():
        return math.nan
    base, tuned = base.double(), tuned.double()
    size = base.norm(dim=1)
    return float(((tuned - base).norm(dim=1) / size.where(size > 0, torch.nan)).mean())


def _cka(base: Geometry, tuned: Geometry, *, debiased: bool) -> float:
    return cosine(base.u_centred, tuned.u_centred) if debiased else cosine(base.gram, tuned.gram)


def _participation_ratio(states: Geometry) -> float:
    return float(states.gram.trace().square() / states.gram.square().sum())


def _procrustes(base: Float64[Tensor, "prompt axis_base"], tuned: Float64[Tensor, "prompt axis_tuned"]) -> float:
    """√(2 − 2‖XᵀY‖_*), or, near 0 where that cancels, the residual of the best rotation itself."""
    narrow, wide = sorted((base, tuned), key=lambda shape: shape.shape[1])
    cross = narrow.T @ wide
    if not cross.isfinite().all():
        return math.nan
    square = 2 - 2 * float(torch.linalg.svdvals(cross).sum())
    if square > 0.01:
        return math.sqrt(square)
    u, _, vh = torch.linalg.svd(cross, full_matrices=False)
    return float((narrow @ (u @ vh) - wide).norm())


def _mutual_knn(base: Geometry, tuned: Geometry, k: int) -> float:
    """Ties are broken by the order of the prompts as `topk` meets them."""
    if not (k > 0 and base.gram.any() and tuned.gram.any() and base.gram.isfinite().all() and tuned.gram.isfinite().all()):
        return math.nan
    return int((_neighbours(base.gram, k) & _neighbours(tuned.gram, k)).sum()) / (k * len(base.gram))


def _neighbours(gram: Float64[Tensor, "prompt prompt"], k: int) -> Bool[Tensor, "prompt prompt"]:
    """Which prompts are among the k nearest of each; a state at the mean has cosine 0 with all."""
    size = gram.diagonal().sqrt()
    cosine = (gram / (size[:, None] * size)).nan_to_num(0.0).fill_diagonal_(-torch.inf)
    return torch.zeros_like(gram, dtype=torch.bool).scatter_(1, cosine.topk(k).indices, True)


def undefined(base: Float[Tensor, "prompt d_base"], tuned: Float[Tensor, "prompt d_tuned"]) -> dict[str, str]:
    """Why each metric that is NaN for these states is NaN, in words; empty if all are defined."""
    why: dict[str, str] = {}
    n, comparisons = len(base), (*DEBIASED, "cka_biased", "procrustes_distance", "mutual_knn")
    for model, states in (("base", base), ("tuned", tuned)):
        own, lies = (*comparisons, f"participation_ratio_{model}"), geometry(states)
        if not states.isfinite().all():
            why |= dict.fromkeys((*own, "same_basis_change"), f"the {model} model's activations hold NaN or infinity")
        elif not lies.gram.any():
            said = "there is one prompt" if n == 1 else f"the {model} model's activations do not vary with the prompt"
            why = dict.fromkeys(own, said) | why
        elif not lies.u_centred.any() and n >= 4:
            why = dict.fromkeys(DEBIASED[:2], f"all prompts are equally alike to the {model} model") | why
    for model, states in zip(("base", "tuned"), without_top(base, tuned), strict=True):
        if n >= 4 and not hollow(states).any():
            why = dict.fromkeys(DEBIASED[2:], f"beside {TOP} coordinates nothing varies in the {model} model") | why
    for metric, least in (("mutual_knn", 3), *((metric, 5 if metric.endswith(WITHOUT) else 4) for metric in DEBIASED)):
        if n < least:
            why.setdefault(metric, f"{n} prompts, at least {least} are needed")
    if base.shape != tuned.shape:
        why.setdefault("same_basis_change", f"the models' activations differ in width: {base.shape[1]} and {tuned.shape[1]}")
    elif not base.any(1).all():
        why.setdefault("same_basis_change", "the base model's activation is zero for some prompt")
    return why


def measure(
    base: States,
    tuned: States,
    prompt_ids: list[str],
    split: str,
    *,
    orders: Int64[Tensor, "draw prompt"] | None = None,
    normed: tuple[States, States] = ({}, {}),
) -> pl.DataFrame:
    """Rows of every site's similarity, its value without each prompt, and its draws under random pairings of the prompts (`geometry.pairings`).

    `normed`: the states after the norm that reads them, of both
    models, at the sites where both have one.
    """
    assert base.keys() == tuned.keys()
    assert normed[0].keys() == normed[1].keys()
    n = len(prompt_ids)
    orders = torch.empty(0, n, dtype=torch.int64) if orders is None else orders
    together = max(1, min(32, 2**22 // n**2))
    sites = sorted(base)
    groups = [sites[start : start + together] for start in range(0, len(sites), together)]
    frames = [frame for group in groups for frame in _group_rows(group, base, tuned, prompt_ids, orders)]
    frames += [frame for site in normed[0] for frame in _variant_rows(site, "cka_normed", (normed[0][site], normed[1][site]), prompt_ids)]
    return pl.concat(frames).with_columns(measure=pl.lit("similarity"), split=pl.lit(split)) if frames else empty()


def _group_rows(
    sites: list[Site], base: States, tuned: States, prompt_ids: list[str], orders: Int64[Tensor, "draw prompt"]
) -> Iterator[pl.DataFrame]:
    """The rows of a few sites, `measure` and `split` still null."""
    centred = []
    for site in sites:
        place: dict[str, object] = {"layer": site.layer, "site": site.kind}
        x, y = geometry(base[site]), geometry(tuned[site])
        centred.append((x.u_centred, y.u_centred))
        whole = {
            "cka": _cka(x, y, debiased=True),
            "cka_biased": _cka(x, y, debiased=False),
            "participation_ratio_base": _participation_ratio(x),
            "participation_ratio_tuned": _participation_ratio(y),
            "procrustes_distance": _procrustes(x.shape, y.shape),
            "mutual_knn": _mutual_knn(x, y, neighbourhood(len(prompt_ids))),
            "same_basis_change": same_basis_change(base[site], tuned[site]),
        }
        yield rows(list(whole.values()), metric=list(whole), **place)
        yield rows(without_each(x.u_centred, y.u_centred).numpy(), metric=f"cka{WITHOUT}", prompt=prompt_ids, **place)
        yield from _variant_rows(site, "cka_without_top3", without_top(base[site], tuned[site]), prompt_ids)
        drawn = [_procrustes(x.shape, y.shape[order]) for order in orders[:PROCRUSTES_DRAWS]]
        yield rows(drawn, metric="procrustes_distance", control=[labels.draw("permuted", i) for i in range(len(drawn))], **place)
    draws = permuted_cka(torch.stack([a for a, _ in centred]), torch.stack([b for _, b in centred]), orders)
    for site, values in zip(sites, draws.T, strict=True):
        yield rows(
            values.numpy(), metric="cka", control=[labels.draw("permuted", i) for i in range(len(orders))], layer=site.layer, site=site.kind
        )


def _variant_rows(site: Site, metric: str, states: tuple[Tensor, Tensor], prompt_ids: list[str]) -> Iterator[pl.DataFrame]:
    """Debiased CKA of other states of the site, and its delete-one values."""
    x, y = map(hollow, states)
    place: dict[str, object] = {"layer": site.layer, "site": site.kind}
    yield rows([cosine(x, y)], metric=metric, **place)
    yield rows(without_each(x, y).numpy(), metric=f"{metric}{WITHOUT}", prompt=prompt_ids, **place)
