"""The rank of planted changes, and maps of each rank against plain d x d formulas."""

import math

import polars as pl
import pytest
import torch
from torch import Tensor

from mechdiff.errors import StudyError
from mechdiff.maps.anchored import Pairs
from mechdiff.maps.regression import fitted_axes, ridge
from mechdiff.measures.rank.formula import FISHER_FLOOR, agreement, curve, curve_maps, fisher_weighted, measure, rank_uncentred, ranks
from mechdiff.measures.transport.formula import Sample
from oracles.regression import coefficients


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sample(base: Tensor, change: Tensor) -> Sample:
    return Sample(base=base, tuned=base + change, groups=torch.arange(len(base)))


def planted(rank: int, shift: float, noise: float, *, n: int = 80, d: int = 128, seed: int = 0) -> tuple[Tensor, Tensor]:
    """States whose variances fall as 1/i; a change of a constant of norm 4 `shift`, `rank` directions of variance 1, and white noise."""
    states = random(n, d, seed=seed) * torch.arange(1, d + 1).double() ** -0.5 @ torch.linalg.qr(random(d, d, seed=seed + 1))[0]
    change = (4 * shift / math.sqrt(d) * random(d, seed=seed + 2)).expand(n, d)
    if rank:
        along = states @ random(d, rank, seed=seed + 3)
        change = change + along / along.std(0) @ torch.linalg.qr(random(d, rank, seed=seed + 4))[0].T
    return states, change + noise * random(n, d, seed=seed + 5)


def test_ranks_double_up_to_the_full_one() -> None:
    assert ranks(0) == [0]
    assert ranks(1) == [0, 1]
    assert ranks(8) == [0, 1, 2, 4, 8]
    assert ranks(11) == [0, 1, 2, 4, 8, 11]


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize(("rank", "shift", "uncentred"), [(0, 0.3, 1), (0, 1.0, 1), (1, 0.0, 1), (1, 0.3, 2), (4, 0.0, 4), (4, 1.0, 5)])
def test_a_constant_is_one_more_direction_of_the_uncentred_change(rank: int, shift: float, uncentred: int, noise: float) -> None:
    for seed in (0, 10):
        states, change = planted(rank, shift, noise, seed=seed)
        assert rank_uncentred(sample(states, change)) == uncentred
        assert curve(sample(states, change), sample(states, change)).chosen == rank


def test_no_change_and_noise_alone_have_uncentred_rank_0() -> None:
    states = random(40, 30)
    assert rank_uncentred(sample(states, torch.zeros(40, 30))) == 0
    assert rank_uncentred(sample(states, 0.1 * random(40, 30, seed=1))) == 0


@pytest.mark.parametrize("predicted", [True, False])
def test_one_direction_written_with_a_varying_strength_has_uncentred_rank_1(predicted: bool) -> None:
    states = random(100, 64)
    strength = 3 + (2 * states[:, 0] if predicted else 2 * random(100, seed=7))
    direction = random(64, seed=1)
    assert rank_uncentred(sample(states, strength[:, None] * direction / direction.norm())) == 1


def test_the_curve_is_the_share_of_the_change_that_plain_matrices_explain() -> None:
    states, change = planted(4, 0.3, 0.2, n=60, d=20)
    fit, report = sample(states[:45], change[:45]), sample(states[45:], change[45:])
    found = curve(fit, report)
    assert found.ranks == ranks(20)
    centred = states[:45] - states[:45].mean(0)
    unit = float(centred.square().sum() / 20)
    pairs = Pairs.of(fit.base, fit.tuned, fit.groups)
    penalty = pairs.validated.lambda_of_ranks * unit
    for k, train, held_out in zip(found.ranks, found.train, found.held_out, strict=True):
        b = coefficients(states[:45], change[:45], penalty, k)
        for part, value in ((slice(0, 45), train), (slice(45, 60), held_out)):
            missed = change[part] - change[:45].mean(0) - (states[part] - states[:45].mean(0)) @ b
            expected = 1 - missed.square().sum() / (change[part] - change[part].mean(0)).square().sum()
            assert value == pytest.approx(float(expected), abs=1e-8)
    assert found.train == sorted(found.train)
    assert found.cross_validated[0] == 0


def test_a_shift_is_a_curve_of_rank_0_alone() -> None:
    states = random(30, 16).float().double()
    shifted = sample(states, random(16, seed=1).float().double().expand(30, 16))
    found = curve(shifted, shifted)
    assert (found.ranks, found.chosen, found.best) == ([0], 0, 0)
    assert [(one.arm, one.rank) for one in curve_maps(shifted, None)] == [("rrr", 0)]


def fisher_metric(gradients: Tensor) -> Tensor:
    fisher = gradients.T @ gradients / len(gradients)
    return fisher + FISHER_FLOOR * fisher.trace() / len(fisher) * torch.eye(len(fisher), dtype=torch.float64)


@pytest.mark.parametrize("draws", [5, 40])
def test_fisher_weighted_maps_are_the_best_in_that_metric(draws: int) -> None:
    states, change = planted(6, 0.3, 0.1, n=50, d=16)
    gradients = random(draws, 16, seed=9) * torch.linspace(3, 0.1, 16).double()
    pairs, lam = Pairs.of(states, states + change), 0.05
    metric = fisher_metric(gradients)
    unit = float((states - states.mean(0)).square().sum() / 16)
    left, right = ridge(pairs.decomposed, pairs.projected, lam)
    axes = fitted_axes(pairs.decomposed, pairs.projected, lam)
    eye = torch.eye(16, dtype=torch.float64)

    def loss(b: Tensor) -> float:
        missed = (change - change.mean(0)) - (states - states.mean(0)) @ b
        return float((missed @ metric * missed).sum() + lam * unit * (b @ metric * b).sum())

    found = dict(fisher_weighted(pairs, gradients, lam, [0, 1, 2, 5, 99]))
    assert list(found) == [1, 2, 5]
    for k, one in found.items():
        b = one(pairs.mean_source + eye) - one.mean_out - eye
        torch.testing.assert_close(b, coefficients(states, change, lam * unit, k, metric), rtol=1e-6, atol=1e-8)
        assert one.rank_of_change() == k
        assert loss(b) < loss(left @ right @ axes[:, :k] @ axes[:, :k].T)


def test_fisher_weighted_maps_keep_the_direction_that_the_law_feels() -> None:
    """Two planted directions: the larger one does nothing to the law, the smaller one does."""
    states = random(60, 12)
    felt, mute = torch.eye(12, dtype=torch.float64)[:2]
    change = states[:, 3:4] * felt + 5 * states[:, 4:5] * mute
    pairs = Pairs.of(states, states + change)
    gradients = random(20, 1, seed=2) * felt
    [(_, one)] = fisher_weighted(pairs, gradients, 0.0, [1])
    moved = one(states) - states - change.mean(0)
    assert float(moved[:, 0].square().sum() / (states[:, 3] - states[:, 3].mean()).square().sum()) == pytest.approx(1, abs=0.05)
    assert one.right[0, 0].abs() > one.right[0, 1].abs()


def test_maps_of_the_causal_curve_have_the_rank_they_are_for() -> None:
    states, change = planted(4, 0.3, 0.1, n=40, d=16)
    found = curve_maps(sample(states, change), random(30, 16, seed=3))
    arms = {(one.arm, one.unit): [other.rank for other in found if (other.arm, other.unit) == (one.arm, one.unit)] for one in found}
    assert arms == {("rrr", None): [0, 1, 2, 4, 8, 16], ("rank_truncated", None): [1, 2, 4, 8, 16], ("rrr", "fisher"): [1, 2, 4, 8, 16]}
    mean, eye = states.mean(0), torch.eye(16, dtype=torch.float64)
    matrices = {(one.arm, one.unit, one.rank): one.transform(mean + eye) - one.transform(mean[None]) - eye for one in found}
    for (_, _, k), b in matrices.items():
        assert int(torch.linalg.matrix_rank(b, atol=1e-10, rtol=0.0)) == k
    # full: no choice of directions is left, so both agree
    torch.testing.assert_close(matrices["rrr", "fisher", 16], matrices["rrr", None, 16], rtol=1e-6, atol=1e-8)
    errors = {
        arm: float((change - change.mean(0) - (states - mean) @ matrices[arm, None, 2]).square().sum()) for arm in ("rrr", "rank_truncated")
    }
    assert errors["rrr"] < errors["rank_truncated"]


def test_states_without_pairs_are_refused() -> None:
    with pytest.raises(StudyError, match="pairs of activations"):
        curve_maps(sample(random(0, 4), random(0, 4)), None)


def test_measure_writes_the_curve_the_numbers_and_what_varies_for_each_layer() -> None:
    states, change = planted(1, 0.3, 0.05, n=60, d=24)
    fit, report = sample(states[:40], change[:40]), sample(states[40:], change[40:])
    still, names = sample(states[:40], torch.zeros(40, 24)), [f"p{i}" for i in range(20)]
    table = measure([fit, still], [report, sample(states[40:], torch.zeros(20, 24))], layers=[3, 5], kind="attn_out", prompt_ids=names)
    numbers = {(row["layer"], row["metric"]): row["value"] for row in table.iter_rows(named=True) if row["metric"].startswith("rank_")}
    assert {key: value for key, value in numbers.items() if key[1] != "rank_best"} == {
        (3, "rank_chosen"): 1, (3, "rank_uncentred"): 2, (5, "rank_chosen"): 0, (5, "rank_uncentred"): 0,
        (3, "rank_limit"): 31, (5, "rank_limit"): 0, (3, "rank_prompts"): 40, (5, "rank_prompts"): 40,
    }  # fmt: skip
    assert numbers[3, "rank_best"] >= numbers[3, "rank_chosen"]
    assert set(table["metric"]) == {"r2_change", "r2_change_cv", "r2_change_cv_se", "rank_chosen", "rank_best", "rank_uncentred", "rank_limit",
                                    "rank_prompts", "change_squared", "change_varying_squared"}  # fmt: skip
    assert table.select("layer", "split", "metric", "rank", "prompt").is_unique().all()
    assert set(table["arm"]) == {"rrr"}
    assert set(table["prompt"]) == {None, *names}
    squares = table.filter(pl.col("metric") == "change_squared", pl.col("layer") == 3)["value"].to_torch()
    torch.testing.assert_close(squares, change[40:].square().sum(-1))


def test_a_fisher_metric_agrees_with_itself_once_it_has_converged() -> None:
    axes = random(24, 3, seed=1)
    assert agreement(random(4000, 3, seed=2) @ axes.T) > 0.99
    assert agreement(random(16, 24, seed=4)) < 0.4, "gradients without a direction"
