"""Linear maps carry one model's activations to the other's, scikit-learn shaped: `Map("rrr").fit(source, target).transform(states)`.

The default families (anchored.py) learn the change, so that two identical models give the identity whatever the number of rows. Those of other
studies run by name only (maps_by_name.py); most are not anchored, and fail on identical models with fewer than five rows for each feature.

Read the rank of a map from the map (`rank_`: singular values of T - I above rounding), never from what was asked for.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mechdiff.errors import StudyError
from mechdiff.labels import MAPS, PATCHES
from mechdiff.maps import anchored, by_name
from mechdiff.maps.affine import Affine
from mechdiff.maps.anchored import Fit, Pairs, Rows
from mechdiff.models.alignment import aligned

FAMILIES: dict[str, Callable[..., Fit]] = {
    "identity": anchored.identity,
    "shift": anchored.shift,
    "mean": anchored.mean,
    "diag_affine": anchored.diag_affine,
    "anchored_ridge": anchored.anchored_ridge,
    "anchored_procrustes": anchored.anchored_procrustes,
    "rrr": anchored.reduced_rank,
    "ridge": by_name.plain_ridge,
    "standardised_ridge": by_name.standardised_ridge,
    "pca": by_name.pca,
    "procrustes": by_name.procrustes,
    "whitened_procrustes": by_name.whitened_procrustes,
    "logit_subspace": by_name.logit_subspace,
    "logit_subspace_joint": by_name.logit_subspace,
    "per_cluster": by_name.per_cluster,
    "rank_truncated": by_name.rank_truncated,
    "rescaled": by_name.rescaled,
    "norm_matched": by_name.norm_matched,
}
DEFAULT = (*PATCHES[:3], *MAPS[:4])
WIDTHS_MAY_DIFFER = ("mean", "ridge", "standardised_ridge", "pca", "procrustes")
NEXT_TO_NOTHING = 0.05
"""A map that explains less of the variance of the states it was fitted on writes all but the mean."""


class Map:
    """One map. `family` is a name of `FAMILIES`; `settings` are its own (`lam`, `rank`, `q`, ...)."""

    affines_: tuple[Affine, ...]
    centres_: Tensor | None
    norm_ratio_: float | None
    lambda_: float | None
    rank_: int
    """Measured: of T - I, the largest over clusters. Of an interchange: the dimensions that are exchanged."""
    dropped_: int
    """Features that do not vary on the fit split."""
    n_: int
    """Rows it was fitted on."""
    warnings_: tuple[str, ...]
    identical_score_: float | None

    def __init__(self, family: str, **settings: Any) -> None:
        self.family, self.settings = family, settings

    def fit(self, source: Tensor, target: Tensor, *, groups: Tensor | None = None, select: Rows | None = None) -> "Map":
        """Fits T with T(source) near target, `[row, d]` each; rows of one group stay together in cross-validation.

        Raises StudyError for an unknown family, and for widths that differ where the family cannot have it.
        """
        return self.fit_pairs(Pairs.of(source, target, groups, select))

    def fit_pairs(self, pairs: Pairs) -> "Map":
        """As `fit`, sharing with other maps of the same pairs what does not depend on the family."""
        if self.family not in FAMILIES:
            raise StudyError(f"no such map: {self.family!r}. There are: {', '.join(FAMILIES)}.")
        if not pairs.same_width and self.family not in WIDTHS_MAY_DIFFER:
            widths = " and ".join(str(len(kept)) for kept in pairs.kept)
            raise StudyError(
                f"map {self.family}: given states of widths {widths}, expected one width. Maps between widths: {', '.join(WIDTHS_MAY_DIFFER)}."
            )
        found = FAMILIES[self.family](pairs, **self.settings)
        of_all = self.family == "identity" or self._interchanges
        self.affines_ = tuple((one if of_all else one.embedded(*pairs.kept, *pairs.means)).laid_out() for one in found.affines)
        self.centres_, self.norm_ratio_, self.lambda_ = found.centres, found.norm_ratio, found.lam
        written = self.affines_[0].left.shape[1] if self._interchanges else None
        self.rank_ = max(one.rank_of_change() for one in self.affines_) if written is None else written
        self.dropped_, self.n_ = int((~pairs.kept[0]).sum()), len(pairs.source)
        self.warnings_, self.identical_score_ = found.warnings, found.identical_score
        return self

    @classmethod
    def of(cls, affine: Affine, family: str, *, lam: float, n: int) -> "Map":
        """The map of this family that is known already, fitted on n rows."""
        found = cls(family, lam=lam)
        found.affines_, found.centres_, found.norm_ratio_, found.lambda_ = (affine.laid_out(),), None, None, lam
        found.rank_, found.dropped_, found.n_, found.warnings_, found.identical_score_ = affine.rank_of_change(), 0, n, (), None
        return found

    @property
    def _interchanges(self) -> bool:
        return bool(self.settings.get("mode") == "interchange")

    def transform(
        self, states: Float[Tensor, "*row d_source"], own: Float[Tensor, "*row d_target"] | None = None
    ) -> Float[Tensor, "*row d_target"]:
        """T of each state, in their dtype. Only an interchange reads `own`, the running model's states: own + P (states - own)."""
        if self._interchanges:
            if own is None or own.shape != states.shape:
                given = "none" if own is None else f"shape {tuple(own.shape)}"
                raise StudyError(
                    f"map {self.family}, interchange: given own states of {given}, expected the running model's own states, "
                    f"of shape {tuple(states.shape)}: transform(states, own=...)."
                )
            kept = own.double()
            return (kept + self.affines_[0](states.double() - kept)).to(states.dtype)
        if self.centres_ is None:
            moved = self.affines_[0](states.double())
        else:
            flat = states.double().reshape(-1, states.shape[-1])
            nearest = torch.cdist(flat, self.centres_).argmin(1)
            moved = torch.stack([self.affines_[int(cluster)](row) for row, cluster in zip(flat, nearest, strict=True)])
            moved = moved.reshape(*states.shape[:-1], -1)
        if self.norm_ratio_ is not None:
            moved = moved * (states.double().norm(dim=-1, keepdim=True) * self.norm_ratio_ / moved.norm(dim=-1, keepdim=True))
        return moved.to(states.dtype)

    def record(self) -> dict[str, Any]:
        """What was chosen and measured, for a run's record."""
        said: dict[str, Any] = {"lambda": _finite(self.lambda_), "rank": self.rank_, "n": self.n_, "dropped": self.dropped_}
        return said | {"identical_score": self.identical_score_, "warnings": list(self.warnings_)}

    def save(self, path: str | Path, **more: str) -> None:
        """A safetensors file with everything that `load_map` needs; `more` is kept as text (site, direction)."""
        tensors: dict[str, Tensor] = {}
        for number, one in enumerate(self.affines_):
            parts = {"mean_in": one.mean_in, "mean_out": one.mean_out, "diagonal": one.diagonal, "left": one.left, "right": one.right}
            tensors |= {f"{number}.{name}": part.contiguous().clone() for name, part in parts.items() if part is not None}
        if self.centres_ is not None:
            tensors["centres"] = self.centres_
        plain = {name: value for name, value in self.settings.items() if not isinstance(value, Tensor)}
        about = {"family": self.family, "settings": plain, "norm_ratio": self.norm_ratio_, **self.record(), **more}
        save_file(tensors, str(path), metadata={"mechdiff_map": json.dumps(about)})


def load_map(path: str | Path) -> Map:
    """A map that was saved, fitted as it was. Raises StudyError for a file that is none."""
    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("mechdiff_map", "null"))
            tensors = {name: aligned(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise StudyError(f"{path}: not a readable safetensors file ({error}). Give a file of a run's maps/ folder.") from error
    if not about:
        raise StudyError(f"{path}: a safetensors file, but no map of mechdiff. Give a file of a run's maps/ folder.")
    made = Map(about["family"], **about["settings"])
    count = len({name.partition(".")[0] for name in tensors if name != "centres"})
    names = ("mean_in", "mean_out", "diagonal", "left", "right")
    parts = [{name: tensors.get(f"{number}.{name}") for name in names} for number in range(count)]
    made.affines_ = tuple(Affine(**one) for one in parts)  # type: ignore[arg-type]
    made.centres_, made.norm_ratio_ = tensors.get("centres"), about["norm_ratio"]
    made.lambda_, made.rank_, made.n_, made.dropped_ = _infinite(about["lambda"]), about["rank"], about["n"], about["dropped"]
    made.warnings_, made.identical_score_ = tuple(about["warnings"]), about["identical_score"]
    return made


def _finite(lam: float | None) -> float | str | None:
    return "infinity" if lam == float("inf") else lam


def _infinite(lam: float | str | None) -> float | None:
    return float("inf") if lam == "infinity" else lam  # type: ignore[return-value]


def check_ranks(maps: Mapping[int, Map]) -> None:
    """Raises StudyError (rank_not_applied) where a requested rank was not applied.

    Either the map's rank is larger, or it is that of a smaller request although a map of more dimensions was found: two ranks, one map.
    """
    there = max((one.rank_ for asked, one in maps.items() if one.rank_ <= asked), default=0)
    wrong, before = {}, -1
    for asked, one in sorted(maps.items()):
        if one.rank_ > asked or before == one.rank_ < min(asked, there):
            wrong[asked] = one.rank_
        before = one.rank_
    if wrong:
        said = ", ".join(f"asked for {asked}, measured {found}" for asked, found in sorted(wrong.items()))
        raise StudyError(
            f"rank_not_applied: {said}. The rank of a map is that of T - I; a map that is the same for two ranks shows none of them."
        )


def is_the_mean(r2_train: float, rank: int, n: int) -> bool:
    """Whether a map of this rank is the mean vector: of its own fit rows it explains less than noise would let it, and next to nothing.

    A least-squares map of rank k explains k/n or more of n rows of noise. That alone would also blame a useful map of as many dimensions as
    rows, so that what explains `NEXT_TO_NOTHING` of the variance is never called the mean.
    """
    return r2_train < min(rank / n, NEXT_TO_NOTHING)
