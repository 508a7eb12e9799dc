"""The row contract: thirteen columns, always all of them, in one order and of one type."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from mechdiff.rows import _SPANS, COLUMNS, KEY, SCHEMA, empty, of, rows, where

TEXT = st.one_of(st.none(), st.text("aℓé7", max_size=5))
VALUES = {
    **{name: TEXT for name, dtype in SCHEMA.items() if dtype == pl.String},
    **{name: st.one_of(st.none(), st.integers(-5, 200)) for name, dtype in SCHEMA.items() if dtype == pl.Int64},
    "strength": st.one_of(st.none(), st.floats(0, 2)),
}


def test_the_columns_are_those_of_the_contract():
    assert KEY == ["measure", "direction", "split", "layer", "site", "unit", "arm", "rank", "strength", "control", "prompt", "metric"]
    assert [*KEY, "value"] == COLUMNS


def test_scalars_are_repeated_and_what_is_absent_is_null():
    frame = rows([0.5, 0.25], measure="divergence", prompt=["a", "b"], metric="js_nats")
    assert frame.schema == pl.Schema(SCHEMA)
    assert frame["measure"].to_list() == ["divergence", "divergence"]
    assert frame["prompt"].to_list() == ["a", "b"]
    assert frame["layer"].null_count() == 2
    assert frame["value"].to_list() == [0.5, 0.25]


@given(st.data(), st.integers(0, 6))
def test_every_table_has_the_schema_and_keeps_what_it_was_given(data, n):
    listed = data.draw(st.sets(st.sampled_from(KEY)))
    scalar = data.draw(st.sets(st.sampled_from(KEY))) - listed
    columns = {name: [data.draw(VALUES[name]) for _ in range(n)] for name in listed}
    columns |= {name: data.draw(VALUES[name]) for name in scalar}
    values = data.draw(st.lists(st.floats(allow_nan=False), min_size=n, max_size=n))
    frame = rows(values, **columns)
    assert frame.schema == pl.Schema(SCHEMA)
    assert frame["value"].to_list() == values
    for name in KEY:
        wanted = columns.get(name)
        assert frame[name].to_list() == (wanted if name in listed else [wanted] * n)


def test_arrays_are_columns_too():
    frame = rows(np.array([1.0, 2.0], dtype=np.float32), measure="patching", layer=np.array([3, 4]), rank=(1, 2))
    assert frame["layer"].to_list() == [3, 4]
    assert frame["rank"].to_list() == [1, 2]


def test_nan_stays_nan_and_is_no_null():
    frame = rows([math.nan], measure="similarity", metric="cka")
    assert frame["value"].is_nan().to_list() == [True]
    assert frame["value"].null_count() == 0


def test_tables_stack_whatever_each_left_out():
    stacked = pl.concat([empty(), rows([1.0], measure="weights"), rows([2.0], measure="patching", layer=1, strength=0.5)])
    assert stacked.height == 2
    assert_frame_equal(stacked.head(1), rows([1.0], measure="weights"))


def test_a_column_outside_the_contract_is_refused_by_name():
    with pytest.raises(KeyError, match=r"no such columns.*\['head', 'seed'\]"):
        rows([1.0], measure="heads", seed=0, head=3)


def test_a_column_of_another_length_is_refused():
    with pytest.raises(pl.exceptions.ShapeError):
        rows([1.0, 2.0, 3.0], prompt=["a", "b"])


def test_an_empty_table_has_the_schema():
    assert empty().schema == pl.Schema(SCHEMA)
    assert empty().height == 0
    assert_frame_equal(rows([], measure="divergence"), empty())


def test_rows_are_found_by_a_value_by_null_and_by_several_values():
    frame = rows([0, 1, 2, 3], measure="patching", layer=[0, 1, 2, None], control=["no_op", None, None, None])
    assert where(frame, measure="patching")["value"].to_list() == [0, 1, 2, 3]
    assert where(frame, control=None, layer=1)["value"].to_list() == [1]
    assert where(frame, layer=[0, 2])["value"].to_list() == [0, 2]
    assert where(frame, layer=(2, None))["value"].to_list() == [2, 3]
    assert where(frame, layer=[]).is_empty()
    with pytest.raises(KeyError, match="no such columns"):
        where(frame, value=1.0)


@pytest.mark.parametrize("order", [["b", "a", "c"], ["a", "b", "a"]])
def test_rows_of_a_measure_are_those_of_a_filter_wherever_they_stand(order):
    many = pl.concat([rows(range(1000 * i, 1000 * (i + 1)), measure=name, layer=i) for i, name in enumerate(order)])
    for name in ("a", "b", "c", "absent"):
        for _ in range(2):
            assert_frame_equal(of(many, name), many.filter(pl.col("measure") == name))
    assert where(many, measure="a", layer=order.index("a"))["value"].len() == 1000


def test_where_measures_begin_is_forgotten_with_their_table():
    names = ("a", "b")
    for start in range(20):  # an identity may come again
        many = pl.concat([rows([start] * 1500, measure=name) for name in (names if start % 2 else names[::-1])])
        assert of(many, "a").equals(many.filter(pl.col("measure") == "a"))
        known = id(many)
        del many
        assert known not in _SPANS
