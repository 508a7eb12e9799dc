"""Property 17 of METHOD: the singular values of a change are all of it, and the change cut to a rank lies between the two models."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from drawn import examples, families, loaded, noise, seeds, spread
from mechdiff.engine.activations import capture
from mechdiff.engine.distributions import ROUNDING_NATS
from mechdiff.measures.grafting.formula import Lattice, Prompts, lattice
from mechdiff.measures.weights.spectra import spectrum, spectrum_of_factors
from mechdiff.models.adapters import Factors
from mechdiff.models.modules import changes_between, factors, tensors_of
from mechdiff.models.pair import Model
from pico import prompts, twin

shapes = st.tuples(st.integers(1, 60), st.integers(1, 60))


@examples(60)
@given(seeds, shapes, st.sampled_from([0.0, 1.0]), st.sampled_from([1e-6, 1.0, 1e4]), st.integers(1, 60))
def test_property_17_squares_of_the_values_sum_to_the_squared_norm(
    seed: int, shape: tuple[int, int], decay: float, size: float, exact_up_to: int
) -> None:
    """Of all values where the matrix is decomposed; of the top ones no more than that, and the norm is exact either way."""
    change = size * spread(seed, *shape, decay)
    found = spectrum(change, exact_up_to=exact_up_to, top=8)
    assert found.frobenius == pytest.approx(float(change.norm()), rel=1e-12)
    squares = float(found.values.square().sum())
    if found.complete:
        assert squares == pytest.approx(found.frobenius**2, rel=1e-10)
    assert squares <= found.frobenius**2 * (1 + 1e-5)
    assert float(found.values[0]) == pytest.approx(float(torch.linalg.matrix_norm(change, 2)), rel=1e-4)
    assert (found.values.diff() <= 1e-6 * found.values[0]).all()


@examples(40)
@given(seeds, shapes, st.integers(1, 8))
def test_property_17_factors_have_the_squared_norm_of_their_product(seed: int, shape: tuple[int, int], rank: int) -> None:
    made = Factors(left=spread(seed, shape[0], rank), right=spread(seed + 1, rank, shape[1]))
    found = spectrum_of_factors(made)
    assert float(found.values.square().sum()) == pytest.approx(float(made.product().square().sum()), rel=1e-10)
    assert made.squared_norm() == pytest.approx(float(made.product().square().sum()), rel=1e-10)
    assert found.numerical_rank == min(rank, *shape)


def bench(base: Model, change: Sequence[str], seed: int, ids: Sequence[Sequence[int]]) -> Lattice:
    """A pair whose parameters with one of these words in their name were moved."""

    def move(net: nn.Module) -> None:
        for i, (name, parameter) in enumerate(net.named_parameters()):
            if parameter.ndim > 1 and any(word in name for word in change):
                parameter.add_(noise(*parameter.shape, seed=seed + i) * 0.1)

    tuned = twin(base, move)
    laws: dict[str, Tensor] = {one.side: torch.stack([capture(one, ids_, [], [0]).logits for ids_ in ids]) for one in (base, tuned)}
    names = [f"p{i}" for i in range(len(ids))]
    said = Prompts(split="report", names=names, ids=ids, base_logits=laws["base"], tuned_logits=laws["tuned"])
    return lattice(base, changes_between(base, tensors_of(tuned)), said)


@examples(20)
@given(families, seeds, st.integers(1, 3), st.sampled_from([["attn", "attention"], ["mlp", "fc"], [""]]))
def test_property_17_no_rank_is_the_base_and_full_rank_is_the_tuned_model(name: str, seed: int, n: int, change: list[str]) -> None:
    found = bench(loaded(name), change, seed, prompts(n, seed=seed, shortest=3, longest=16))
    assume(found.changes.units)
    cut = {unit: factors(found.model, found.changes, unit) for unit in found.changes.units}
    total = found.value(())
    assert found.truncated(cut, 0)[0].tolist() == total.tolist()
    full = max(one.full for matrices in cut.values() for one in matrices.values())
    assert found.truncated(cut, full)[0].max() <= ROUNDING_NATS[torch.float32]
    assert total.max() > 1e-5
    for matrices in cut.values():
        for tensor, one in matrices.items():
            kept = [float((one.cut(one.full) - one.cut(rank)).square().sum()) for rank in range(one.full + 1)]
            assert kept == sorted(kept, reverse=True), tensor
            own = found.model.net.get_parameter(tensor).detach()
            delta = next(new for unit in cut for key, new in found.changes.new_tensors(unit).items() if key == tensor) - own
            assert math.isclose(kept[0], float(delta.square().sum()), rel_tol=1e-4), tensor
