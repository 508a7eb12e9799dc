"""A paper takes of a run the figures that it asks for, at its column's width, and everything else as LaTeX.

**Writes** to a folder: `figures/NAME.FORMAT`, laid out for that width so that letters stay near 8 points; with `latex` also `numbers.tex` (a macro
for every number of `run.results`, its interval and n beside it), `tables.tex` (booktabs: those numbers, and the tables beside the chosen
figures), `figures.tex` (with captions), `methods.tex` (a paragraph from the record: models, prompts, splits, measures, statistics, versions),
`references.bib` (mechdiff, and the papers of the methods that ran) and `paper.tex`, which inputs all of it and compiles. All of it is generated from
the run: a second export gives the same bytes. LaTeX is of the same numbers as the page (`report/overview`).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mechdiff import __version__
from mechdiff.errors import RunError
from mechdiff.exchange import citations
from mechdiff.exchange.latex import booktabs, defined, escaped, macro, place
from mechdiff.measures.catalogue import CHAPTERS
from mechdiff.report import record, sections
from mechdiff.report.export import FORMATS, PIXELS_PER_INCH, as_file, chart, drawn_figures, sized
from mechdiff.report.headlines import Number
from mechdiff.report.overview.overview import Overview, overview, was_measured
from mechdiff.report.overview.shown import section as overview_section
from mechdiff.report.parts import Drawn, Run, Section
from mechdiff.report.phrasing import between, listed, nats, share
from mechdiff.results.numbers import Result, results

LEAST, MOST = 2.0, 8.0
"""Inches: a column narrower than that has no room for an axis, a wider one is no page."""
PER_INCH = 350 / 3.3
"""Pixels that a chart is laid out for an inch, so that its letters of 11.5 pixels are 7.8 points."""
SHORT = {
    "overview": "overview_layers",
    "patching": "causal_map",
    "grafting": "grafts_alone",
    "heads": "head_effects",
    "weights": "weight_map",
}
"""Names of figures by what a paper would call them."""
SMALLEST = 6.0
"""Points: what is smaller in a figure is said."""
MAIN = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{booktabs,graphicx}
\input{numbers}
\begin{document}
\section*{Methods}
\input{methods}
\section*{Results}
\mdBase{} was compared with \mdTuned{} (Table~\ref{tab:numbers}).
\input{tables}
\input{figures}
\bibliographystyle{plain}
\bibliography{references}
\end{document}
"""


@dataclass(frozen=True, kw_only=True)
class Paper:
    """What was written."""

    folder: Path
    files: tuple[Path, ...]
    said: tuple[str, ...]
    """What a user should know: letters of a figure that are small, a figure without rows."""


def write(
    run: Run, out: Path, *, figures: Sequence[str], width: float = 3.3, formats: Sequence[str] = ("pdf",), latex: bool = False
) -> Paper:
    """The chosen figures, and the LaTeX beside them. Raises RunError for a figure or format that is not there, or a width that is none."""
    if unknown := [name for name in formats if name not in FORMATS]:
        raise RunError(f"--format: given {', '.join(unknown)}, expected some of {', '.join(FORMATS)}.")
    if not LEAST <= width <= MOST:
        raise RunError(f"--width: given {width:g}, expected {LEAST:g} to {MOST:g} inches (a column of most journals has 3.25 to 3.5).")
    first = overview(run, CHAPTERS)
    found = [overview_section(first), *sections.all_sections(run, CHAPTERS)]
    known = drawn_figures(found)
    figures = [SHORT.get(name, name) for name in figures]
    if missing := [name for name in figures if name not in known]:
        raise RunError(f"--figures: there is no {', '.join(missing)} in this run. There are: {', '.join(known)}.")
    (out / "figures").mkdir(parents=True, exist_ok=True)
    files, said, drawn = [], [], []
    for name in dict.fromkeys(figures):
        made = chart(run, known[name], round(width * PER_INCH))
        if made is None:
            said.append(f"{name}: this run has no rows for it, so no file was written")
            continue
        svg = sized(made, width)
        if (points := smallest_letters(svg)) < SMALLEST:
            said.append(f"{name}: its smallest letters are {points:.1f} points at {width:g} inches; give a larger --width")
        drawn.append(known[name])
        files += [_file(out / "figures" / f"{name}.{kind}", as_file(svg, kind)) for kind in formats]
    if latex:
        files += _latex(run, first, found, drawn, out)
    return Paper(folder=out, files=tuple(files), said=tuple(said))


def smallest_letters(svg: str) -> float:
    """Points of the smallest letters of an SVG, at the size that it has."""
    opening = svg.partition(">")[0]
    width, box = re.search(r' width="([\d.]+)', opening), re.search(r' viewBox="[\d.-]+ [\d.-]+ ([\d.]+)', opening)
    assert width, "an SVG of vl-convert says its width"
    scale = float(width[1]) / float(box[1]) if box else 1.0
    sizes = [float(one) for one in re.findall(r'font-size[=:]"?\s*([\d.]+)(?:px)?', svg)]
    return min(sizes, default=72.0) * scale * 72 / PIXELS_PER_INCH


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# ---- LaTeX -------------------------------------------------------------------------------------------------------------------------


def _latex(run: Run, first: Overview, found: Sequence[Section], drawn: Sequence[Drawn], out: Path) -> list[Path]:
    measured = [name for name in citations.METHODS if was_measured(run, name)]
    cited = [key for name in measured for key in citations.METHODS[name][1]] + list(citations.STATISTICS)
    texts = {
        "numbers.tex": "\n".join(numbers(run, first, results(run, CHAPTERS))),
        "tables.tex": "\n".join(_tables(first, found, drawn)),
        "figures.tex": "\n".join(_figures(drawn)),
        "methods.tex": methods(run, measured),
        "references.bib": citations.bibtex(cited, __version__),
        "paper.tex": MAIN,
    }
    return [_file(out / name, f"{text.rstrip()}\n".encode()) for name, text in texts.items()]


def named(first: Overview) -> list[tuple[str, Number]]:
    """Every number of the six first answers with its macro, in their order: \\mdHowMuchA, \\mdHowMuchB, ..."""
    return [(macro(tile.question, place(i)), number) for tile in first.tiles for i, number in enumerate(tile.numbers)]


def _shown(value: float, unit: str) -> str:
    """A share in percent, a layer or a count whole, anything else with three digits."""
    return share(value) if unit == "share" else f"{value:g}" if value == round(value) else nats(value)


def numbers(run: Run, first: Overview, rows: Sequence[Result]) -> Iterator[str]:
    """numbers.tex: a macro a line, and what it is: of the first answers by their question, then of every row of `run.results` by its key."""
    yield "% Generated by mechdiff export --latex. Each number has ...Low, ...High (its 95 percent interval) and ...N where the run has them."
    yield defined(macro("base"), escaped(first.base), "the base model")
    yield defined(macro("tuned"), escaped(first.tuned), "the fine-tune")
    for name, number in named(first):
        yield defined(name, escaped(number.shown), number.behind)
        if ends := _ends(number):
            yield defined(f"{name}Low", escaped(ends[0]))
            yield defined(f"{name}High", escaped(ends[1]))
        if number.n is not None:
            yield defined(f"{name}N", str(number.n))
    for one in rows:
        yield defined(macro(one.key), escaped(_shown(one.value, one.unit)), "; ".join(part for part in (one.name, one.caveat) if part))
        if one.low is not None and one.high is not None and one.low == one.low:
            yield defined(f"{macro(one.key)}Low", escaped(_shown(one.low, one.unit)))
            yield defined(f"{macro(one.key)}High", escaped(_shown(one.high, one.unit)))
        if one.n is not None:
            yield defined(f"{macro(one.key)}N", str(one.n))
    for split, count in ((run.manifest.get("prompts") or {}).get("n") or {}).items():
        yield defined(macro("prompts", split), str(count), f"prompts of the split {split}")


def _ends(number: Number) -> tuple[str, str] | None:
    """Ends of a number's interval, written as the number is: in percent, as whole layers, or with three digits."""
    if number.low is None or number.high is None or number.low != number.low:
        return None
    if number.unit == "layer":
        return f"{number.low:g}", f"{number.high:g}"
    low, high = between(number.low, number.high, digits=2 if number.shown.endswith("%") else None)[1:-1].split(", ")
    return low, high


def _tables(first: Overview, found: Sequence[Section], drawn: Sequence[Drawn]) -> Iterator[str]:
    rows = [
        (tile.title, number.of, number.shown, " to ".join(_ends(number) or ("–",)), "–" if number.n is None else number.n)
        for tile in first.tiles for number in tile.numbers
    ]  # fmt: skip
    columns = ("Question", "Quantity", "Value", "95 % CI", "n")
    yield from booktabs(columns, rows, caption=f"{first.tuned} compared with {first.base}.", label="numbers", align=r"lp{0.5\linewidth}rrr")
    for section in found:
        if any(part in drawn for part in section.parts if isinstance(part, Drawn)):
            tables = [part for part in section.parts if not isinstance(part, Drawn) and part["kind"] == "table" and not part["folded"]]
            for i, one in enumerate(tables):
                yield from booktabs(one["columns"], one["rows"], caption=one["title"] or section.title, label=f"{section.id}-{i + 1}")


def _figures(drawn: Sequence[Drawn]) -> Iterator[str]:
    for one in drawn:
        yield r"\begin{figure}[t]"
        yield rf"  \centering\includegraphics{{figures/{one.name}}}"
        yield rf"  \caption{{{escaped(one.caption)}}}\label{{fig:{one.name.replace('_', '-')}}}"
        yield r"\end{figure}"
        yield ""


def methods(run: Run, measured: Sequence[str]) -> str:
    """A paragraph from the record, with citations: what was measured, on what, how chosen, by which tests, in which versions."""
    return " ".join(f"{sentence}." for sentence in _sentences(run.manifest, measured))


def _sentences(manifest: dict, measured: Sequence[str]) -> Iterator[str]:
    pair, prompts, versions = (manifest.get(name) or {} for name in ("pair", "prompts", "versions"))
    kinds = {side: _kind(pair.get(side) or {}) for side in ("base", "tuned")}
    yield (
        f"We compared {escaped(record.short_name(manifest, 'base'))} ({kinds['base']}) with {escaped(record.short_name(manifest, 'tuned'))} "
        f"({kinds['tuned']}) using mechdiff {escaped(versions.get('mechdiff', 'of an unknown version'))}~\\cite{{mechdiff}}"
    )
    counts = prompts.get("n") or {}
    names = {"fit": "training", "select": "validation", "report": "test"}
    if used := listed(f"{counts[split]} {name}" for split, name in names.items() if counts.get(split)):
        how = escaped(f"rendering {prompts.get('policy')}, position {prompts.get('position')}")
        yield f"Both models read {used} prompts ({how})"
        does = {"fit": "maps and means were fitted on training prompts", "select": "choices were made on validation prompts"}
        done = [does[split] for split in does if counts.get(split)]
        said = listed([*done, "numbers are of test prompts"])
        yield said[0].upper() + said[1:]
    for name in measured:
        said, keys = citations.METHODS[name]
        yield escaped(said) + (f"~\\cite{{{','.join(keys)}}}" if keys else "")
    yield (
        r"Intervals are 95\,\% intervals: bootstrap-t over prompts~\cite{efron1993introduction}, Wilson's for shares of "
        r"prompts~\cite{wilson1927probable}, and the jackknife for CKA; paired shares were tested by McNemar's exact "
        r"test~\cite{mcnemar1947note}, and families of tests corrected by Holm's method~\cite{holm1979simple} or by resampling "
        r"whole prompts~\cite{westfall1993resampling}"
    )
    libraries = listed(f"{name} {versions[name]}" for name in ("torch", "transformers", "peft") if versions.get(name))
    yield (
        f"Computations were in {escaped(manifest.get('dtype'))} on {escaped(manifest.get('device'))} with {escaped(libraries)}, "
        f"seed {escaped(manifest.get('seed'))}, study hash \\texttt{{{escaped(str(manifest.get('config_hash'))[:12])}}}"
    )


def _kind(one: dict) -> str:
    sizes = [f"{one[name]:,} {words}" for name, words in (("n_layers", "layers"), ("parameters", "parameters")) if one.get(name)]
    return escaped(", ".join([*(["an adapter on it"] if one.get("adapter") else []), str(one.get("family", "unknown family")), *sizes]))
