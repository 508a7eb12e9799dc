"""A run that is what it says verifies; one number, one bit, one map, one prompt that is not is named."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from every_measure import MEASURES
from mechdiff.audit.distributions import NotRecomputed
from mechdiff.audit.rerun import Rerun
from mechdiff.audit.verification import Verification, distance, same, sample, tolerance, verify
from mechdiff.cli import main as cli
from mechdiff.errors import RunError
from mechdiff.measures.catalogue import AGAIN, ANSWERS, EXPERIMENTS, NUMBERS
from mechdiff.measures.similarity.formula import linear_cka
from mechdiff.measures.similarity.verify import cka
from mechdiff.rows import COLUMNS
from mechdiff.statistics.metric import terms
from mechdiff.store.disk import sha256
from mechdiff.store.tables import read_rows

pytestmark = pytest.mark.ci


@pytest.fixture(scope="module")
def made(every_measure: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, prompts and a run of every measure, in which tests change what they like."""
    place = Path(shutil.copytree(every_measure, tmp_path_factory.mktemp("verified") / "copy"))
    for name in ("study.yaml", "manifest.json"):
        file = place / "run" / name
        file.write_text(file.read_text().replace(str(every_measure), str(place)))
    return place


@pytest.fixture(scope="module")
def rerun(made: Path) -> Rerun:
    """The run, opened once: clean passes and what rows share are kept."""
    return Rerun(made / "run", EXPERIMENTS)


@pytest.fixture(scope="module")
def found(rerun: Rerun) -> Verification:
    return verify(rerun, AGAIN, ANSWERS, NUMBERS, n_rows=608)


def copied(made: Path, tmp_path: Path) -> Path:
    """The run alone; its models and prompts stay where they are."""
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


def reseal(run: Path, name: str) -> None:
    """The manifest says that a changed file is as written."""
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["files"][name] = sha256((run / name).read_bytes())
    (run / "manifest.json").write_text(json.dumps(manifest))


def test_a_run_verifies(found: Verification) -> None:
    assert [one.said for one in found.differing] == []
    assert found.other_answers == []
    assert found.files == found.models == []
    assert found.passed
    taken = {measure: n for measure, n, *_ in found.table()}
    assert set(taken) == {one if isinstance(one, str) else next(iter(one)) for one in MEASURES}
    assert all(n >= 15 for measure, n in taken.items() if measure not in ("rank", "behaviour", "steering", "weights"))
    assert min(taken["weights"], taken["steering"]) >= 5
    assert len(found.answers) > 4


def test_a_row_of_every_kind_is_recomputed_or_said_not_to_be(rerun: Rerun) -> None:
    rows = read_rows(rerun.path).with_columns(
        *(pl.col(name).str.replace_all(r"\d+", "#").alias(f"{name}_kind") for name in ("unit", "control")),
        *(pl.col(name).is_null().alias(f"no_{name}") for name in ("layer", "rank", "strength")),
    )
    kind = ["measure", "direction", "site", "arm", "metric", "unit_kind", "control_kind", "no_layer", "no_rank", "no_strength"]
    sums, recomputed = terms(NUMBERS), 0
    for row in rows.group_by(kind, maintain_order=True).first().select(COLUMNS).iter_rows(named=True):
        try:
            again = AGAIN[row["measure"]](rerun, row)
        except NotRecomputed:
            continue
        assert same(row["value"], again, tolerance(row, again, rerun.floor, sums.get((row["measure"], row["metric"]), 1))), row
        recomputed += 1
    assert recomputed > 300


def test_a_sum_is_held_to_as_many_scores_as_it_has_and_each_of_its_runs_to_one(rerun: Rerun, found: Verification) -> None:
    for metric, n_terms in (("kl_tuned_nats", 1), ("linear_nats", 2), ("interaction_nats", 4), ("interaction_logits", 4)):
        held = [one for one in found.compared if one.row["measure"] == "factorial" and one.row["metric"] == metric]
        assert held, metric
        assert all(one.tolerance == tolerance(one.row, one.recomputed, rerun.floor, n_terms) for one in held), metric


def test_every_way_to_write_is_among_what_was_recomputed(found: Verification) -> None:
    seen = {(one.row["measure"], one.row["arm"]) for one in found.compared}
    wanted = {("patching", arm) for arm in ("identity", "shift", "mean", "resample")} | {("heads", "contribution"), ("heads", "routing")}
    wanted |= {("grafting", arm) for arm in ("alone", "from_below", "greedy")} | {("transport", "rrr"), ("steering", "add")}
    wanted |= {("attribution", arm) for arm in ("grad_x_diff", "grad_x_act", "integrated_gradients", "contribution")} | {
        ("factorial", "tb")
    }
    assert wanted <= seen
    assert {"window 2", "last_2"} <= {one.row["unit"] for one in found.compared if one.row["measure"] == "patching"}
    assert any((one.row["unit"] or "").startswith("token ") for one in found.compared if one.row["measure"] == "divergence")


def test_recomputed_numbers_are_no_copies(found: Verification) -> None:
    """Another way rounds otherwise: were all of them equal bit for bit, something would be read back instead of computed."""
    patched = [one for one in found.compared if one.row["measure"] in ("patching", "heads") and one.row["metric"].endswith("_nats")]
    assert any(one.row["value"] != one.recomputed for one in patched)


CHANGED = {
    ("patching", "kl_other_nats"),
    ("similarity", "cka"),
    ("heads", "kl_own_nats"),
    ("grafting", "kl_other_nats"),
    ("divergence", "js_nats"),
}


def test_rows_that_were_changed_are_named_and_no_others(made: Path, tmp_path: Path) -> None:
    run = copied(made, tmp_path)
    rows = pl.read_parquet(run / "rows.parquet")
    here = pl.any_horizontal((pl.col("measure") == measure) & (pl.col("metric") == metric) for measure, metric in CHANGED)
    here &= pl.col("control").is_null()
    rows = rows.filter(here | (pl.int_range(pl.len()) % 5 == 0))  # few enough others that each changed metric is among those drawn
    rows = rows.with_columns(value=pl.when(here).then(pl.col("value") * 1.02 + 1e-3).otherwise("value"))
    rows.write_parquet(run / "rows.parquet")
    found = verify(Rerun(run, EXPERIMENTS), AGAIN, ANSWERS, NUMBERS, n_rows=12)
    assert any(said.startswith("rows.parquet is SHA-256") for said in found.files)
    assert not found.compared
    assert not found.passed
    reseal(run, "rows.parquet")
    found = verify(Rerun(run, EXPERIMENTS), AGAIN, ANSWERS, NUMBERS, n_rows=260)
    assert found.files == []
    assert not found.passed
    assert {(one.row["measure"], one.row["metric"]) for one in found.differing} == CHANGED
    for one in found.differing:
        assert f"measure={one.row['measure']}" in one.said
        assert f"metric={one.row['metric']}" in one.said


def test_a_bit_of_a_model_is_named_and_nothing_recomputed(made: Path, tmp_path: Path) -> None:
    file = made / "tuned" / "model.safetensors"
    before = file.read_bytes()
    tensors = load_file(file)
    name = next(name for name in tensors if "o_proj" in name)
    tensors[name].view(np.uint32).flat[0] ^= 1
    try:
        save_file(tensors, file, metadata={"format": "pt"})
        found = verify(Rerun(made / "run", EXPERIMENTS), AGAIN, ANSWERS, NUMBERS, n_rows=12)
        shown = CliRunner().invoke(cli.app, ["verify", str(made / "run")])
    finally:
        file.write_bytes(before)
    assert [said for said in found.models if "model.safetensors is SHA-256" in said]
    assert not found.compared
    assert shown.exit_code == 1
    assert "nothing was recomputed" in shown.stdout


def test_a_map_that_is_gone_and_one_that_was_changed_are_named(made: Path, tmp_path: Path) -> None:
    run = copied(made, tmp_path)
    gone, other = sorted((run / "maps").iterdir())[:2]
    gone.unlink()
    other.write_bytes(other.read_bytes()[:-1] + b"\x00")
    said = verify(Rerun(run, EXPERIMENTS), AGAIN, ANSWERS, NUMBERS, n_rows=1).files
    assert [f"maps/{gone.name} is not there" in one or f"maps/{other.name} is SHA-256" in one for one in said] == [True, True]


def test_other_prompts_are_named(made: Path, tmp_path: Path) -> None:
    file = made / "report.jsonl"
    before = file.read_text()
    try:
        file.write_text(before.replace("Say something", "Say anything", 3))
        found = verify(Rerun(made / "run", EXPERIMENTS), AGAIN, ANSWERS, NUMBERS, n_rows=12)
    finally:
        file.write_text(before)
    assert any(said.startswith("prompts of ") for said in found.models)
    assert not found.compared


def test_the_command(made: Path) -> None:
    shown = CliRunner().invoke(cli.app, ["verify", str(made / "run"), "--rows", "12", "--json"])
    assert shown.exit_code == 0
    assert json.loads(shown.stdout)["passed"] is True
    shown = CliRunner().invoke(cli.app, ["verify", str(made / "run"), "--rows", "12"])
    assert "all agree; all files as written" in " ".join(shown.stdout.split())
    with pytest.raises(RunError, match="--rows 0: expected at least 1"):
        verify(Rerun(made / "run", EXPERIMENTS), AGAIN, ANSWERS, NUMBERS, n_rows=0)
    with pytest.raises(RunError, match="no such folder"):
        verify(Rerun(made / "nothing", EXPERIMENTS), AGAIN, ANSWERS, NUMBERS)


def test_a_sample_is_the_seeds_and_has_every_measure(made: Path) -> None:
    rows = pl.read_parquet(made / "run" / "rows.parquet")
    assert sample(rows, 60, 1).equals(sample(rows, 60, 1))
    assert not sample(rows, 60, 1).equals(sample(rows, 60, 2))
    assert set(sample(rows, 12, 0)["measure"]) == set(rows["measure"])


def test_cka_of_three_prompts_is_undefined_without_a_warning() -> None:
    """As it is without one of four: debiased CKA divides by n - 3."""
    states = np.random.default_rng(0).standard_normal((4, 6))
    assert np.isfinite(cka(states, states[::-1]))
    assert np.isnan(cka(states[:3], states[1:]))
    assert np.isnan(linear_cka(torch.from_numpy(states[:3]).float(), torch.from_numpy(states[1:]).float()))


def test_tolerances_grow_with_the_floor_and_are_small_beside_the_number() -> None:
    row = {"metric": "kl_own_nats", "measure": "patching", "value": 1.0}
    assert tolerance(row, 1.0, 1e-11, 1) < 1e-4
    assert tolerance(row, 1.0, 1e-3, 1) > 0.1
    assert tolerance({**row, "value": 0.0}, 0.0, 1e-11, 1) < 1e-9
    assert tolerance(row, 1.0, 1e-11, 4) > 4 * tolerance(row, 1.0, 1e-11, 1), "four scores stray four times as far, and may add up to 0"
    overlap = {"metric": "fisher_overlap_nats", "measure": "patching", "value": 0.1}
    assert 1e-6 < tolerance(overlap, 0.1, 1e-12, 1) < 1e-4, "rounding moves what is linear in the logits to first order"
    assert distance(float("nan"), float("nan")) == distance(float("inf"), float("inf")) == 0
    assert not same(float("nan"), 1.0, 1e9)
    assert not same(float("inf"), 1.0, 1e9)
