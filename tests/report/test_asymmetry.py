"""The asymmetry index against its formula, its planted value, and the noise floor."""

import numpy as np
import polars as pl
import pytest

from mechdiff.measures.patching import asymmetry as patching_asymmetry
from mechdiff.report.parts import Run
from mechdiff.statistics import intervals
from report.conftest import CHANGED


def test_the_index_is_one_of_means_with_a_paired_interval() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.lognormal(0, 0.5, (40, 2)), rng.lognormal(-1, 0.5, (40, 2))
    index, low, high = intervals.asymmetry_intervals(one, other)
    np.testing.assert_allclose(index, (one.mean(0) - other.mean(0)) / (one.mean(0) + other.mean(0)))
    assert (low < index).all()
    assert (index < high).all()
    np.testing.assert_allclose(intervals.asymmetry_intervals(other, one)[0], -index)
    paired = intervals.asymmetry_intervals(3 * one, one)  # the same prompts move both: nothing is left to vary
    np.testing.assert_allclose([paired[1], paired[2]], 0.5, atol=1e-12)
    np.testing.assert_allclose(intervals.asymmetry_intervals(one, 0 * one)[0], 1)


def test_the_planted_index_at_every_site_that_acts(full_rows: pl.DataFrame, full_summary: pl.DataFrame) -> None:
    found = patching_asymmetry.by_site(full_rows, full_summary)
    assert len(found) == 7 * 5
    assert found.filter(pl.col("layer") == CHANGED, pl.col("site") == "attn_out")["index"].item() == pytest.approx(0.5)
    assert set(found["n"]) == {24}
    quiet = found.filter(pl.col("index").is_null())
    assert set(quiet["layer"]) >= set(range(CHANGED))
    assert not set(found.filter(pl.col("index").is_not_null())["layer"]) & set(range(CHANGED))


def test_the_sentence_and_the_table(full_rows: pl.DataFrame, full_summary: pl.DataFrame) -> None:
    said, found = patching_asymmetry.parts(Run(rows=full_rows, summary=full_summary, manifest={}))
    assert f"At L{CHANGED}.attn_out, the site where both patches together do most on the validation prompts, A = 0.50." in said["text"]
    known = patching_asymmetry.by_site(full_rows, full_summary).filter(pl.col("index").is_not_null())
    assert len(found["rows"]) == min(len(known), patching_asymmetry.TOP)
    assert f"L{CHANGED}.attn_out" in {row[0] for row in found["rows"]}


def test_one_direction_is_no_comparison(full_rows: pl.DataFrame, full_summary: pl.DataFrame) -> None:
    one = full_rows.filter(pl.col("direction").ne_missing("base<-tuned"))
    assert patching_asymmetry.parts(Run(rows=one, summary=full_summary, manifest={})) == []
