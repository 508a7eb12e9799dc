"""What a paper needs: figures of the asked size in every format, every table, and a summary that is Markdown whatever the names are."""

import re
import struct
from html import unescape
from pathlib import Path

import pytest

from mechdiff import api
from mechdiff.errors import RunError
from mechdiff.measures.catalogue import CHAPTERS
from mechdiff.report import export
from mechdiff.report.export import COLUMNS, PIXELS_PER_INCH, PRINT_DPI, escaped, markdown_table
from mechdiff.report.parts import table

EVIL = "<b>*|_`"


@pytest.fixture(scope="module")
def run_object(run: Path) -> api.Run:
    return api.open_run(run)


def test_every_figure_has_the_width_of_its_column(run_object: api.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = export.drawn_figures(export.sections.all_sections(run_object._content, CHAPTERS))
    kept = {name: every[name] for name in ("d_by_prompt", "causal_map")}
    monkeypatch.setattr(export, "drawn_figures", lambda found: kept)
    summary = run_object.export(tmp_path / "paper", formats=["svg", "pdf", "png"])
    assert len(list((tmp_path / "paper" / "figures").iterdir())) == 2 * 2 * 3
    for name in kept:
        for column, (_, inches) in COLUMNS.items():
            stem = tmp_path / "paper" / "figures" / f"{name}.{column}"
            width = float(re.search(r'<svg[^>]*? width="([\d.]+)"', Path(f"{stem}.svg").read_text())[1])  # type: ignore[index]
            assert width == pytest.approx(inches * PIXELS_PER_INCH, abs=0.1)
            assert Path(f"{stem}.pdf").read_bytes().startswith(b"%PDF")
            pixels = struct.unpack(">I", Path(f"{stem}.png").read_bytes()[16:20])[0]
            assert pixels == pytest.approx(inches * PRINT_DPI, abs=2)
    text = summary.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Abstract", "## Methods", "## Results", "## Limitations"]
    assert all(sentence.split(" nats")[0] in text.replace("\\", "") for sentence in run_object.verdict())
    assert "figures/causal_map.single.pdf" in text
    assert all(escaped(tile.text) in text for tile in run_object.overview().tiles)
    assert "\n| site | KL increase | recovery |" in text


def test_the_asked_formats_alone_are_written(run_object: api.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "drawn_figures", lambda found: {})
    with pytest.raises(RunError, match="format: given gif, expected some of pdf, svg, png"):
        run_object.export(tmp_path / "paper", formats=["gif"])
    with pytest.raises(RunError, match="columns: given wide"):
        run_object.export(tmp_path / "paper", columns=["wide"])


def test_names_stay_text(tmp_path: Path) -> None:
    assert escaped(EVIL) == r"&lt;b&gt;\*\|\_\`"
    lines = list(markdown_table(table(("a|b", "c"), [(EVIL, "two\nlines")], title=EVIL)))
    assert lines[1] == r"| a\|b | c |"
    assert lines[3] == r"| &lt;b&gt;\*\|\_\` | two<br>lines |"


def test_a_run_shows_itself(run_object: api.Run) -> None:
    shown = run_object._repr_html_()
    assert "SmolLM2-135M-Instruct → courtesy" in shown
    for tile in run_object.overview().tiles:
        assert tile.title in shown
    assert all(sentence in unescape(shown) for sentence in run_object.verdict())
    assert "<script" not in shown
    assert {"causal_map", "overview_layers"} <= run_object.figures().keys()
    assert run_object.figure("overview_layers", width=350).to_dict()["vconcat"]
    assert run_object.figure("causal_map").to_dict()["vconcat"]
    with pytest.raises(RunError, match="no figure is called 'map'"):
        run_object.figure("map")
