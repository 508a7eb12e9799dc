"""Labels of rows are made and read back in one place: each comes back as it went in, and nothing else in the package composes one."""

import ast
import re
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechdiff import labels

EXAMPLES = settings(max_examples=50)
SOURCE = Path(labels.__file__).parent
SIDES = st.sampled_from(["base", "tuned"])
NUMBERS = st.integers(0, 200)
PLAYERS = st.tuples(NUMBERS, st.none() | NUMBERS)


def column(name: str, content: list[str | None], expression: pl.Expr) -> list:
    return pl.DataFrame({name: pl.Series(content, dtype=pl.String)}).select(expression).to_series().to_list()


@EXAMPLES
@given(SIDES, SIDES)
def test_a_direction_comes_back(runs: str, source: str) -> None:
    made = labels.direction_of(runs, source)
    assert labels.sides(made) == (runs, source)
    assert labels.runner(made) == runs
    assert column("direction", [made, None], labels.runner_column()) == [runs, None]
    assert (made in labels.CROSSED, made in labels.WITHIN) == (runs != source, runs == source)


def test_directions_are_the_words_of_the_row_contract() -> None:
    assert (labels.direction_of("tuned", "base"), labels.direction_of("base", "tuned")) == labels.CROSSED == ("tuned<-base", "base<-tuned")
    assert labels.WITHIN == ("base<-base", "tuned<-tuned")


@EXAMPLES
@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))))
def test_a_set_of_heads_comes_back(given_: tuple[int, set[int]]) -> None:
    n, heads = given_
    unit = labels.heads_unit(heads, n)
    assert labels.heads_of(unit, n) == sorted(heads)
    assert labels.head_of(unit) == (next(iter(heads)) if len(heads) == 1 < n else None)
    assert column("unit", [unit], labels.is_head()) == [len(heads) == 1 < n]
    assert column("unit", [unit], labels.is_several_heads()) == [1 < len(heads) < n]
    assert column("unit", [unit], labels.head_number()) == [labels.head_of(unit)]


def test_heads_are_named_as_rows_have_them() -> None:
    assert [labels.heads_unit(one, 4) for one in ([2], [3, 0], range(4))] == ["head 2", "heads 0,3", "all"]
    assert labels.heads_unit([0], 1) == "all", "the one head of a block is all of them"
    assert [labels.player_name(one) for one in ((26, 3), (5, None))] == ["L26.head 3", "L5.mlp"]


@EXAMPLES
@given(NUMBERS)
def test_a_group_is_no_head(group: int) -> None:
    unit = labels.group_unit(group)
    assert (labels.group_of(unit), labels.head_of(unit)) == (group, None)
    assert labels.group_of(labels.head_unit(group)) is None


@EXAMPLES
@given(st.lists(PLAYERS, min_size=1, unique=True))
def test_players_of_the_network_come_back(players: list[labels.Player]) -> None:
    unit = labels.set_unit(map(labels.player_name, players))
    assert [labels.player_of(name) for name in labels.set_of(unit)] == players


@EXAMPLES
@given(st.integers(1, 30), st.sampled_from(["decision", "all", "last_2", "last_16", "spread_4", "words"]))
def test_a_window_comes_back(width: int, position: str) -> None:
    unit = labels.window_unit(width, position)
    assert labels.window_of(unit) == (width, position)
    assert column("unit", [unit], labels.is_everywhere()) == [position == "all"]
    assert column("unit", [unit], labels.window_words()) == [f"window {width}" if width > 1 else None]


def test_windows_are_named_as_rows_have_them() -> None:
    assert labels.window_unit(1, "decision") is None
    assert [labels.window_unit(2, "last_4"), labels.window_unit(1, "all"), labels.window_unit(3, "decision")] == [
        "window 2, last_4",
        "all_pos",
        "window 3",
    ]
    assert [labels.n_positions(word) for word in ("decision", "words", "last_4", "spread_8", "all")] == [1, 1, 4, 8, None]


@EXAMPLES
@given(NUMBERS)
def test_a_token_comes_back(place: int) -> None:
    unit = labels.token_unit(place)
    assert labels.token_of(unit) == place
    assert column("unit", [unit, "tokens", None, "head 1"], labels.is_token()) == [True, False, False, False]


@EXAMPLES
@given(SIDES, st.sampled_from([None, "plain", labels.SAMPLED, labels.SHARED_TOKENS]))
def test_an_answer_comes_back(side: str, kind: str | None) -> None:
    unit = labels.answer_unit(side, kind)
    assert column("unit", [unit], labels.answer_side()) == [side]
    assert column("unit", [unit], labels.answer_kind()) == [kind]


@EXAMPLES
@given(st.sampled_from(["permuted", "random_vector", "random_set", "label_swap"]), NUMBERS)
def test_a_draw_comes_back(control: str, number: int) -> None:
    made = labels.draw(control, number)
    assert made == f"{control}#{number}"
    assert labels.control_kind(made) == control
    assert column("control", [made, None], labels.control_kind_column()) == [control, None]
    assert column("control", [made, control, None], labels.is_draw(control)) == [True, False, False]
    assert column("control", [made, None], labels.is_draw()) == [True, False]
    assert column("control", [made, None], labels.is_draw("other")) == [False, False]
    assert column("control", [made, None], labels.is_random_edit()) == [control.startswith("random_"), False]


@EXAMPLES
@given(NUMBERS)
def test_the_map_of_another_layer_comes_back(layer: int) -> None:
    made = labels.other_layer(layer)
    assert labels.control_kind(made) == "bogus_map"
    assert column("control", [made, "permuted#1", None], labels.other_layer_column()) == [layer, None, None]
    assert column("control", [made], labels.control_kind_column()) == ["bogus_map"]


MADE = re.compile(r"^(heads? |group |token |window |permuted#|random_\w+#|label_swap#|bogus_map:L)$|<-$|\.head $")
"""A constant part of an f-string that ends right before a number or a model: a label made by hand."""
TAKEN_APART = re.compile(r"^(heads? |group |token |window |<-|permuted#|random_\w+#?|bogus_map:.*|\^?(head|group|token) .*)$")
READERS = {"partition", "rpartition", "split", "removeprefix", "startswith", "starts_with", "contains", "extract", "replace"}
SENTENCES = {"measures/heads/words.py"}
"""Modules that say "head 3" to a reader, not to a table."""


def by_hand(path: Path) -> list[str]:
    """Labels that a module composes or takes apart."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr) and len(node.values) > 1:
            parts = [part.value for part in node.values[:2] if isinstance(part, ast.Constant)]
            found += [f"line {node.lineno}: {part}" for part in parts if isinstance(part, str) and MADE.search(part)]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in READERS and node.args:
            text = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
            found += [f"line {node.lineno}: {text}"] if isinstance(text, str) and TAKEN_APART.match(text) else []
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_module_makes_or_reads_labels_by_hand(path: Path) -> None:
    name = str(path.relative_to(SOURCE))
    if name != "labels.py" and name not in SENTENCES:
        assert not by_hand(path), f"{name} does what labels.py is for"
