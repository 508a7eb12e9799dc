"""What a study reads of a measure."""

import numpy as np
import polars as pl

Result = tuple[pl.DataFrame, dict[str, np.ndarray]]
"""What a stage computes: rows, and tensors by name."""
