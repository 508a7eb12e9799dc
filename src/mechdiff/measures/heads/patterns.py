"""The figure of attention shows whom the top heads attend to on one prompt: in the base, in the tuned model, and what changed."""

from typing import Any

import altair as alt
import polars as pl

from mechdiff.report import drawing
from mechdiff.report.drawing import BASE, SHARE_RANGE, WIDE, Chart
from mechdiff.report.parts import Drawn, Run
from mechdiff.report.phrasing import listed, visible

GREYS = ["#fafbfc", "#c3ccd6", BASE, "#24292f"]
APART = ["#a24a0c", "#f6c99b", "#fafbfc", "#9cc3e4", "#17508f"]
"""Less and more than in the base."""
FIRST, BETWEEN = 92, 14
"""Pixels for the names of tokens, and between two panels."""
TITLES = {"base": "base", "tuned": "tuned", "difference": "tuned − base"}


def parts(run: Run) -> list[Drawn]:
    """The figure with its caption; nothing where no whole pattern was kept."""
    kept = _kept(run.manifest)
    if not kept:
        return []
    far = [(head["head"], *_farthest(head)) for head in kept["heads"]]
    tokens = [visible(token) for token in kept["tokens"]]
    moved = listed(f"{name} {change:+.2f} from “{tokens[query]}” to “{tokens[key]}”".replace("-", "−") for name, change, query, key in far)
    caption = f"Attention of the top heads over the last {len(tokens)} tokens of {visible(kept['prompt'])}. Largest changes: {moved}."
    return [Drawn(name="attention_patterns", chart=attention_patterns, caption=caption, reading="attention_patterns")]


def _kept(manifest: dict) -> dict[str, Any]:
    return (manifest.get("heads") or {}).get("attention_patterns") or {}


def _farthest(head: dict[str, Any]) -> tuple[float, int, int]:
    """The largest change of a head's pattern: tuned minus base, and the places of the token that attends and the one attended to."""
    changes = [
        (tuned - base, query, key)
        for query, rows in enumerate(zip(head["base"], head["tuned"], strict=True))
        for key, (base, tuned) in enumerate(zip(*rows, strict=True))
    ]
    return max(changes, key=lambda one: abs(one[0]))


def attention_patterns(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """A row of three triangles a head: token that attends down, token attended to across."""
    kept = _kept(manifest)
    if not kept:
        return None
    names = [f"{place} {visible(token)}" for place, token in enumerate(kept["tokens"])]
    across = 3 if width >= WIDE else 1
    size = (width - FIRST - 8) / across - BETWEEN
    most = max(abs(_farthest(head)[0]) for head in kept["heads"]) or 1.0
    found = []
    for head in kept["heads"]:
        panels = [
            _panel(head, what, names, size, most, named=(place % across == 0, head is kept["heads"][-1]))
            for place, what in enumerate(TITLES)
        ]
        independent = drawing.scales(color="independent")
        together = drawing.hconcat if across == 3 else drawing.vconcat
        found.append(together(*panels, spacing=BETWEEN, resolve=independent))
    return drawing.styled(drawing.vconcat(*found, spacing=10, resolve=drawing.scales(color="independent")))


def _panel(head: dict[str, Any], what: str, names: list[str], size: float, most: float, *, named: tuple[bool, bool]) -> alt.LayerChart:
    weights = {side: head[side] for side in ("base", "tuned")}
    records = []
    for query, (base, tuned) in enumerate(zip(weights["base"], weights["tuned"], strict=True)):
        for key, pair in enumerate(zip(base, tuned, strict=True)):
            value = {"base": pair[0], "tuned": pair[1], "difference": round(pair[1] - pair[0], 3)}[what]
            says = f"{head['head']}, {TITLES[what]}: {names[query]} attends to {names[key]}: {value:.3f}".replace("-", "−")
            records.append({"query": names[query], "key": names[key], "weight": value, "says": says})
    plain: dict[str, Any] = {"ticks": False, "domain": False, "labelFontSize": 8.5, "labelLimit": 76, "title": None}
    snug = alt.Scale(padding=0)
    beside = alt.Axis(**plain, minExtent=FIRST - 12, maxExtent=FIRST - 12) if named[0] else None
    x = alt.X("key:N", sort=names, axis=alt.Axis(**plain, labelAngle=-90) if named[1] else None, scale=snug)
    y = alt.Y("query:N", sort=names, axis=beside, scale=snug)
    ramp = {"base": GREYS, "tuned": ["#fafbfc", *SHARE_RANGE[1:]], "difference": APART}[what]
    domain = [-most, most] if what == "difference" else [0, 1]
    colour = alt.Color("weight:Q", scale=alt.Scale(domain=domain, range=ramp, clamp=True, interpolate="rgb"), legend=None)
    cells = alt.Chart(drawing.inline(records)).mark_rect().encode(x=x, y=y, color=colour, description=alt.Description("says:N"))
    return drawing.layer(cells, width=size, height=size if size < 300 else 260, title=drawing.title_of(f"{head['head']}: {TITLES[what]}"))
