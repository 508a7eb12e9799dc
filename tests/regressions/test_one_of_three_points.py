""" "Half of D is recovered once L15.attn is in", from a curve of three points, with a line drawn through them."""

import re

import numpy as np
import polars as pl
import pytest

from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.grafting import page as grafting_page
from mechdiff.measures.grafting.charts import LINE_FROM, grafts_in_order
from mechdiff.measures.patching import findings as patching_findings
from mechdiff.measures.patching import words as patching_words
from mechdiff.report.difference import RECOVERY
from mechdiff.report.parts import Drawn, Run
from mechdiff.rows import rows
from mechdiff.statistics import summary
from report.small_runs import divergence, grafted, names

D = np.linspace(0.8, 1.2, 12)
MODULES = 30


def ramp(layers: list[int]) -> pl.DataFrame:
    """30 modules, grafted in network order at some points only; each adds as much as any other."""
    alone = {f"L{layer}.attn": 1 / MODULES for layer in range(MODULES)}
    below = {f"L{layer}.attn": (layer + 1) / MODULES for layer in layers}
    above = {f"L{layer}.attn": (MODULES - layer) / MODULES for layer in layers}
    return pl.concat([divergence(D), grafted({"alone": alone, "from_below": below, "from_above": above}, D)])


def caption(table: pl.DataFrame) -> str:
    section = grafting_page.grafting(Run(rows=table, summary=summary.summarise(table, NUMBERS), manifest={}))
    (drawn,) = (part for part in section.parts if isinstance(part, Drawn) and part.name == "grafts_in_order")
    return drawn.caption


def test_half_lies_between_two_of_a_few_points() -> None:
    said = caption(ramp([5, 17, 25]))
    assert "from the embedding up half of D is recovered between L5.attn and L17.attn (3 points)" in said
    assert "from the output down between L17.attn and L5.attn (3 points)" in said
    assert " is in" not in said


def test_where_every_module_is_a_point_the_module_is_named() -> None:
    said = caption(ramp(list(range(MODULES))))
    assert re.search(r"half of D is recovered once L1[3-6]\.attn is in, from the output down once L1[3-6]\.attn is in", said)


@pytest.mark.parametrize(("layers", "joined"), [([5, 15, 25], False), ([3, 9, 15, 21, 27], True)])
def test_no_line_is_drawn_through_three_points(layers: list[int], joined: bool) -> None:
    assert joined == (len(layers) >= LINE_FROM)
    table = ramp(layers)
    chart = grafts_in_order(table, summary.summarise(table, NUMBERS), {})
    assert chart is not None
    marks = str(chart.to_dict())
    assert ("'type': 'line'" in marks) == joined
    assert ("'type': 'rule'" in marks) == (not joined)


@pytest.mark.parametrize("layers", [[2, 8, 20], list(range(24))])
def test_along_the_residual_stream_half_lies_between_two_patched_blocks(layers: list[int]) -> None:
    place = {
        "measure": "patching",
        "direction": RECOVERY,
        "metric": "kl_other_nats",
        "split": "report",
        "arm": "identity",
        "site": "resid_post",
    }
    parts = [rows(D * (1 - min(1.0, layer / 12)), layer=layer, prompt=names("report", len(D)), **place) for layer in layers]
    table = pl.concat([divergence(D), *parts])
    found = patching_findings.half_way(table, RECOVERY)
    assert found is not None
    (said,) = patching_words.where_it_passes(table)
    if len(layers) == 3:
        assert (found.after, found.site) == ("L2.resid_post", "L8.resid_post")
        assert "from a site between L2.resid_post and L8.resid_post on (blocks between were not patched; " in said
    else:
        assert (found.after, found.site) == (None, "L7.resid_post")
        assert "from L7.resid_post on (" in said
