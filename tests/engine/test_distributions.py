import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mechdiff.engine.distributions import (
    EVERY,
    METRICS,
    ON_SHARED,
    js_nats,
    kl_nats,
    logit_diff_divergent,
    top1_same,
)
from mechdiff.engine.outcome import CleanLogits, outcomes
from oracles import laws

INF = math.inf
few_logits = arrays(np.float32, 6, elements=st.floats(-30, 30, width=32))


def made(seed: int, *shape: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def test_two_tokens_in_closed_form() -> None:
    p, q = torch.tensor([0.0, 0.0]), torch.tensor([math.log(3.0), 0.0])
    assert float(kl_nats(p, q)) == pytest.approx(math.log(2 / math.sqrt(3)), rel=1e-6)
    assert float(kl_nats(q, p)) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)
    assert float(js_nats(p, q)) == pytest.approx(laws.js_nats([0, 0], [math.log(3), 0]), rel=1e-6)


def test_merged_token_vocabulary() -> None:
    """Shared-vocabulary KL of one byte process under {a, b} and under {a, b, ab}: half of ln 1.125."""
    shared = torch.tensor([0.5, 0.5]).log(), torch.tensor([1 / 3, 2 / 3]).log()
    assert float(kl_nats(*shared)) == pytest.approx(0.5 * math.log(1.125), rel=1e-6)
    assert float(kl_nats(*shared)) == pytest.approx(0.058892, abs=5e-7)


@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-2, 0.1, 1.0, 4.0])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_float32_keeps_its_digits_over_a_real_vocabulary(size: float, spread: float) -> None:
    reference, run = made(0, 49_152, scale=spread), made(1, 49_152, scale=size)
    run = reference + run
    kl, js = laws.kl_and_js_of_neighbours(reference, run)
    tolerance = 1e-2 if size == 1e-4 else 1e-4 if size == 1e-3 else 2e-5
    assert float(kl_nats(reference, run)) == pytest.approx(kl, rel=tolerance)
    assert float(js_nats(reference, run)) == pytest.approx(js, rel=tolerance)


def test_plain_float32_log_softmax_would_have_lost_it() -> None:
    reference = made(0, 49_152)
    run = reference + made(1, 49_152, scale=1e-3)
    kl = laws.kl_and_js_of_neighbours(reference, run)[0]
    log_p, log_q = reference.log_softmax(-1), run.log_softmax(-1)
    assert abs(float((log_p.exp() * (log_p - log_q)).sum()) / kl - 1) > 0.1
    assert abs(float(kl_nats(reference, run)) / kl - 1) < 1e-4


@pytest.mark.parametrize("scale", [20.0, 60.0, 300.0, 3000.0])
def test_large_divergences_are_finite_and_right(scale: float) -> None:
    reference, runs = made(0, 500, scale=scale), made(1, 20, 500, scale=scale)
    expected = [laws.kl_nats_by_logs(reference, run) for run in runs]
    torch.testing.assert_close(kl_nats(reference, runs), torch.tensor(expected, dtype=torch.float64), rtol=2e-5, atol=0)
    expected = [laws.js_nats(reference, run) for run in runs]
    torch.testing.assert_close(js_nats(reference, runs), torch.tensor(expected, dtype=torch.float64), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("depth", [60.0, 75.0, 84.0, 85.0, 87.0, 95.0, 104.0, 200.0])
@pytest.mark.parametrize("gain", [0.0, 3.0])
def test_mass_where_the_reference_underflows_is_seen(depth: float, gain: float) -> None:
    """A token of probability exp(-depth) gets half of the mass or more: float32 can hold neither that probability nor its growth."""
    reference, run = torch.tensor([0.0, -depth, -1.0]), torch.tensor([0.0, gain, -1.0])
    assert float(kl_nats(reference, run)) == pytest.approx(laws.kl_nats_by_logs(reference, run), rel=1e-5)
    assert float(js_nats(reference, run)) == pytest.approx(laws.js_nats(reference, run), rel=1e-5)


def test_a_little_mass_where_the_reference_underflows_is_seen() -> None:
    """exp(u) does not overflow here, but the probability that it multiplies has no digits left: all of the KL is in that product."""
    reference, run = torch.tensor([0.0, -1.0, *[-102.0] * 50]), torch.tensor([0.0, -1.0, *[-16.0] * 50])
    assert float(kl_nats(reference, run)) == pytest.approx(laws.kl_nats_by_logs(reference, run), rel=1e-5)
    assert float(js_nats(reference, run)) == pytest.approx(laws.js_nats(reference, run), rel=1e-5)


def test_masked_vocabulary() -> None:
    reference = torch.tensor([1.0, 0.5, -INF, -INF])
    runs = torch.tensor([[1.0, 0.5, -INF, -INF], [0.0, 1.0, -INF, -INF], [1.0, 0.5, 0.0, -INF], [1.0, -INF, -INF, -INF]])
    kl, js = kl_nats(reference, runs), js_nats(reference, runs)
    assert kl[0] == 0 == js[0]
    assert float(kl[1]) == pytest.approx(laws.kl_nats(reference[:2], runs[1, :2]), rel=1e-6)
    assert float(kl[2]) == pytest.approx(-math.log(1 - torch.softmax(runs[2], 0)[2]), rel=1e-6)  # KL = -log(1 - m), METHOD B4
    assert kl[3] == INF
    for run, value in zip(runs, js, strict=True):
        assert float(value) == pytest.approx(laws.js_nats(reference, run), rel=1e-6, abs=1e-12)
    assert kl_nats(torch.tensor([0.0, -INF]), torch.tensor([-INF, 0.0])) == INF
    assert kl_nats(torch.tensor([0.0, -800.0]), torch.tensor([0.0, -INF])) == INF
    assert float(js_nats(torch.tensor([0.0, -INF]), torch.tensor([-INF, 0.0]))) == pytest.approx(math.log(2), rel=1e-12)


def test_a_mask_does_not_change_the_rest() -> None:
    reference, runs = made(0, 400), made(1, 7, 400, scale=0.01)
    runs = reference + runs
    padding = torch.full((50,), -INF)
    masked = torch.cat([reference, padding]), torch.cat([runs, padding.expand(7, -1)], -1)
    torch.testing.assert_close(kl_nats(*masked), kl_nats(reference, runs), rtol=1e-5, atol=0)
    torch.testing.assert_close(js_nats(*masked), js_nats(reference, runs), rtol=1e-5, atol=0)


def test_nan_logits_stay_nan() -> None:
    z = torch.tensor([0.0, 1.0])
    assert kl_nats(z, torch.tensor([0.0, math.nan])).isnan()
    assert js_nats(torch.tensor([0.0, math.nan]), z).isnan()


def test_leading_axes_broadcast() -> None:
    reference, runs = made(0, 3, 1, 50), made(1, 3, 4, 50)
    kl, js = kl_nats(reference, runs), js_nats(reference, runs)
    assert kl.shape == js.shape == (3, 4)
    assert kl.dtype == torch.float64
    for i in range(3):
        for j in range(4):
            assert float(kl[i, j]) == pytest.approx(laws.kl_nats(reference[i, 0], runs[i, j]), rel=1e-5)
            assert float(js[i, j]) == pytest.approx(laws.js_nats(reference[i, 0], runs[i, j]), rel=1e-5)
    torch.testing.assert_close(kl_nats(reference[0, 0], runs[0, 0]), kl[0, 0])
    assert kl_nats(reference[0, 0], runs).shape == (3, 4)


def test_float64_agrees_with_the_oracle_to_1e_12() -> None:
    a, b = made(0, 300).double(), made(1, 300).double()
    assert float(kl_nats(a, b)) == pytest.approx(laws.kl_nats(a, b), rel=1e-12)
    assert float(js_nats(a, b)) == pytest.approx(laws.js_nats(a, b), rel=1e-12)


def test_top1_same() -> None:
    a = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    b = torch.tensor([[[0.0, 5.0, 1.0], [0.0, 1.0, 5.0]], [[0.0, 5.0, 1.0], [1.0, 1.0, 0.0]]])
    assert top1_same(a[:, None], b).tolist() == [[True, False], [False, True]]


def test_logit_diff_at_the_divergent_token() -> None:
    runs = torch.tensor([[1.0, 4.0, 9.0], [2.0, 2.5, 2.0]])
    tuned, base, same = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 7.0])
    assert logit_diff_divergent(runs, tuned, base).tolist() == [5.0, -0.5]
    assert logit_diff_divergent(runs, tuned, same).isnan().all()


def test_outcomes_are_the_five_metrics_of_each_run() -> None:
    tuned, base = made(0, 3, 80), made(1, 3, 80)
    tuned[2, 5] = base[2, 5] = 20.0  # the third prompt has no divergent token
    runs = made(2, 3, 4, 80)
    runs[:, 0] = base
    found = outcomes(runs, CleanLogits(base=base, tuned=tuned), "base")
    assert tuple(found) == METRICS
    assert all(value.shape == (3, 4) and value.dtype == torch.float64 for value in found.values())
    assert not found["kl_own_nats"][:, 0].any()
    assert not found["js_own_nats"][:, 0].any()
    for i in range(3):
        for j in range(4):
            run = runs[i, j]
            assert float(found["kl_own_nats"][i, j]) == pytest.approx(laws.kl_nats(base[i], run), rel=1e-5, abs=1e-12)
            assert float(found["kl_other_nats"][i, j]) == pytest.approx(laws.kl_nats(tuned[i], run), rel=1e-5)
            assert float(found["js_own_nats"][i, j]) == pytest.approx(laws.js_nats(base[i], run), rel=1e-5, abs=1e-12)
            assert found["top1_same"][i, j] == float(run.argmax() == base[i].argmax())
            if i < 2:
                assert found["logit_diff_divergent"][i, j] == run[tuned[i].argmax()].double() - run[base[i].argmax()].double()
    assert found["logit_diff_divergent"][2].isnan().all()


@pytest.mark.parametrize("outside", [-np.inf, 1.0])
def test_where_the_vocabularies_differ_the_own_law_is_compared_on_the_shared_tokens_too(outside: float) -> None:
    """Of a model that has tokens of its own, and of one that has none: there it is the same number as over all tokens."""
    own, other, runs = made(0, 2, 80), made(1, 2, 80), made(2, 2, 3, 80)
    if outside == -np.inf:
        own[..., 60:], runs[..., 60:] = outside, outside
    clean = CleanLogits(base=other, tuned=own, n_shared=60)
    found = outcomes(runs, clean, "tuned")
    assert tuple(found) == EVERY
    assert not set(ON_SHARED) & set(outcomes(runs, replace(clean, n_shared=80), "tuned")), "one vocabulary: no cut"
    for i in range(2):
        for j in range(3):
            cut = own[i, :60], runs[i, j, :60]
            assert float(found["kl_own_shared_nats"][i, j]) == pytest.approx(laws.kl_nats(*cut), rel=1e-5)
            assert float(found["js_own_shared_nats"][i, j]) == pytest.approx(laws.js_nats(*cut), rel=1e-5)
    same = torch.isclose(found["kl_own_shared_nats"], found["kl_own_nats"], rtol=1e-5)
    assert same.all() if outside == -np.inf else not same.any()
    one = outcomes(runs, clean, "tuned", metrics=("kl_own_shared_nats",))
    assert tuple(one) == ("kl_own_shared_nats",)
    torch.testing.assert_close(one["kl_own_shared_nats"], found["kl_own_shared_nats"], rtol=0, atol=0)


def test_half_precision_logits_are_compared_in_float32() -> None:
    reference, runs = made(0, 300).bfloat16(), made(1, 4, 300).bfloat16()
    torch.testing.assert_close(kl_nats(reference, runs), kl_nats(reference.float(), runs.float()), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_property_22_the_gpu_agrees_with_the_cpu() -> None:
    own, other, runs = made(0, 2, 5000), made(1, 2, 5000), made(2, 2, 6, 5000)
    here = outcomes(runs, CleanLogits(base=other, tuned=own), "tuned")
    there = outcomes(runs.cuda(), CleanLogits(base=other.cuda(), tuned=own.cuda()), "tuned")
    for metric in METRICS:
        torch.testing.assert_close(there[metric], here[metric], rtol=1e-5, atol=1e-9, equal_nan=True)
