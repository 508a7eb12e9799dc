"""Sums over rows give what the rows give: fits, CKA, subspaces, choices; in whatever shards they come."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechdiff.errors import StudyError
from mechdiff.maps.maps import Map
from mechdiff.maps.moments import Moments, chosen, merged, summed
from mechdiff.maps.regression import LAMBDAS, cross_validated, fold_rows
from mechdiff.measures.similarity import formula as similarity_formula


def rows(n: int, d: int, *, seed: int = 0, offset: float = 0.0, rank: int = 3) -> tuple[Tensor, Tensor]:
    """States and what a change of low rank, and noise, make of them; `offset`: how far from 0 they are."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    x = normal(n, d) * torch.linspace(0.3, 2, d) + offset
    return x, x + 0.5 * normal(1, d) + (x - offset) @ (normal(d, rank) @ normal(rank, d) / d) + 0.1 * normal(n, d)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize(("n", "d"), [(40, 12), (300, 12)])
def test_they_give_what_the_rows_give(n: int, d: int, offset: float) -> None:
    x, y = rows(n, d, offset=offset)
    found = summed((x[i : i + 7], y[i : i + 7]) for i in range(0, n, 7))
    within = {"rtol": 1e-9, "atol": 1e-9 * (1 + offset)}
    torch.testing.assert_close(found.mean_difference(), (y - x).mean(0), **within)
    for debiased in (True, False):
        assert found.cka(debiased=debiased) == pytest.approx(similarity_formula.linear_cka(x, y, debiased=debiased), abs=1e-9)
    for lam, rank in ((0.0, None), (0.1, None), (0.1, 2), (float("inf"), None)):
        settings_of = {"lam": lam} | ({} if rank is None else {"rank": rank})
        expected = Map("anchored_ridge" if rank is None else "rrr", **settings_of).fit(x, y)
        made = found.map(lam, rank)
        torch.testing.assert_close(made.transform(x), expected.transform(x), **within)
        assert made.rank_ == expected.rank_


def test_fewer_rows_than_features_give_the_dual_form() -> None:
    x, y = rows(15, 40)
    found = Moments.of(x, y)
    assert found.cka() == pytest.approx(similarity_formula.linear_cka(x, y), abs=1e-10)
    for rank in (None, 2):
        expected = Map("anchored_ridge" if rank is None else "rrr", lam=0.3, **({} if rank is None else {"rank": rank})).fit(x, y)
        torch.testing.assert_close(found.map(0.3, rank).transform(x), expected.transform(x), rtol=1e-7, atol=1e-8)


def test_penalty_and_rank_are_those_of_the_rows() -> None:
    x, y = rows(200, 10, rank=2)
    groups = torch.arange(50).repeat_interleave(4)
    held = list(fold_rows(groups, 5, 0))
    centre = (x.mean(0), y.mean(0))
    found = chosen([Moments.of(x[one], y[one], centre) for one in held])
    expected = cross_validated(x, y - x, groups)
    assert (found.lam, found.lam_of_ranks) == (expected.lambda_, expected.lambda_of_ranks)
    assert found.lam in LAMBDAS
    by_rank = sum(errors * len(one) for errors, one in zip(found.errors, held, strict=True)) / len(x)
    torch.testing.assert_close(by_rank, expected.errors_by_rank, rtol=1e-7, atol=1e-9)
    assert found.rank == expected.rank_one_se == 2
    assert found.r2 == pytest.approx(1 - float(expected.errors.min()) / float((y - x - (y - x).mean(0)).square().sum(1).mean()), abs=0.02)


@settings(max_examples=25)
@given(cuts=st.lists(st.integers(1, 59), max_size=6, unique=True), seed=st.integers(0, 5))
def test_shards_may_be_cut_anywhere(cuts: list[int], seed: int) -> None:
    x, y = rows(60, 6, seed=seed, offset=50.0)
    centre = (x[:10].mean(0), y[:10].mean(0))
    ends = [0, *sorted(cuts), 60]
    parts = [Moments.of(x[a:b], y[a:b], centre) for a, b in pairwise(ends)]
    whole = Moments.of(x, y, centre)
    for found in (merged(parts), whole + parts[0] - parts[0]):
        assert found.n == 60
        assert found.cka() == pytest.approx(whole.cka(), abs=1e-10)
        torch.testing.assert_close(found.map(0.1).transform(x), whole.map(0.1).transform(x))


def test_a_file_brings_them_back_and_other_centres_are_refused(tmp_path: Path) -> None:
    x, y = rows(20, 5)
    one = Moments.of(x, y)
    one.save(tmp_path / "sums.safetensors", chunks="3")
    found, told = Moments.load(tmp_path / "sums.safetensors")
    assert told == {"chunks": "3"}
    assert (found.n, found.cka()) == (20, one.cka())
    with pytest.raises(StudyError, match="different centres do not add"):
        one + Moments.of(x + 1, y)
    with pytest.raises(StudyError, match="no rows"):
        summed([])
    with pytest.raises(StudyError, match="two folds or more"):
        chosen([one])


def test_models_that_are_the_same_are_the_same() -> None:
    x, _ = rows(100, 8)
    parts = [Moments.of(x[i::5], x[i::5], (x.mean(0), x.mean(0))) for i in range(5)]
    whole = merged(parts)
    assert whole.cka() == pytest.approx(1, abs=1e-12)
    assert whole.map(0.1).rank_ == 0
    assert chosen(parts).rank == 0
