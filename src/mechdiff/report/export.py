"""A paper needs of a run every figure at column widths as PDF, SVG and PNG, every table as Markdown, and a summary.

`summary.md` has an abstract (the verdict), methods (from the run's record), results (sentences, tables and figures of each section) and
limitations (warnings, skipped parts). Nothing in it was written by hand: a second export gives the same bytes.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import vl_convert

from mechdiff.errors import RunError
from mechdiff.report import drawing, record, sections
from mechdiff.report.overview import shown
from mechdiff.report.overview.overview import overview
from mechdiff.report.parts import Chapter, Drawn, Run, Section
from mechdiff.report.phrasing import listed
from mechdiff.report.verdict import verdict

FORMATS = ("pdf", "svg", "png")
COLUMNS = {"single": (drawing.NARROW, 3.3), "double": (drawing.WIDE, 6.9)}
"""By name: the width that a chart is laid out for, in pixels, and the width it is given, in inches: one and two columns of most journals."""
PIXELS_PER_INCH = 96
"""Of an SVG's user unit."""
PRINT_DPI = 300


def drawn_figures(found: Iterable[Section]) -> dict[str, Drawn]:
    """Every figure of some sections, by name."""
    return {part.name: part for section in found for part in section.parts if isinstance(part, Drawn)}


def chart(run: Run, drawn: Drawn, width: int = drawing.WIDE) -> drawing.Chart | None:
    """A figure as an altair chart, which notebooks show; None where its rows are absent."""
    of = drawn.of or run
    return drawn.chart(of.rows, of.summary, of.manifest, width=width, **drawn.options)


def export(
    run: Run, chapters: Mapping[str, Chapter], folder: Path, *, formats: Sequence[str] = FORMATS, columns: Sequence[str] = tuple(COLUMNS)
) -> Path:
    """Writes `figures/NAME.COLUMN.FORMAT` and `summary.md` to a folder; returns the latter's path. Raises RunError for a format that is not known."""
    for what, given, known in (("format", formats, FORMATS), ("columns", columns, tuple(COLUMNS))):
        if unknown := [name for name in given if name not in known]:
            raise RunError(f"{what}: given {', '.join(unknown)}, expected some of {', '.join(known)}.")
    found = [shown.section(overview(run, chapters)), *sections.all_sections(run, chapters)]
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    drawn = {name: _written(run, figure, folder / "figures", formats, columns) for name, figure in drawn_figures(found).items()}
    text = "\n".join(_document(run, verdict(run, chapters), found, {name for name, there in drawn.items() if there}, formats, columns))
    partial = folder / "summary.md.partial"
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, folder / "summary.md")
    return folder / "summary.md"


def _written(run: Run, drawn: Drawn, folder: Path, formats: Sequence[str], columns: Sequence[str]) -> bool:
    for column in columns:
        laid_out, inches = COLUMNS[column]
        made = chart(run, drawn, laid_out)
        if made is None:
            return False
        svg = sized(made, inches)
        for kind in formats:
            (folder / f"{drawn.name}.{column}.{kind}").write_bytes(as_file(svg, kind))
    return True


def sized(made: drawing.Chart, inches: float) -> str:
    """A chart as an SVG of this width."""
    svg = drawing.to_svg(made)
    return _scaled(svg, inches * PIXELS_PER_INCH / _width(svg))


def as_file(svg: str, kind: str) -> bytes:
    """The content of a file of one of FORMATS."""
    files: dict[str, Callable[[str], bytes]] = {"svg": str.encode, "pdf": vl_convert.svg_to_pdf, "png": _png}
    return files[kind](svg)


def _png(svg: str) -> bytes:
    return bytes(vl_convert.svg_to_png(svg, scale=PRINT_DPI / PIXELS_PER_INCH))


def _width(svg: str) -> float:
    found = re.search(r'<svg[^>]*? width="([\d.]+)"', svg)
    assert found, "an SVG of vl-convert says its width"
    return float(found[1])


def _scaled(svg: str, scale: float) -> str:
    """The SVG at another outer size; what it holds stays as it was, by its viewBox."""
    opening, closing, rest = svg.partition(">")
    return re.sub(r' (width|height)="([\d.]+)"', lambda size: f' {size[1]}="{float(size[2]) * scale:.2f}"', opening) + closing + rest


# ---- the summary -------------------------------------------------------------------------------------------------------------------


def _document(
    run: Run, said: Sequence[str], found: Sequence[Section], drawn: set[str], formats: Sequence[str], columns: Sequence[str]
) -> Iterator[str]:
    manifest = run.manifest
    base, tuned = (escaped(record.short_name(manifest, side)) for side in ("base", "tuned"))
    yield f"# What the fine-tune changed: {base} → {tuned}\n"
    yield "## Abstract\n"
    yield from (f"{escaped(sentence)} " for sentence in said)
    yield "\n## Methods\n"
    yield from methods(manifest)
    yield "\n## Results\n"
    for section in found:
        if section.id != "trust":
            yield from _section(section, drawn, formats, columns)
    yield "## Limitations\n"
    yield from (f"- {escaped(text)}" for text in record.warnings(manifest))
    yield from (f"- Not done: {escaped(item['what'])} ({escaped(item['why'])})." for item in manifest.get("skipped") or [])
    yield from (f"- {escaped(sentence)}" for section in found if section.id == "trust" for sentence in section.lead)
    yield ""


def _section(section: Section, drawn: set[str], formats: Sequence[str], columns: Sequence[str]) -> Iterator[str]:
    yield f"### {escaped(section.title)}\n"
    if section.lead:
        yield escaped(" ".join(section.lead)) + "\n"
    for part in section.parts:
        if isinstance(part, Drawn):
            if part.name in drawn:
                files = [f"[{column} {kind}](figures/{part.name}.{column}.{kind})" for column in columns for kind in formats]
                yield f"**Figure `{part.name}`.** {escaped(part.caption)} {' · '.join(files)}\n"
        elif part["kind"] == "table":
            yield from markdown_table(part)
        elif part["kind"] == "note":
            yield escaped(part["text"]) + "\n"


def markdown_table(table: dict) -> Iterator[str]:
    """Lines of a table of the page as a pipe table, its title above."""
    title = table["title"] or table["folded"]
    if title:
        yield f"**Table.** {escaped(title)}\n"
    columns = table["columns"]
    yield f"| {' | '.join(_cell(name) for name in columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in table["rows"]:
        yield f"| {' | '.join(_cell(cell) for cell in row)} |"
    yield ""


def methods(manifest: dict) -> Iterator[str]:
    """The run's settings in sentences."""
    pair = manifest.get("pair") or {}
    for side in ("base", "tuned"):
        one = pair.get(side) or {}
        numbers = {words: one.get(name) for name, words in (("n_layers", "layers"), ("d_model", "width"), ("parameters", "parameters"))}
        sizes = [str(one.get("family", "unknown family")), *(f"{words} {count:,}" for words, count in numbers.items() if count)]
        yield f"The {side} model is {escaped(record.short_name(manifest, side))} ({escaped(', '.join(sizes))}). "
    prompts = manifest.get("prompts") or {}
    n = listed(f"{count} {split}" for split, count in (prompts.get("n") or {}).items())
    yield f"Prompts: {escaped(n)}; policy {escaped(str(prompts.get('policy')))}, position {escaped(str(prompts.get('position')))}. "
    yield "Maps and means are fitted on the training prompts, every choice is made on the validation prompts, every number is of the test prompts. "
    engine = manifest.get("engine") or {}
    version, name = (manifest.get("versions") or {}).get("mechdiff"), engine.get("name")
    yield f"Activations were read and patched by mechdiff {escaped(str(version))} (engine {escaped(str(name))}), "
    yield f"in {escaped(str(manifest.get('dtype')))}, seed {escaped(str(manifest.get('seed')))}. "
    yield "Intervals are 95 % bootstrap-t intervals over prompts, Wilson for shares of prompts, jackknife for CKA; divergences are in nats. "
    measures = listed(
        name for one in (manifest.get("config") or {}).get("measures") or [] for name in ([one] if isinstance(one, str) else one)
    )
    yield f"Measures: {escaped(measures)}. Study hash {escaped(str(manifest.get('config_hash')))}.\n"


def escaped(text: str) -> str:
    """Text from anywhere, so that Markdown shows it as it is."""
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def _cell(text: str) -> str:
    return escaped(str(text)).replace("\n", "<br>")
