"""What a user saw: a run of a few prompts ended in its figures with "SyntaxError: Unexpected token 'N'", for an interval of four prompts is NaN."""

import altair as alt
import pytest

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
