"""A row has one value and the same thirteen columns for every measure: that is the contract between measures and page.

The twelve columns before `value` are a unique key. Measures write rows, reports read them, and they agree through
this file and nothing else. No torch here.
"""

from collections.abc import Sequence
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


def where(frame: pl.DataFrame, **columns: Any) -> pl.DataFrame:
    """The rows of a table whose named columns are a value, null (None), or one of several values (a list or tuple).

    Raises KeyError for a column outside the contract.
    """
    unknown = set(columns) - set(KEY)
    if unknown:
        raise KeyError(f"no such columns in the row contract: {sorted(unknown)}")
    asked = []
    for name, content in columns.items():
        if isinstance(content, (list, tuple)):
            asked.append(pl.col(name).is_in([one for one in content if one is not None]))
            if None in content:
                asked[-1] |= pl.col(name).is_null()
        else:
            asked.append(pl.col(name).is_null() if content is None else pl.col(name) == content)
    return frame.filter(asked)
