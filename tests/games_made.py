"""Coalition games made for tests, and the page's two-point formula of a game."""

from collections.abc import Callable, Sequence

import numpy as np

from mechdiff.measures.heads import coverage as heads_coverage
from mechdiff.measures.heads.shapley import Coalition, Game, every

NOBODY: Coalition = frozenset()


def game_of(n: int, worth: Callable[[Coalition], Sequence[float] | np.ndarray]) -> Game:
    """The game whose worth of one coalition, a number a prompt, is `worth(coalition)`."""
    return Game(n, lambda coalitions: np.array([worth(coalition) for coalition in coalitions], dtype=float))


def table(n: int, seed: int, n_prompts: int = 3) -> dict[Coalition, np.ndarray]:
    """A worth of each coalition, of no structure at all."""
    random = np.random.default_rng(seed)
    return {coalition: random.normal(size=n_prompts) for coalition in every(n)} | {NOBODY: np.zeros(n_prompts)}


def two_point(game: Game) -> np.ndarray:
    """Shares by the two-point formula `[player, prompt]`."""
    alone = [game.value(frozenset({player})) for player in range(game.n)]
    without = [game.value(game.everyone - {player}) for player in range(game.n)]
    return heads_coverage.two_point(np.column_stack(alone), np.column_stack(without), game.value(game.everyone)).T
