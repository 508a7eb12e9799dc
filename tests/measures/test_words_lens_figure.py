"""The figure of the logit lens has what the run's record says, cell by cell."""

import json
from typing import Any

import polars as pl

from mechdiff.measures.words import page
from mechdiff.report import drawing


def cells_of(chart: Any) -> list[dict[str, Any]]:
    """The records of every panel, each once."""
    return [one for panel in chart["hconcat"] for one in json.loads(panel["layer"][0]["data"]["values"])]


def test_the_lens_is_drawn_token_by_token_for_both_models() -> None:
    tops = {"base": [["a", "b"], ["c", "d"], ["e", "f"]], "tuned": [["a", "b"], ["g", "f"], ["g", "f"]]}
    depth = {"where": "prompts", "prompts": ["One?", "Two?"]} | {
        side: {"top1_share": [sum(x == y for x, y in zip(layer, found[-1], strict=True)) / 2 for layer in found], "tops": found}
        for side, found in tops.items()
    }  # fmt: skip
    manifest = {"words": {"depth": [depth]}}
    chart = page.logit_lens(pl.DataFrame(), pl.DataFrame(), manifest, where="prompts")
    assert chart is not None
    cells = cells_of(chart)
    assert len(cells) == 2 * 3 * 2  # prompts, layers, models
    drawn = {(one["model"], one["layer"], one["token"]): one["share"] for one in cells}
    assert drawn["tuned", "1", "g"] == drawn["tuned", "1", "f"] == 1.0
    assert drawn["base", "1", "c"] == 0.0
    narrow = page.logit_lens(pl.DataFrame(), pl.DataFrame(), manifest, where="prompts", width=drawing.NARROW)
    assert {one["token"] for one in cells_of(narrow)} == {"a", "c", "e", "g"}
    assert page.logit_lens(pl.DataFrame(), pl.DataFrame(), manifest, where="neutral") is None
