"""What a study reads of a measure."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

Result = tuple[pl.DataFrame, dict[str, np.ndarray]]
"""What a stage computes: rows, and tensors by name."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One kind of cell: what computes it, and which cells must be there before."""

    name: str
    """In cell keys, the log and the record."""
    compute: Callable[..., Result]
    """(execution, cell, model or None): the cell's rows and tensors."""
    needs: tuple[str, ...] = ("capture",)
    """Stages all of whose cells come first. "heads@same": those of the same model; "attribution/select": those on that split."""
    loads: tuple[str, ...] = ()
    """Models that a cell that belongs to no side loads by itself, in this order."""
