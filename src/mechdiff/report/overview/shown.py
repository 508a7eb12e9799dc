"""An overview is shown on the page, in a notebook and in a comparison by one template, with its figure as marks that need no script."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mechdiff.report import drawing
from mechdiff.report.overview import scales, strips
from mechdiff.report.overview.overview import Overview
from mechdiff.report.overview.strips import Panel
from mechdiff.report.parts import Drawn, Section

HERE = Path(__file__).parent
STYLE = HERE / "overview.css"
NAME = "overview_layers"


def context(one: Overview) -> dict[str, Any]:
    """What the template takes of one run."""
    panels = [Panel(title="", strips=one.strips)]
    return {
        "of": one,
        "figure": strips.drawn(panels),
        "legend": strips.legend(one.strips),
        "alt": alt(one.strips),
        "scales": scales.table(),
        "numbers": [(tile.title, number) for tile in one.tiles for number in tile.numbers],
        "caveats": [(tile.title, caveat) for tile in one.tiles for caveat in tile.caveats],
    }


def alt(of: Sequence[strips.Strip]) -> str:
    """The figure in words: each row's largest value and its layer."""
    rows = []
    for group in strips.groups(of):
        told = [f"{strip.name} most at layer {strip.peak}" for strip in group]
        rows.append(f"{group[0].group}: {', '.join(told)}")
    return f"Strips of cells by layer. {'; '.join(rows)}." if rows else ""


def section(one: Overview) -> Section:
    """The overview as a section of a paper's summary: its sentences, and its figure at any width."""

    def chart(*tables: Any, width: int = drawing.WIDE) -> drawing.Chart | None:
        return strips.figure([Panel(title="", strips=one.strips)], width=width)

    caption = f"Where the change is, by layer. {strips.legend(one.strips)}"
    figures = [Drawn(name=NAME, chart=chart, caption=caption, reading="")] if one.strips else []
    return Section(id="overview", title="At a glance", lead=[f"{tile.title} {tile.text}" for tile in one.tiles], parts=figures)


def html(one: Overview) -> str:
    """The overview by itself, as a notebook shows it: with its style, without a script."""
    environment = Environment(
        loader=FileSystemLoader(HERE.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filled = environment.get_template("overview/overview.html").render(overview=context(one))
    return f"<style>{STYLE.read_text(encoding='utf-8')}</style>{filled}"
