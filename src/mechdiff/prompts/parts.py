"""A prompt has parts: the template's words before and after the user's own, whose first and last are told apart. No torch here.

Parts are found in the tokens themselves: what all prompts of a set open with and end with is the template's.
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile

from mechdiff.labels import POSITIONS

EDGE = 3
"""Tokens of the user's first words, and of the last."""


def parts(everyone: Sequence[Sequence[int]], ids: Sequence[int]) -> Mapping[str, range]:
    """Part of POSITIONS -> the token indices of it in `ids`, one of `everyone`; empty parts are left out.

    Of a single prompt nothing is known to be the template's.
    """
    before, after = (0, 1) if len(everyone) < 2 else (_common(everyone), max(1, _common([one[::-1] for one in everyone])))
    last = len(ids) - 1
    before = min(before, last)
    after = min(after, len(ids) - before)
    words = range(before, len(ids) - after)
    n_first = min(EDGE, len(words))
    n_last = min(EDGE, len(words) - n_first)
    cuts = [0, before, before + n_first, words.stop - n_last, words.stop, last, len(ids)]
    found = {name: range(start, stop) for name, start, stop in zip(POSITIONS, cuts[:-1], cuts[1:], strict=True)}
    return {name: places for name, places in found.items() if places}


def _common(everyone: Sequence[Sequence[int]]) -> int:
    """With how many tokens all of them begin."""
    return sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*everyone, strict=False)))
