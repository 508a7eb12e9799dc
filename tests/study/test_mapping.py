"""Transport and rank through a whole run: every row that is promised, strengths and controls where they belong, maps that load."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

import mechdiff
from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import Clean, capture
from mechdiff.engine.gradients import fisher_samples
from mechdiff.engine.replay import full
from mechdiff.errors import StudyError
from mechdiff.labels import MAPS
from mechdiff.maps.maps import DEFAULT, FAMILIES
from mechdiff.measures.catalogue import EXPERIMENTS, make_study
from mechdiff.measures.rank import compute as rank_compute
from mechdiff.measures.transport.compute import groups
from mechdiff.measures.transport.plan import TransportOptions
from mechdiff.models.pair import Model
from mechdiff.study import run as study_run
from mechdiff.study.cells import Cell
from mechdiff.study.config import RunOptions, StudyConfig
from mechdiff.study.execution import Execution
from mechdiff.study.prepare import prepare
from runs import execute, opened

LEARNED = DEFAULT[3:]


def study(pair: Path, *measures: Any) -> StudyConfig:
    return make_study(
        {
            "pair": {"base": str(pair / "base"), "tuned": str(pair / "tuned")},
            "prompts": {"file": str(pair / "prompts.jsonl")},
            "measures": list(measures),
        }
    )


@pytest.fixture(scope="module")
def finished(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[pl.DataFrame, dict[str, Any], Path]:
    asked = {"sites": ["attn_out", "resid_post"], "layers": [1, 3]}
    out = tmp_path_factory.mktemp("maps")
    measures = ["divergence", {"patching": {**asked, "arms": ["identity"]}}, {"transport": {**asked, "permutations": 10}}, {"rank": asked}]
    rows, record = execute(study(pair, *measures), out)
    return rows, record, out


def of(finished: tuple[pl.DataFrame, dict[str, Any], Path], measure: str, metric: str, **where: Any) -> pl.DataFrame:
    found = finished[0].filter(pl.col("measure") == measure, pl.col("metric") == metric)
    return found.filter(*[pl.col(name).eq_missing(pl.lit(wanted)) for name, wanted in where.items()])


def test_every_map_is_judged_both_ways_on_both_splits(finished: tuple[pl.DataFrame, dict[str, Any], Path]) -> None:
    for metric in ("r2", "r2_change", "cosine_of_mean", "cka_mapped", "norm_ratio", "cycle_error"):
        found = of(finished, "transport", metric, control=None).filter(pl.col("arm") != "resample")
        assert set(found["arm"]) == set(DEFAULT)
        assert len(found) == len(DEFAULT) * 2 * 2 * 2 * 2  # ways, splits, sites, blocks
    draws = of(finished, "transport", "r2_change").filter(pl.col("control").str.starts_with("permuted#"))
    assert dict(draws.group_by("arm").agg(pl.len() // 4).iter_rows()) == {"anchored_ridge": 10, "rrr": 10, "anchored_procrustes": 1}


def test_mapped_patches_in_every_direction(finished: tuple[pl.DataFrame, dict[str, Any], Path]) -> None:
    found = of(finished, "transport", "kl_other_nats", split="report", strength=None, control=None)
    arms = {direction: set(part["arm"]) for (direction,), part in found.group_by("direction")}
    assert arms["tuned<-base"] == {*DEFAULT, "resample"}
    assert arms["base<-base"] == arms["tuned<-tuned"] == {*DEFAULT, "resample"} - {"identity"}
    assert arms["base<-tuned"] == {"identity"}


def test_closeness_of_the_identity_is_what_patching_calls_breakage(finished: tuple[pl.DataFrame, dict[str, Any], Path]) -> None:
    where = {"direction": "tuned<-base", "split": "report", "arm": "identity", "unit": None, "control": None}
    key = ["layer", "site", "prompt"]
    one = of(finished, "transport", "kl_own_nats", **where, strength=None).sort(key)
    other = of(finished, "patching", "kl_own_nats", **where).sort(key)
    assert one["value"].to_list() == other["value"].to_list()


def test_strength_0_changes_nothing_and_1_is_the_row_without_one(finished: tuple[pl.DataFrame, dict[str, Any], Path]) -> None:
    closer = finished[1]["transport"]["closer_layers"]
    curve = of(finished, "transport", "kl_own_nats", control=None).filter(pl.col("strength").is_not_null())
    assert set(curve["layer"]) == set(closer)
    assert set(curve["split"]) == {"select", "report"}
    assert set(curve["strength"]) == {0.0, 0.25, 0.5, 0.75, 1.5}
    assert curve.filter(pl.col("strength") == 0)["value"].max() < 1e-10
    ones = of(finished, "transport", "kl_own_nats", control=None, strength=None, split="select")
    assert set(ones["arm"]) == {"shift", *LEARNED}


def test_controls_stand_beside_the_maps(finished: tuple[pl.DataFrame, dict[str, Any], Path]) -> None:
    closer = finished[1]["transport"]["closer_layers"]
    controls = of(finished, "transport", "kl_own_nats", split="report").filter(pl.col("control").is_not_null())
    kinds = set(controls["control"].str.replace(r"#\d+$", ""))
    assert {"permuted", "no_op", *(f"bogus_map:L{layer}" for layer in closer if len(closer) > 1)} <= kinds
    bogus = controls.filter(pl.col("control").str.starts_with("bogus_map"))
    assert (bogus["control"].str.extract(r"L(\d+)$").cast(pl.Int64) != bogus["layer"]).all()


def test_saved_maps_load_and_do_what_the_run_did(finished: tuple[pl.DataFrame, dict[str, Any], Path]) -> None:
    _, record, out = finished
    names = record["transport"]["maps"]
    assert len(names) == len(record["transport"]["closer_layers"]) * 2 * 2 * len(LEARNED)
    one = mechdiff.load_map(out / names[0])
    assert one.family in LEARNED
    assert one.transform(torch.zeros(3, 32)).shape == (3, 32)
    assert one.rank_ == int(record["transport"]["fits"]["attn_out"][f"{one.family}.there"][names[0].split("/")[1].split(".")[0]]["rank"])


def test_ranks_have_numbers_and_curves(finished: tuple[pl.DataFrame, dict[str, Any], Path]) -> None:
    for metric in ("rank_chosen", "rank_best", "rank_uncentred"):
        found = of(finished, "rank", metric)
        assert len(found) == 2 * 2
        assert (found["value"] >= 0).all()
    curve = of(finished, "rank", "kl_own_nats", split="report", control=None, strength=None)
    assert set(curve["layer"]) == set(finished[1]["transport"]["closer_layers"])
    assert set(curve["direction"]) == {"tuned<-base", "base<-base"}
    assert set(curve["arm"]) == {"rrr", "rank_truncated"}
    assert "fisher" in set(curve["unit"])
    by_rank = of(finished, "rank", "r2_change", split="fit").sort("layer", "site", "rank")
    for _, part in by_rank.group_by("layer", "site"):
        assert part["value"].is_nan().all() or part["value"].diff().drop_nulls().min() >= -1e-9  # type: ignore[operator]


@pytest.fixture(scope="module")
def alone(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyConfig, pl.DataFrame, Path]:
    """A study without patching, its rows, and its folder."""
    asked = {"sites": ["attn_out"], "layers": [1, 3], "closer": [1]}
    config, out = study(pair, {"transport": {**asked, "permutations": 3}}, {"rank": asked}), tmp_path_factory.mktemp("alone")
    return config, execute(config, out)[0], out


def test_a_resumed_run_gives_the_same_rows(alone: tuple[StudyConfig, pl.DataFrame, Path], tmp_path: Path) -> None:
    config, once, out = alone
    shutil.copytree(out, tmp_path / "run")
    cells = sorted((tmp_path / "run" / "cells").glob("*/cell.json"))
    for cell in cells[::2]:
        for file in cell.parent.iterdir():
            file.unlink()
        cell.parent.rmdir()
    again, _ = execute(config, tmp_path / "run")
    assert again.equals(once)
    assert set(once.filter(pl.col("strength").is_not_null())["layer"]) == {1}


def test_gradients_of_a_prompt_hang_on_its_number_alone(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on the prompts that share its pass, of which no more are held than the pass takes."""
    config, samples = study(pair, {"rank": {"sites": ["attn_out"], "layers": [1, 3], "closer": [1], "fisher_samples": 2}}), 2
    captured: list[int] = []
    monkeypatch.setattr(rank_compute, "FISHER_PROMPTS", 3)
    with opened(config, tmp_path) as (prepared, folder), prepared.pair.use("tuned") as model:
        (cell,) = (cell for cell in prepared.plan.cells if cell.stage == "fisher")
        execution = Execution(prepared, folder)
        cleans_of = execution.cleans

        def counted(cell: Cell, model: Model) -> list[Clean]:
            captured.append(len(cleans_of(cell, model)))
            return cleans_of(cell, model)

        monkeypatch.setattr(execution, "cleans", counted)
        _, tensors = rank_compute.fisher(execution, cell, model)
        found = torch.from_numpy(tensors["L1.attn_out"]).unflatten(0, (-1, samples))
        assert sum(captured) == len(found) == len(cell.items)
        assert max(captured) == 3
        for number, name in enumerate(cell.key["ids"]):
            clean, site = capture(model, execution.ids(cell, name), [], [0]), Site(1, "attn_out")
            alone = fisher_samples(model, full, [clean], [site], samples, [cell.key["seed"] + number])[site][0]
            torch.testing.assert_close(found[number], alone, rtol=1e-4, atol=1e-5 * float(alone.abs().max()))


def test_maps_of_many_positions_and_every_map_by_name(pair: Path, tmp_path: Path) -> None:
    asked = {
        "sites": ["resid_post"],
        "layers": [2],
        "closer": [2],
        "maps": list(MAPS),
        "rows_per_prompt": 2,
        "dimensions": 4,
        "permutations": 2,
    }
    rows, record = execute(study(pair, {"transport": asked}), tmp_path / "run")
    assert set(rows.filter(pl.col("metric") == "r2")["arm"]) == {*FAMILIES, "resample"}
    assert record["transport"]["rows"]["positions"] == "spread_2"
    assert record["transport"]["rows"]["per_prompt"] == 2
    assert any("not anchored" in text for text in record["warnings"])
    interchange = rows.filter(pl.col("unit") == "interchange")
    assert set(interchange["arm"]) == {"logit_subspace", "logit_subspace_joint"}
    with pytest.raises(StudyError, match="rows_per_prompt: given 4000"):
        prepare(study(pair, {"transport": {"rows_per_prompt": 4000}}), RunOptions(), EXPERIMENTS)


def test_splits_that_are_missing_are_named(pair: Path, tmp_path: Path) -> None:
    config = make_study(
        {
            "pair": {"base": str(pair / "base"), "tuned": str(pair / "tuned")},
            "prompts": {"report": str(pair / "prompts.jsonl")},
            "measures": ["divergence", "transport", "rank"],
        }
    )
    skipped = {entry["what"]: entry["why"] for entry in prepare(config, RunOptions(), EXPERIMENTS).plan.skipped}
    assert skipped["transport"] == skipped["rank"] == "the study has no training prompts"


@pytest.mark.parametrize(
    ("given", "said"), [({"maps": ["anchored_rigde"]}, "anchored_ridge"), ({"strengths": [-1]}, "0 to 100"), ({"closer": "cold"}, "hot")]
)
def test_options_that_cannot_be(given: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=said):
        TransportOptions.model_validate(given)


def test_what_patching_has_run_is_not_run_again_and_is_what_would_come_out(
    pair: Path, alone: tuple[StudyConfig, pl.DataFrame, Path], tmp_path: Path
) -> None:
    asked = {"sites": ["attn_out"], "layers": [1, 3]}
    beside, _ = execute(study(pair, {"patching": asked}, {"transport": {**asked, "closer": [1], "permutations": 0}}), tmp_path / "beside")
    key = [name for name in beside.columns if name != "value"]
    plain = (pl.col("measure") == "transport") & pl.col("metric").is_in(["kl_own_nats", "kl_other_nats"]) & pl.col("control").is_null()
    both = alone[1].filter(plain).join(beside.filter(plain), on=key, how="full", nulls_equal=True, suffix="_beside")
    assert both["value"].null_count() == both["value_beside"].null_count() == 0
    assert (both["value"] - both["value_beside"]).abs().max() < 1e-6
    written = beside.filter(
        pl.col("arm") == "shift", pl.col("metric") == "kl_other_nats", pl.col("split") == "report", pl.col("strength").is_null()
    )
    once = written.filter(pl.col("measure") == "patching", pl.col("direction") == "base<-tuned").sort("layer", "prompt")
    again = written.filter(pl.col("measure") == "transport", pl.col("direction") == "base<-base").sort("layer", "prompt")
    assert again["value"].to_list() == once["value"].to_list()
    assert set(again["rank"]) == {0}


def test_means_over_other_positions_are_not_patchings(pair: Path, tmp_path: Path) -> None:
    asked = {"sites": ["attn_out"], "layers": [1]}
    mapped = {"transport": {**asked, "closer": [1], "maps": ["rrr"], "rows_per_prompt": 2, "permutations": 0}}
    found = []
    for name, measures in (("alone", [mapped]), ("beside", [{"patching": {"sites": ["attn_out"], "layers": [1]}}, mapped])):
        rows, _ = execute(study(pair, *measures), tmp_path / name)
        plain = rows.filter(
            pl.col("measure") == "transport", pl.col("arm") == "shift", pl.col("strength").is_null(), pl.col("control").is_null()
        )
        found.append(plain.filter(pl.col("metric") == "kl_own_nats").sort("direction", "split", "prompt")["value"].to_list())
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("measure", "given", "said"),
    [
        ("transport", {"closer": [99]}, r"selected layers \[99\]"),
        ("rank", {"layers": [1, 2], "closer": [3]}, r"selected layers \[3\]"),
        ("steering", {"contrast": True, "side_prompts": 0}, "side_prompts is 0"),
    ],
)
def test_what_cannot_be_looked_at_is_refused_before_anything_runs(pair: Path, measure: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(StudyError, match=said):
        prepare(study(pair, {measure: given}), RunOptions(), EXPERIMENTS)


def test_prompts_of_one_cluster_are_one_group(pair: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (pair / "prompts.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        line["meta"] = {"cluster": f"c{number // 2}"}
    for name, part in (("fit", lines[:16]), ("report", lines[16:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in part))
    prompts = {name: str(tmp_path / f"{name}.jsonl") for name in ("fit", "report")}
    models = {"base": str(pair / "base"), "tuned": str(pair / "tuned")}
    asked = {"transport": {"sites": ["attn_out"], "layers": [1], "closer": [1], "permutations": 3}}
    config = make_study({"pair": models, "prompts": prompts, "measures": [asked]})
    with opened(config, tmp_path / "run") as (prepared, folder):
        rows, _ = study_run.execute(prepared, folder)
        found = groups(Execution(prepared, folder), "fit")
    assert sorted(found.bincount().tolist()) == [2] * 8
    assert len(rows.filter(pl.col("control") == "permuted#2")) == 2
