"""Who earns how much? Coalition games: players, what each set of them achieves together, and fair shares of the whole.

A game has n players (the heads of a layer, the heads and MLPs of a network) and a worth v(S) of each coalition S of them, here one number a
prompt: what it does to exchange the contributions of exactly these players. v(no one) = 0 by definition.

What one player is worth has more than one answer, because players stand in for each other and build on each other:

- **Sufficiency** v(S) / v(all): what S does alone. **Necessity** 1 - v(all but S) / v(all): what is lost when S alone stays out. Of two heads that
  do the same thing either one is sufficient and neither is necessary; of two that need each other both are necessary and none is sufficient.
- **Shapley value** (Shapley 1953): the mean of what a player adds, v(S + h) - v(S), when the players join one by one in an order, over all orders.
  It is the only share with *efficiency* (the shares sum to v(all)), *symmetry* (players that are alike get alike), *dummy* (who never adds
  anything gets 0) and linearity in v. Shares may be negative, and a share of 0 is no proof of idleness: help here may cancel harm there.
- All orders pass through 2^n coalitions: exact to about 12 players. Beyond, the mean over some random orders (Castro et al. 2009): unbiased, and
  efficient exactly, because each order's additions telescope to v(all). Each order comes with its reverse, an *antithetic pair*: who joins early
  in one joins late in the other. For a quadratic game, v(S) = sum of a_i + sum over pairs of b_ij, one pair is already exact, and so is
  the *two-point formula*, the mean of what a player adds first and of what it adds last, which needs 2n + 1 coalitions.
  A divergence is quadratic to lowest order in the size of an edit, so small edits are nearly such games.
- **Interaction** of two players v(ij) - v(i) - v(j): positive where they need each other, negative where one makes the other redundant
  (Grabisch & Roubens 1999, with no one else present). It is 0 for every pair of an additive game.
- **Greedy order**: the player joins next that raises the mean worth most. It finds good small coalitions, not always the best, and it is chosen
  on the prompts that it is read from: choose it on one split and report another.
- **Random coalitions** say what any k players would have done.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from math import comb, factorial

import numpy as np
from jaxtyping import Float64

from mechdiff.errors import SelfCheckError

Coalition = frozenset[int]
ROUNDING = 1e-9
"""How far shares may sum from v(all), relative to the largest |v| of their prompt."""


class Game:
    """A game among the players 0 to n - 1 whose coalitions are evaluated when first asked for, once, many at a time."""

    def __init__(self, n: int, evaluate: Callable[[Sequence[Coalition]], Float64[np.ndarray, "coalition prompt"]]) -> None:
        """`evaluate` gives a row of worths, one a prompt, for each of the coalitions that it is given; it never sees the empty one."""
        assert n >= 1, "a game needs a player"
        self.n = n
        self.everyone: Coalition = frozenset(range(n))
        self._evaluate = evaluate
        self._known: dict[Coalition, np.ndarray] = {}

    def values(self, coalitions: Iterable[Coalition]) -> Float64[np.ndarray, "coalition prompt"]:
        """v of each coalition, from one call of `evaluate` for all that are not known yet, in the given order without repeats."""
        wanted = list(coalitions)
        self._learn(list(dict.fromkeys(coalition for coalition in wanted if coalition and coalition not in self._known)))
        if not self._known:  # only the empty one was asked for, and nobody has said how many prompts there are
            self._learn([self.everyone])
        nothing = np.zeros_like(next(iter(self._known.values())))
        return np.array([self._known.get(coalition, nothing) for coalition in wanted]).reshape(len(wanted), len(nothing))

    def _learn(self, coalitions: list[Coalition]) -> None:
        if not coalitions:
            return
        strangers = frozenset().union(*coalitions) - self.everyone
        assert not strangers, f"the players are 0 to {self.n - 1}, not {sorted(strangers)}"
        found = np.asarray(self._evaluate(coalitions), dtype=np.float64)
        n_prompts = next((len(known) for known in self._known.values()), found.shape[-1])
        assert found.shape == (len(coalitions), n_prompts), f"{found.shape} values for {len(coalitions)} coalitions, {n_prompts} prompts"
        self._known.update(zip(coalitions, found, strict=True))

    def value(self, coalition: Coalition) -> Float64[np.ndarray, " prompt"]:
        """v of one coalition."""
        return self.values([coalition])[0]


# ---- coalitions and orders -----------------------------------------------------------------------------------------------------------


def every(n: int) -> list[Coalition]:
    """All 2^n - 1 coalitions that have a member, by size, then lexicographically."""
    return [frozenset(members) for size in range(1, n + 1) for members in combinations(range(n), size)]


def prefixes(order: Sequence[int]) -> list[Coalition]:
    """Who is there after each player of an order has joined."""
    return [frozenset(order[:size]) for size in range(1, len(order) + 1)]


def permutations(n: int, count: int, seed: int) -> list[tuple[int, ...]]:
    """`count` orders, an even number: random ones, each followed by its reverse. The first ones do not depend on how many follow."""
    assert count % 2 == 0, "each order comes with its reverse, so their number is even"
    random = np.random.default_rng(seed)
    drawn = [tuple(random.permutation(n).tolist()) for _ in range(count // 2)]
    return [order for forward in drawn for order in (forward, forward[::-1])]


def random_coalitions(n: int, size: int, draws: int, seed: int) -> list[Coalition]:
    """`draws` different coalitions of one size, uniform; all of that size, in lexicographic order, where there are no more."""
    if comb(n, size) <= draws:
        return [frozenset(members) for members in combinations(range(n), size)]
    random = np.random.default_rng([seed, size])
    found: dict[Coalition, None] = {}
    while len(found) < draws:
        found[frozenset(random.choice(n, size, replace=False).tolist())] = None
    return list(found)


def sizes(n: int, exact_up_to: int = 12) -> list[int]:
    """Sizes at which random coalitions are drawn: 1 to n - 1; for many players 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, ... below n."""
    if n <= exact_up_to:
        return list(range(1, n))
    return sorted(size for power in range(n.bit_length()) for size in (2**power, 3 * 2**power) if size < n)


# ---- shares --------------------------------------------------------------------------------------------------------------------------


def shapley_exact(game: Game) -> Float64[np.ndarray, "player prompt"]:
    """Each player's Shapley value, from all 2^n - 1 coalitions."""
    coalitions = [frozenset(), *every(game.n)]
    worth = game.values(coalitions)
    row = {coalition: place for place, coalition in enumerate(coalitions)}
    # The share of the orders in which exactly `size` given players join before a given other one.
    weight = [factorial(size) * factorial(game.n - 1 - size) / factorial(game.n) for size in range(game.n)]
    shares = []
    for player in range(game.n):
        without = [coalition for coalition in coalitions if player not in coalition]
        added = worth[[row[coalition | {player}] for coalition in without]] - worth[[row[coalition] for coalition in without]]
        shares.append(np.array([weight[len(coalition)] for coalition in without]) @ added)
    return _efficient(np.stack(shares), game, worth)


def shapley_sampled(
    game: Game, orders: Sequence[tuple[int, ...]]
) -> tuple[Float64[np.ndarray, "player prompt"], Float64[np.ndarray, "player prompt"]]:
    """Each player's Shapley value over some orders of `permutations`, and its standard error (NaN from a single pair).

    The two orders of a pair depend on each other; the pairs do not. So the error is that of the mean of the pairs' means.
    """
    assert all(later == earlier[::-1] for earlier, later in zip(orders[::2], orders[1::2], strict=True)), "each order, then its reverse"
    worth = game.values(coalition for order in orders for coalition in prefixes(order))
    joined = worth.reshape(len(orders), game.n, -1)
    added = np.empty_like(joined)
    for number, order in enumerate(orders):
        added[number, list(order)] = np.diff(joined[number], axis=0, prepend=0)
    pairs = added.reshape(len(orders) // 2, 2, game.n, -1).mean(1)
    error = pairs.std(0, ddof=1) / np.sqrt(len(pairs)) if len(pairs) > 1 else np.full_like(pairs[0], np.nan)
    return _efficient(pairs.mean(0), game, worth), error


def _efficient(shares: np.ndarray, game: Game, worth: np.ndarray) -> np.ndarray:
    """The shares, checked to sum to v(all)."""
    whole = game.value(game.everyone)
    off = np.abs(shares.sum(0) - whole)
    wrong = ~(off <= ROUNDING * np.abs(worth).max(0)) & ~np.isnan(whole)
    if wrong.any():
        prompt = int(np.argmax(wrong))
        raise SelfCheckError(
            f"Shapley values sum to {shares[:, prompt].sum():.9g} at prompt {prompt} (of {len(whole)}, {wrong.sum()} like it), where all "
            f"{game.n} players together are worth {whole[prompt]:.9g}. They must be equal: the worth of some coalition is not finite or not "
            "the same each time."
        )
    return shares


def greedy(game: Game, picks: int) -> list[int]:
    """The first `picks` players of the order in which the player joins next that raises the mean v most; ties go to the lowest number."""
    assert 0 <= picks <= game.n, f"{picks} picks among {game.n} players"
    order: list[int] = []
    for _ in range(picks):
        waiting = sorted(game.everyone.difference(order))
        worth = game.values(frozenset([*order, player]) for player in waiting)
        order.append(waiting[int(np.argmax(worth.mean(1)))])
    return order


def interaction(game: Game, i: int, j: int) -> Float64[np.ndarray, " prompt"]:
    """v(ij) - v(i) - v(j): what two players achieve together beyond what each achieves alone."""
    both, first, second = game.values([frozenset({i, j}), frozenset({i}), frozenset({j})])
    return both - first - second
