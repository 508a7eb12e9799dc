"""Each figure draws at both widths, shows every value it should, and is absent where its rows are."""

import re

import altair as alt
import polars as pl
import pytest

from mechdiff.measures.divergence import charts as divergence_charts
from mechdiff.measures.divergence import texts_page as divergence_texts_page
from mechdiff.measures.factorial import charts as factorial_charts
from mechdiff.measures.grafting import charts as grafting_charts
from mechdiff.measures.patching import asymmetry as patching_asymmetry
from mechdiff.measures.patching import charts as patching_charts
from mechdiff.measures.patching import findings as patching_findings
from mechdiff.measures.similarity import charts as similarity_charts
from mechdiff.measures.weights import charts as weights_charts
from mechdiff.report import difference, drawing
from mechdiff.report.parts import Figure
from report.conftest import CHANGED

ALL = [
    divergence_charts.d_by_prompt, similarity_charts.cka_by_layer, patching_charts.causal_map, patching_charts.arms_by_layer,
    patching_charts.cka_against_effect, patching_charts.kl_by_layer,
]  # fmt: skip


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
@pytest.mark.parametrize("figure", ALL, ids=lambda figure: figure.__name__)
def test_figures_are_valid_and_fit_their_width(
    figure: Figure, width: int, rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict
) -> None:
    chart = figure(rows, summary, manifest, width=width)
    svg = drawing.to_svg(chart)
    drawn = int(re.search(r'<svg[^>]* width="(\d+)"', svg)[1])  # type: ignore[index]
    assert 0.85 * width < drawn <= width + 15
    assert "NaN" not in svg
    assert "undefined" not in svg
    if width == drawing.WIDE:
        altairs = figure(rows, summary, manifest, width=width).to_dict()  # altair checks the specification
        assert svg == drawing.drawn(altairs)


@pytest.mark.parametrize("figure", ALL, ids=lambda figure: figure.__name__)
def test_a_figure_without_its_rows_is_none(figure: Figure, rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    only = rows.filter(pl.col("measure") == "weights")
    assert figure(only, summary.filter(pl.col("measure") == "weights"), {}) is None


@pytest.mark.parametrize("how", list(drawing.COMPOSED))
def test_charts_are_put_together_as_altair_does(how: str) -> None:
    """Data that all layers share altair moves up to their panel; where each has its own, the specification is the very same."""
    one, other = (alt.Chart(drawing.inline([{"x": x}, {"x": 2}])).mark_point().encode(x=alt.X("x:Q")) for x in (1, 3))
    given = {} if how == "layer" else {"spacing": 7}
    made, altairs = (getattr(module, how)(one, other, title="panels", **given).to_dict() for module in (drawing, alt))
    assert made == altairs


SECTIONS = [
    divergence_texts_page.kl_by_position,
    weights_charts.weight_map,
    weights_charts.spectra_of,
    weights_charts.head_map,
    grafting_charts.grafts_alone,
    grafting_charts.grafts_in_order,
    grafting_charts.grafts_greedy,
    grafting_charts.grafts_by_rank,
    factorial_charts.effects_by_layer,
    patching_asymmetry.asymmetry_by_layer,
]


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
@pytest.mark.parametrize("figure", SECTIONS, ids=lambda figure: figure.__name__)
def test_figures_of_the_other_sections_are_valid_and_fit(
    figure: Figure, width: int, full_rows: pl.DataFrame, full_summary: pl.DataFrame, full_manifest: dict
) -> None:
    test_figures_are_valid_and_fit_their_width(figure, width, full_rows, full_summary, full_manifest)


@pytest.mark.parametrize("figure", SECTIONS, ids=lambda figure: figure.__name__)
def test_they_are_none_without_their_rows(figure: Figure, rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    assert figure(rows, summary, {}) is None


def descriptions(svg: str, kind: str) -> list[str]:
    return re.findall(rf'aria-label="([^"]*)" role="graphics-symbol" aria-roledescription="{kind}"', svg)


def test_the_map_has_one_cell_for_each_site_and_tells_noise_from_effect(rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    svg = drawing.to_svg(patching_charts.causal_map(rows, summary, {}))
    shares = patching_findings.site_shares(rows, summary)
    cells, dots = descriptions(svg, "rect mark"), descriptions(svg, "circle")
    assert len(cells) == shares["counts"].sum()
    assert len(cells) + len(dots) == len(shares) == 2 * 7 * 5
    assert any(cell.startswith(f"L{CHANGED}.attn_out: share 0.9") for cell in cells)
    assert all(dot.endswith("under three noise floors") for dot in dots)


def test_every_prompt_has_its_dot(rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    svg = drawing.to_svg(divergence_charts.d_by_prompt(rows, summary, {}))
    assert len(descriptions(svg, "circle")) == 24


def test_infinite_d_is_left_out_of_the_figure(rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    d = (pl.col("metric") == "kl_tuned_base_nats") & (pl.col("split") == "report")
    some = rows.with_columns(value=pl.when(d, pl.col("prompt") == "r003").then(float("inf")).otherwise("value"))
    svg = drawing.to_svg(divergence_charts.d_by_prompt(some, summary, {}))
    assert len(descriptions(svg, "circle")) == 23


def test_lines_have_a_legend(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> None:
    for figure, names in ((similarity_charts.cka_by_layer, difference.STREAM), (patching_charts.arms_by_layer, drawing.ARM_COLOURS)):
        svg = drawing.to_svg(figure(rows, summary, manifest))
        legend = svg[svg.index("role-legend") :]
        assert all(f">{name}<" in legend for name in names)


def test_a_figure_is_saved_as_svg(tmp_path, rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    svg = drawing.to_svg(divergence_charts.d_by_prompt(rows, summary, {}))
    drawing.save(svg, tmp_path / "figures", "d")
    assert (tmp_path / "figures/d.svg").read_text() == svg
