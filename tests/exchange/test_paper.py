"""What a paper takes of a run: figures of the asked width with letters that can be read, LaTeX that compiles, numbers that are the run's."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import mechdiff
from mechdiff.errors import RunError
from mechdiff.exchange import citations, latex, paper
from mechdiff.measures.catalogue import CHAPTERS
from mechdiff.report.export import PIXELS_PER_INCH
from mechdiff.report.parts import Run, load
from mechdiff.results.numbers import results
from report.planted_run import planted_manifest, planted_rows, write_run

ROOT = Path(__file__).parents[2]
EVIL = '50 % of {x_1} & #2 ~ ^ \\\\ <b> $y$ “Ә” − 10⁻¹² × ‖ → ‘####’ é | "quoted" [1]'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small planted run: six layers, the change at the last but one."""
    sizes = {"n_layers": 6, "n_prompts": 12, "changed": 4}
    manifest = planted_manifest(**sizes)
    manifest["versions"]["mechdiff"] = mechdiff.__version__
    return load(write_run(tmp_path_factory.mktemp("planted"), planted_rows(**sizes, permutations=20), manifest))


@pytest.fixture(scope="module")
def made(run: Run, tmp_path_factory: pytest.TempPathFactory) -> paper.Paper:
    out = tmp_path_factory.mktemp("paper")
    how: dict[str, Any] = {"formats": ["svg", "pdf"], "latex": True}
    return paper.write(run, out, figures=["patching", "d_by_prompt"], width=3.25, **how)


# ---- figures -----------------------------------------------------------------------------------------------------------------------


def test_chosen_figures_have_the_asked_width_and_letters_of_six_points(made: paper.Paper) -> None:
    names = sorted(path.name for path in (made.folder / "figures").iterdir())
    assert names == ["causal_map.pdf", "causal_map.svg", "d_by_prompt.pdf", "d_by_prompt.svg"]
    for path in (made.folder / "figures").glob("*.svg"):
        svg = path.read_text()
        width = float(re.search(r'<svg[^>]*? width="([\d.]+)"', svg)[1])  # type: ignore[index]
        assert width == pytest.approx(3.25 * PIXELS_PER_INCH, abs=0.1)
        assert 6 <= paper.smallest_letters(svg) <= 12, path.name
    assert made.said == ()


def test_letters_are_measured_at_the_size_that_is_printed() -> None:
    svg = '<svg width="312" height="9" viewBox="0 0 624 18"><text font-size="20px">a</text><text font-size="12px">b</text></svg>'
    assert paper.smallest_letters(svg) == pytest.approx(12 * 0.5 * 0.75)


@pytest.mark.parametrize(("asked", "words"), [
    ({"figures": ["nothing"]}, r"--figures: there is no nothing in this run\. There are: .*causal_map"),
    ({"figures": [], "width": 1.0}, r"--width: given 1, expected 2 to 8 inches"),
    ({"figures": [], "formats": ["jpg"]}, r"--format: given jpg, expected some of pdf, svg, png"),
])  # fmt: skip
def test_what_cannot_be_had_is_said(run: Run, tmp_path: Path, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(RunError, match=words):
        paper.write(run, tmp_path, **asked)


# ---- numbers, tables, methods ------------------------------------------------------------------------------------------------------


def test_macros_are_the_numbers_of_the_first_answers(run: Run, made: paper.Paper) -> None:
    from mechdiff.report.overview.overview import overview

    first = overview(run, CHAPTERS)
    text = (made.folder / "numbers.tex").read_text()
    defined = dict(re.findall(r"\\newcommand\{(\\md[A-Za-z]+)\}\{(.*?)\}(?:  %.*)?$", text, re.MULTILINE))
    numbers = [number for tile in first.tiles for number in tile.numbers]
    named = paper.named(first)
    assert [number for _, number in named] == numbers
    assert len(numbers) >= 5
    for name, number in named:
        assert defined[name] == latex.escaped(number.shown)
        assert defined.get(f"{name}N") == (None if number.n is None else str(number.n))
        assert (f"{name}Low" in defined) == (number.low is not None and number.low == number.low)
    assert len(defined) == len(re.findall(r"\\newcommand", text)), "no name is defined twice"
    rows = results(run, CHAPTERS)
    assert len(rows) >= 5
    for one in rows:
        printed = defined[latex.macro(one.key)].replace("$-$", "-")
        if "%" in printed:
            assert float(re.match(r"[\d.-]+", printed)[0]) == pytest.approx(100 * one.value, abs=0.51)  # type: ignore[index]
        elif "times" not in printed:
            assert float(printed) == pytest.approx(one.value, rel=5e-3)


def test_methods_cite_what_ran_and_nothing_else(run: Run, made: paper.Paper) -> None:
    text, bib = ((made.folder / name).read_text() for name in ("methods.tex", "references.bib"))
    cited = {key for keys in re.findall(r"\\cite\{(.*?)\}", text) for key in keys.split(",")}
    assert cited == set(re.findall(r"^@\w+\{(\w+),", bib, re.MULTILINE)), "every entry is cited, every citation has its entry"
    assert {"kornblith2019similarity", "zhang2024patching"} <= cited
    assert "panigrahi2023skill" not in cited, "grafting did not run"
    prompts = run.manifest["prompts"]["n"]
    assert f"{prompts['report']} test prompts" in text
    assert run.manifest["versions"]["mechdiff"] in text


def test_methods_say_of_training_and_validation_prompts_only_what_a_run_had(run: Run) -> None:
    """A run without them was said to have fitted maps on training prompts."""
    alone = {**run.manifest, "prompts": {**run.manifest["prompts"], "n": {"report": 12}}}
    text = ". ".join(paper._sentences(alone, []))
    assert "Both models read 12 test prompts" in text
    assert "Numbers are of test prompts" in text
    assert "training" not in text
    assert "validation" not in text


def test_every_measure_has_its_sentence_and_every_entry_its_fields() -> None:
    from mechdiff.measures.catalogue import MEASURES

    without = {"chat_template", "routing", "off_manifold"}  # parts of others' methods: nothing is cited for them
    assert set(citations.METHODS) | without == {measure.name for measure in MEASURES}
    used = {key for _, keys in citations.METHODS.values() for key in keys} | set(citations.STATISTICS)
    assert used == set(citations.entries())
    for key, entry in citations.entries().items():
        assert all(f"{name} = {{" in entry for name in ("author", "title", "year")), key
        assert entry.count("{") == entry.count("}"), key


# ---- LaTeX -------------------------------------------------------------------------------------------------------------------------


def test_text_from_anywhere_is_ascii_or_t1_and_balanced() -> None:
    text = latex.escaped(EVIL)
    assert r"50 \% of \{x\_1\} \& \#2" in text
    assert r"$^{-12}$" in text
    assert "U+04D8" in text
    assert "é" in text
    bare = text.replace(r"\{", "").replace(r"\}", "")
    assert bare.count("{") == bare.count("}")
    assert not re.search(r"(?<!\\)[%&#_]", re.sub(r"\$.*?\$", "", text))
    assert [latex.macro("how_much", latex.place(i)) for i in (0, 25, 26)] == ["\\mdHowMuchA", "\\mdHowMuchZ", "\\mdHowMuchBA"]


def test_environments_are_balanced(made: paper.Paper) -> None:
    for path in made.folder.glob("*.tex"):
        text = path.read_text()
        begun, ended = re.findall(r"\\begin\{(\w+\*?)\}", text), re.findall(r"\\end\{(\w+\*?)\}", text)
        assert sorted(begun) == sorted(ended), path.name
    tables = (made.folder / "tables.tex").read_text()
    assert tables.count(r"\toprule") == tables.count(r"\bottomrule") >= 1
    found = re.findall(r"\\begin\{tabular\}\{([^\n]*)\}\n(.*?)\\end\{tabular\}", tables, re.DOTALL)
    assert len(found) == tables.count(r"\toprule")
    for align, body in found:
        wanted = len(re.sub(r"\{.*?\}", "", align))
        assert wanted > 1
        assert all(len(re.findall(r"(?<!\\)&", line)) == wanted - 1 for line in body.splitlines() if line.rstrip().endswith(r"\\"))


@pytest.mark.ci
@pytest.mark.skipif(
    shutil.which("pdflatex") is None or shutil.which("bibtex") is None, reason="no TeX here; balance and escapes are tested everywhere"
)
def test_it_compiles(made: paper.Paper, tmp_path: Path) -> None:
    shutil.copytree(made.folder, tmp_path / "paper")
    (tmp_path / "paper" / "evil.tex").write_text(latex.escaped(EVIL))
    main = tmp_path / "paper" / "paper.tex"
    main.write_text(main.read_text().replace(r"\input{methods}", r"\input{methods} \input{evil}"))
    for command in (["pdflatex"], ["bibtex"], ["pdflatex"], ["pdflatex"]):
        asked = [*command, "-interaction=nonstopmode", "-halt-on-error"] if command == ["pdflatex"] else command
        done = subprocess.run([*asked, "paper"], cwd=tmp_path / "paper", capture_output=True, text=True, errors="replace", check=False)
        assert done.returncode == 0, done.stdout[-2000:]
    assert "undefined" not in done.stdout.lower()
    assert (tmp_path / "paper" / "paper.pdf").read_bytes().startswith(b"%PDF")


def test_a_second_export_gives_the_same_bytes(run: Run, made: paper.Paper, tmp_path: Path) -> None:
    again = paper.write(run, tmp_path, figures=[], latex=True)
    for path in again.files:
        if path.name not in ("figures.tex", "tables.tex"):
            assert path.read_bytes() == (made.folder / path.name).read_bytes(), path.name


# ---- CITATION.cff ------------------------------------------------------------------------------------------------------------------


def test_the_citation_file_has_what_its_schema_requires() -> None:
    """Of the Citation File Format 1.2.0: authors, cff-version, message and title; an entity has a name; a version is a text or number."""
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"authors", "cff-version", "message", "title"} <= set(found)
    assert found["cff-version"] == "1.2.0"
    assert all(set(author) <= {"name", "alias", "website", "email", "orcid"} and author["name"] for author in found["authors"])
    assert found["type"] in ("software", "dataset")
    assert str(found["version"]) == mechdiff.__version__
    assert found["license"] == "Apache-2.0"
    assert found["title"] in citations.bibtex([], "0").replace("\n", " ")


@pytest.mark.skipif(importlib.util.find_spec("cffconvert") is None, reason="cffconvert is not installed")
def test_the_citation_file_is_valid_by_its_own_validator() -> None:
    from cffconvert import Citation

    Citation((ROOT / "CITATION.cff").read_text()).validate()
