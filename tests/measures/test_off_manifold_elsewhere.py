"""Writes of windows, along answers and by swapped heads: distances against single sites and whole passes, and clusters of all splits."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import every_measure
from mechdiff import labels
from mechdiff.audit.rerun import Rerun
from mechdiff.labels import CROSSED, WITHIN
from mechdiff.measures.catalogue import AGAIN, CHAPTERS, EXPERIMENTS, make_study
from mechdiff.measures.off_manifold import findings
from mechdiff.report import parts
from mechdiff.report.sections import all_sections
from mechdiff.rows import rows, where
from mechdiff.shares import ANSWER
from mechdiff.store.tables import read_rows
from runs import run

HEADS = {"hot": 1, "select_prompts": 2, "draws": 0, "picks": 1, "top": 2, "null_edits": 0, "network_draws": 0, "attention_prompts": 0}
MEASURES: list[Any] = [
    {"divergence": {"over_text": False}},
    {"patching": {"sites": ["attn_proj", "resid_post"], "arms": ["identity"], "windows": [2], "pairs": 0, "map_prompts": 0}},
    {"heads": HEADS},
    {"off_manifold": {"folds": 3}},
]
TOKENS = 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere")
    every_measure.made(folder)
    prompts = {split: str(folder / f"{split}.jsonl") for split in every_measure.SPLITS}
    pair = {"base": str(folder / "base"), "tuned": str(folder / "tuned")}
    study = make_study({"pair": pair, "prompts": prompts, "measures": MEASURES, "answers": {"tokens": TOKENS, "prompts": 4, "of": "both"}})
    run(study, out=folder / "run", page=False)
    return folder / "run"


@pytest.fixture(scope="module")
def content(finished: Path) -> parts.Run:
    return parts.load(finished)


def of(table: pl.DataFrame, **columns: Any) -> pl.DataFrame:
    return where(table, measure="off_manifold", **columns)


def test_all_heads_of_a_block_are_as_far_as_its_whole_projection(content: parts.Run) -> None:
    """The contributions of all heads add up to `attn_proj`, of projections without a bias."""
    key = ["direction", "layer", "prompt", "metric"]
    swapped = of(content.rows, arm="contribution", unit=labels.ALL).sort(key)
    whole = of(content.rows, arm="identity", site="attn_proj", unit=None).sort(key)
    assert swapped.select(key).equals(whole.select(key))
    assert len(swapped) > 40
    np.testing.assert_allclose(swapped["value"], whole["value"], rtol=1e-4)
    single = of(content.rows, arm="contribution", metric="mahalanobis_sd").filter(labels.is_head())
    assert single.group_by("layer").agg(pl.col("unit").n_unique())["unit"].to_list() == [4] * 3


def test_along_answers_own_states_that_are_written_back_are_as_far_as_they_were(content: parts.Run) -> None:
    """Above nothing that changed, at the first block's heads' sites, both models differ; the own distance is that of the held-out own states."""
    own = of(content.rows, arm="oracle", metric="mahalanobis_answer_sd")
    assert set(own["direction"]) == set(WITHIN)
    assert set(own["unit"]) == {labels.answer_position(TOKENS)}
    written = of(content.rows, arm="identity", metric="mahalanobis_answer_sd")
    assert set(written["direction"]) == set(CROSSED)
    assert len(written) == len(own) == 4 * 3 * 2 * 2
    assert own["value"].is_finite().all()
    assert content.over_base is not None
    theirs = of(content.over_base.rows, arm="oracle", metric="mahalanobis_answer_sd")
    assert len(theirs) == len(own)
    assert not np.allclose(theirs["value"], own["value"])


def test_along_answers_only_what_patches_write_is_held_against_own_activations(finished: Path) -> None:
    """Patches of block 1 alone, in one direction: no other block's activations are written, and none into the tuned model."""
    folder = finished.parent
    asked = {"sites": ["resid_post"], "layers": [1], "directions": ["base<-tuned"], "arms": ["identity"], "pairs": 0, "map_prompts": 0}
    study = make_study({
        "pair": {"base": str(folder / "base"), "tuned": str(folder / "tuned")},
        "prompts": {"report": str(folder / "report.jsonl")},
        "measures": [{"divergence": {"over_text": False}}, {"patching": asked}, {"off_manifold": {"folds": 3}}],
        "answers": {"tokens": TOKENS, "prompts": 4},
    })  # fmt: skip
    run(study, out=folder / "few", page=False)
    here, patched = (where(read_rows(folder / "few"), measure=measure, arm="identity") for measure in ("off_manifold", "patching"))
    key = ["direction", "layer", "site", "unit", "prompt"]
    along = where(here, metric="mahalanobis_answer_sd").select(key)
    assert len(along) == 4
    assert along.sort(key).equals(where(patched, metric="kl_own_answer_nats").select(key).sort(key))
    own = of(read_rows(folder / "few"), arm="oracle", metric="mahalanobis_answer_sd").select("direction", "layer").unique()
    assert own.rows() == [("base<-base", 1)]
    both = pl.concat([here.with_columns(run=pl.lit("few")), of(read_rows(finished), arm="identity").with_columns(run=pl.lit("all"))])
    mine = both.filter(pl.col("metric") == "mahalanobis_answer_sd").pivot(on="run", index=key, values="value").drop_nulls()
    assert len(mine) == 4
    np.testing.assert_allclose(mine["few"], mine["all"], rtol=1e-6)


@pytest.mark.parametrize("of_base", [False, True])
def test_distances_along_answers_and_of_heads_are_those_of_whole_passes(finished: Path, *, of_base: bool) -> None:
    rerun, again = Rerun(finished, EXPERIMENTS, "cpu"), AGAIN["off_manifold"]
    every = read_rows(finished).filter(pl.col("measure") == "off_manifold")
    along = pl.col("metric").str.contains("_answer_of_base" if of_base else "_answer(_sd)?$")
    some = every.filter(along).sample(10, seed=1, shuffle=True)
    if not of_base:
        some = pl.concat([some, every.filter(pl.col("arm") == "contribution").sample(10, seed=1, shuffle=True)])
    for row in some.iter_rows(named=True):
        with rerun.answers_of("base" if of_base else "tuned"):
            found = again(rerun, row | {"metric": row["metric"].replace("_of_base", "")})
        assert found == pytest.approx(row["value"], rel=2e-3, abs=1e-4), row


def test_a_window_is_beyond_where_any_of_its_blocks_is() -> None:
    """Planted: block 1 of 0 to 3 is beyond on every other prompt, so that of windows 0, 1 and 2 those of blocks 0 to 1 and 1 to 2 are there."""
    names = [f"r{i:02}" for i in range(30)]
    at = {"measure": "off_manifold", "split": "report", "site": "mlp_out"}
    table = []
    for layer in range(4):
        held_out = rows(
            np.linspace(1, 2, 30), direction="base<-base", layer=layer, arm="oracle", metric="mahalanobis_sd", prompt=names, **at
        )
        far = np.where((np.arange(30) % 2 == 0) & (layer == 1), 9.0, 1.5)
        written = {"direction": "base<-tuned", "layer": layer, "arm": "identity", "prompt": names, **at}
        table += [held_out, rows(far, metric="mahalanobis_sd", **written), rows(np.full(30, 1.0 + layer), metric="norm_ratio", **written)]
    patched = {"measure": "patching", "split": "report", "direction": "base<-tuned", "site": "mlp_out", "arm": "identity", "prompt": names}
    table += [rows(np.ones(30), layer=layer, unit="window 2", metric="kl_own_nats", **patched) for layer in range(3)]
    table += [rows(np.ones(30), layer=0, unit="window 2, last_4", metric="kl_own_nats", **patched)]
    (line,) = findings.by_window(pl.concat(table), {}).iter_rows(named=True)
    assert (line["width"], line["writes"], line["beyond"]) == (2, 90, 30)
    assert line["part"] == pytest.approx(1 / 3)
    assert line["far"] == pytest.approx(0.75)
    assert line["ratio"] == pytest.approx(3)


def test_a_cluster_that_spans_splits_counts_once_in_the_limit() -> None:
    """Twenty prompts of fit and as many of report that say the same two by two: twenty clusters, not forty."""
    table = pl.concat([
        rows(np.linspace(1, 2, 20), measure="off_manifold", split=split, direction="base<-base", layer=0, site="z", arm="oracle",
             metric="mahalanobis_sd", prompt=[f"{split}{i}" for i in range(20)])
        for split in ("fit", "report")
    ])  # fmt: skip
    numbers = {split: {f"{split}{i}": i for i in range(20)} for split in ("fit", "report")}
    assert findings.limits(table, {}).row(0) == ("base", 0, "z", 40, 40, 2.0)
    spanning = findings.limits(table, {"off_manifold": {"clusters": numbers}}).row(0)
    assert spanning == ("base", 0, "z", 40, 20, 2.0)


def test_the_record_says_which_clusters_span_splits_and_the_page_what_was_written(finished: Path, content: parts.Run) -> None:
    assert "off_manifold" not in content.manifest, "no prompt of one split says what one of another does"
    (section,) = (one for one in all_sections(content, CHAPTERS) if one.id == "off_manifold")
    (lines,) = (part["rows"] for part in section.parts if isinstance(part, dict) and part.get("folded", "").startswith("By what"))
    said = {line[0] for line in lines}
    other = next(name for name in said if name.endswith(", windows of 2 blocks")).removesuffix(", windows of 2 blocks")
    assert {
        "the other model's contribution, one head",
        "the other model's contributions, all heads of a block",
        f"{other}, windows of 2 blocks",
        f"{other}, along the tuned model's answers",
        f"{other}, along the base's answers",
    } <= said
    along = findings.by_edit(content.prompt_rows, content.manifest, ANSWER)
    assert set(along["writes"]) == {4 * 3 * 2}
