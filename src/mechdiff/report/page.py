"""A run's folder becomes `report.html`: one file that opens from disk and loads nothing from anywhere.

Reads `rows.parquet`, `summary.parquet`, `manifest.json` and `study.yaml`. Figures travel as data, which the page's own renderer
draws. Whatever comes from models, prompts and file names is untrusted: the template escapes everything but our own style sheet and
scripts, whose hashes are all that the content policy lets through, and data, in which no text can end the element that holds it.
"""

import base64
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from altair.utils.schemapi import debug_mode
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from mechdiff.report import drawing, phrasing, record, sections
from mechdiff.report.glossed import glossed
from mechdiff.report.overview import shown
from mechdiff.report.overview.overview import overview
from mechdiff.report.parts import Chapter, Drawn, Run, Section, is_absent, load
from mechdiff.report.verdict import verdict
from mechdiff.store.disk import writing
from mechdiff.study.presets import sentences

HERE = Path(__file__).parent
RENDERER = HERE.parent / "data" / "renderer.js"
"""Vega-Lite and Vega for the browser, and their licences: `make renderer` writes it."""
STATES = {"effect": "found something", "none": "nothing shown", "absent": "not measured", "waits": "not computed yet"}
"""What a dot in the list of sections means."""
BRIEF = 96
"""Letters of a section's finding in the list of sections."""
LEAST_HEAD, HEAD = 14, 96
"""Letters of a heading."""
OPEN = 60
"""Words of a section before its first figure, table or text; what more it says is folded."""
NO_NUMBER = ("", "–", "not defined", "not measured")
"""Cells that say that there is none."""
BESIDE = ("rows.parquet", "summary.parquet", "manifest.json", "study.yaml", "log.txt")


def build_report(run: Path, chapters: Mapping[str, Chapter]) -> Path:
    """Writes `report.html` into the folder of a finished run, with what `chapters` say of it; returns the page's path.

    The same folder gives the same bytes. Raises RunError where there is no finished run, or its tables cannot be read.
    """
    return page_of(load(run), chapters, Path(run))


def page_of(content: Run, chapters: Mapping[str, Chapter], folder: Path, *, alerts: Sequence[str] = (), refresh: int = 0) -> Path:
    """The page of a run's tables, finished or as far as they go, in its folder; `refresh`: after so many seconds a browser loads it anew."""
    manifest, tables = content.manifest, (content.rows, content.summary, content.manifest)
    quick = ["A quick run: only the first prompts of each split were used, so intervals are wide."] if manifest.get("quick") else []
    ready = sections.computed(content, chapters)
    return write_page(
        folder / "report.html",
        readings=[chapter.reading for chapter in chapters.values()],
        kicker="mechdiff: what a fine-tune changed",
        names=[record.short_name(manifest, "base"), record.short_name(manifest, "tuned")],
        between={"sign": "→", "says": "to"},
        alerts=[*alerts, *quick, *sentences(manifest.get("preset"))],
        warned=len(record.warnings(manifest)),
        overview=shown.context(overview(content, chapters, verdict(content, ready))),
        sections=[draw_section(one, *tables) for one in sections.all_sections(content, chapters)],
        record_title="Reproducibility",
        record=record.tables(manifest),
        study=(folder / "study.yaml").read_text(encoding="utf-8") if (folder / "study.yaml").exists() else "",
        files=[name for name in BESIDE if (folder / name).exists()],
        refresh=refresh,
    )


def write_page(path: Path, *, readings: Iterable[Path], refresh: int = 0, **content: Any) -> Path:
    """Fills the template with a page's content, its style sheet, its script and what explains its figures; returns the path."""
    style, *scripts, renderer = (
        path.read_text(encoding="utf-8") for path in (HERE / "page.css", HERE / "page.js", HERE / "figures.js", RENDERER)
    )
    script = "\n".join(scripts)
    style += shown.STYLE.read_text(encoding="utf-8")
    sections, tables = content["sections"], content["record"]
    numbered(
        [*(part for one in sections for parts in (one["main"], one["more"]) for part in parts), *tables],
        int(bool(content.get("overview", {}).get("figure"))),
    )
    kinds = Counter(part["kind"] for one in sections for parts in (one["main"], one["more"]) for part in parts)
    hashes = {"style_hash": policy_hash(style), "script_hashes": Markup(" ".join(f"'{policy_hash(one)}'" for one in (renderer, script)))}
    said = {
        "n_figures": kinds["figure"],
        "n_tables": kinds["table"],
        "states": STATES,
        "refresh": refresh,
        "readings": _readings(readings),
    }
    own = {"style": Markup(style), "renderer": Markup(renderer), "script": Markup(script), "dark": _json(drawing.DARK)}
    page = _template().render(**content, **said, **own, **hashes)
    return _write(path, glossed(page).encode())


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["to_the_right"] = to_the_right
    environment.filters |= {"without_folders": without_folders, "unbroken": unbroken}
    return environment.get_template("page.html")


READING = re.compile(r"{% macro (\w+)\(\) %}\n?(.*?){% endmacro %}", re.DOTALL)


def _readings(files: Iterable[Path]) -> dict[str, Markup]:
    """What explains each figure, by its name: HTML of our own, as it stands in the files."""
    return {name: Markup(text) for path in files for name, text in READING.findall(path.read_text(encoding="utf-8"))}


def policy_hash(text: str) -> str:
    """What a content policy calls a style sheet or a script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def draw_section(section: Section, *tables: Any) -> dict:
    """The section for the template, with its figures' data from `tables`."""
    parts: list[dict] = []
    for part in section.parts:
        if isinstance(part, Drawn):
            parts += [{**drawn, "main": part.main} for drawn in _figure(part, tables)]
        else:
            parts.append({**part, "json": _json(part["data"])} if part["kind"] == "explorer" else {**part})
    view = in_view(parts)
    main, more = ([part for place, part in enumerate(parts) if (place in view) == here] for here in (True, False))
    lead, rest = in_the_open(section.lead)
    if lead and main[0]["kind"] == "note" and _words([*lead, main[0]["text"]]) > OPEN and len(main) > 1:
        rest, main = [*rest, main[0]["text"]], main[1:]
    said = {
        "lead": lead,
        "rest": rest,
        "brief": brief(section.lead[0]) if section.lead else "",
        "state": section.state or ("absent" if is_absent(section) else ""),
        "more_is": _counted(more),
    }
    return {"id": section.id, "title": section.title, "main": main, "more": more, **said}


def in_the_open(lead: Sequence[str]) -> tuple[list[str], list[str]]:
    """What a section says before its first block, of at most OPEN words, and what is folded: whole sentences as far as they go.

    A first sentence that is longer is parted at a semicolon outside brackets. Where that leaves too much, it stands without what is in round
    brackets, and whole behind the fold.
    """
    fits = next((n for n in range(len(lead), 0, -1) if _words(lead[:n]) <= OPEN), 0)
    if fits or not lead:
        return [*lead[:fits]], [*lead[fits:]]
    first, *others = lead
    ends = [found.start() for found in re.finditer("; ", first) if _closed(first[: found.start()])]
    if end := max((end for end in ends if _words([first[:end]]) <= OPEN), default=0):
        return [f"{first[:end]}."], [f"{first[end + 2].upper()}{first[end + 3 :]}", *others]
    short = _without_brackets(first)
    if _words([short]) > OPEN:
        short = " ".join(short.split()[:OPEN]).rstrip(",;: ") + " …"
    return [short], [first, *others]


def _words(sentences: Iterable[str]) -> int:
    return sum(len(one.split()) for one in sentences)


def _without_brackets(sentence: str) -> str:
    """A sentence without what stands in round brackets, inner ones too."""
    while (shorter := re.sub(r"\s*\([^()]*\)", "", sentence)) != sentence:
        sentence = shorter
    return sentence


def in_view(parts: Sequence[Mapping[str, Any]]) -> set[int]:
    """Which parts of a section are not folded away: those that say `main`; where none does, the first figure (without one, the first text or pair of
    answers), the first table that is not folded, and a note before them; all parts, where none of these is there."""
    if marked := {place for place, part in enumerate(parts) if part.get("main")}:
        return marked
    first = {part["kind"]: place for place, part in reversed([*enumerate(parts)]) if not part.get("folded")}
    kinds = ("figure", "table") if "figure" in first else ("key", "text", "answers", "table")
    found = {first[kind] for kind in kinds if kind in first}
    return found | ({0} if parts[0]["kind"] == "note" else set()) if found else set(range(len(parts)))


COUNTED = {
    "figure": "figure",
    "table": "table",
    "text": "text",
    "answers": "pair of answers",
    "explorer": "map to explore",
    "list": "list",
    "note": "note",
}


def _counted(parts: Iterable[Mapping[str, Any]]) -> str:
    """ "4 figures, 1 table": what is folded away."""
    kinds = Counter(COUNTED[part["kind"]] for part in parts if part["kind"] in COUNTED)
    named = [name for name in COUNTED.values() if kinds[name]]
    several = {"pair of answers": "pairs of answers", "map to explore": "maps to explore"}
    return ", ".join(f"{kinds[name]} {name if kinds[name] == 1 else several.get(name, name + 's')}" for name in named)


def brief(sentence: str) -> str:
    """A sentence for the list of sections: without what stands in brackets, up to its first semicolon, of at most BRIEF letters."""
    depth, kept = 0, ""
    for letter in sentence:
        depth += letter in "(["
        if not depth:
            kept += letter
        depth -= letter in ")]" and depth > 0
    text = re.sub(r"\s+([,.;:])", r"\1", " ".join(kept.split(" "))).split("; ")[0]
    text = re.sub(r" {2,}", " ", text).rstrip(".;, ")
    return text if len(text) <= BRIEF else text[:BRIEF].rsplit(" ", 1)[0].rstrip(",;: ") + " …"


def headed(text: str) -> tuple[str, str]:
    """The words above a block and what is said under them: a title as it is, of a long one its first sentence or clause of at most HEAD letters;
    none of a text that has no such clause."""
    if len(text) <= HEAD:
        return text.rstrip("."), ""
    for end in (". ", "; ", ": ", ", "):
        head = next((text[: found.start()] for found in re.finditer(re.escape(end), text) if _closed(text[: found.start()])), "")
        if LEAST_HEAD <= len(head) <= HEAD:
            rest = text[len(head) + len(end) :]
            return head, rest[0].upper() + rest[1:]
    return "", text


def _closed(text: str) -> bool:
    """Whether every bracket that opens in it closes in it."""
    return all(text.count(one) == text.count(other) for one, other in ("()", "[]"))


def numbered(parts: Iterable[dict[str, Any]], figures: int = 0) -> None:
    """Gives every figure and table its number, in the order of the page behind so many figures, and every block its heading."""
    counts: Counter[str] = Counter(figure=figures)
    for part in parts:
        kind = part["kind"]
        if kind in ("figure", "table"):
            counts[kind] += 1
            part["number"] = counts[kind]
        if kind == "figure":
            part["title"], part["caption"] = headed(part["caption"])
        else:
            said = part.get("title") or part.get("folded")
            part["head"], part["under"] = headed(said) if isinstance(said, str) else ("", "")


def to_the_right(table: Mapping[str, Any]) -> set[int]:
    """Columns whose cells are numbers: they stand right, words left."""
    columns = [[cell.strip() for cell in column if cell.strip() not in NO_NUMBER] for column in zip(*table["rows"], strict=False)]
    return {place for place, cells in enumerate(columns) if place and cells and sum(map(_is_number, cells)) > len(cells) / 2}


def _is_number(cell: str) -> bool:
    return bool(re.match(r"[-+−±<>≤≥~≈]?\s?[\d.∞]", cell)) and not re.search(r"[A-Za-zА-Яа-я]{4}", cell)


def unbroken(cell: str, whole: bool) -> str:
    """A number's cell, whose lines do not end inside a number or, where it is `whole`, inside an interval."""
    return re.sub(r" (?![(\[])", "\u00a0", cell) if whole else cell.replace(" × ", "\u00a0×\u00a0")


def without_folders(text: str) -> str:
    """A text whose paths on this machine are cut to their last parts: a page that is shown to others names nobody's home."""
    return re.sub(r"(?<![\w.:/<])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\"#,;()<>]+[/\\])+([^\s/\\'\"#,;()<>]*)", r"\1", text)


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
    with writing(path.parent):
        partial.write_bytes(content)
        os.replace(partial, path)
    return path
