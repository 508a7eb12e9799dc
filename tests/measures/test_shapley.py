"""Coalition games: shares against all n! orders and known games, and what is evaluated how often."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from itertools import permutations as all_orders
from math import comb, factorial

import numpy as np
import pytest

from games_made import NOBODY, game_of, table, two_point
from mechdiff.errors import SelfCheckError
from mechdiff.measures.heads.shapley import (
    Coalition,
    Game,
    every,
    greedy,
    interaction,
    permutations,
    prefixes,
    random_coalitions,
    shapley_exact,
    shapley_sampled,
    sizes,
)


def polynomial(n: int, degree: int, seed: int, n_prompts: int = 2) -> Game:
    """v(S) is a sum of one random number for each set of at most `degree` players inside S."""
    random = np.random.default_rng(seed)
    terms = {frozenset(t): random.normal(size=n_prompts) for size in range(1, degree + 1) for t in combinations(range(n), size)}
    return game_of(n, lambda coalition: sum((value for term, value in terms.items() if term <= coalition), np.zeros(n_prompts)))


def by_all_orders(n: int, worth: dict[Coalition, np.ndarray]) -> np.ndarray:
    """The definition: what a player adds on joining, averaged over all n! orders."""
    total = np.zeros((n, *worth[NOBODY].shape))
    for order in all_orders(range(n)):
        present: Coalition = NOBODY
        for player in order:
            total[player] += worth[present | {player}] - worth[present]
            present |= {player}
    return total / factorial(n)


class Counting:
    """An evaluator that keeps what it was asked, call by call."""

    def __init__(self) -> None:
        self.calls: list[list[Coalition]] = []

    def __call__(self, coalitions: Sequence[Coalition]) -> np.ndarray:
        self.calls.append(list(coalitions))
        return np.array([[sum(coalition), len(coalition) ** 2] for coalition in coalitions], dtype=float)

    def most(self) -> int:
        return max(Counter(coalition for call in self.calls for coalition in call).values())


# ---- what is evaluated ---------------------------------------------------------------------------------------------------------------


def test_only_the_unknown_is_evaluated_in_one_call_in_order_without_repeats() -> None:
    stub = Counting()
    game = Game(4, stub)
    a, b, c = frozenset({2}), frozenset({0, 3}), frozenset({1})
    np.testing.assert_array_equal(game.values([a, NOBODY, b, a]), [[2, 1], [0, 0], [3, 4], [2, 1]])
    np.testing.assert_array_equal(game.values([c, b]), [[1, 1], [3, 4]])
    np.testing.assert_array_equal(game.value(a), [2, 1])
    assert stub.calls == [[a, b], [c]]


def test_the_empty_coalition_is_worth_nothing_and_never_evaluated() -> None:
    stub = Counting()
    game = Game(3, stub)
    np.testing.assert_array_equal(game.value(NOBODY), [0, 0])
    assert stub.calls == [[game.everyone]], "how many prompts there are is learnt from what everyone is worth"
    assert game.values([]).shape == (0, 2)
    shapley_exact(game)
    assert NOBODY not in [coalition for call in stub.calls for coalition in call]


def test_whatever_is_asked_no_coalition_is_evaluated_twice() -> None:
    stub = Counting()
    game = Game(5, stub)
    greedy(game, 5)
    two_point(game)
    before = len(stub.calls)
    shapley_sampled(game, permutations(5, 8, seed=0))
    assert len(stub.calls) == before + 1, "all prefixes of all orders in one call"
    shapley_exact(game)
    interaction(game, 0, 1)
    assert stub.most() == 1
    assert sum(map(len, stub.calls)) == 2**5 - 1


def test_a4_a_player_is_what_it_is_called() -> None:
    """What {h} is worth is h: no share, order or coalition may end up at another player's name."""
    n = 7
    game = game_of(n, lambda coalition: [float(sum(coalition))])
    names = np.arange(n)[:, None]
    np.testing.assert_allclose(np.array([game.value(frozenset({h})) for h in range(n)]), names)
    np.testing.assert_allclose(shapley_exact(game), names, atol=1e-12)
    np.testing.assert_allclose(two_point(game), names, atol=1e-12)
    np.testing.assert_allclose(shapley_sampled(game, permutations(n, 6, seed=3))[0], names, atol=1e-12)
    assert greedy(game, n) == [6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("coalition", [{3}, {0, 7}, {-1}])
def test_a_stranger_is_no_player(coalition: set[int]) -> None:
    with pytest.raises(AssertionError, match="the players are 0 to 2"):
        game_of(3, lambda _: [1.0]).value(frozenset(coalition))


def test_the_evaluator_must_answer_what_it_was_asked() -> None:
    with pytest.raises(AssertionError, match="2 coalitions"):
        Game(3, lambda _: np.zeros((1, 4))).values(every(3)[:2])
    game = Game(3, lambda coalitions: np.zeros((1, len(coalitions[0]))))
    game.value(frozenset({0}))
    with pytest.raises(AssertionError, match="1 prompts"):
        game.value(frozenset({0, 1}))


# ---- coalitions and orders -----------------------------------------------------------------------------------------------------------


def test_every_coalition_by_size_then_lexicographically() -> None:
    expected = [{0}, {1}, {2}, {0, 1}, {0, 2}, {1, 2}, {0, 1, 2}]
    assert every(3) == [frozenset(members) for members in expected]
    assert len(set(every(9))) == len(every(9)) == 2**9 - 1


def test_prefixes_grow_to_everyone() -> None:
    assert prefixes((2, 0, 1)) == [frozenset({2}), frozenset({0, 2}), frozenset({0, 1, 2})]


def test_orders_come_in_pairs_with_a_seed() -> None:
    orders = permutations(6, 10, seed=1)
    assert len(orders) == 10
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert all(later == earlier[::-1] for earlier, later in zip(orders[::2], orders[1::2], strict=True))
    assert orders == permutations(6, 10, seed=1) != permutations(6, 10, seed=2)
    assert permutations(6, 4, seed=1) == orders[:4], "more orders are the same ones and others after them"
    with pytest.raises(AssertionError):
        permutations(6, 3, seed=1)


def test_each_player_comes_at_each_place_equally_often() -> None:
    firsts = Counter(order[0] for order in permutations(4, 4000, seed=0))
    assert all(abs(firsts[player] - 1000) < 4 * np.sqrt(4000 * 3 / 16) for player in range(4))


@pytest.mark.parametrize(("n", "size"), [(5, 2), (9, 3), (30, 29), (4, 4)])
def test_few_coalitions_of_a_size_are_all_taken(n: int, size: int) -> None:
    assert random_coalitions(n, size, comb(n, size), seed=0) == [frozenset(members) for members in combinations(range(n), size)]


def test_random_coalitions_differ_have_their_size_and_a_seed() -> None:
    for size, draws in ((1, 29), (2, 400), (15, 200)):
        found = random_coalitions(30, size, draws, seed=4)
        assert len(found) == len(set(found)) == draws
        assert {len(coalition) for coalition in found} == {size}
        assert frozenset().union(*found) <= set(range(30))
        assert found == random_coalitions(30, size, draws, seed=4) != random_coalitions(30, size, draws, seed=5)


def test_random_coalitions_are_uniform() -> None:
    times = Counter(coalition for seed in range(600) for coalition in random_coalitions(5, 2, 5, seed=seed))
    assert len(times) == 10
    assert all(abs(count - 300) < 4.5 * np.sqrt(600 / 4) for count in times.values()), "each of 10 pairs in half of the draws"


def test_sizes() -> None:
    assert sizes(1) == []
    assert sizes(2) == [1]
    assert sizes(9) == list(range(1, 9))
    assert sizes(12) == list(range(1, 12))
    assert sizes(13) == [1, 2, 3, 4, 6, 8, 12]
    assert sizes(9, exact_up_to=8) == [1, 2, 3, 4, 6, 8]
    assert sizes(32) == [1, 2, 3, 4, 6, 8, 12, 16, 24]
    assert sizes(97) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96]


# ---- shares: oracles -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_exact_shares_are_the_mean_over_all_orders(n: int, seed: int) -> None:
    worth = table(n, seed)
    np.testing.assert_allclose(shapley_exact(game_of(n, worth.__getitem__)), by_all_orders(n, worth), atol=1e-13)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_sampling_every_order_is_exact(n: int) -> None:
    worth = table(n, seed=n)
    orders = [order for forward in all_orders(range(n)) if forward < forward[::-1] for order in (forward, forward[::-1])]
    assert len(orders) == factorial(n)
    found, _ = shapley_sampled(game_of(n, worth.__getitem__), orders)
    np.testing.assert_allclose(found, by_all_orders(n, worth), atol=1e-13)


def test_the_glove_game() -> None:
    """A left glove (0) and two right ones: a pair is worth 1. The rare glove earns 2/3, the others 1/6 each."""
    game = game_of(3, lambda coalition: [float(0 in coalition and len(coalition) > 1)])
    np.testing.assert_allclose(shapley_exact(game)[:, 0], [2 / 3, 1 / 6, 1 / 6], atol=1e-15)


def test_the_airport_game() -> None:
    """A runway costs what its longest user needs. Each stretch is shared by all who need it (Littlechild & Owen 1973)."""
    needs = np.array([1.0, 2.0, 2.0, 5.0, 9.0])
    game = game_of(5, lambda coalition: [needs[list(coalition)].max()])
    expected = [1 / 5, 1 / 5 + 1 / 4, 1 / 5 + 1 / 4, 1 / 5 + 1 / 4 + 3 / 2, 1 / 5 + 1 / 4 + 3 / 2 + 4]
    np.testing.assert_allclose(shapley_exact(game)[:, 0], expected, atol=1e-14)


@pytest.mark.parametrize("n", [1, 2, 3, 6, 9])
def test_the_two_point_formula_and_one_pair_of_orders_are_exact_for_quadratic_games(n: int) -> None:
    game = polynomial(n, 2, seed=n)
    exact = shapley_exact(game)
    np.testing.assert_allclose(two_point(game), exact, atol=1e-12)
    np.testing.assert_allclose(shapley_sampled(game, permutations(n, 2, seed=5))[0], exact, atol=1e-12)


def test_the_two_point_formula_is_no_share_of_a_cubic_game() -> None:
    game = polynomial(5, 3, seed=0)
    assert np.abs(two_point(game) - shapley_exact(game)).max() > 0.1


@pytest.mark.parametrize("seed", range(4))
def test_sampled_shares_are_within_four_standard_errors_and_efficient(seed: int) -> None:
    game = polynomial(8, 4, seed=seed, n_prompts=5)
    exact = shapley_exact(game)
    found, error = shapley_sampled(game, permutations(8, 200, seed=seed))
    assert np.abs((found - exact) / error).max() < 4
    assert np.abs((found - exact) / error).max() > 0.5, "standard errors that are far too wide would hide a bias"
    np.testing.assert_allclose(found.sum(0), game.value(game.everyone), rtol=1e-12)


def test_the_standard_error_is_the_spread_of_repeated_estimates() -> None:
    game = polynomial(6, 3, seed=1, n_prompts=1)
    runs = [shapley_sampled(game, permutations(6, 4, seed=seed)) for seed in range(600)]
    spread = np.std([shares for shares, _ in runs], axis=0)
    told = np.sqrt(np.mean([error**2 for _, error in runs], axis=0))
    np.testing.assert_allclose(told, spread, rtol=0.15)


def test_a_single_pair_has_no_standard_error() -> None:
    _, error = shapley_sampled(polynomial(3, 3, seed=0), permutations(3, 2, seed=0))
    assert np.isnan(error).all()


def test_orders_without_their_reverse_are_refused() -> None:
    with pytest.raises(AssertionError, match="reverse"):
        shapley_sampled(polynomial(3, 2, seed=0), [(0, 1, 2), (1, 2, 0)])


def test_shares_that_do_not_add_up_are_an_error_that_says_so() -> None:
    """A game of which some coalition is worth an infinity has no shares."""
    broken = frozenset({0, 2})
    game = game_of(3, lambda coalition: [1.0, np.inf if coalition == broken else 2.0])
    for share in (shapley_exact, lambda game: shapley_sampled(game, [(0, 2, 1), (1, 2, 0)])):
        with pytest.raises(SelfCheckError, match=r"sum to nan at prompt 1 .* worth 2"), np.errstate(invalid="ignore"):
            share(game)


def test_a_game_that_answers_differently_each_time_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    game = polynomial(3, 3, seed=0)
    monkeypatch.setattr(game, "value", lambda _: np.array([5.0, 5.0]))
    with pytest.raises(SelfCheckError, match="3 players together are worth 5"):
        shapley_exact(game)


def test_a_prompt_without_a_worth_has_no_shares_and_leaves_the_others_alone() -> None:
    whole = polynomial(3, 3, seed=0)
    shares = shapley_exact(game_of(3, lambda coalition: whole.value(coalition) * np.array([1, np.nan])))
    assert np.isnan(shares[:, 1]).all()
    np.testing.assert_array_equal(shares[:, 0], shapley_exact(whole)[:, 0])


# ---- greedy and interaction ----------------------------------------------------------------------------------------------------------


def test_greedy_takes_a_modular_game_by_worth_and_ties_by_number() -> None:
    worth = np.array([[9.0, 3.0, 3.0, -2.0, 0.0], [-5.0, 3.0, 3.0, -2.0, 8.0]]).T
    stub: list[int] = []

    def evaluate(coalitions: Sequence[Coalition]) -> np.ndarray:
        stub.append(len(coalitions))
        return np.array([worth[sorted(coalition)].sum(0) for coalition in coalitions])

    assert greedy(Game(5, evaluate), 5) == [4, 1, 2, 0, 3]
    assert stub == [5, 4, 3, 2, 1], "one call a step"


def test_greedy_sees_what_is_already_there() -> None:
    """1 duplicates 0, the best alone; 2 is worth less, and adds more."""
    game = game_of(3, lambda coalition: [5.0 * bool(coalition & {0, 1}) + 2.0 * (2 in coalition)])
    assert greedy(game, 3) == [0, 2, 1]
    assert greedy(game, 1) == [0]
    assert greedy(game, 0) == []


def test_greedy_may_miss_the_best_pair() -> None:
    """Two players that are worth nothing alone and everything together: greedy starts elsewhere, as its docstring says."""
    game = game_of(3, lambda coalition: [10.0 * ({1, 2} <= coalition) + 1.0 * (0 in coalition)])
    assert greedy(game, 2) == [0, 1]


def test_interaction_of_a_quadratic_game_is_its_pair_term() -> None:
    game = game_of(3, lambda coalition: [float(sum(coalition)) + 0.5 * ({0, 2} <= coalition) - 0.25 * ({1, 2} <= coalition)])
    assert interaction(game, 0, 2) == pytest.approx([0.5])
    assert interaction(game, 2, 1) == pytest.approx([-0.25])
    assert interaction(game, 0, 1) == pytest.approx([0.0])


def test_p14_players_that_cancel_are_each_worth_something_and_together_nothing() -> None:
    """Heads 0 and 1 write opposite changes: v(all) = 0 and no coverage is defined; the interaction says why."""
    game = game_of(3, lambda coalition: [0.138 * ((0 in coalition) != (1 in coalition))])
    assert game.value(game.everyone) == pytest.approx([0.0])
    assert interaction(game, 0, 1) == pytest.approx([-0.276])
    np.testing.assert_allclose(shapley_exact(game), 0, atol=1e-15)
