"""Each figure draws at both widths, shows every value it should, and is absent where its rows are."""

import re

import polars as pl
import pytest

from mechdiff.report import (
    asymmetry,
    charts_patching,
    drawing,
    figures,
    findings,
    section_factorial,
    section_grafting,
    section_texts,
    section_weights,
)
from report.conftest import CHANGED

ALL = [
    figures.d_by_prompt, figures.cka_by_layer, figures.causal_map, figures.arms_by_layer, figures.cka_against_effect, charts_patching.kl_by_layer,
]  # fmt: skip


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
@pytest.mark.parametrize("figure", ALL, ids=lambda figure: figure.__name__)
def test_figures_are_valid_and_fit_their_width(
    figure: drawing.Figure, width: int, rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict
) -> None:
    chart = figure(rows, summary, manifest, width=width)
    chart.to_dict()  # altair checks the specification
    svg = drawing.to_svg(chart)
    drawn = int(re.search(r'<svg[^>]* width="(\d+)"', svg)[1])  # type: ignore[index]
    assert 0.85 * width < drawn <= width + 15
    assert "NaN" not in svg
    assert "undefined" not in svg
    assert svg == drawing.to_svg(figure(rows, summary, manifest, width=width))


@pytest.mark.parametrize("figure", ALL, ids=lambda figure: figure.__name__)
def test_a_figure_without_its_rows_is_none(figure: drawing.Figure, rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    only = rows.filter(pl.col("measure") == "weights")
    assert figure(only, summary.filter(pl.col("measure") == "weights"), {}) is None


SECTIONS = [
    section_texts.kl_by_position,
    section_weights.weight_map,
    section_weights.spectra_of,
    section_weights.head_map,
    section_grafting.grafts_alone,
    section_grafting.grafts_in_order,
    section_grafting.grafts_greedy,
    section_grafting.grafts_by_rank,
    section_factorial.effects_by_layer,
    asymmetry.asymmetry_by_layer,
]


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
@pytest.mark.parametrize("figure", SECTIONS, ids=lambda figure: figure.__name__)
def test_figures_of_the_other_sections_are_valid_and_fit(
    figure: drawing.Figure, width: int, full_rows: pl.DataFrame, full_summary: pl.DataFrame, full_manifest: dict
) -> None:
    test_figures_are_valid_and_fit_their_width(figure, width, full_rows, full_summary, full_manifest)


@pytest.mark.parametrize("figure", SECTIONS, ids=lambda figure: figure.__name__)
def test_they_are_none_without_their_rows(figure: drawing.Figure, rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    assert figure(rows, summary, {}) is None


def descriptions(svg: str, kind: str) -> list[str]:
    return re.findall(rf'aria-label="([^"]*)" role="graphics-symbol" aria-roledescription="{kind}"', svg)


def test_the_map_has_one_cell_for_each_site_and_tells_noise_from_effect(rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    svg = drawing.to_svg(figures.causal_map(rows, summary, {}))
    shares = findings.site_shares(rows, summary)
    cells, dots = descriptions(svg, "rect mark"), descriptions(svg, "circle")
    assert len(cells) == shares["counts"].sum()
    assert len(cells) + len(dots) == len(shares) == 2 * 7 * 5
    assert any(cell.startswith(f"L{CHANGED}.attn_out: share 0.9") for cell in cells)
    assert all(dot.endswith("under three noise floors") for dot in dots)


def test_every_prompt_has_its_dot(rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    svg = drawing.to_svg(figures.d_by_prompt(rows, summary, {}))
    assert len(descriptions(svg, "circle")) == 24


def test_infinite_d_is_left_out_of_the_figure(rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    d = (pl.col("metric") == "kl_tuned_base_nats") & (pl.col("split") == "report")
    some = rows.with_columns(value=pl.when(d, pl.col("prompt") == "r003").then(float("inf")).otherwise("value"))
    svg = drawing.to_svg(figures.d_by_prompt(some, summary, {}))
    assert len(descriptions(svg, "circle")) == 23


def test_lines_have_a_legend(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> None:
    for figure, names in ((figures.cka_by_layer, findings.STREAM), (figures.arms_by_layer, drawing.ARM_COLOURS)):
        svg = drawing.to_svg(figure(rows, summary, manifest))
        legend = svg[svg.index("role-legend") :]
        assert all(f">{name}<" in legend for name in names)


def test_a_figure_is_saved_as_svg(tmp_path, rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    wide, narrow = (figures.d_by_prompt(rows, summary, {}, width=width) for width in (drawing.WIDE, drawing.NARROW))
    svg, small = drawing.to_svgs(wide, narrow)
    assert [svg, small] == [drawing.to_svg(wide), drawing.to_svg(narrow)]
    drawing.save(svg, tmp_path / "figures", "d")
    assert (tmp_path / "figures/d.svg").read_text() == svg
