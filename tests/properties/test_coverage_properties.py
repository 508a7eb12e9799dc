"""Property 14 of METHOD: shares of an effect add up, wherever they come from: Shapley values, coverage, integrated gradients."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from drawn import clean_of, examples, noise, pair, seeds, token_ids
from games_made import NOBODY, game_of, table, two_point
from mechdiff.architectures.sites import Site
from mechdiff.engine.choice import engine_for
from mechdiff.engine.gradients import gradients
from mechdiff.engine.replay import ENGINES, Write
from mechdiff.measures.attribution.formula import by_head, midpoints
from mechdiff.measures.heads.coverage import Whole, coverage, necessity
from mechdiff.measures.heads.shapley import every, permutations, shapley_exact, shapley_sampled
from mechdiff.statistics.intervals import FEWEST
from mechdiff.statistics.spread import root

players = st.integers(1, 6)
scales = st.sampled_from([1e-12, 1e-3, 1.0, 1e6])


# ---- the axioms of shares ------------------------------------------------------------------------------------------------------------


@examples(40)
@given(seeds, players, scales, st.integers(1, 4))
def test_property_14_efficiency(seed: int, n: int, scale: float, pairs: int) -> None:
    worth = table(n, seed)
    game = game_of(n, lambda coalition: scale * worth[coalition])
    whole = game.value(game.everyone)
    assert not game.value(NOBODY).any()
    np.testing.assert_allclose(shapley_exact(game).sum(0), whole, atol=1e-12 * scale)
    np.testing.assert_allclose(shapley_sampled(game, permutations(n, 2 * pairs, seed=seed))[0].sum(0), whole, atol=1e-12 * scale)


@examples(40)
@given(seeds, st.integers(2, 5), st.data())
def test_property_14_symmetry_a_duplicate_earns_what_its_original_earns(seed: int, n: int, data: st.DataObject) -> None:
    """One more player, whom having beside its original is having the original."""
    original = data.draw(st.integers(0, n - 1))
    worth = table(n, seed)
    game = game_of(n + 1, lambda coalition: worth[frozenset(original if player == n else player for player in coalition)])
    shares, points = shapley_exact(game), two_point(game)
    np.testing.assert_allclose(shares[original], shares[n], atol=1e-12)
    np.testing.assert_array_equal(points[original], points[n])


@examples(40)
@given(seeds, st.integers(1, 5), st.data())
def test_property_14_a_dummy_earns_nothing_and_changes_nothing(seed: int, n: int, data: st.DataObject) -> None:
    """A null head among the others, at any place."""
    dummy = data.draw(st.integers(0, n))
    worth = table(n, seed)
    game = game_of(n + 1, lambda coalition: worth[frozenset(player - (player > dummy) for player in coalition if player != dummy)])
    shares = shapley_exact(game)
    np.testing.assert_array_equal(shares[dummy], 0)
    np.testing.assert_array_equal(shapley_sampled(game, permutations(n + 1, 6, seed=seed))[0][dummy], 0)
    np.testing.assert_array_equal(two_point(game)[dummy], 0)
    np.testing.assert_allclose(np.delete(shares, dummy, 0), shapley_exact(game_of(n, worth.__getitem__)), atol=1e-12)


@examples(30)
@given(seeds, seeds, players, st.floats(-3, 3))
def test_property_14_linearity(seed: int, other_seed: int, n: int, weight: float) -> None:
    one, other = table(n, seed), table(n, other_seed)
    mixed = shapley_exact(game_of(n, lambda coalition: weight * one[coalition] - other[coalition]))
    expected = weight * shapley_exact(game_of(n, one.__getitem__)) - shapley_exact(game_of(n, other.__getitem__))
    np.testing.assert_allclose(mixed, expected, atol=1e-12)


# ---- coverage ------------------------------------------------------------------------------------------------------------------------


@examples(30)
@given(seeds, st.integers(2, 5), st.integers(3, 20), scales)
def test_property_14_nothing_covers_nothing_and_all_cover_all(seed: int, n: int, n_prompts: int, scale: float) -> None:
    """Of an additive game of effects above 0: coverage is additive as well, and is the necessity of the same players."""
    effects = scale * np.random.default_rng(seed).gamma(2.0, 1.0, (n, n_prompts))
    game = game_of(n, lambda coalition: effects[sorted(coalition)].sum(0))
    coalitions = [NOBODY, *every(n)]
    whole = Whole(values=game.value(game.everyone))
    found = coverage(game.values(coalitions).T, whole)
    assert found.share[0] == 0
    np.testing.assert_allclose(found.share[-1], 1, rtol=1e-12)
    single = dict(zip(coalitions, found.share, strict=True))
    for coalition, share in single.items():
        np.testing.assert_allclose(share, sum(single[frozenset({player})] for player in coalition), atol=1e-12)
    if n_prompts < FEWEST:
        assert np.isnan([found.low, found.high]).all(), "no interval of so few prompts"
    else:
        assert (found.low <= found.share).all()
        assert (found.share <= found.high).all()
    left_out = necessity(game.values([game.everyone - coalition for coalition in coalitions]).T, whole)
    np.testing.assert_allclose(left_out.share, found.share, atol=1e-12)
    assert 1 - 1e-9 <= root(shapley_exact(game).T.mean(0)) ** 2 <= n + 1e-9


@examples(30)
@given(seeds, st.integers(2, 4), st.floats(0.001, 3))
def test_property_14_an_effect_under_three_floors_has_no_coverage(seed: int, n: int, floors: float) -> None:
    floor = 1e-6
    worth = table(n, seed, n_prompts=1)
    values = np.stack([np.abs(one) for one in worth.values()], 1)
    under, above = (coverage(values, Whole(values=np.full(1, size * floor), floor=floor)) for size in (0.999 * floors, 3.001))
    assert np.isnan([under.share, under.low, under.high]).all()
    assert np.isfinite(above.share).all()


# ---- integrated gradients ------------------------------------------------------------------------------------------------------------


@examples(15)
@given(
    st.sampled_from(["gemma2", "gpt2", "granite", "llama", "neox_parallel", "qwen3", "bloom"]),
    st.lists(token_ids, min_size=1, max_size=2),
    st.lists(st.integers(0, 3), min_size=1, max_size=2, unique=True),
    st.integers(1, 4),
    seeds,
)
def test_property_14_integrated_gradients_are_complete(name: str, ids: list[list[int]], blocks: list[int], n_heads: int, seed: int) -> None:
    """Over a joint path of the heads of some blocks their shares add up to what exchanging them all does to a functional of the logits."""
    model = pair(name)[0]
    sites = [Site(layer, "attn_proj") for layer in blocks]
    engine, cleans = ENGINES[engine_for(model.config)[0]], [clean_of(model, one, sites) for one in ids]
    weights, by_block = noise(model.shape.vocab, seed=seed), {}
    for site in sites:
        change = noise(len(ids), n_heads, model.shape.d_model, seed=seed + 1 + site.layer)
        size = torch.stack([clean.states[site][-1].norm() for clean in cleans]) / change.sum(1).norm(dim=1)
        by_block[site] = 0.5 * change * size[:, None, None]
    whole = {site: change.sum(1) for site, change in by_block.items()}

    def objective(logits: Tensor) -> Tensor:
        return logits @ weights

    def off(steps: int) -> Tensor:
        """How far the shares' sum is from what is reached, by prompt."""
        path = [{site: at * change for site, change in whole.items()} for at in midpoints(steps)]
        found = gradients(model, engine, cleans, path, objective)
        mean = {site: torch.stack([one[site] for one in found]).mean(0) for site in whole}
        shares = torch.cat([by_head(mean[site], by_block[site]) for site in sites], 1)
        assert shares.shape == (len(ids), n_heads * len(blocks))
        return (shares.sum(1) - reached).abs()

    ends = objective(engine(model, cleans, [{site: Write(value=change[:, None], add=True) for site, change in whole.items()}]))
    reached = (ends[:, 1] - ends[:, 0]).double()
    rounding = 1e-5 * weights.norm()  # of float32 logits that are near 10
    coarse, fine = off(4), off(32)
    assert (fine <= coarse / 8 + rounding).all(), "the error falls as the square of the steps"
    assert (fine <= 2e-3 * reached.abs() + 2 * rounding).all()
