"""Coverage: ends hold, and no ratio is made of nothing. The numbers that were once published stand in tests/prototype."""

import numpy as np
import pytest

from mechdiff.measures.heads.coverage import Whole, coverage, first_to, necessity, two_point


def test_ends_are_0_and_1_and_intervals_hold_the_share() -> None:
    random = np.random.default_rng(0)
    whole = random.gamma(2, 0.1, 40)
    values = np.column_stack([np.zeros(40), whole, whole * random.uniform(0, 1, 40)])
    found = coverage(values, Whole(values=whole))
    assert found.share[:2].tolist() == [0, 1]
    assert found.share[2] == pytest.approx(values[:, 2].mean() / whole.mean())
    assert found.low[2] < found.share[2] < found.high[2]
    needed = necessity(values, Whole(values=whole))
    np.testing.assert_allclose(needed.share, 1 - found.share)
    assert (needed.low <= needed.share).all()
    assert (needed.share <= needed.high).all()


def test_p14_no_effect_to_explain_has_no_ratio() -> None:
    """Two heads that cancel: 0.139 and 0.137 nats alone, 0 together."""
    alone = np.array([[0.139, 0.137]] * 5)
    for whole in (np.zeros(5), np.full(5, 2.9e-10), np.full(5, -0.01)):
        found = coverage(alone, Whole(values=whole, floor=1e-10))
        assert np.isnan(found.share).all()
        assert np.isnan(found.low).all()
    assert coverage(alone, Whole(values=np.full(5, 3.1e-10), floor=1e-10)).share[0] > 1e8, (
        "what counts is the floor, not the size of the ratio"
    )


def test_prompts_must_be_the_same() -> None:
    with pytest.raises(ValueError, match="effects of 4 prompts and a whole of 5"):
        coverage(np.zeros((4, 1)), Whole(values=np.ones(5)))


def test_two_points_are_shapley_of_a_quadratic_game() -> None:
    from mechdiff.measures.heads import shapley as games

    random = np.random.default_rng(2)
    edits = random.normal(size=(3, 5, 4))  # prompt, player, direction

    def evaluate(coalitions: list[frozenset[int]]) -> np.ndarray:
        return np.array([[0.5 * (edits[p, sorted(one)].sum(0) ** 2).sum() for p in range(3)] for one in coalitions])

    game = games.Game(5, evaluate)  # type: ignore[arg-type]
    everyone = frozenset(range(5))
    alone = np.stack([game.value(frozenset({i})) for i in range(5)], 1)
    without = np.stack([game.value(everyone - {i}) for i in range(5)], 1)
    np.testing.assert_allclose(two_point(alone, without, game.value(everyone)).T, games.shapley_exact(game), atol=1e-12)


def test_the_first_size_that_reaches() -> None:
    assert first_to(np.array([0.2, 0.55, 0.4, 0.95]), [1, 2, 3, 4], 0.5) == 2
    assert first_to(np.array([0.2, 0.3]), [1, 2], 0.5) is None
    assert first_to(np.array([np.nan]), [1], 0.5) is None
