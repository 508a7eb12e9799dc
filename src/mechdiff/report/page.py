"""A run's folder becomes `report.html`: one file that opens from disk and loads nothing from anywhere.

Reads `rows.parquet`, `summary.parquet`, `manifest.json` and `study.yaml`. Figures travel as data, which the page's own renderer
draws. Whatever comes from models, prompts and file names is untrusted: the template escapes everything but our own style sheet and
scripts, whose hashes are all that the content policy lets through, and data, in which no text can end the element that holds it.
"""

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from altair.utils.schemapi import debug_mode
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mechdiff.report import drawing, phrasing, record, sections
from mechdiff.report.overview import shown
from mechdiff.report.overview.overview import overview
from mechdiff.report.parts import Chapter, Drawn, Section, load
from mechdiff.report.verdict import verdict

HERE = Path(__file__).parent
RENDERER = HERE.parent / "data" / "renderer.js"
"""Vega-Lite and Vega for the browser, and their licences: `make renderer` writes it."""
BESIDE = ("rows.parquet", "summary.parquet", "manifest.json", "study.yaml", "log.txt")


def build_report(run: Path, chapters: Mapping[str, Chapter]) -> Path:
    """Writes `report.html` into the folder of a finished run, with what `chapters` say of it; returns the page's path.

    The same folder gives the same bytes. Raises RunError where there is no finished run, or its tables cannot be read.
    """
    run = Path(run)
    content = load(run)
    manifest, tables = content.manifest, (content.rows, content.summary, content.manifest)
    quick = ["A quick run: only the first prompts of each split were used, so intervals are wide."] if manifest.get("quick") else []
    return write_page(
        run / "report.html",
        readings=[chapter.reading for chapter in chapters.values()],
        kicker="mechdiff: what a fine-tune changed",
        names=[record.short_name(manifest, "base"), record.short_name(manifest, "tuned")],
        between={"sign": "→", "says": "to"},
        alerts=quick,
        warned=len(record.warnings(manifest)),
        overview=shown.context(overview(content, chapters, verdict(content, chapters))),
        sections=[draw_section(one, *tables) for one in sections.all_sections(content, chapters)],
        record_title="The run's record",
        record=record.tables(manifest),
        study=(run / "study.yaml").read_text(encoding="utf-8") if (run / "study.yaml").exists() else "",
        files=[name for name in BESIDE if (run / name).exists()],
    )


def write_page(path: Path, *, readings: Iterable[Path], **content: Any) -> Path:
    """Fills the template with a page's content, its style sheet, its script and what explains its figures; returns the path."""
    style, *scripts, renderer = (
        path.read_text(encoding="utf-8") for path in (HERE / "page.css", HERE / "page.js", HERE / "figures.js", RENDERER)
    )
    script = "\n".join(scripts)
    style += shown.STYLE.read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    hashes = {"style_hash": policy_hash(style), "script_hashes": Markup(" ".join(f"'{policy_hash(one)}'" for one in (renderer, script)))}
    own = {"style": Markup(style), "renderer": Markup(renderer), "script": Markup(script), "dark": _json(drawing.DARK)}
    page = environment.get_template("page.html").render(**content, readings=_macros(environment, readings), **own, **hashes)
    return _write(path, page.encode())


def _macros(environment: Environment, templates: Iterable[Path]) -> dict[str, Callable[[], Markup]]:
    """The macros of all templates, by name."""
    modules = [environment.from_string(path.read_text(encoding="utf-8")).module for path in templates]
    return {name: macro for module in modules for name, macro in vars(module).items() if not name.startswith("_")}


def policy_hash(text: str) -> str:
    """What a content policy calls a style sheet or a script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def draw_section(section: Section, *tables: Any) -> dict:
    """The section for the template, with its figures' data from `tables`."""
    parts: list[dict] = []
    for part in section.parts:
        if isinstance(part, Drawn):
            parts += _figure(part, tables)
        else:
            parts.append({**part, "json": _json(part["data"])} if part["kind"] == "explorer" else part)
    return {"id": section.id, "title": section.title, "lead": section.lead, "parts": parts}


def _figure(drawn: Drawn, tables: tuple) -> list[dict]:
    """The figure for the template, which the page's script draws; nothing if its rows are absent."""
    tables = (drawn.of.rows, drawn.of.summary, drawn.of.manifest) if drawn.of else tables
    with debug_mode(False):  # no part of a chart is held against the schema: that takes longer than making it
        chart = drawn.chart(*tables, width=drawing.WIDE, **drawn.options)
        if chart is None:
            return []
        data = drawing.for_browsers(chart)
    (caption,) = phrasing.said_once([drawn.caption])
    text = {"name": drawn.name, "caption": caption, "alt": caption, "reading": drawn.reading}
    return [{"kind": "figure", "data": _json(data), "height": round(drawing.height_of(data["spec"])), **text}]


def _json(data: Any) -> Markup:
    """Data inside the page: no text in it can end the element that holds it, or open another."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(
        text.replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def _write(path: Path, content: bytes) -> Path:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
    return path
