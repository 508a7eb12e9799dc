"""What happens to machines happens to a run: killed, out of memory, damaged on disk, a clock that jumps, states that are no numbers."""

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from mechdiff.errors import RunError
from mechdiff.measures.catalogue import make_study
from mechdiff.measures.patching import compute as patching
from mechdiff.models import pair as models_pair
from mechdiff.store.tables import read_manifest, read_status
from mechdiff.study import execution
from mechdiff.study import run as study_run
from mechdiff.study.config import StudyConfig
from runs import opened

pytestmark = pytest.mark.ci

MEASURES = [
    "divergence",
    {"similarity": {"sites": ["resid_post"], "permutations": 5}},
    {"patching": {"sites": ["resid_post", "attn_out"], "arms": ["identity", "shift", "resample"]}},
    {"rank": {"sites": ["resid_post"], "closer": [1]}},
]


def study(pair: Path, **prompts: str) -> StudyConfig:
    given = prompts or {"file": str(pair / "prompts.jsonl")}
    return make_study({"pair": {"base": str(pair / "base"), "tuned": str(pair / "tuned")}, "prompts": given, "measures": MEASURES})


def execute(config: StudyConfig, out: Path, **options: Any) -> tuple[pl.DataFrame, dict[str, Any]]:
    with opened(config, out, **options) as (prepared, folder):
        rows, record = study_run.execute(prepared, folder)
        folder.write_manifest(record)
    return rows, record


def computed(out: Path) -> int:
    return (out / "log.txt").read_text().count(" computed ")


@pytest.fixture(scope="module")
def whole(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    return execute(study(pair), tmp_path_factory.mktemp("whole") / "run")[0]


@pytest.fixture(scope="module")
def reliability() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "reliability.py"
    spec = importlib.util.spec_from_file_location("reliability", path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["reliability"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kills", [pytest.param(1, marks=pytest.mark.ci), pytest.param(3, marks=pytest.mark.slow)])
def test_killed_at_random_it_gives_the_same_bits_and_computes_nothing_twice(reliability: ModuleType, tmp_path: Path, kills: int) -> None:
    found = reliability.trials(kills, tmp_path, seed=1)
    assert (found["same bits"], found["nothing computed twice"]) == (kills, kills)


def test_the_page_names_tests_that_there_are(reliability: ModuleType) -> None:
    there = {file.name for file in Path(__file__).parents[1].rglob("test_*.py")}
    for _, _, where in reliability.FAULTS:
        for name in where.split(", "):
            assert name.split(":")[0] in there


def test_too_little_memory_halves_the_pass(pair: Path, whole: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches where two answers part too: they halve their prompts, of which some have no such place."""
    score, most = execution.scores, 2

    def small(subject: Any, *of: Any, **how: Any) -> Any:
        if len(subject.cleans) > most:
            raise torch.OutOfMemoryError("too much")
        return score(subject, *of, **how)

    for module in (execution, patching):
        monkeypatch.setattr(module, "scores", small)
    rows, _ = execute(study(pair), tmp_path / "run")
    key = [name for name in rows.columns if name != "value"]
    assert rows.select(key).equals(whole.select(key), null_equal=True)
    floor = pl.col("control").is_in(["no_op"]) & (pl.col("metric") != "top1_same")  # rounding itself: another packing has another one
    here, there = (found.filter(~floor.fill_null(False))["value"] for found in (rows, whole))
    np.testing.assert_allclose(here, there, rtol=1e-3, atol=1e-8)
    assert rows.filter(floor & pl.col("metric").str.contains("own|overlap"))["value"].abs().max() < 1e-7
    log = (tmp_path / "run" / "log.txt").read_text()
    halved = [line.split("cell=")[1].strip('"').split()[0] for line in log.splitlines() if "out_of_memory" in line]
    assert {"patching", "divergent_patching"} <= set(halved)
    most = 0
    with pytest.raises(RunError, match=r"one prompt's .* variants do not fit on cpu. Lower --max-rows"):
        execute(study(pair), tmp_path / "none")


def test_a_bit_that_flipped_costs_its_cell_alone(pair: Path, whole: pl.DataFrame, tmp_path: Path) -> None:
    out = tmp_path / "run"
    execute(study(pair), out)
    cells, before = sorted(out.glob("cells/[0-9a-f]*")), computed(out)
    for cell, file in ((cells[3], "rows.parquet"), (cells[-1], "cell.json")):
        content = bytearray((cell / file).read_bytes())
        content[len(content) // 2] ^= 1
        (cell / file).write_bytes(content)
    rows, record = execute(study(pair), out)
    assert rows.equals(whole, null_equal=True)
    assert computed(out) == before + 2
    for cell in (cells[3], cells[-1]):
        assert f"cell {cell.name} was damaged on disk: removed, to be computed again" in record["warnings"]


def test_a_clock_that_jumps_changes_nothing(pair: Path, whole: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter(np.random.default_rng(0).uniform(-1e9, 1e9, 100_000))
    for clock in ("time", "perf_counter"):
        monkeypatch.setattr(time, clock, lambda: float(next(jumps)))
    assert execute(study(pair), tmp_path / "run")[0].equals(whole, null_equal=True)


def test_a_model_whose_files_changed_does_not_go_on(pair: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    own = tmp_path / "pair"
    for side in ("base", "tuned"):
        (own / side).mkdir(parents=True)
        for file in (pair / side).iterdir():
            (own / side / file.name).write_bytes(file.read_bytes())
    (own / "prompts.jsonl").write_bytes((pair / "prompts.jsonl").read_bytes())
    execute(study(own), out)
    weights = own / "tuned" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(RunError, match="so a prompt file, a template or a model has changed since"):
        execute(study(own), out)


# ---- states that are no numbers ------------------------------------------------------------------------------------------------------


def split_files(pair: Path, folder: Path, *, with_broken: bool) -> dict[str, str]:
    """The prompts in three files; the fourth of each, if asked for, has a token that breaks the tuned model."""
    folder.mkdir()
    lines = [json.loads(line) for line in (pair / "prompts.jsonl").read_text().splitlines()]
    files = {}
    for i, split in enumerate(("fit", "select", "report")):
        chosen = lines[8 * i : 8 * (i + 1)]
        chosen[3] |= {"text": chosen[3]["text"] + " #"}
        if not with_broken:
            del chosen[3]
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(line) + "\n" for line in chosen))
    return files


def test_a_prompt_whose_states_are_no_numbers_is_left_out_and_the_rest_stands(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = models_pair.load_net

    def poisoned(source: Any, **how: Any) -> Any:
        net = load(source, **how)
        if source.ref.endswith("tuned"):
            net.get_input_embeddings().weight.data[ord("#")] = torch.nan
        return net

    monkeypatch.setattr(models_pair, "load_net", poisoned)
    expected, _ = execute(study(pair, **split_files(pair, tmp_path / "sound", with_broken=False)), tmp_path / "a")
    broken = study(pair, **split_files(pair, tmp_path / "broken", with_broken=True))
    rows, record = execute(broken, tmp_path / "b")
    assert rows.equals(expected, null_equal=True)
    why = "the tuned model's activations on it hold NaN or infinity"
    assert {(split, name): said for split, name, said in record["left_out"]} == {
        ("fit", "p3"): why, ("select", "p11"): why, ("report", "p19"): why
    }  # fmt: skip
    assert f"prompt p19 (report) is left out of everything: {why}" in record["warnings"]
    assert {"what": "prompt p19 (report)", "why": why} in record["skipped"]
    before = computed(tmp_path / "b")
    again, _ = execute(broken, tmp_path / "b")
    assert again.equals(expected, null_equal=True)
    assert computed(tmp_path / "b") == before, "what is broken is seen again without computing it again"


# ---- how far has it come? --------------------------------------------------------------------------------------------------------------


def test_status_of_a_run_that_runs_has_died_and_is_finished(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, seen = tmp_path / "run", []
    compute = study_run.compute_cell

    def one_too_many(run: Any, cell: Any) -> None:
        seen.append(read_status(out))
        if len(seen) > 6:
            raise KeyboardInterrupt
        compute(run, cell)

    with monkeypatch.context() as patched:
        patched.setattr(study_run, "compute_cell", one_too_many)
        with pytest.raises(KeyboardInterrupt):
            execute(study(pair), out)
    assert {one.state for one in seen} == {"running"}
    assert [sum(done for done, _, _ in one.stages.values()) for one in seen] == list(range(7))
    assert seen[0].left is None
    died = read_status(out)
    assert died.state == "stopped"
    assert 0 < died.share < 1
    assert died.left is not None
    assert " computed " in died.log[-1]
    execute(study(pair), out)
    ended = read_status(out)
    assert (ended.state, ended.share, ended.left) == ("finished", 1.0, 0.0)
    assert all(done == of for done, of, _ in ended.stages.values())
    seconds = read_manifest(out)["seconds"]
    assert seconds == {stage: pytest.approx(spent, abs=0.01) for stage, (_, _, spent) in ended.stages.items()}, "of both runs"
    with pytest.raises(RunError, match=r"no mechdiff run\. Give the folder"):
        read_status(tmp_path)
