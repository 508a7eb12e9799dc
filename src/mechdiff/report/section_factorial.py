"""Early or late: the lower blocks of one model under the upper blocks of the other, in all four pairings, at every split point."""

from typing import Any

import altair as alt
import polars as pl

from mechdiff.report import drawing, findings_factorial, spoken, wording_factorial
from mechdiff.report.drawing import BLACK, BLUE, LEFT, VERMILLION, WIDE, Chart
from mechdiff.report.findings_factorial import UNITS
from mechdiff.report.parts import Drawn, Run, Section, note, table
from mechdiff.report.phrasing import between, nats, with_interval

TITLE = "Early or late, and do they need each other?"
COLOURS = {"upstream": BLUE, "downstream": VERMILLION, "interaction": BLACK}
DASHES = {"downstream": [7, 3], "interaction": [2, 3]}
WORDS = {"linear_nats": "linear score, nats", "nats": "nats of KL"}


def factorial(run: Run) -> Section:
    """Two factors: what the blocks up to L and those above them contribute, and what only both together do."""
    units = findings_factorial.units(run.rows, run.summary)
    if not units:
        return Section(id="factorial", title=TITLE, parts=[note("The factorial of lower and upper blocks was not run.")])
    parts: list[Any] = [
        Drawn(name="factorial_by_layer", chart=effects_by_layer, caption=_caption(run, units), reading="factorial_by_layer")
    ]
    return Section(id="factorial", title=TITLE, parts=[*parts, *(_effects(run, unit) for unit in units)])


def _caption(run: Run, units: list[str | None]) -> str:
    if findings_factorial.shown_score(run.rows, units[0]) == "linear_nats":
        said = [
            "How far the lower half (layers 0 to L), the upper half, and both beyond their sum move the logits from the base's to the tuned model's"
        ]
        said[0] += (
            ", in nats of a linear score: the two halves sum to KL(tuned ‖ base) + KL(base ‖ tuned), and changes that merely add do not interact"
        )
    else:
        said = ["Nats of KL(tuned ‖ run) taken off by the lower half (layers 0 to L), by the upper half, and by both beyond their sum"]
        said[0] += "; changes that merely add have an interaction under 0 in this unit"
    return ". ".join([*said, *(_of_unit(run, unit) for unit in units)]) + "."


def _of_unit(run: Run, unit: str | None) -> str:
    one = findings_factorial.interaction(run.rows, unit)
    said = [wording_factorial.which_half(findings_factorial.halves(run.rows, unit))]
    if one is not None:
        size = f"{with_interval(one.mean, one.low, one.high)} of {nats(one.whole)} {'nats' if one.score == 'linear_nats' else 'logits'}"
        said.append(f"interaction at L = {one.layer} ({wording_factorial.how_chosen(one)}): {size}, {spoken.in_words(one.p)}")
    else:
        said.append("no interaction is given: too few prompts have a linear score")
    return f"Exchanged at {UNITS[unit]}: {'; '.join(said)}"


def _effects(run: Run, unit: str | None) -> dict:
    """The three effects at every split point, each with its interval and p, beside the other score."""
    scores = ["linear_nats", "nats"] if findings_factorial.shown_score(run.rows, unit) == "linear_nats" else ["nats", "logits"]
    found, beside = (findings_factorial.effects(run.rows, run.summary, unit, score) for score in scores)
    cells = {(r["layer"], r["effect"]): r for r in found.iter_rows(named=True)}
    extra = {(r["layer"], r["effect"]): r for r in beside.iter_rows(named=True)}
    columns = ["L"]
    for effect in COLOURS:
        columns += [f"{effect}, {WORDS[scores[0]]}", "95 %", "p"] + ([f"{effect}, {WORDS.get(scores[1], scores[1])}"] if extra else [])
    rows = []
    for layer in found["layer"].unique().sort().to_list():
        row = [f"{layer}"]
        for effect in COLOURS:
            one, other = cells.get((layer, effect)), extra.get((layer, effect))
            row += (
                [nats(one["mean"]), between(one["low"], one["high"]) or "–", "–" if one["p"] is None else nats(one["p"])]
                if one
                else ["–"] * 3
            )
            row += ([nats(other["mean"]) if other else "–"]) if extra else []
        rows.append(row)
    return table(columns, rows, folded=f"Every split point, each by itself, exchanged at {UNITS[unit]}")


def effects_by_layer(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """The two main effects and the interaction by split point, with 95 % bands."""
    units = findings_factorial.units(rows, summary)
    if not units:
        return None
    score = findings_factorial.shown_score(rows, units[0])
    tables = {unit: findings_factorial.effects(rows, summary, unit, score) for unit in units}
    every = pl.concat(part.select("layer", pl.coalesce("low", "mean"), pl.coalesce("high", "mean")) for part in tables.values())
    low, high = drawing.ends(every["low"])[0], drawing.ends(every["high"])[1]
    pad = 0.04 * (high - low) or 1e-9
    scale = alt.Scale(domain=[min(low, 0.0) - pad, max(high, 0.0) + pad], nice=False)
    layers = drawing.layer_range(every)
    panels = [
        _panel(table, scale, layers, width, unit, score, legend=place == 0, title=place == len(units) - 1)
        for place, (unit, table) in enumerate(tables.items())
    ]
    return drawing.styled(alt.vconcat(*panels, spacing=12))


def _panel(
    table: pl.DataFrame,
    scale: alt.Scale,
    layers: tuple[int, int],
    width: int,
    unit: str | None,
    score: str,
    *,
    legend: bool,
    title: bool,
) -> alt.LayerChart:
    x, axis = drawing.layer_axis(layers, width, title=title), drawing.left_axis(tickCount=5, format=".3~g")
    names = [name for name in COLOURS if name in table["effect"].unique().to_list()]
    says = [f"L = {r['layer']}, {r['effect']}: {with_interval(r['mean'], r['low'], r['high'])} nats" for r in table.iter_rows(named=True)]
    base = alt.Chart(drawing.inline(table.select("layer", "effect", "mean", "low", "high").with_columns(says=pl.Series(says)).to_dicts()))
    stroke, dash, fill = drawing.line_channels(names, "effect", COLOURS, DASHES, width, legend)
    low, mean = alt.Y("low:Q", scale=scale, axis=axis), alt.Y("mean:Q", scale=scale, axis=axis)
    marks = [alt.Chart(drawing.inline([{"mean": 0}])).mark_rule(aria=False, color="#9aa4ae").encode(y=mean)]
    marks.append(
        base.transform_filter("isValid(datum.low)").mark_area(aria=False, opacity=0.14).encode(x=x, y=low, y2=alt.Y2("high:Q"), fill=fill)
    )
    marks.append(base.mark_line(aria=False, strokeWidth=2).encode(x=x, y=mean, stroke=stroke, strokeDash=dash))
    marks.append(base.mark_circle(size=20, opacity=1).encode(x=x, y=mean, fill=fill, description=alt.Description("says:N")))
    where = UNITS[unit] if width < WIDE else f"Activations exchanged at {UNITS[unit]}"
    text = f"{where[0].upper()}{where[1:]}: {WORDS[score]}"
    return alt.layer(*marks, width=width - LEFT - 12, height=170, title=drawing.title_of(text))
