"""The figure shows by form and strength what is left of D, and how far neutral prompts are moved."""

import altair as alt
import polars as pl

from mechdiff.measures.interpolation import findings
from mechdiff.measures.interpolation.findings import GONE, LEFT
from mechdiff.measures.interpolation.plan import LOGITS, STATES, WEIGHTS
from mechdiff.measures.interpolation.words import NAMES
from mechdiff.report import curves, drawing
from mechdiff.report.drawing import PURPLE, SKY, WIDE, WINE, Chart
from mechdiff.report.phrasing import with_interval
from mechdiff.statistics import intervals

COLOURS = {NAMES[WEIGHTS]: WINE, NAMES[LOGITS]: SKY, NAMES[STATES]: PURPLE}
DASHES = {NAMES[LOGITS]: [7, 3], NAMES[STATES]: [2, 3]}
SHOWN = 6
"""Groups of modules that are drawn."""
PANELS = {
    ("report", LEFT): "What is left of D: KL(tuned ‖ run) on the test prompts, nats",
    ("report", GONE): "How far it went: KL(base ‖ run) on the test prompts, nats",
    ("neutral", GONE): "Side effect: KL(base ‖ run) on unrelated prompts, nats",
}


def along_the_way(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """A panel for D, one for the way from the base, one for neutral prompts; a line for each form, with 95 % bands at each strength alone."""
    tables = {key: _table(rows, *key) for key in PANELS}
    tables = {key: table for key, table in tables.items() if not table.is_empty()}
    if not tables:
        return None
    panels = [
        _panel(table, width, PANELS[key], (COLOURS, DASHES), legend=place == 1, last=place == len(tables))
        for place, (key, table) in enumerate(tables.items(), start=1)
    ]
    return drawing.styled(drawing.vconcat(*panels, spacing=12))


def by_modules(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """What is left of D by strength, a line for the weights of each group of modules alone, and one for all weights."""
    groups = findings.modules(rows)[:SHOWN]
    if not groups:
        return None
    named = {NAMES[WEIGHTS]: (WEIGHTS, None), **{group: (WEIGHTS, group) for group in groups}}
    look = curves.look_of([*groups])
    colours, dashes = {NAMES[WEIGHTS]: WINE, **look.colours}, {group: look.dashes[group] for group in groups}
    panel = _panel(_curves(rows, named, "report", LEFT), width, PANELS["report", LEFT], (colours, dashes), legend=True, last=True)
    return drawing.styled(drawing.vconcat(panel, spacing=12))


def _table(rows: pl.DataFrame, split: str, metric: str) -> pl.DataFrame:
    return _curves(rows, {NAMES[form]: (form, None) for form in findings.forms(rows)}, split, metric)


def _curves(rows: pl.DataFrame, named: dict[str, tuple[str, str | None]], split: str, metric: str) -> pl.DataFrame:
    """`form strength mean low high` of forms, or of modules, by name; without means that are not finite."""
    records = []
    for name, (form, unit) in named.items():
        if (curve := findings.curve(rows, form, metric, split, unit)) is not None:
            low, high = intervals.mean_intervals(curve.values)
            for strength, mean, below, above in zip(curve.strengths, curve.means, low, high, strict=True):
                records.append({"form": name, "strength": strength, "mean": mean, "low": max(below, 0.0), "high": above})
    table = pl.DataFrame(records, schema=dict.fromkeys(("form", "strength", "mean", "low", "high"), pl.Float64) | {"form": pl.String})
    return table.with_columns(pl.col("low", "high").fill_nan(None)).filter(pl.col("mean").is_finite())


def _panel(
    table: pl.DataFrame, width: int, title: str, look: tuple[dict[str, str], dict[str, list[int]]], *, legend: bool, last: bool
) -> alt.LayerChart:
    colours, dashes = look
    names = [name for name in colours if name in table["form"].unique().to_list()]
    says = [f"{r['form']} at {r['strength']:g}: {with_interval(r['mean'], r['low'], r['high'])} nats" for r in table.iter_rows(named=True)]
    base = alt.Chart(drawing.inline(table.with_columns(says=pl.Series(says)).to_dicts()))
    ends = drawing.ends(table["strength"])
    x = alt.X(
        "strength:Q", title="strength (0: the base, 1: the tuned model)" if last else None, scale=alt.Scale(domain=list(ends), nice=False),
        axis=alt.Axis(tickCount=6, format=".2~g", labels=last, grid=True),
    )  # fmt: skip
    scale = alt.Scale(
        domain=[0, 1.04 * drawing.ends(table.select(pl.coalesce("high", "mean")).to_series())[1] or 1], nice=False, clamp=True
    )
    stroke, dash, fill = drawing.line_channels(names, "form", colours, dashes, width, legend)
    mean = alt.Y("mean:Q", scale=scale, axis=drawing.left_axis(tickCount=4, format=".3~g"))
    band = base.transform_filter("isValid(datum.low)").mark_area(aria=False, opacity=0.12)
    line = base.mark_line(aria=False, strokeWidth=2).encode(x=x, y=mean, stroke=stroke, strokeDash=dash)
    dots = base.mark_circle(size=24, opacity=1).encode(x=x, y=mean, fill=fill, description=alt.Description("says:N"))
    shaded = band.encode(x=x, y=alt.Y("low:Q", scale=scale), y2=alt.Y2("high:Q"), fill=fill)
    return drawing.layer(shaded, line, dots, width=width - drawing.LEFT - 12, height=130, title=drawing.title_of(title))
