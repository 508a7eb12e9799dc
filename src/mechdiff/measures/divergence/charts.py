"""The figure shows the divergence on each prompt."""

import altair as alt
import polars as pl

from mechdiff.report import difference, drawing, phrasing
from mechdiff.report.drawing import BLUE, ORANGE, WIDE, Chart


def d_by_prompt(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """D of every prompt, ascending, with the mean and its interval; filled where the first choice differs."""
    d = difference.d_per_prompt(rows).filter(pl.col("d").is_finite()).with_row_index("rank", offset=1)
    found = difference.difference(rows, summary)
    if d.is_empty() or found is None:
        return None
    least, most = drawing.ends(d["d"])
    spread = least > 0 and most > 60 * least
    scale = alt.Scale(type="log") if spread else alt.Scale(domainMin=0, nice=True)
    text = {True: "same top-1 token", False: "other top-1 token", None: "top-1 token not measured"}
    points = [
        {
            "rank": row["rank"],
            "d": row["d"],
            "choice": text[row["same"]],
            "says": f"{row['prompt']}: {row['d']:.3g} nats, {text[row['same']]}",
        }
        for row in d.iter_rows(named=True)
    ]
    x = alt.X(
        "rank:Q",
        title="prompts, sorted by D",
        axis=alt.Axis(tickMinStep=1, grid=False),
        scale=alt.Scale(domain=[0, len(d) + 1], nice=False),
    )
    y = alt.Y("d:Q", title="D, nats", scale=scale, axis=alt.Axis(tickCount=6, **({"format": "~g"} if spread else {})))
    kinds = [text[key] for key in (False, True, None) if text[key] in {point["choice"] for point in points}]
    fills = {text[False]: BLUE, text[True]: "#ffffff", text[None]: "#9aa4ae"}
    dots = alt.Chart(drawing.inline(points)).mark_circle(size=46 if len(d) < 150 else 20, stroke=BLUE, strokeWidth=1.3, opacity=1)
    colour = alt.Color(
        "choice:N", title=None, scale=alt.Scale(domain=kinds, range=[fills[kind] for kind in kinds]), legend=drawing.legend_of()
    )
    dots = dots.encode(x=x, y=y, color=colour, description=alt.Description("says:N"))
    mean = alt.Chart(drawing.inline([{"d": found.mean, "low": found.low, "high": found.high}]))
    band = mean.mark_rect(aria=False, color=ORANGE, opacity=0.22).encode(y=alt.Y("low:Q", scale=scale), y2=alt.Y2("high:Q"))
    line = mean.mark_rule(aria=False, color=ORANGE, strokeWidth=2).encode(y=alt.Y("d:Q", scale=scale))
    label = mean.mark_text(aria=False, align="left", baseline="bottom", dx=4, dy=-4, color="#8a5c00", fontWeight=600).encode(
        x=alt.XValue(0), y=alt.Y("d:Q", scale=scale), text=alt.TextValue(f"mean {phrasing.nats(found.mean)}")
    )
    return drawing.styled(drawing.layer(band, line, dots, label, width=width - 72, height=240))
