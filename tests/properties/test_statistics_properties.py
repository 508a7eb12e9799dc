"""Properties 20 and 21 of METHOD: intervals that hold their estimate, and effects that are gone once the labels of the report split are permuted."""

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray
from torch import Tensor

from drawn import examples, seeds, spread
from mechdiff.architectures.sites import Site
from mechdiff.maps.maps import Map
from mechdiff.maps.refits import permutations
from mechdiff.measures.patching.selection import choose_layers
from mechdiff.measures.similarity import formula as similarity_formula
from mechdiff.measures.similarity.geometry import pairings
from mechdiff.measures.transport.formula import quality
from mechdiff.rows import rows
from mechdiff.statistics import intervals
from mechdiff.statistics.spread import number_of_parts

samples = st.integers(5, 40).flatmap(
    lambda n: st.lists(st.floats(-1e6, 1e6, allow_nan=False, allow_subnormal=False), min_size=n, max_size=n)
)

# ---- 20: intervals -------------------------------------------------------------------------------------------------------------------

Ends = Callable[[ndarray, int], tuple[ndarray, ndarray, ndarray]]
"""Values `[prompt, column]` and a seed -> estimate, low and high end of each column."""


def means(values: ndarray, seed: int) -> tuple[ndarray, ndarray, ndarray]:
    return (values.mean(0), *intervals.mean_intervals(values, seed=seed))


def shares(values: ndarray, seed: int) -> tuple[ndarray, ndarray, ndarray]:
    return intervals.share_intervals(values, np.abs(values) + 1, seed=seed)


def asymmetries(values: ndarray, seed: int) -> tuple[ndarray, ndarray, ndarray]:
    return intervals.asymmetry_intervals(np.abs(values) + 1, np.roll(np.abs(values), 1, axis=0), seed=seed)


def bands(values: ndarray, seed: int) -> tuple[ndarray, ndarray, ndarray]:
    return (values.mean(0), *intervals.simultaneous_bands(values, seed=seed))


def geometric(values: ndarray, seed: int) -> tuple[ndarray, ndarray, ndarray]:
    return intervals.geometric(np.abs(values) + 1)


def effective(values: ndarray, seed: int) -> tuple[ndarray, ndarray, ndarray]:
    found = number_of_parts(np.abs(values) + 1, [str(i) for i in range(len(values))])
    return np.array([found.value]), np.array([found.low]), np.array([found.high])


ESTIMATES: dict[str, Ends] = {
    "means": means, "shares": shares, "asymmetries": asymmetries, "bands": bands, "geometric": geometric, "effective": effective,
}  # fmt: skip
RESAMPLED = ("means", "shares", "asymmetries", "bands")


@pytest.mark.parametrize("name", ESTIMATES)
@examples(25)
@given(samples, st.integers(0, 2**20))
def test_property_20_an_interval_holds_its_estimate_and_the_same_seed_gives_the_same_bytes(name: str, one: list[float], seed: int) -> None:
    values = np.column_stack([one, one[::-1], np.cbrt(one)])
    point, low, high = ESTIMATES[name](values, seed)
    slack = 1e-9 * np.abs(point)
    assert (low <= point + slack).all()
    assert (point <= high + slack).all()
    again = ESTIMATES[name](values, seed)
    assert [end.tobytes() for end in (point, low, high)] == [end.tobytes() for end in again]


@pytest.mark.parametrize("name", RESAMPLED)
@examples(3)
@given(seeds)
def test_property_20_another_seed_gives_other_resamples(name: str, seed: int) -> None:
    values = np.random.default_rng(seed).lognormal(0, 1, (30, 5))
    one, other = (ESTIMATES[name](values, s) for s in (seed, seed + 1))
    np.testing.assert_array_equal(one[0], other[0])
    assert one[1].tobytes() != other[1].tobytes()
    np.testing.assert_allclose(one[1], other[1], atol=0.25 * float((one[2] - one[1]).max()))


@pytest.mark.parametrize("name", ["means", "shares", "asymmetries", "geometric"])
@examples(3)
@given(seeds, st.sampled_from([0.3, 0.8]), st.integers(80, 150))
def test_property_20_the_width_falls_as_one_over_the_root_of_n(name: str, seed: int, sigma: float, n: int) -> None:
    values = np.random.default_rng(seed).lognormal(0, sigma, size=(9 * n, 60))
    _, low, high = ESTIMATES[name](values, seed)
    _, few_low, few_high = ESTIMATES[name](values[:n], seed)
    assert np.median(few_high - few_low) / np.median(high - low) == pytest.approx(3, rel=0.15)


@examples(3)
@given(seeds, st.integers(2, 30), st.integers(80, 150))
def test_property_20_the_width_of_bands_falls_as_one_over_the_root_of_n(seed: int, n_layers: int, n: int) -> None:
    """Of values without skew: many skewed layers need more prompts before their largest |t| settles."""
    values = np.random.default_rng(seed).normal(size=(9 * n, n_layers)) + np.arange(n_layers)
    (low, high), (few_low, few_high) = (intervals.simultaneous_bands(some, seed=seed) for some in (values, values[:n]))
    assert np.median(few_high - few_low) / np.median(high - low) == pytest.approx(3, rel=0.15)


@examples(40)
@given(st.integers(1, 400), st.data())
def test_property_20_the_interval_of_a_share_of_prompts_holds_it_and_narrows(n: int, data: st.DataObject) -> None:
    share = np.array(data.draw(st.integers(0, n)) / n)
    low, high = intervals.wilson(share, n)
    assert 0 - 1e-12 <= low <= share <= high <= 1 + 1e-12
    more_low, more_high = intervals.wilson(share, 100 * n)
    assert high - low > more_high - more_low > 0


@examples(30)
@given(seeds, st.integers(3, 200))
def test_property_20_the_jackknife_holds_its_estimate_and_narrows_as_the_root_of_n(seed: int, n: int) -> None:
    values = np.random.default_rng(seed).normal(size=n)
    without = (values.sum() - values) / (n - 1)
    low, high = intervals.jackknife(values.mean(), without.std(ddof=1), np.array(n))
    assert low < values.mean() < high
    error = values.std(ddof=1) / np.sqrt(n)
    assert 1.9 < (high - low) / 2 / error < 4.4


# ---- 21: labels permuted after selection -----------------------------------------------------------------------------------------------

N_BLOCKS = 8


def effects_as_rows(select: ndarray, report: ndarray) -> pl.DataFrame:
    """Effects in nats `[block, prompt]` of each split, as patching writes them."""
    frames = []
    for split, values in (("select", select), ("report", report)):
        for layer, effects in enumerate(values):
            names = [f"{split}{i}" for i in range(len(effects))]
            how = {"measure": "patching", "metric": "kl_own_nats", "arm": "identity", "site": "attn_out", "direction": "tuned<-base"}
            frames.append(rows(effects, split=split, layer=layer, prompt=names, **how))
    return pl.concat(frames)


def hot(select: ndarray, report: ndarray) -> list[int]:
    chosen = choose_layers(effects_as_rows(select, report))
    assert chosen is not None
    return chosen["hot_layers"]


@examples(3)
@given(seeds, st.floats(0.2, 2.0))
def test_property_21_the_chosen_blocks_are_no_better_on_the_report_split_where_there_is_nothing(seed: int, shape: float) -> None:
    """No block differs from another. Chosen on the prompts that are reported, the best would look better than the rest."""
    random = np.random.default_rng(seed)
    gains, cheated = [], []
    for _ in range(50):
        select, report = random.gamma(shape, 1.0, (2, N_BLOCKS, 12))
        gains.append(report[hot(select, report)].mean() - report.mean())
        cheated.append(report[hot(report, select)].mean() - report.mean())
    assert abs(np.mean(gains)) < 4 * np.std(gains, ddof=1) / np.sqrt(len(gains))
    assert np.mean(cheated) > 4 * np.std(cheated, ddof=1) / np.sqrt(len(cheated)), "which is what the splits are for"


@examples(15)
@given(seeds, st.integers(0, N_BLOCKS - 1))
def test_property_21_a_planted_block_is_found_and_permuted_labels_destroy_it(seed: int, planted: int) -> None:
    random = np.random.default_rng(seed)
    select, report = random.gamma(2.0, 1.0, (2, N_BLOCKS, 40))
    select[planted] += 3
    report[planted] += 3
    assert planted in hot(select, report)
    others = [layer for layer in range(N_BLOCKS) if layer != planted]
    advantage = (report[planted] - report[others].mean(0))[:, None]
    low, _ = intervals.mean_intervals(advantage)
    assert low[0] > 1
    permuted = random.permuted(report, axis=0)
    gone = (permuted[planted] - permuted[others].mean(0))[:, None]
    assert abs(gone.mean()) < 5 * gone.std(ddof=1) / np.sqrt(40)
    assert gone.mean() < advantage.mean() / 2


@examples(15)
@given(seeds, st.integers(4, 12), st.sampled_from([0.0, 0.05, 0.2]))
def test_property_21_a_map_chosen_on_select_says_nothing_of_permuted_changes(seed: int, d: int, noise: float) -> None:
    """Of several blocks that of the best map on select; then the report split's changes change hands."""
    n = 60
    blocks = {}
    for layer in range(3):
        x = spread(seed + 10 * layer, 3 * n, d)
        change = x @ spread(seed + 10 * layer + 1, d, d) / d**0.5 if layer == 1 else spread(seed + 10 * layer + 2, 3 * n, d)
        blocks[layer] = (x, x + change + noise * spread(seed + 10 * layer + 3, 3 * n, d))
    fit, select, report = (slice(i * n, (i + 1) * n) for i in range(3))
    maps = {layer: Map("anchored_ridge").fit(x[fit], y[fit], select=(x[select], y[select])) for layer, (x, y) in blocks.items()}

    def r2_change(layer: int, where: slice, target: Tensor | None = None) -> float:
        x, y = blocks[layer]
        found = quality(maps[layer].transform(x[where]), x[where], y[where] if target is None else target, y[fit].mean(0))
        return float(found["r2_change"])

    best = max(maps, key=lambda layer: r2_change(layer, select))
    assert best == 1
    assert r2_change(best, report) > 0.8
    x, y = (states[report] for states in blocks[best])
    for order in permutations(torch.arange(n), 5, seed):
        assert r2_change(best, report, x + (y - x)[order]) < 0.1


@examples(10)
@given(seeds, st.integers(4, 20))
def test_property_21_a_similarity_of_the_report_split_is_gone_when_its_pairing_is(seed: int, d: int) -> None:
    """The block that is most alike on select; on the report split it is alike as well, and in its permuted draws not at all."""
    n = 40
    sites = [Site(layer, "resid_post") for layer in range(4)]
    base = {site: spread(seed + site.layer, 2 * n, d) for site in sites}
    tuned = {site: state + (0.2 if site.layer == 2 else 2.0) * spread(seed + 50 + site.layer, 2 * n, d) for site, state in base.items()}
    found = []
    for split, where in (("select", slice(0, n)), ("report", slice(n, 2 * n))):
        sides = ({site: states[where] for site, states in side.items()} for side in (base, tuned))
        found.append(similarity_formula.measure(*sides, [f"{split}{i}" for i in range(n)], split, orders=pairings(range(n), 100, seed)))
    chosen = choose_layers(pl.concat(found, rechunk=True))
    assert chosen is not None
    assert chosen["control_layers"] == [2]
    here = found[1].filter(pl.col("layer") == 2, pl.col("metric") == "cka", pl.col("prompt").is_null())
    real, draws = here.filter(pl.col("control").is_null())["value"], here.filter(pl.col("control").str.starts_with("permuted"))["value"]
    assert real.item() > 0.8
    assert len(draws) == 100
    assert abs(float(draws.to_numpy().mean())) < 0.05
    assert float(draws.to_numpy().max()) < real.item()


@examples(4)
@given(seeds, st.integers(8, 25), st.integers(2, 6))
def test_property_21_a_place_chosen_on_select_is_significant_until_the_labels_are_flipped(seed: int, n: int, n_places: int) -> None:
    """Tuned and base change places on random prompts of the report split: then p is as small as it says, and not more often."""
    random = np.random.default_rng(seed)
    planted = int(random.integers(n_places))
    significant = []
    for repeat in range(60):
        select, report = random.standard_t(4, (2, n, n_places)) + 2.5 * (np.arange(n_places) == planted)
        place, _ = intervals.peak_set(select, seed=repeat)
        flipped = report * random.choice([-1.0, 1.0], (n, 1))
        p, p_flipped = (float(intervals.family_p(values, seed=repeat)[place]) for values in (report, flipped))
        significant.append((p <= 0.05, p_flipped <= 0.05))
    found, lost = np.mean(significant, axis=0)
    assert found > 0.75
    assert lost <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 60)
