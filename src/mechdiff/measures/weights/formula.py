"""Which weights did the fine-tune change, by how much, and in how many directions? Exact, from the files alone: no prompt, no forward pass.

For each tensor, with dW = W_tuned - W_base:

    relative_norm          ||dW||_F / ||W_base||_F. 0: not one entry differs. Fine-tunes are mostly under 0.1; models trained apart are at 1.4.
    changed                share of the entries that are not equal (0-1). An adapter or a partial fine-tune leaves tensors at exactly 0.
    module_relative_norm   the same over all tensors of a block's attention (MLP, norms; embedding, final norm, unembedding)
    share_of_change        that module's share of the network's ||dW||_F^2; the shares sum to 1

and for each matrix that changed its spectrum (spectra.py): spectral_norm, spectral_norm_null, stable_rank, energy_rank_50|90|99, numerical_rank,
and, in attention and MLP, intruder_dimensions (k = 10, epsilon = 0.5). For each head ov_relative_norm and qk_relative_norm (products.py).

When it misleads. A rotation of the residual stream, or neurons in another order, makes ||dW|| as large as between strangers and changes nothing
that the model says (METHOD P1, P10, P11), so read it beside D = KL(tuned || base): a large change with D = 0 is a reparametrisation. And a
small change in a direction that the inputs take outweighs a large one in a direction that they never take: `data_weighted_norm` measures
dW on the inputs themselves, ||X dW^T||_F / ||X W^T||_F with a row of X for each token.

The top left singular vectors of a change in a matrix that writes into the residual stream (o_proj, down_proj) are directions that the fine-tune
made writable (Zhong & Raghunathan 2025, arXiv 2508.00161): `decoded_directions` reads them through final norm and unembedding.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from mechdiff import labels
from mechdiff.architectures.lookup import family_of, shape_of
from mechdiff.measures.weights.products import head_changes
from mechdiff.measures.weights.spectra import (
    ENERGY_PERCENTS,
    Spectrum,
    intruder_dimensions,
    left_directions,
    rounding_floor,
    spectral_norm_null,
    spectrum,
    spectrum_of_factors,
)
from mechdiff.models.adapters import AdaptedTensors, Factors
from mechdiff.models.changes import Change, Changes
from mechdiff.models.projections import Layout, layout_of
from mechdiff.models.tensors import TensorFiles
from mechdiff.rows import empty, rows

INTRUDERS_OF, INTRUDER_EPSILON = 10, 0.5
"""How many top singular vectors are tried, and the |cosine| under which one is an intruder."""

Value = tuple[int | None, str | None, str | None, str, float]
"""Layer, site, unit, metric, value."""


def relative_norm(squared_change: float, squared_size: float) -> float:
    """||dW|| / ||W|| from the squares; 0 where nothing changed, infinite where a tensor of zeros did."""
    if squared_change == 0:
        return 0.0
    return math.sqrt(squared_change / squared_size) if squared_size else math.inf


def data_weighted_norm(change: Float[Tensor, "d_out d_in"], base: Float[Tensor, "d_out d_in"], states: Float[Tensor, "row d_in"]) -> float:
    """||X dW^T||_F / ||X W^T||_F: how much the change moves the matrix's output on these inputs; ||dW C^(1/2)|| / ||W C^(1/2)|| with C = X^T X."""
    x = states.double()
    return float((x @ change.double().T).norm() / (x @ base.double().T).norm())


# ---- directions in words -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """One left singular vector of a change, as the unembedding reads it. Its sign means nothing: both ends are given."""

    singular_value: float
    share: float
    """Of the change's ||dW||_F^2."""
    ids: Int64[Tensor, "end token"]
    """The tokens that the vector raises most, and those that its negative does; the most raised first."""
    scores: Float64[Tensor, "end token"]
    """Their logits per unit of the vector, before the final norm's scale; from the mean over the vocabulary."""


def decoded_directions(
    change: Float[Tensor, "d_out d_in"] | Factors, unembedding: Float[Tensor, "vocab d_out"], *, k: int = 4, n_tokens: int = 10
) -> list[Decoded]:
    """The top k left singular vectors of a matrix that writes into the residual stream, through `readout`'s unembedding.

    A norm between the matrix and the residual stream (Gemma, OLMo) is not included.
    """
    vectors, values = left_directions(change, k)
    total = change.squared_norm() if isinstance(change, Factors) else float(change.double().square().sum())
    decoded = []
    for vector, value in zip(vectors.T, values.tolist(), strict=True):
        logits = (unembedding @ vector.to(unembedding.dtype)).double()
        logits -= logits.mean()
        ends = [(sign * logits).topk(n_tokens) for sign in (1, -1)]
        scores, ids = torch.stack([end.values for end in ends]), torch.stack([end.indices for end in ends])
        decoded.append(Decoded(singular_value=value, share=value**2 / total, ids=ids, scores=scores))
    return decoded


def readout(files: TensorFiles | AdaptedTensors) -> Float[Tensor, "vocab d"]:
    """The unembedding with the final norm's gain in it, where it has one (and its centring, where it is a LayerNorm): residual directions to
    logits, up to scale."""
    family = files.family
    assert family is not None
    weight, norm = files.read(files.head).float(), f"{family.final_norm}.weight"
    if norm in files.names:
        gain = files.read(norm).float()
        weight = weight * (gain + 1 if family.norm == "rms_plus_one" else gain)
    return weight - weight.mean(1, keepdim=True) if family.norm == "layer" else weight


# ---- the measure -------------------------------------------------------------------------------------------------------------------


def measure(
    changes: Changes,
    config: Any,
    *,
    heads: bool = True,
    exact_up_to: int = 1024,
    top: int = 64,
    states: Mapping[str, Float[Tensor, "row d_in"]] | None = None,
) -> tuple[pl.DataFrame, dict[str, np.ndarray]]:
    """Rows of every tensor, matrix, module and head; and tensor's name -> the top singular values of its change [at most `top`].

    `config` is the base's transformers config (it says where the heads are). Matrices with both sides above `exact_up_to` get the top of their
    spectrum only, without intruder dimensions, and with `spectral_norm_error`; ranks that lie beyond it have no row. `states` are input states
    by tensor name, for `data_weighted_norm`. What is left out and why: `changes.statements` and `limits`. ModelError: a broken file, NaN weights.
    """
    values: list[Value] = []
    spectra: dict[str, np.ndarray] = {}
    moved: dict[tuple[int | None, str], list[float]] = {}
    for change in changes:
        step, size = change.squared_change(), change.squared_size()
        here = (change.layer, change.site, change.name)
        values += [(*here, "relative_norm", relative_norm(step, size)), (*here, "changed", change.changed_share())]
        if change.site:
            sums = moved.setdefault((change.layer, change.site), [0.0, 0.0])
            sums[0], sums[1] = sums[0] + step, sums[1] + size
        if step and change.base.ndim == 2 and min(change.base.shape) > 1:
            found = _spectrum(change, exact_up_to, top)
            spectra[change.name] = found.values[:top].cpu().numpy()
            values += [(*here, metric, value) for metric, value in _of_matrix(change, found, exact_up_to)]
            if states is not None and change.name in states:
                values.append((*here, "data_weighted_norm", data_weighted_norm(change.delta(), change.base, states[change.name])))
    values += _of_modules(moved)
    if heads:
        values += _of_heads(changes, layout_of(family_of(config, "base"), config), shape_of(config).n_layers)
    return _as_rows(values), spectra


def _spectrum(change: Change, exact_up_to: int, top: int) -> Spectrum:
    if change.factors:
        return spectrum_of_factors(change.factors)
    assert change.tuned is not None
    delta = change.delta(torch.float64 if min(change.base.shape) <= exact_up_to else torch.float32)
    return spectrum(delta, floor=rounding_floor(change.tuned, delta), exact_up_to=exact_up_to, top=top)


def _of_matrix(change: Change, found: Spectrum, exact_up_to: int) -> Iterator[tuple[str, float]]:
    """Metric and value of everything that is said of one changed matrix."""
    yield "spectral_norm", float(found.values[0])
    if not found.complete:
        yield "spectral_norm_error", float(found.error[0])
    yield "spectral_norm_null", spectral_norm_null(found.frobenius, *change.base.shape)
    yield "stable_rank", found.stable_rank
    for percent in ENERGY_PERCENTS:
        if (rank := found.energy_rank(percent)) is not None:
            yield f"energy_rank_{percent}", float(rank)
    if (rank := found.numerical_rank) is not None:
        yield "numerical_rank", float(rank)
    if change.site in ("attn", "mlp") and min(change.base.shape) <= exact_up_to:
        found_new = intruder_dimensions(change.base, change.after(), k=INTRUDERS_OF, epsilon=INTRUDER_EPSILON)
        yield "intruder_dimensions", float(found_new)


def _of_modules(moved: Mapping[tuple[int | None, str], list[float]]) -> list[Value]:
    total = sum(step for step, _ in moved.values())
    values: list[Value] = []
    for (layer, site), (step, size) in moved.items():
        values.append((layer, site, None, "module_relative_norm", relative_norm(step, size)))
        if total:
            values.append((layer, site, None, "share_of_change", step / total))
    return values


def _of_heads(changes: Changes, layout: Layout, n_layers: int) -> list[Value]:
    """Each head's OV and QK change; 0 without a product where none of the block's projections changed. Blocks that cannot be cut have no rows."""
    values: list[Value] = []
    for layer in range(n_layers):
        read = {name: changes.change(name) for name in layout.names(layer) if name in changes}
        base = layout.cut(layer, lambda name, read=read: read[name].base if name in read else None)  # type: ignore[misc]
        if isinstance(base, str):
            continue
        if all(change.squared_change() == 0 for change in read.values()):
            ov = qk = torch.zeros(layout.n_heads)
        else:
            tuned = layout.cut(layer, lambda name, read=read: read[name].after() if name in read else None)  # type: ignore[misc]
            assert not isinstance(tuned, str)
            ov, qk = head_changes(base, tuned)
        for metric, found in (("ov_relative_norm", ov), ("qk_relative_norm", qk)):
            values += [(layer, "attn", labels.head_unit(head), metric, value) for head, value in enumerate(found.tolist())]
    return values


def _as_rows(values: list[Value]) -> pl.DataFrame:
    if not values:
        return empty()
    layers, sites, units, metrics, numbers = (list(column) for column in zip(*values, strict=True))
    return rows(numbers, measure="weights", layer=layers, site=sites, unit=units, metric=metrics)


def limits(changes: Changes, config: Any, *, exact_up_to: int = 1024) -> list[str]:
    """What the numbers of this pair leave out, in sentences for the record; `changes.statements` says what is not compared at all."""
    said = []
    layout = layout_of(family_of(config, "base"), config)
    shapes = {name: changes.base.shape(name) for name in changes.names}
    if large := [name for name, shape in shapes.items() if len(shape) == 2 and min(shape) > exact_up_to]:
        said.append(
            f"{len(large)} matrices have both sides above {exact_up_to}: where they changed, the top of the spectrum is given within "
            "spectral_norm_error, without intruder dimensions"
        )
    if stacks := [name for name, shape in shapes.items() if len(shape) > 2]:
        said.append(f"{len(stacks)} tensors are stacks of matrices, the first {stacks[0]}: their norms are given, no spectra")
    if getattr(config, "rope_parameters", None):
        said.append("qk_relative_norm is at relative offset 0 of the rotary embedding")
    if norms := [name for name in changes.names if name.endswith(("q_norm.weight", "k_norm.weight")) or "layernorm.norms" in name]:
        said.append(f"norms of queries and keys ({len(norms)} tensors) are not part of qk_relative_norm")
    uncut = {}
    for layer in range(shape_of(config).n_layers):
        held = {name: torch.empty(shapes[name], device="meta") for name in layout.names(layer) if name in shapes}
        if isinstance(reason := layout.cut(layer, held.get), str):
            uncut[layer] = reason
    if uncut and changes.names:
        first = min(uncut)
        said.append(f"{len(uncut)} blocks have no values by head; block {first}, because {uncut[first]}")
    return said
