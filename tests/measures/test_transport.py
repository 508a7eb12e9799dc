"""Quality of maps by naive formulas and identities; permutations of whole prompts; a change seen in a random subspace."""

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from mechdiff.maps.maps import Map
from mechdiff.measures.transport.formula import Sample, cycle_error, fit_maps, others_rows, permuted_quality, projected_at_random, quality


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_quality_is_what_its_formulas_say() -> None:
    source, mapped = random(20, 6) + 1, random(20, 6, seed=1)
    target = source + 0.3 * random(20, 6, seed=2)
    mean = random(6, seed=3)
    found = quality(mapped, source, target, mean)
    assert float(found["r2"]) == pytest.approx(r2_score(target, mapped, multioutput="variance_weighted"))
    change = (target - source).numpy()
    left = change - (mapped - source).numpy()
    assert float(found["r2_change"]) == pytest.approx(1 - (left**2).sum() / ((change - change.mean(0)) ** 2).sum())
    assert float(found["norm_ratio"]) == pytest.approx(float(mapped.norm(dim=1).mean() / target.norm(dim=1).mean()))
    cosines = [float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(mapped.numpy(), target.numpy(), strict=True)]
    torch.testing.assert_close(found["cosine"], torch.tensor(cosines, dtype=torch.float64))
    centred = [float(torch.cosine_similarity(a - mean, b - mean, dim=0)) for a, b in zip(mapped, target, strict=True)]
    torch.testing.assert_close(found["cosine_centred"], torch.tensor(centred, dtype=torch.float64))


def test_a_perfect_map_has_r2_and_cka_1_and_a_constant_change_no_r2_of_the_change() -> None:
    source = random(12, 5)
    found = quality(source + 2, source, source + 2, torch.full((5,), 2.0, dtype=torch.float64))
    assert float(found["r2"]) == pytest.approx(1)
    assert float(found["cka_mapped"]) == pytest.approx(1)
    assert found["r2_change"].isnan()


def test_the_rounding_of_float32_is_no_change_that_varies() -> None:
    source = (random(12, 5) * 100).float()
    target = source + 1e-5 * random(12, 5, seed=1).float()
    assert quality(source, source, target, target.double().mean(0))["r2_change"].isnan()


def test_a_map_and_its_way_back_close_the_circle() -> None:
    base = random(30, 4)
    rotation = torch.linalg.qr(random(4, 4, seed=5))[0]
    fit = Sample(base=base, tuned=base @ rotation + 3, groups=torch.arange(30))
    maps = fit_maps(["identity", "shift", "anchored_procrustes"], fit, None, settings={"anchored_procrustes": {"lam": 0.0}})
    there, back = maps.there["anchored_procrustes"], maps.back["anchored_procrustes"]
    assert cycle_error(there, back, random(9, 4, seed=6)) < 1e-10
    assert cycle_error(maps.there["shift"], maps.back["shift"], random(9, 4, seed=6)) < 1e-12
    assert cycle_error(maps.there["identity"], maps.back["identity"], base) == 0


@pytest.mark.parametrize("n", [2, 3, 10])
def test_without_fixed_points_every_prompt_gets_anothers_rows(n: int) -> None:
    for seed in range(20):
        order = others_rows(range(n), 1, seed=seed)
        assert (order != torch.arange(n)).all()
        assert sorted(order.tolist()) == list(range(n))


def test_a_change_seen_in_a_random_subspace_keeps_its_norm_and_has_that_rank() -> None:
    change = random(15, 20)
    seen = projected_at_random(change, 3, seed=1)
    torch.testing.assert_close(seen.norm(dim=1), change.norm(dim=1))
    assert int(torch.linalg.matrix_rank(seen)) == 3
    torch.testing.assert_close(projected_at_random(change, 20, seed=1), change)


@pytest.mark.parametrize("arm", ["anchored_ridge", "rrr", "anchored_procrustes"])
def test_permuted_refits_fall_short_of_a_real_change(arm: str) -> None:
    """A change that the state decides: refits on permuted changes explain none of it on other prompts, the real fit most."""
    base, other = random(60, 8), random(40, 8, seed=1)
    if arm == "anchored_procrustes":
        matrix = torch.linalg.qr(torch.eye(8, dtype=torch.float64) + 0.2 * random(8, 8, seed=2))[0]
    else:
        matrix = torch.eye(8, dtype=torch.float64) + 0.3 * random(8, 2, seed=2) @ random(2, 8, seed=3)
    fit = Sample(base=base, tuned=base @ matrix + 0.01 * random(60, 8, seed=4), groups=torch.arange(60))
    one = fit_maps([arm], fit, None, back=False).there[arm]
    test = (other, other @ matrix)
    real = float(quality(one.transform(other), *test, fit.tuned.mean(0))["r2_change"])
    null = permuted_quality(one, fit, Sample(base=test[0], tuned=test[1], groups=torch.arange(40)), draws=20, seed=0)
    assert real > 0.9
    assert max(null) < 0.3
    assert len(null) == (2 if arm == "anchored_procrustes" else 20)


def test_arms_without_a_null_have_no_draws() -> None:
    fit = Sample(base=random(9, 3), tuned=random(9, 3, seed=1), groups=torch.arange(9))
    assert permuted_quality(Map("shift").fit(fit.base, fit.tuned), fit, fit, draws=5, seed=0) == []
