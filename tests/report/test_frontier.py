"""Effects against side effects: who is beaten, and the smallest dimension within limits, on tables whose answer is known."""

import math
from typing import Any

import polars as pl
import pytest

from mechdiff.report.frontier import EDIT, frontier, smallest

EDITS: list[tuple[str, str, int, float | None, str | None, float, float, float]] = [
    # direction, arm, rank, strength, control, share of D, side KL, perplexity ratio
    ("base<-base", "add", 1, 0.5, None, 0.15, 0.01, 1.01),
    ("base<-base", "add", 1, None, None, 0.60, 0.04, 1.04),
    ("base<-base", "add", 1, 2.0, None, 0.50, 0.30, 1.50),
    ("base<-base", "add", 1, None, "random_vector#0", 0.90, 0.001, 1.00),
    ("tuned<-tuned", "ablate", 1, None, None, 0.10, 0.01, 1.00),
    ("tuned<-tuned", "ablate", 2, None, None, 0.30, 0.02, 1.20),
    ("tuned<-tuned", "ablate", 4, None, None, 0.40, 0.03, 1.05),
    ("tuned<-tuned", "ablate", 8, None, None, 0.80, 0.90, 1.00),
]


def summary() -> pl.DataFrame:
    found: list[dict[str, Any]] = []
    for direction, arm, rank, strength, control, gained, kl, ratio in EDITS:
        edit: dict[str, Any] = {"measure": "steering", "direction": direction, "layer": 3, "site": "resid_post", "arm": arm}
        edit |= {"rank": rank, "strength": strength, "control": control}
        own, other = (0.77, gained) if direction == "base<-base" else (gained, 0.77)
        for unit, split, metric, mean, share in (
            ("all_pos", "report", "kl_own_nats", 1.0, own),
            ("all_pos", "report", "kl_other_nats", 1.0, other),
            (None, "report", "kl_other_nats", 1.0, 0.99),
            ("all_pos", None, "side_kl_nats", kl, None),
            ("all_pos", None, "side_top1_same", 0.9, None),
            ("all_pos", None, "side_log_perplexity_ratio_nats", math.log(ratio), None),
        ):
            found.append({**edit, "unit": unit, "split": split, "metric": metric, "mean": mean, "share": share})
    return pl.DataFrame(found, infer_schema_length=None)


def test_every_edit_has_its_effect_and_its_cost() -> None:
    table = frontier(summary())
    assert len(table) == len(EDITS)
    assert table["effect"].to_list() == [edit[5] for edit in EDITS]
    assert table["side_kl_nats"].to_list() == [edit[6] for edit in EDITS]
    assert table["perplexity_ratio"].to_list() == pytest.approx([edit[7] for edit in EDITS])
    assert set(table["top1_same"]) == {0.9}
    assert table.columns[: len(EDIT)] == EDIT


def test_an_edit_that_costs_more_and_gains_less_is_beaten() -> None:
    table = frontier(summary())
    assert table["on_frontier"].to_list() == [True, True, False, False, True, True, True, True]


def test_the_smallest_dimension_keeps_both_limits() -> None:
    found = smallest(frontier(summary()), max_side_kl_nats=0.05, max_perplexity_ratio=1.05 + 1e-9)
    assert found.select("direction", "rank", "largest_within").rows() == [("base<-base", 1, 0.6), ("tuned<-tuned", 4, 0.4)]
    strict = smallest(frontier(summary()), max_side_kl_nats=0.02, max_perplexity_ratio=1.05)
    assert strict.select("direction", "rank", "largest_within").rows() == [("base<-base", None, 0.15), ("tuned<-tuned", None, 0.1)]
    assert smallest(frontier(summary()), max_side_kl_nats=1, max_perplexity_ratio=2)["rank"].to_list() == [1, 2]


def test_without_steering_there_is_no_frontier() -> None:
    assert frontier(summary().filter(pl.col("arm") == "none")).is_empty()
