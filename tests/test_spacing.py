"""Evenly spaced picks of a list."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from mechdiff.spacing import evenly_spaced

EXAMPLES = settings(max_examples=50)


def test_each_pick_is_from_the_middle_of_an_equal_stretch() -> None:
    assert evenly_spaced(4, range(40)) == (5, 15, 25, 35)
    assert evenly_spaced(1, range(30)) == (15,)


@EXAMPLES
@given(st.integers(0, 60), st.integers(0, 60))
def test_as_many_as_asked_each_once_and_in_order(n: int, length: int) -> None:
    found = evenly_spaced(n, range(length))
    assert len(found) == min(n, length)
    assert list(found) == sorted(set(found))
    if found:
        gaps = [b - a for a, b in pairwise(found)]
        assert not gaps or max(gaps) - min(gaps) <= 1
        assert abs(found[0] - (length - 1 - found[-1])) <= 1
