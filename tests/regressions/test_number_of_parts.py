"""What a user saw: a number of heads or sites whose interval did not hold the truth, and a number made of noise alone."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy import ndarray

from mechdiff.measures.heads.words import effective
from mechdiff.statistics import simulated, spread
from mechdiff.validate import skewed

REPEATS = 150


def study(rng: np.random.Generator, truth: ndarray, n: int, noise: float = 0.1) -> ndarray:
    """Parts that share each prompt's log-normal size (CV 1), each with signed noise, as a share of the largest."""
    size = rng.lognormal(-0.35, 0.83, (n, 1))
    return size * (truth + rng.normal(0, noise * truth.max(), (n, len(truth))))


def names(n: int) -> list[str]:
    return [f"p{i}" for i in range(n)]


@pytest.mark.parametrize("n", [8, 16, 32])
@pytest.mark.parametrize(
    "truth",
    [np.eye(9)[0], np.eye(32)[0], np.eye(9)[:2].sum(0), 0.5 ** np.arange(9), np.ones(9)],
    ids=["one of 9", "one of 32", "two of 9", "each half of the one before", "all 9 alike"],
)
def test_the_interval_of_the_number_of_heads_holds_the_truth(truth: ndarray, n: int) -> None:
    true = truth.sum() ** 2 / (truth**2).sum()
    rng = np.random.default_rng([n, len(truth)])
    found = [spread.number_of_parts(study(rng, truth, n), names(n)) for _ in range(REPEATS)]
    held = np.mean([one.low - 1e-9 <= true <= one.high + 1e-9 for one in found])
    assert held >= 0.87 - 2 * np.sqrt(0.87 * 0.13 / REPEATS), "it was 0 to 64 %"
    assert np.mean([one.value for one in found]) == pytest.approx(true, abs=0.15 + 0.01 * true), "one head of 32 was called 4.3"


@pytest.mark.parametrize("parts", [9, 60, 270])
def test_noise_is_not_called_a_number_of_parts(parts: int) -> None:
    rng = np.random.default_rng(parts)
    spoken, numbers = 0, []
    for _ in range(REPEATS):
        values = rng.normal(size=(12, parts))
        numbers.append(spread.number_of_parts(values, names(12)).value)
        spoken += not spread.silence(values)
    assert spoken / REPEATS <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / REPEATS)
    assert np.mean(numbers) < 3, "noise alone was given a third of all parts"
    high = spread.nothing(rng.normal(size=(12, parts)))[2]
    assert np.quantile(numbers, 0.9) < high < 20, "the null says what noise gives"


@pytest.mark.parametrize("n", [8, 16, 32])
@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("side", [1, -1], ids=["high tail", "low tail"])
def test_skewed_noise_that_all_parts_share_is_not_called_an_effect(n: int, cv: float, side: int) -> None:
    rng = np.random.default_rng([n, int(10 * cv), side + 1])
    spoken = 0
    for _ in range(REPEATS):
        d = skewed.lognormal(rng, cv, (n, 1))
        spoken += not spread.silence(side * (d - 1) + rng.normal(0, 0.1, (n, 60)), skew=float(simulated.cv_of(d)[0]))
    assert spoken / REPEATS <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / REPEATS), "flips of signs called it an effect in 15 to 25 %"


def test_a_number_is_not_said_where_prompts_are_too_few_for_their_skew() -> None:
    rng = np.random.default_rng(8)
    values = np.abs(rng.normal(1, 0.1, (8, 9)))
    assert not spread.silence(values, skew=0.5)
    assert spread.silence(values, skew=2.0) == spread.UNTESTED, "no test is no proof of noise"
    assert spread.presence(values, skew=2.0) == 1.0
    assert not spread.silence(np.abs(rng.normal(1, 0.1, (64, 9))), skew=2.0)


def test_an_effect_of_one_part_among_many_is_still_seen() -> None:
    rng = np.random.default_rng(6)
    found = [not spread.silence(study(rng, np.eye(60)[7], 16, noise=0.05), skew=0.83) for _ in range(50)]
    assert np.mean(found) > 0.7, "a test that holds where prompts are skewed costs power"


def test_parts_that_cancel_get_no_number() -> None:
    truth = np.array([1.0, -0.9, 0.8, -0.7, 0.05, 0.0])
    values = study(np.random.default_rng(7), truth, 20, noise=0.02)
    assert spread.silence(values) == "parts work against each other"
    assert spread.number_of_parts(values, names(20)).value < 1, "fewer than one part: they cancel"


@pytest.mark.parametrize(
    "why", ["fewer than 5 prompts", "the sum of the parts' effects is not significant (p > 0.05)", "parts work against each other"]
)
def test_the_verdict_gives_no_number_of_heads_where_none_can_be_told(why: str) -> None:
    shares: Any = SimpleNamespace(effective=(4.3, 2.0, 6.0), null=(1.0, 2.0, 3), silent=why)
    assert "4.3" not in effective(shares, 9)
    assert why in effective(shares, 9)
