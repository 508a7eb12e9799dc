"""The picture of docs/architecture.svg: folders as boxes on four floors, and an arrow from each to what it imports, drawn from the imports.

An arrow that follows from others (a imports b, b imports c, so a may import c) is left out; the ground is imported by everyone and has none.
"""

import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import mean
from xml.sax.saxutils import escape

import imports

WIDTH = 1000
MARGIN, GAP, ROW_GAP, BAND_GAP, INSET = 24, 18, 32, 32, 18
LETTERS = {"doors": 27, "measures": 25, "kits": 25, "ground": 21}
"""Letters of a line of a box's text, by floor."""
LONGEST = 62
"""Letters of a text that is not cut at its colon."""
INK, SOFT = "#1f2933", "#52606d"
TINTS = {
    "doors": ("#fdf3e3", "#b7791f"),
    "measures": ("#e8f1fb", "#2b6cb0"),
    "kits": ("#e9f6ef", "#2f855a"),
    "ground": ("#f1f1f4", "#6b7280"),
}
SAID = {
    "doors": "Doors: through these a user comes in",
    "measures": "Measures: a folder a question, declared on its measure.py",
    "kits": "Kits: they know no measure, and are handed what a measure declares",
    "ground": "Ground: every floor stands on these",
}

Graph = Mapping[str, set[str]]


@dataclass
class Box:
    """One folder or file on its floor; its name is empty for a point at which an arrow passes a row."""

    name: str
    said: list[str] = field(default_factory=list)
    width: float = 10.0
    height: float = 0.0
    x: float = 0.0
    y: float = 0.0

    @property
    def middle(self) -> float:
        return self.x + self.width / 2


def floors() -> dict[str, list[str]]:
    """Floor -> its rooms in reading order, from the top floor down."""
    order = list(imports.reading_order())
    first_kit, last_kit = order.index(imports.KITS[0]), order.index(imports.KITS[-1])
    measures = [room for room in order if room.startswith("measures.")]
    return {
        "doors": order[order.index(measures[-1]) + 1 :],
        "measures": measures,
        "kits": order[first_kit : last_kit + 1],
        "ground": order[:first_kit],
    }


def room_imports() -> Graph:
    """Room -> earlier rooms that it imports."""
    order = list(imports.reading_order())
    graph: dict[str, set[str]] = {room: set() for room in order}
    for module in imports.modules():
        room = imports.room(module)
        graph[room] |= {other for name in imports.imported(module) if order.index(other := imports.room(name)) < order.index(room)}
    return graph


def within(graph: Graph, rooms: Iterable[str]) -> Graph:
    """The arrows between these rooms that do not follow from others of them."""
    inside = set(rooms)
    arrows = {room: graph[room] & inside for room in rooms}

    def reached(room: str) -> set[str]:
        return arrows[room] | {far for near in arrows[room] for far in reached(near)}

    return {room: arrows[room] - {far for near in arrows[room] for far in reached(near)} for room in arrows}


def levels(arrows: Graph) -> dict[str, int]:
    """Room -> its row: 0 where it imports nothing of its floor, else one above the highest that it imports."""
    rows: dict[str, int] = {}

    def row(room: str) -> int:
        if room not in rows:
            rows[room] = max((row(below) + 1 for below in arrows[room]), default=0)
        return rows[room]

    for room in arrows:
        row(room)
    return rows


def boxed(room: str, floor: str) -> Box:
    said = imports.reading_order()[room].partition(";")[0]
    said = said if len(said) <= LONGEST else said.partition(":")[0]
    name = room.removeprefix("measures.")
    lines = textwrap.wrap(said, LETTERS[floor])
    wide = max([len(name) * 8.2, *(len(text) * 6.0 for text in lines)])
    return Box(room, lines, max(wide, 96) + 20, 30 + 14 * len(lines))


def arranged(floor: str, arrows: Graph) -> tuple[list[list[Box]], list[list[Box]]]:
    """The rows of a floor from the bottom up, and each arrow as the boxes and points that it passes from the top down."""
    rows = levels(arrows)
    boxes = {room: boxed(room, floor) for room in arrows}
    grid: list[list[Box]] = [[] for _ in range(max(rows.values()) + 1)]
    for room in arrows:
        grid[rows[room]].append(boxes[room])
    ways = []
    for room, below in arrows.items():
        for other in sorted(below, key=list(arrows).index):
            points = [Box("") for _ in range(rows[room] - rows[other] - 1)]
            for row, point in zip(range(rows[room] - 1, rows[other], -1), points, strict=True):
                grid[row].append(point)
            ways.append([boxes[room], *points, boxes[other]])
    place(grid, ways)
    return grid, ways


def place(grid: list[list[Box]], ways: list[list[Box]]) -> None:
    """Boxes get their x: rows are sorted by the middle of what each box is joined to, down and up several times, and then pulled towards it."""
    joined: dict[int, list[Box]] = defaultdict(list)
    for way in ways:
        for upper, lower in pairwise(way):
            joined[id(upper)].append(lower)
            joined[id(lower)].append(upper)
    for row in grid:
        spread(row, [WIDTH / 2] * len(row))
    for turn in range(40):
        for row in grid if turn % 2 else grid[::-1]:
            wishes = [mean(other.middle for other in joined[id(box)] or [box]) for box in row]
            if turn < 20:
                row[:] = [box for _, box in sorted(zip(wishes, row, strict=True), key=lambda one: one[0])]
                wishes.sort()
            spread(row, wishes)
    boxes = [box for row in grid for box in row]
    left, right = min(box.x for box in boxes), max(box.x + box.width for box in boxes)
    for box in boxes:
        box.x += (WIDTH - left - right) / 2


def spread(row: list[Box], wishes: list[float]) -> None:
    """Boxes of a row stand side by side in its order, their middles as near to their wishes as that allows (least squares, by pooling)."""
    starts = [0.0]
    for box, after in pairwise(row):
        starts.append(starts[-1] + box.width + (GAP if box.name and after.name else GAP * 1.5))
    pools: list[list[float]] = []
    for box, start, wish in zip(row, starts, wishes, strict=True):
        pools.append([wish - box.width / 2 - start])
        while len(pools) > 1 and mean(pools[-2]) > mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    lefts = [mean(pool) for pool in pools for _ in pool]
    for box, start, left in zip(row, starts, lefts, strict=True):
        box.x = start + left


def drawn() -> str:
    """The whole picture as SVG."""
    graph, y = room_imports(), float(MARGIN)
    floors_drawn, arrows, boxes_drawn = [], [], []
    tops: dict[str, float] = {}
    ends: dict[str, float] = {}
    for floor, rooms in floors().items():
        reduced = within(graph, rooms) if floor != "ground" else {room: set() for room in rooms}
        grid, ways = arranged(floor, reduced)
        tops[floor] = y
        inner = y + 38
        for row in reversed(grid):
            tall = max(box.height for box in row)
            for box in row:
                box.y, box.height = inner, box.height or tall
            inner += tall + ROW_GAP
        ends[floor] = inner - ROW_GAP + INSET
        floors_drawn.append(floor_drawn(floor, tops[floor], ends[floor]))
        arrows += [arrow_drawn(way, floor) for way in ported(ways)]
        boxes_drawn += [box_drawn(box, floor) for row in grid for box in row if box.name]
        y = ends[floor] + BAND_GAP
    joins = [join(tops, ends, upper, lower) for upper, lower in (("doors", "measures"), ("measures", "kits"), ("kits", "ground"))]
    height = y - BAND_GAP + MARGIN
    heads = "".join(
        f'<marker id="{floor}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{line}"/></marker>'
        for floor, (_, line) in TINTS.items()
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="How mechdiff is built" '
        f"font-family=\"system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif\">\n<defs>{heads}</defs>\n"
        f'<rect width="{WIDTH}" height="{height:.0f}" rx="10" fill="#ffffff"/>\n'
        + "\n".join([*floors_drawn, *arrows, *boxes_drawn, *joins])
        + "\n</svg>\n"
    )


def floor_drawn(floor: str, top: float, end: float) -> str:
    tint, line = TINTS[floor]
    return (
        f'<g><rect x="{MARGIN}" y="{top:.0f}" width="{WIDTH - 2 * MARGIN}" height="{end - top:.0f}" rx="8" fill="{tint}"/>'
        f'<text x="{MARGIN + INSET}" y="{top + 24:.0f}" font-size="14" font-weight="600" fill="{line}">{escape(SAID[floor])}</text></g>'
    )


def box_drawn(box: Box, floor: str) -> str:
    said = "".join(
        f'<text x="{box.middle:.0f}" y="{box.y + 34 + 14 * i:.0f}" font-size="11" fill="{SOFT}" text-anchor="middle">{escape(text)}</text>'
        for i, text in enumerate(box.said)
    )
    return (
        f'<g><rect x="{box.x:.0f}" y="{box.y:.0f}" width="{box.width:.0f}" height="{box.height:.0f}" rx="6" fill="#ffffff" '
        f'stroke="{TINTS[floor][1]}" stroke-width="1.2"/>'
        f'<text x="{box.middle:.0f}" y="{box.y + 19:.0f}" font-size="13.5" font-weight="600" fill="{INK}" text-anchor="middle">'
        f"{escape(box.name.removeprefix('measures.'))}</text>{said}</g>"
    )


def ported(ways: list[list[Box]]) -> list[list[tuple[float, Box]]]:
    """Each way with the x at which it leaves or enters each box: ways of one box stand side by side, in the order of where they lead."""
    leaving, entering = defaultdict(list), defaultdict(list)
    for way in ways:
        for upper, lower in pairwise(way):
            leaving[id(upper)].append(lower)
            entering[id(lower)].append(upper)

    def port(box: Box, others: list[Box], other: Box) -> float:
        if not box.name:
            return box.middle
        rank = sorted(others, key=lambda one: one.middle).index(other)
        return box.middle + (rank - (len(others) - 1) / 2) * min(14.0, (box.width - 24) / max(len(others) - 1, 1))

    return [
        [(port(a, leaving[id(a)], b), a) if side else (port(b, entering[id(b)], a), b) for a, b in pairwise(way) for side in (1, 0)]
        for way in ways
    ]


def arrow_drawn(way: list[tuple[float, Box]], floor: str) -> str:
    path = ""
    for (x, upper), (end, lower) in zip(way[::2], way[1::2], strict=True):
        top, bottom = upper.y + upper.height, lower.y - (2 if lower.name else 0)
        bend = (bottom - top) / 2
        path += (
            f"M{x:.0f} {top:.0f}" if not path else f"L{x:.0f} {top:.0f}"
        ) + f"C{x:.0f} {top + bend:.0f} {end:.0f} {bottom - bend:.0f} {end:.0f} {bottom:.0f}"
    return f'<path d="{path}" fill="none" stroke="{TINTS[floor][1]}" stroke-width="1.3" opacity=".75" marker-end="url(#{floor})"/>'


def join(tops: dict[str, float], ends: dict[str, float], upper: str, lower: str) -> str:
    """The wide arrow from a floor to the one below it."""
    middle, top, end = WIDTH / 2, ends[upper] + 4, tops[lower] - 4
    return (
        f'<path d="M{middle - 16:.0f} {top:.0f}h32v{end - top - 12:.0f}h14l-30 12l-30 -12h14z" fill="{TINTS[upper][1]}" opacity=".55"/>'
        if end - top > 14
        else ""
    )
