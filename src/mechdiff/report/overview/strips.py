"""The overview's figure: what was measured along the layers, a strip of cells each, on one layer axis.

A measure hands its strips; the kit draws what it is handed. A cell's blue grows with its value, from 0 to the largest of its group (or 1, of a part
of a whole); orange is under 0. Colours are one hue over whatever lies behind, so that the figure reads on light and on dark paper.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import altair as alt

from mechdiff.report import drawing
from mechdiff.report.drawing import INK, LEFT, NARROW, WIDE, Chart
from mechdiff.report.phrasing import nats, with_interval

FILL, UNDER = "#2878c8", "#d55e00"
FAINTEST = 0.07
"""Opacity of a cell at 0: seen to be there."""
ROW, GAP, PEAK = 15, 1, 74
"""Pixels of a strip, between two, and beside them for the largest value."""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One row of the figure."""

    group: str
    """What was done or compared, such as "Weights changed"."""
    number: str
    """What the cells are, such as "‖ΔW‖ / ‖W‖"."""
    name: str
    """The row: "attention"."""
    values: Mapping[int, float]
    """By layer; a layer that was not measured is not there."""
    low: Mapping[int, float | None] = field(default_factory=dict)
    high: Mapping[int, float | None] = field(default_factory=dict)
    n: int | None = None
    place: float
    """Groups stand in this order, and rows in theirs."""
    whole: bool = True
    """Whether cells are parts of a whole: darkest at 1; else at the group's largest."""

    @property
    def peak(self) -> int:
        """The layer of its largest value."""
        return max(self.values, key=lambda layer: self.values[layer])


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The strips of one run, under its name where there are several."""

    title: str
    strips: Sequence[Strip]


def groups(strips: Sequence[Strip]) -> list[list[Strip]]:
    """Rows of one group together, in their order."""
    found: dict[tuple[str, str], list[Strip]] = {}
    for strip in sorted(strips, key=lambda one: one.place):
        found.setdefault((strip.group, strip.number), []).append(strip)
    return list(found.values())


def figure(panels: Sequence[Panel], *, width: int = WIDE) -> Chart | None:
    """The panels one above the other on one layer axis, each group on one scale over all panels; None where nothing was measured along layers."""
    known = [panel for panel in panels if panel.strips]
    layers = [layer for panel in known for strip in panel.strips for layer in strip.values]
    if not layers:
        return None
    ends, largest = (min(layers), max(layers)), _largest([strip for panel in known for strip in panel.strips])
    drawn = []
    for panel in known:
        every = groups(panel.strips)
        rows = [_group(of, largest[of[0].group], ends, width, axis=panel is known[-1] and of is every[-1]) for of in every]
        named = {"title": _titled(panel.title, size=14)} if panel.title else {}
        drawn.append(drawing.vconcat(*rows, spacing=7, **named))
    return drawing.styled(drawn[0] if len(drawn) == 1 else drawing.vconcat(*drawn, spacing=16))


def _largest(strips: Sequence[Strip]) -> dict[str, float]:
    """By group, the value of the darkest cell."""
    found: dict[str, float] = {}
    for strip in strips:
        most = max((abs(value) for value in strip.values.values()), default=0.0)
        found[strip.group] = max(found.get(strip.group, 0.0), 1.0 if strip.whole else most)
    return found


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A value as it is drawn."""

    layer: int
    fill: str
    opacity: float
    value: float
    says: str


def cells(strip: Strip, most: float) -> list[Cell]:
    """The strip from its first layer to its last, `most` being the darkest value."""
    made = []
    for layer, value in sorted(strip.values.items()):
        size = min(1.0, abs(value) / most) if most else 0.0
        fill = UNDER if value < 0 and size > 0.005 else FILL
        opacity = round(FAINTEST + (1 - FAINTEST) * size, 3)
        made.append(Cell(layer=layer, fill=fill, opacity=opacity, value=value, says=says(strip, layer)))
    return made


def peak_says(strip: Strip) -> str:
    """ "0.012 at 27": the largest value and its layer."""
    most = strip.values[strip.peak]
    return f"{nats(most)} at {strip.peak}" if most else "0"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A strip for the template of `drawn`: its cells, from 0 to 100 along the layers."""

    name: str
    peak: str
    cells: Sequence[tuple[float, Cell]]
    """Where each begins, in percent of the axis."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """The figure for a template that needs no script."""

    panels: Sequence[tuple[str, Sequence[tuple[str, Sequence[Row]]]]]
    """Title of a panel, and its groups: a title and rows."""
    width: float
    """Of a cell, in percent of the axis."""
    ticks: Sequence[tuple[float, int]]
    """The middle of a layer's cells, and the layer."""


def drawn(panels: Sequence[Panel]) -> Drawing | None:
    """The same figure as plain marks, for any width of a page; None where nothing was measured along layers."""
    known = [panel for panel in panels if panel.strips]
    layers = [layer for panel in known for strip in panel.strips for layer in strip.values]
    if not layers:
        return None
    first, last = min(layers), max(layers)
    largest, width = _largest([strip for panel in known for strip in panel.strips]), 100 / (last - first + 1)

    def row(strip: Strip) -> Row:
        made = cells(strip, largest[strip.group])
        return Row(name=strip.name, peak=peak_says(strip), cells=[((cell.layer - first) * width, cell) for cell in made])

    made = [(panel.title, [(_title(of), [row(strip) for strip in of]) for of in groups(panel.strips)]) for panel in known]
    ticks = [((layer - first + 0.5) * width, layer) for layer in drawing.layer_ticks((first, last), NARROW)]
    return Drawing(panels=made, width=width, ticks=ticks)


def _group(rows: Sequence[Strip], most: float, ends: tuple[int, int], width: int, *, axis: bool) -> Chart:
    marked = [
        {
            "left": cell.layer - 0.5, "right": cell.layer + 0.5, "row": strip.name, "fill": cell.fill, "opacity": cell.opacity,
            "value": cell.value, "says": cell.says,
        }
        for strip in rows for cell in cells(strip, most)
    ]  # fmt: skip
    peaks = [{"row": strip.name, "at": ends[1] + 0.5, "text": peak_says(strip)} for strip in rows]
    names = [strip.name for strip in rows]
    axis_of_rows = drawing.left_axis(domain=False, ticks=False, labelFontSize=11.5)
    y = alt.Y("row:N", sort=names, scale=alt.Scale(domain=names, paddingInner=0.12, paddingOuter=0), axis=axis_of_rows)
    x = drawing.layer_axis(ends, width, field="left", title=axis)
    if not axis:
        x.axis = None
    marks = alt.Chart(drawing.inline(marked)).mark_rect().encode(
        x=x, x2=alt.X2("right:Q"), y=y, fill=alt.Fill("fill:N", scale=None), opacity=alt.Opacity("opacity:Q", scale=None),
        description=alt.Description("says:N"),
    )  # fmt: skip
    words = (
        alt.Chart(drawing.inline(peaks))
        .mark_text(align="left", baseline="middle", dx=6, fontSize=11, color=INK, clip=False, aria=False)
        .encode(x=alt.X("at:Q"), y=y, text=alt.Text("text:N"))
    )
    return drawing.layer(marks, words, width=width - LEFT - PEAK, height=ROW * len(rows), title=_titled(_title(rows)))


def _title(rows: Sequence[Strip]) -> str:
    return f"{rows[0].group}: {rows[0].number}"


def _titled(title: str, size: int = 12) -> alt.TitleParams:
    return alt.TitleParams(title, anchor="start", frame="group", fontSize=size, fontWeight=600, color=INK, offset=3)


def says(strip: Strip, layer: int) -> str:
    """What a cell stands for: "layer 23, attention, Weights changed: 0.012"."""
    value = with_interval(strip.values[layer], strip.low.get(layer), strip.high.get(layer), coverage=1.0)
    n = f", n = {strip.n}" if strip.n is not None else ""
    return f"layer {layer}, {strip.name}, {strip.group}: {value}{n}"


def legend(strips: Sequence[Strip]) -> str:
    """How the figure is read, in one line."""
    under = " Orange: below 0." if any(value < 0 for strip in strips for value in strip.values.values()) else ""
    return (
        "One cell a layer. The bluer the more, up to 1 for parts of the change, else up to the largest of its group; on the right the largest of "
        f"each row on the test prompts, and its layer (sections name the layer that the validation prompts choose).{under} Left out: the last layer "
        "where everything arrives by construction."
    )
