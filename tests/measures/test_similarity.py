import math
from itertools import permutations

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from mechdiff.architectures.sites import Site
from mechdiff.measures.similarity import geometry as similarity_geometry
from mechdiff.measures.similarity.formula import (
    DEBIASED,
    METRICS,
    cka_without_top,
    linear_cka,
    measure,
    mutual_knn,
    participation_ratio,
    procrustes_distance,
    same_basis_change,
    undefined,
)
from mechdiff.measures.similarity.geometry import geometry, hollow, pairings, permuted_cka, u_centred
from mechdiff.rows import COLUMNS, WITHOUT
from oracles import states

LEFT_OUT = {metric for metric in DEBIASED if metric.endswith(WITHOUT)}
seeds = st.integers(0, 10_000)
sizes = st.tuples(st.integers(5, 24), st.integers(2, 40))


def made(seed: int, n: int, d: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(x: Tensor, seed: int, change: float = 0.5) -> Tensor:
    return x + change * made(seed, *x.shape) + 1.0


def rotation(seed: int, d: int) -> Tensor:
    return torch.linalg.qr(made(seed, d, d))[0]


def ids(n: int) -> list[str]:
    return [f"p{i}" for i in range(n)]


def of_the_set(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.filter(pl.col("prompt").is_null(), pl.col("control").is_null())


def without_each(x: Tensor) -> list[Tensor]:
    return [torch.cat([x[:i], x[i + 1 :]]) for i in range(len(x))]


def left_out(x: Tensor, y: Tensor) -> Tensor:
    """Debiased CKA without each prompt, as a run computes it."""
    return similarity_geometry.without_each(hollow(x), hollow(y))


# Against the naive formulas


@pytest.mark.parametrize(("n", "d"), [(12, 5), (12, 40), (40, 12), (30, 30)])
def test_every_value_agrees_with_its_oracle(n: int, d: int) -> None:
    x = made(0, n, d) + 2.0
    y = near(x, 1)
    a, b = x.numpy(), y.numpy()
    assert linear_cka(x, y) == pytest.approx(states.cka(a, b), rel=1e-12)
    assert linear_cka(x, y) == pytest.approx(states.cka_of_features(a, b), rel=1e-12)
    assert linear_cka(x, y, debiased=False) == pytest.approx(states.cka(a, b, states.hsic_biased), rel=1e-12)
    assert participation_ratio(x) == pytest.approx(states.participation_ratio(a), rel=1e-12)
    assert procrustes_distance(x, y) == pytest.approx(states.procrustes_distance(a, b), rel=1e-12)
    assert mutual_knn(x, y, 4) == pytest.approx(states.mutual_knn(a, b, 4), rel=1e-12)
    assert same_basis_change(x, y) == pytest.approx(np.mean(np.linalg.norm(b - a, axis=1) / np.linalg.norm(a, axis=1)), rel=1e-12)


def test_hsic_is_the_u_statistic_over_all_fours() -> None:
    x, y = made(0, 8, 5), made(1, 8, 3)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    expected = states.hsic_u_statistic(k.numpy(), l.numpy())
    assert float((u_centred(k) * u_centred(l)).sum() / (8 * 5)) == pytest.approx(expected, rel=1e-12)
    assert states.hsic_three_terms(k.numpy(), l.numpy()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("n", "d"), [(5, 3), (6, 20), (25, 7)])
def test_delete_one_values_are_those_of_the_smaller_sets(n: int, d: int) -> None:
    x = made(3, n, d)
    y = near(x, 4)
    expected = [linear_cka(a, b) for a, b in zip(without_each(x), without_each(y), strict=True)]
    torch.testing.assert_close(left_out(x, y), torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-12)
    oracle = [states.cka(a.numpy(), b.numpy()) for a, b in zip(without_each(x), without_each(y), strict=True)]
    torch.testing.assert_close(left_out(x, y), torch.tensor(oracle, dtype=torch.float64), rtol=1e-11, atol=1e-12)


def test_delete_one_with_an_outlier_a_thousand_times_the_rest() -> None:
    x = made(3, 20, 8)
    x[7] *= 1000
    y = near(x, 4)
    expected = torch.tensor([states.cka(a.numpy(), b.numpy()) for a, b in zip(without_each(x), without_each(y), strict=True)])
    torch.testing.assert_close(left_out(x, y), expected.double(), rtol=1e-6, atol=1e-6)


def test_permuted_values_are_those_of_permuted_states() -> None:
    x = [made(0, 9, 4), made(1, 9, 30)]
    y = [near(x[0], 2), made(3, 9, 6)]
    orders = pairings(range(9), 7, seed=5)
    found = permuted_cka(*(torch.stack([geometry(z).u_centred for z in side]) for side in (x, y)), orders)
    expected = torch.tensor([[linear_cka(a, b[order]) for a, b in zip(x, y, strict=True)] for order in orders], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


# What unrelated states give


def test_biased_null_of_a_decaying_spectrum() -> None:
    """0.0966 expected with eigenvalues 1/i in d = 4096 at N = 450 (METHOD B1)."""
    spectrum = torch.arange(1, 4097).double().rsqrt()
    x, y = made(0, 450, 4096) * spectrum, made(1, 450, 4096) * spectrum
    ratio = float(spectrum.square().sum() ** 2 / spectrum.pow(4).sum())
    assert ratio / (ratio + 450) == pytest.approx(0.0966, abs=2e-4)
    assert linear_cka(x, y, debiased=False) == pytest.approx(0.0966, abs=0.01)
    assert abs(linear_cka(x, y)) < 0.02


def test_biased_null_is_given_by_the_participation_ratios() -> None:
    """Over all pairings the mean of biased CKA is sqrt(PR PR)/(N-1), exactly; that of debiased CKA is 0."""
    x, y = made(0, 6, 4), made(1, 6, 9)
    orders = [list(order) for order in permutations(range(6))]
    biased = np.mean([linear_cka(x, y[order], debiased=False) for order in orders])
    assert biased == pytest.approx(math.sqrt(participation_ratio(x) * participation_ratio(y)) / 5, rel=1e-10)
    drawn = permuted_cka(geometry(x).u_centred[None], geometry(y).u_centred[None], torch.tensor(orders))
    assert float(drawn.mean()) == pytest.approx(0, abs=1e-12)


def test_procrustes_of_different_widths_is_that_of_the_padded() -> None:
    x, y = made(0, 8, 3), made(1, 8, 20)
    padded = torch.cat([x, torch.zeros(8, 17)], 1)
    assert procrustes_distance(x, y) == pytest.approx(procrustes_distance(padded, y), rel=1e-9)
    assert procrustes_distance(y, x) == pytest.approx(procrustes_distance(x, y), rel=1e-9)


def test_unrelated_states_are_not_at_the_largest_procrustes_distance() -> None:
    """METHOD B2's 0.81 at N = 150, d = 512 is that of a decaying spectrum, with eigenvalues 1/i."""
    pairs = [(made(s, 150, 512), made(s + 100, 150, 512)) for s in range(6)]
    spectrum = torch.arange(1, 513).double().rsqrt()
    assert np.mean([procrustes_distance(x, y) for x, y in pairs]) == pytest.approx(0.38, abs=0.01)
    assert np.mean([procrustes_distance(x * spectrum, y * spectrum) for x, y in pairs]) == pytest.approx(0.81, abs=0.02)


def test_same_basis_change_sees_what_the_others_forgive() -> None:
    x = made(0, 30, 12)
    turned = x @ rotation(1, 12)
    assert linear_cka(x, turned) == pytest.approx(1, abs=1e-12)
    assert same_basis_change(x, turned) > 0.5
    assert same_basis_change(x, x) == 0
    assert same_basis_change(x, 1.25 * x) == pytest.approx(0.25, rel=1e-12)


def test_participation_ratio_in_closed_form() -> None:
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]).double()
    assert participation_ratio(signs) == pytest.approx(2, rel=1e-12)
    assert participation_ratio(signs * torch.tensor([3.0, 1.0])) == pytest.approx(10**2 / 82, rel=1e-12)
    assert participation_ratio(signs[:, :1] + 7) == pytest.approx(1, rel=1e-12)


# What has no value


def whole(x: Tensor, y: Tensor) -> dict[str, float]:
    site = Site(0, "resid_post")
    frame = measure({site: x}, {site: y}, ids(len(x)), "report", orders=pairings(range(len(x)), 3, 0))
    set_values = dict(of_the_set(frame).select("metric", "value").rows())
    assert tuple(set_values) == METRICS
    without = {metric: frame.filter(metric=metric)["value"] for metric in LEFT_OUT}
    return set_values | {metric: math.nan if values.is_nan().any() else 0.0 for metric, values in without.items()}


def broken(x: Tensor) -> Tensor:
    x = x.clone()
    x[2, 1] = math.inf
    return x


@pytest.mark.parametrize(
    ("x", "y", "metrics", "word"),
    [
        (made(0, 9, 4), made(1, 9, 4), set(), ""),
        (made(0, 9, 4), made(1, 9, 6), {"same_basis_change"}, "width"),
        (made(0, 4, 4), made(1, 4, 4), LEFT_OUT, "5"),
        (made(0, 3, 4), made(1, 3, 4), set(DEBIASED), "needed"),
        (made(0, 2, 4), made(1, 2, 4), {*DEBIASED, "mutual_knn"}, "needed"),
        (made(0, 1, 4), made(1, 1, 4), {*METRICS, *LEFT_OUT} - {"same_basis_change"}, ""),
        (
            made(0, 1, 4).expand(9, -1),
            made(1, 9, 4),
            {*METRICS, *LEFT_OUT} - {"same_basis_change", "participation_ratio_tuned"},
            "do not vary",
        ),
        (
            made(0, 1, 4).float().expand(9, -1),
            made(1, 1, 4).float().expand(9, -1),
            {*METRICS, *LEFT_OUT} - {"same_basis_change"},
            "do not vary",
        ),
        (torch.eye(9), made(1, 9, 9).float(), set(DEBIASED), ""),
        (torch.zeros(9, 4), made(1, 9, 4).float(), {*METRICS, *LEFT_OUT} - {"participation_ratio_tuned"}, ""),
        (broken(made(0, 9, 4)), made(1, 9, 4), {*METRICS, *LEFT_OUT} - {"participation_ratio_tuned"}, "NaN or infinity"),
        (made(0, 9, 20), broken(made(1, 9, 20)), {*METRICS, *LEFT_OUT} - {"participation_ratio_base"}, "NaN or infinity"),
    ],
)
def test_what_is_undefined_is_nan_and_said_why(x: Tensor, y: Tensor, metrics: set[str], word: str) -> None:
    values = whole(x, y)
    assert {metric for metric, value in values.items() if math.isnan(value)} == metrics
    why = undefined(x, y)
    assert set(why) == metrics
    assert all(word in reason for reason in why.values() if len(set(why.values())) == 1)


def test_a_constant_state_with_rounding_is_constant() -> None:
    x = made(0, 1, 300).float().expand(40, -1) * (1 + 1e-7 * torch.randn(40, 300, generator=torch.Generator().manual_seed(0)))
    assert math.isnan(linear_cka(x, made(1, 40, 300)))


def test_negative_values_are_kept() -> None:
    values = [linear_cka(made(s, 10, 50), made(s + 50, 10, 50)) for s in range(20)]
    assert min(values) < -0.01


# The rows


def test_rows_keep_the_contract() -> None:
    sites = [Site(layer, kind) for layer in (1, 0) for kind in ("resid_post", "z")]
    x = {site: made(i, 12, 5 + i).float() for i, site in enumerate(sites)}
    y = {site: near(state.double(), 9).float() for site, state in x.items()}
    frame = measure(x, y, ids(12), "select", orders=pairings(range(12), 8, 3))
    assert frame.columns == COLUMNS
    assert frame.select(COLUMNS[:-1]).is_unique().all()
    assert frame["value"].null_count() == 0
    assert frame.select("measure", "split").unique().rows() == [("similarity", "select")]
    assert len(frame) == 4 * (len(METRICS) + 2 * 12 + 8 + 8)
    for site in sites:
        here = frame.filter(layer=site.layer, site=site.kind)
        value = dict(of_the_set(here).select("metric", "value").rows())
        assert value["cka"] == pytest.approx(linear_cka(x[site], y[site]), rel=1e-12)
        assert value["cka_biased"] == pytest.approx(linear_cka(x[site], y[site], debiased=False), rel=1e-12)
        assert value["participation_ratio_base"] == pytest.approx(participation_ratio(x[site]), rel=1e-12)
        assert value["participation_ratio_tuned"] == pytest.approx(participation_ratio(y[site]), rel=1e-12)
        assert value["procrustes_distance"] == pytest.approx(procrustes_distance(x[site], y[site]), rel=1e-12)
        assert value["mutual_knn"] == mutual_knn(x[site], y[site])
        assert value["same_basis_change"] == same_basis_change(x[site], y[site])
        without = here.filter(metric="cka_without_prompt")
        assert without["prompt"].to_list() == ids(12)
        torch.testing.assert_close(without["value"].to_torch(), left_out(x[site], y[site]))
        robust = cka_without_top(x[site], y[site])
        assert value["cka_without_top3"] == pytest.approx(robust, rel=1e-12)
        assert here.filter(metric="cka_without_top3_without_prompt")["prompt"].to_list() == ids(12)
        orders = pairings(range(12), 8, seed=3)
        for metric, function, draws in (("cka", linear_cka, 8), ("procrustes_distance", procrustes_distance, 8)):
            drawn = dict(here.filter(here["control"].is_not_null(), metric=metric).select("control", "value").rows())
            expected = {f"permuted#{i}": function(x[site], y[site][orders[i]]) for i in range(draws)}
            assert drawn == pytest.approx(expected, rel=1e-9)


def test_same_seed_same_bytes_and_grouping_of_sites_is_unseen() -> None:
    x = {Site(i, "resid_post"): made(i, 10, 6) for i in range(40)}
    y = {site: near(state, 9) for site, state in x.items()}
    frame = measure(x, y, ids(10), "report", orders=pairings(range(10), 4, 0))
    assert frame.equals(measure(x, y, ids(10), "report", orders=pairings(range(10), 4, 0)))
    last = Site(39, "resid_post")
    alone = measure({last: x[last]}, {last: y[last]}, ids(10), "report", orders=pairings(range(10), 4, 0))
    together = frame.filter(layer=39)
    key = ["metric", "control", "prompt"]
    torch.testing.assert_close(together.sort(key)["value"].to_torch(), alone.sort(key)["value"].to_torch(), rtol=1e-12, atol=1e-14)
    assert not frame.equals(measure(x, y, ids(10), "report", orders=pairings(range(10), 4, 1)))


def test_identical_models_and_no_draws() -> None:
    x = {Site(0, "resid_post"): made(0, 10, 30).float()}
    frame = measure(x, x, ids(10), "report")
    value = dict(of_the_set(frame).select("metric", "value").rows())
    assert value["cka"] == pytest.approx(1, abs=1e-12)
    assert value["cka_biased"] == pytest.approx(1, abs=1e-12)
    assert value["mutual_knn"] == 1
    assert value["procrustes_distance"] == pytest.approx(0, abs=1e-12)
    assert value["same_basis_change"] == 0
    assert len(frame) == len(METRICS) + 2 * 10
    assert measure({}, {}, ids(10), "report").is_empty()
