"""A row has one value and the same thirteen columns for every measure: that is the contract between measures and page.

The twelve columns before `value` are a unique key. Measures write rows, reports read them, and they agree through
this file and nothing else. No torch here.
"""

import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import polars as pl

SCHEMA: dict[str, Any] = {
    "measure": pl.String,  # as in a study file
    "direction": pl.String,  # "tuned<-base": the tuned model runs, the base's activation is patched in
    "split": pl.String,  # fit (training), select (validation), report (test); null for weights
    "layer": pl.Int64,  # block index from 0
    "site": pl.String,  # attn_out, mlp_out, resid_post, ...
    "unit": pl.String,  # null: the whole site at one layer, at the study's position
    "arm": pl.String,  # how the patched-in activation was made
    "rank": pl.Int64,  # of a map, an update or a set, where there is one
    "strength": pl.Float64,  # of an edit, where there is one
    "control": pl.String,  # null: the real thing
    "prompt": pl.String,  # null: a value of the whole set
    "metric": pl.String,  # the unit is in the name
    "value": pl.Float64,  # one number
}
OVERLAP, TOTAL = "fisher_overlap_nats", "fisher_total_nats"
"""Metrics of shares that add (engine/overlap.py): of a run, and what they are shares of (rows of `divergence`)."""
WITHOUT = "_without_prompt"
"""Ends the name of a metric's delete-one values: the metric of all prompts but this one."""
COLUMNS = list(SCHEMA)
KEY = COLUMNS[:-1]
WORTH_FINDING = 2000
"""Rows of a table of which it is worth to know where each measure's begin."""
_SPANS: dict[int, tuple[Any, dict[str, tuple[int, int]] | None]] = {}
_NULL = {name: pl.Series(name, [None], dtype=kind) for name, kind in SCHEMA.items()}


def rows(value: Sequence[float] | Any, **columns: Any) -> pl.DataFrame:
    """Rows with `value`, each other column a scalar (repeated), a sequence of the same length, or absent (null).

    Raises KeyError for a column outside the contract.
    """
    unknown = set(columns) - set(SCHEMA)
    if unknown:
        raise KeyError(f"no such columns in the row contract: {sorted(unknown)}")
    values = pl.Series("value", value, dtype=pl.Float64)
    made = []
    for name in KEY:
        content = columns.get(name)
        if isinstance(content, (list, tuple)) or hasattr(content, "__array__"):
            made.append(pl.Series(name, content, dtype=SCHEMA[name]))
        else:
            one = _NULL[name] if content is None else pl.Series(name, [content], dtype=SCHEMA[name])
            made.append(one.new_from_index(0, len(values)))
    return pl.DataFrame([*made, values])


def empty() -> pl.DataFrame:
    """A table of the contract with no rows."""
    return pl.DataFrame(schema=SCHEMA)


def of(frame: pl.DataFrame, measure: str) -> pl.DataFrame:
    """The rows of one measure, in their order. A run's tables have them one behind the other, so nothing is copied; where each begins is found once
    a table."""
    if len(frame) < WORTH_FINDING:
        return frame.filter(pl.col("measure") == measure)
    known = _SPANS.get(id(frame))
    if known is None or known[0]() is not frame:
        known = _SPANS[id(frame)] = (weakref.ref(frame, partial(_forget, id(frame))), _spans(frame))
    if known[1] is None:
        return frame.filter(pl.col("measure") == measure)
    return frame.slice(*known[1].get(measure, (0, 0)))


def _forget(name: int, _: Any) -> None:
    _SPANS.pop(name, None)


def _spans(frame: pl.DataFrame) -> dict[str, tuple[int, int]] | None:
    """By measure, where its rows begin and how many they are; None where those of one measure do not follow each other."""
    found: dict[str, tuple[int, int]] = {}
    start = 0
    for length, name in frame["measure"].rle().struct.unnest().iter_rows():
        if name in found:
            return None
        found[name] = (start, length)
        start += length
    return found


def where(frame: pl.DataFrame, **columns: Any) -> pl.DataFrame:
    """The rows of a table whose named columns are a value, null (None), or one of several values (a list or tuple).

    Raises KeyError for a column outside the contract.
    """
    unknown = set(columns) - set(KEY)
    if unknown:
        raise KeyError(f"no such columns in the row contract: {sorted(unknown)}")
    asked = []
    if isinstance(measure := columns.get("measure"), str):
        frame = of(frame, measure)
        del columns["measure"]
    for name, content in columns.items():
        if isinstance(content, (list, tuple)):
            asked.append(pl.col(name).is_in([one for one in content if one is not None]))
            if None in content:
                asked[-1] |= pl.col(name).is_null()
        else:
            asked.append(pl.col(name).is_null() if content is None else pl.col(name) == content)
    return frame.filter(asked) if asked else frame
