"""What a user saw: a run of a few prompts ended in its figures with "SyntaxError: Unexpected token 'N'", for an interval of four prompts is NaN."""

import altair as alt
import polars as pl
import pytest

from mechdiff.measures.grafting import charts as grafting_charts
from mechdiff.report import drawing


@pytest.mark.parametrize("unknown", [float("nan"), float("inf"), None])
def test_a_mark_without_an_interval_is_drawn_without_it(unknown: float | None) -> None:
    rows = [{"layer": 1, "value": 0.5, "low": unknown, "high": unknown}, {"layer": 2, "value": 0.7, "low": 0.6, "high": 0.9}]
    base = alt.Chart(drawing.inline(rows))
    line = base.mark_circle().encode(x="layer:Q", y="value:Q")
    band = base.mark_rule().encode(x="layer:Q", y="low:Q", y2="high:Q")
    svg = drawing.to_svg(alt.layer(line, band))
    assert svg.count('aria-roledescription="circle"') == 2  # both values
    assert "NaN" not in svg
    assert "Infinity" not in svg


@pytest.mark.parametrize(("low", "high", "domain"), [
    (None, None, [0, 1]),
    (float("nan"), float("nan"), [0, 1]),
    (-0.5, 1.5, [-0.5, 1.5]),
])  # fmt: skip
def test_bars_of_one_prompt_have_a_scale_and_no_interval(low: float | None, high: float | None, domain: list[float]) -> None:
    """A run of one to four report prompts with grafting ended in its page with a TypeError."""
    table = pl.DataFrame(
        {"name": ["L1.mlp"], "share": [0.4], "low": [low], "high": [high]}, schema_overrides={"low": pl.Float64, "high": pl.Float64}
    )
    assert grafting_charts._scale_of(table.to_dicts()).domain == domain
    assert "NaN" not in drawing.to_svg(grafting_charts._bars(table, ["L1.mlp"], drawing.WIDE))
