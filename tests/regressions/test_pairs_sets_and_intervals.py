"""A user's label (1,2) took {1,2} but not {2,1}, and the label [0,1) refused 0 <= x < 1. Tuples, sets, lists, intervals and inequalities are compared
by what they are, both ways round; beside each pair stands whether math-verify says so in either direction."""

import pytest

from mechdiff.measures.behaviour.answers import exact_match
from mechdiff.measures.behaviour.values import same_value

T, F = True, False
# one answer, another, whether they are the same
TABLE: list[tuple[str, str, bool]] = [
    # tuples and sets
    ("(1,2)", "(1, 2)", T), ("(1,2)", "(2,1)", F), ("(1,2)", r"\{1,2\}", F), (r"\{2,1\}", "(1,2)", F), (r"\{1,2\}", r"\{2,1\}", T),
    ("{1,2}", r"\{2,1\}", T),
    (r"\{1,1,2\}", r"\{1,2\}", T), (r"\{1,2\}", r"\{1,2,3\}", F), ("(0.5,2)", r"(\frac12,2)", T), ("(1,100)", "(1100)", F),
    ("(1,2,3)", "(1,3,2)", F),
    (r"\left(1, 2\right)", "(1,2)", T), ("(3,5; 2)", "(3.5, 2)", T), (r"\{(1,2),(3,4)\}", r"\{(3,4),(1,2)\}", T),
    (r"\{(1,2),(3,4)\}", r"\{(2,1),(3,4)\}", F),
    (r"\{5\}", "5", T), (r"\{5\}", "6", F), ("((1,2),3)", "(1,(2,3))", F), ("(1,2)", "1/2", F), ("(1,2)", "3", F),
    ("[1,2]", "(1,2)", F), ("[2,1]", "[1,2]", F),
    # lists without brackets
    ("1, 2", "2, 1", T), ("1, 2", r"\{1,2\}", T), ("1, 2", "(1,2)", T), ("2, 1", "(1,2)", F), ("1,2", "2,1", F),
    ("x=1,2", r"\{1,2\}", T), ("1 or 2", "2, 1", T),
    (r"1\text{ or }2", r"\{2,1\}", T), ("x=1 or x=2", r"\{1,2\}", T), ("x=1, y=2", "y=2, x=1", T), ("x=1, y=2", "x=2, y=1", F),
    ("1, 2, 3", "1, 2", F),
    ("1,2,3", "123", F),
    # intervals and inequalities
    ("[0,1)", r"0 \le x < 1", T), ("[0,1)", "0 <= x < 1", T), ("[0,1)", "1 > x >= 0", T), ("[0,1)", "[0,1]", F), ("[0,1)", "(0,1]", F),
    ("(0,1)", "0<x<1", T),
    (r"[0,\infty)", r"x \ge 0", T), (r"(-\infty,3)", "x<3", T), ("(-∞; 3)", "x < 3", T), ("x>2", r"x \ge 2", F), ("x>2", "2<x", T),
    ("x>2", "y>2", F),
    (r"x \in [0,1)", "[0,1)", T), (r"(-\infty,1) \cup (2,\infty)", r"(2,\infty)\cup(-\infty,1)", T),
    (r"(-\infty,1) \cup (2,\infty)", r"(-\infty,1)", F),
    ("[0,1]", r"\{0,1\}", F), ("[0, 0.5]", r"[0,\frac{1}{2}]", T), ("[0,1)", "0", F), ("0<x<1", "0<x<2", F), ("0<x>1", "(0,1)", F),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other", "truth"), TABLE, ids=[f"{row[0]} and {row[1]}" for row in TABLE])
def test_what_has_an_order_keeps_it_and_what_has_none_does_not(one: str, other: str, truth: bool) -> None:
    assert same_value(one, other) == truth
    assert same_value(other, one) == truth, "both ways round"
    assert exact_match(rf"\boxed{{{one}}}", other) == truth


def test_math_verify_alone_is_not_the_same_both_ways_round() -> None:
    """Why mechdiff reads brackets itself: if a later release of math-verify mends these, this test says so."""
    from math_verify import parse, verify

    def says(label: str, answer: str) -> bool:
        return bool(verify(parse(f"${label}$"), parse(f"${answer}$")))

    assert says(r"\{1,2\}", "(1,2)"), "a tuple for a set"
    assert [says("(1,2)", r"\{1,2\}"), says("(1,2)", r"\{2,1\}")] == [True, False]
    assert [says(r"0 \le x < 1", "[0,1)"), says("[0,1)", r"0 \le x < 1")] == [True, False]
