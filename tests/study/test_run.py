"""A study runs, resumes without computing anything twice, gives the same bits however it was interrupted, and keeps the row contract."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mechdiff import labels
from mechdiff.errors import MechdiffError, PromptError, StudyError
from mechdiff.measures.catalogue import EXPERIMENTS, make_study
from mechdiff.study import run
from mechdiff.study.cells import Item, shards
from mechdiff.study.config import RunOptions, StudyConfig
from mechdiff.study.prepare import prepare
from runs import execute

SMALL = [
    "divergence",
    {"similarity": {"sites": ["resid_post"], "permutations": 5}},
    {"patching": {"sites": ["resid_post", "attn_out"], "arms": ["identity", "shift", "resample", "oracle"]}},
]

FEWER = [*SMALL[:2], {"patching": {"sites": ["resid_post", "attn_out"], "arms": ["identity", "resample", "oracle"], "layers": [1, 3]}}]
"""Half of its blocks, without the arm that is fitted on other prompts."""


def study(pair: Path, measures: list[Any] | None = None, **prompts: Any) -> StudyConfig:
    data = {"pair": {"base": str(pair / "base"), "tuned": str(pair / "tuned")}, "prompts": prompts or {"file": str(pair / "prompts.jsonl")}}
    return make_study({**data, "measures": measures or SMALL})


def value(rows: pl.DataFrame, **where: Any) -> float:
    found = rows.filter(*[pl.col(name) == wanted if wanted is not None else pl.col(name).is_null() for name, wanted in where.items()])
    return float(found["value"].mean())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished")


@pytest.fixture(scope="module")
def finished(pair: Path, folder: Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    return execute(study(pair), folder)


def test_every_cell_of_the_plan_has_its_rows(finished: tuple[pl.DataFrame, dict[str, Any]]) -> None:
    rows, record = finished
    patching = rows.filter(pl.col("measure") == "patching", pl.col("control").is_null(), pl.col("unit").is_null())
    report = patching.filter(pl.col("split") == "report")
    assert set(report["arm"]) == {"identity", "shift", "resample", "oracle"}
    assert set(patching.filter(pl.col("split") == "select")["arm"]) == {"identity"}, (
        "only what chooses layers runs on the validation prompts"
    )
    assert set(patching["direction"]) == {"tuned<-base", "base<-tuned"}
    assert len(report) == 2 * 4 * 2 * 4 * report["prompt"].n_unique() * 6  # directions, arms, sites, blocks, prompts, metrics
    assert set(rows.filter(pl.col("measure") == "divergence")["split"]) == {"fit", "select", "report"}
    assert record["selection"]["split"] == "select"
    assert set(record["noise_floor"]) == {"tuned<-base", "base<-tuned"}
    assert all(0 <= floor < 1e-10 for floor in record["noise_floor"].values())


def test_the_planted_edit_is_where_the_rows_say(finished: tuple[pl.DataFrame, dict[str, Any]]) -> None:
    rows, _ = finished
    cell = {"measure": "patching", "direction": "tuned<-base", "split": "report", "metric": "kl_own_nats", "unit": None, "control": None}
    assert value(rows, **cell, arm="identity", site="attn_out", layer=0) < 1e-10
    assert value(rows, **cell, arm="identity", site="attn_out", layer=1) > 1e-3
    assert value(rows, **cell, arm="oracle", site="attn_out", layer=1) < 1e-10
    d = value(rows, measure="divergence", metric="kl_tuned_base_nats", split="report", unit=None)
    assert value(rows, **cell, arm="identity", site="resid_post", layer=3) == pytest.approx(d, rel=1e-5), (
        "after the last block: the other model"
    )


def test_full_engine_gives_the_same_values(pair: Path, finished: tuple[pl.DataFrame, dict[str, Any]], tmp_path: Path) -> None:
    slow, record = execute(study(pair, FEWER), tmp_path / "full", engine="full")
    assert record["engine"]["name"] == "full"
    key = [name for name in slow.columns if name != "value"]
    slow = slow.filter(pl.col("control").is_null())
    both = slow.join(finished[0], on=key, how="left", nulls_equal=True, suffix="_full")
    apart = (both["value"] - both["value_full"]).abs().fill_nan(0)
    assert both["value_full"].null_count() == 0
    assert apart.max() < 1e-5  # type: ignore[operator]


def test_packing_changes_nothing_beyond_the_floor(pair: Path, finished: tuple[pl.DataFrame, dict[str, Any]], tmp_path: Path) -> None:
    other, _ = execute(study(pair, FEWER), tmp_path / "rows", max_rows=7, memory="one")
    key = [name for name in other.columns if name != "value"]
    kl = pl.col("metric").str.starts_with("kl_own")
    both = finished[0].filter(kl).join(other.filter(kl), on=key, nulls_equal=True, suffix="_other")
    assert len(both) == len(other.filter(kl)) > 100
    assert (both["value"] - both["value_other"]).abs().max() < 1e-7  # type: ignore[operator]


def test_a_second_run_computes_nothing(
    pair: Path, folder: Path, finished: tuple[pl.DataFrame, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:

    def refuse(*args: Any) -> Any:
        raise AssertionError("a finished cell was computed again")

    monkeypatch.setattr(run, "compute_cell", refuse)
    second, _ = execute(study(pair), folder)
    assert finished[0].equals(second, null_equal=True)


def test_more_arms_leave_the_other_cells_as_they_are(pair: Path) -> None:
    def keys(arms: list[str]) -> set[str]:
        config = study(pair, [{"patching": {"sites": ["resid_post"], "arms": arms}}])
        return {str(cell.key) for cell in prepare(config, RunOptions(), EXPERIMENTS).plan.cells if cell.stage == "patching"}

    assert keys(["identity"]) < keys(["identity", "shift"])


def test_lineage_is_held_against_the_alternatives_of_the_study(pair: Path, tmp_path: Path) -> None:
    given = {"base": str(pair / "base"), "tuned": str(pair / "tuned"), "alternatives": [str(pair / "base"), "./nowhere"]}
    config = make_study({"pair": given, "prompts": {"file": str(pair / "prompts.jsonl")}, "measures": ["divergence"]})
    _, manifest = execute(config, tmp_path / "run")
    family = manifest["lineage"]
    assert family["alternatives"] == [{"ref": str(pair / "base"), "relative_distance": family["relative_distance"]}]
    (warning,) = [said for said in manifest["warnings"] if "nowhere" in said]
    assert warning.startswith("lineage is not compared with the alternative")
    assert "no such model" in warning


def test_windows_and_positions_on_request(pair: Path, tmp_path: Path) -> None:
    options = {"sites": ["resid_post"], "arms": ["identity", "mean"], "positions": ["decision", "last_3", "all"], "windows": [2]}
    rows, record = execute(study(pair, [{"patching": options}]), tmp_path / "run")
    report = rows.filter((pl.col("measure") == "patching") & (pl.col("split") == "report") & pl.col("control").is_null())
    report = report.filter(~labels.is_over_answer(), ~labels.is_position())
    assert set(report["unit"]) == {None, "window 2", "last_3", "window 2, last_3", "all_pos", "window 2, all_pos"}
    assert "patching condition mean at all positions" in [entry["what"] for entry in record["skipped"]]
    cell = {
        "measure": "patching",
        "direction": "base<-tuned",
        "split": "report",
        "metric": "kl_other_nats",
        "arm": "identity",
        "site": "resid_post",
    }
    d = value(rows, measure="divergence", metric="kl_tuned_base_nats", split="report", unit=None)
    assert value(rows, **cell, unit="all_pos", layer=1) < 1e-10, "all of the change is upstream of block 2"
    assert value(rows, **cell, unit="all_pos", layer=0) == pytest.approx(d, rel=1e-5)
    assert value(rows, **cell, unit=None, layer=1) > 1e-4, "one position is not all of them"


def test_what_needs_an_absent_split_is_skipped_and_named(pair: Path, tmp_path: Path) -> None:
    rows, record = execute(study(pair, report=str(pair / "prompts.jsonl")), tmp_path / "run")
    assert set(rows["split"].drop_nulls()) == {"report"}
    said = " ".join(entry["what"] for entry in record["skipped"])
    assert "condition shift" in said
    assert "selected and control layers" in said
    assert record["selection"] is None


# ---- bad input


def test_one_text_in_two_splits_is_refused(pair: Path) -> None:
    with pytest.raises(PromptError, match="stands in both select and report"):
        prepare(study(pair, select=str(pair / "prompts.jsonl"), report=str(pair / "prompts.jsonl")), RunOptions(), EXPERIMENTS)


def test_a_layer_that_is_not_there_is_refused(pair: Path) -> None:
    with pytest.raises(StudyError, match="numbered 0 to 3"):
        prepare(study(pair, [{"patching": {"layers": [9]}}]), RunOptions(), EXPERIMENTS)


def test_a_folder_of_another_study_is_refused(pair: Path, tmp_path: Path) -> None:
    execute(study(pair, ["divergence"]), tmp_path / "run")
    with pytest.raises(MechdiffError, match="another study"):
        execute(study(pair, [{"similarity": {"permutations": 3}}]), tmp_path / "run")


# ---- the plan


def test_shards_hold_neighbours_in_length_and_fit_the_pass() -> None:
    items = [Item(id=str(i), sha256="", tokens=10 + i * 7 % 30, pairs=10, tail=10) for i in range(20)]
    packed = shards(items, 30, 1, 100)
    assert sorted(item.id for shard in packed for item in shard) == sorted(item.id for item in items)
    assert all(31 * len(shard) <= 100 for shard in packed)
    flat = [item.tokens for shard in packed for item in shard]
    assert flat == sorted(flat)
    assert [len(shard) for shard in shards(items, 30, None, 100)] == [1] * 20
