"""The section on weights, against what was planted: two of the tensors changed."""

import polars as pl
import pytest

from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.weights import charts as weights_charts
from mechdiff.measures.weights import findings as weights_findings
from mechdiff.measures.weights import page as weights_page
from mechdiff.measures.weights import words as weights_words
from mechdiff.report import drawing
from mechdiff.report.parts import Drawn, Run
from mechdiff.rows import rows as made
from report.conftest import CHANGED
from report.planted_sections import N_HEADS, OV, tensor
from report.test_figures import descriptions
from report.test_section_heads import words_on_axes

N_TENSORS = 7 * 9 + 2


@pytest.fixture(scope="module")
def run(full_rows: pl.DataFrame, full_summary: pl.DataFrame, full_manifest: dict) -> Run:
    return Run(rows=full_rows, summary=full_summary, manifest=full_manifest)


def test_the_caption_and_the_verdict_count_what_changed(run: Run) -> None:
    section = weights_page.weights(run)
    drawn = [part for part in section.parts if isinstance(part, Drawn)]
    assert [part.name for part in drawn] == ["weight_map", "matrix_map", "spectra", "head_map"]
    assert f"2 of {N_TENSORS} tensors changed, in 2 of 7 layers; most in L{CHANGED}.attn, 0.120." in drawn[0].caption
    assert drawn[0].caption.startswith("The largest ‖ΔW‖ / ‖W‖ among the tensors")
    assert f"L{CHANGED}.self_attn.o_proj 1 and L{CHANGED + 1}.mlp.down_proj 16" in drawn[2].caption
    assert f"L{CHANGED}H{N_HEADS - 1}, 0.400 (what it writes)" in drawn[3].caption
    assert weights_words.which_weights(run.summary, {}) == [
        f"The fine-tune changed 2 of {N_TENSORS} tensors, in 2 of 7 layers. "
        f"Most changed is L{CHANGED}.self_attn.o_proj, by 0.120 of its norm, in a change of rank 1."
    ]
    assert section.parts[-1]["text"] == run.manifest["weights"]["statements"][0]


def test_the_table_has_the_ranks(run: Run) -> None:
    table = next(part for part in weights_page.weights(run).parts if isinstance(part, dict) and part["kind"] == "table")
    assert table["rows"] == [
        [f"L{CHANGED}.self_attn.o_proj", "0.120", "100.0 %", "1", "0.900", "1", "1", "1", "3.60", "0.360", "1"],
        [f"L{CHANGED + 1}.mlp.down_proj", "0.00400", "100.0 %", "16", "14.4", "8", "14", "15", "0.120", "0.0120", "1"],
    ]
    assert len(table["columns"]) == len(table["rows"][0]) == 11


def test_the_map_has_a_cell_for_what_changed_and_a_dot_for_the_rest(run: Run) -> None:
    svg = drawing.to_svg(weights_charts.weight_map(run.rows, run.summary, run.manifest))
    cells, dots = descriptions(svg, "rect mark"), descriptions(svg, "circle")
    assert len(cells) == 2
    assert cells[0] == f"L{CHANGED}.attn: 0.120, most in L{CHANGED}.self_attn.o_proj"
    assert len(dots) == 7 * 3 - 2 + 2


def test_the_map_by_matrix_has_every_tensor_of_a_block_in_the_order_of_the_field(run: Run) -> None:
    found = weights_findings.matrices(run.summary)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "input_layernorm", "post_attention_layernorm"]
    assert [name.rpartition(".")[2] for name in found["matrix"].unique(maintain_order=True)] == names
    assert {tuple(r) for r in found.filter(pl.col("change") > 0).select("layer", "matrix", "change").iter_rows()} == {
        (CHANGED, "self_attn.o_proj", 0.12), (CHANGED + 1, "mlp.down_proj", 0.004),
    }  # fmt: skip
    svg = drawing.to_svg(weights_charts.matrix_map(run.rows, run.summary, run.manifest))
    assert descriptions(svg, "rect mark") == [f"L{CHANGED}.self_attn.o_proj: 0.120", f"L{CHANGED + 1}.mlp.down_proj: 0.00400"]
    assert len(descriptions(svg, "circle")) == 7 * 9 - 2
    said = weights_page.weights(run).parts[1].caption
    assert "2 of 9 kinds changed anywhere; self_attn.o_proj most, 0.120 in the median of the 1 layers where it changed." in said


def test_experts_share_a_row_and_the_most_changed_is_named() -> None:
    units = [f"model.layers.{layer}.mlp.experts.{expert}.up_proj.weight" for layer in (0, 1) for expert in range(3)]
    changes = [0.1, 0.3, 0.2, 0.0, 0.0, 0.5]
    table = made(changes, measure="weights", site="mlp", layer=[0, 0, 0, 1, 1, 1], unit=units, metric="relative_norm")
    from mechdiff.statistics import summary as statistics

    found = weights_findings.matrices(statistics.summarise(table, NUMBERS))
    assert found["matrix"].to_list() == ["mlp.experts.*.up_proj"] * 2
    assert found["change"].to_list() == [0.3, 0.5]
    assert found["unit"].to_list() == [units[1], units[5]]


def test_the_change_of_the_whole_module_is_used_where_it_was_measured(run: Run) -> None:
    extra = []
    for row in weights_findings.modules(run.summary)[0].iter_rows(named=True):
        place = {"measure": "weights", "layer": row["layer"], "site": row["site"]}
        extra += [
            made([row["change"] / 2], metric="module_relative_norm", **place),
            made([float(row["site"] == "attn")], metric="share_of_change", **place),
        ]
    from mechdiff.statistics import summary as statistics

    both = statistics.summarise(pl.concat([run.rows.filter(pl.col("measure") == "weights"), *extra]), NUMBERS)
    found, is_whole = weights_findings.modules(both)
    assert is_whole
    assert found["change"].max() == pytest.approx(0.06)
    caption = weights_page.weights(Run(rows=run.rows, summary=both, manifest={})).parts[0].caption
    assert caption.startswith("‖ΔW‖ / ‖W‖ of each module.")
    assert f"most in L{CHANGED}.attn, 0.0600, which holds 100 % of the network's squared change." in caption


def test_heads_are_drawn_where_their_products_changed(run: Run) -> None:
    heads = weights_findings.heads(run.summary)
    assert heads["change"].max() == pytest.approx(OV)
    svg = drawing.to_svg(weights_charts.head_map(run.rows, run.summary, {}))
    assert len(descriptions(svg, "rect mark")) == N_HEADS
    words = words_on_axes(svg)
    assert [words.count(f"H{head}") for head in range(N_HEADS + 1)] == [words.count("H0")] * N_HEADS + [0]
    assert words.count("H0") > 0


def test_spectra_stop_at_six_and_mark_the_rank(run: Run) -> None:
    svg = drawing.to_svg(weights_charts.spectra_of(run.rows, run.summary, run.manifest))
    assert ">rank 1<" in svg
    assert ">rank 16<" in svg
    assert len(weights_findings.spectra(run.summary, run.manifest, most=1)) == 1
    assert weights_charts.spectra_of(run.rows, run.summary, {}) is None


def test_the_same_weights_are_said_to_be_the_same(run: Run) -> None:
    same = run.summary.filter(pl.col("measure") == "weights", pl.col("metric") == "relative_norm").with_columns(mean=0.0)
    section = weights_page.weights(Run(rows=run.rows, summary=same, manifest={}))
    assert [part["text"] for part in section.parts] == [f"Not one of the {N_TENSORS} tensors differs: these are the same weights."]
    assert weights_words.which_weights(same, {}) == [f"Not one of the {N_TENSORS} tensors differs: these are the same weights."]
    assert weights_charts.weight_map(run.rows, same, {}) is None


def test_a_tensor_of_zeros_that_changed_is_drawn(run: Run) -> None:
    infinite = run.summary.with_columns(
        mean=pl.when(pl.col("unit") == tensor(2, "mlp.up_proj"), pl.col("metric") == "relative_norm").then(float("inf")).otherwise("mean")
    )
    svg = drawing.to_svg(weights_charts.weight_map(run.rows, infinite, {}))
    assert len(descriptions(svg, "rect mark")) == 3


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("model.layers.26.self_attn.o_proj.weight", "L26.self_attn.o_proj"),
        ("transformer.h.3.attn.c_proj.weight", "L3.attn.c_proj"),
        ("model.embed_tokens.weight", "embed_tokens"),
        ("lm_head.weight", "lm_head"),
    ],
)
def test_short_names_of_tensors(name: str, short: str) -> None:
    assert weights_findings.short_tensor(name) == short
