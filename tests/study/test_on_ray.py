"""The same run on Ray: the same bits, whoever dies on the way. A real Ray on this machine, with several processes and several nodes."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from mechdiff.errors import RunError
from mechdiff.measures.catalogue import make_study
from mechdiff.store.run_folder import RunFolder
from mechdiff.study import on_ray
from mechdiff.study.config import StudyConfig
from mechdiff.study.run import execute
from runs import opened

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

MEASURES = [
    "divergence",
    {"similarity": {"sites": ["resid_post"], "permutations": 5}},
    {"patching": {"sites": ["resid_post", "attn_out", "mlp_out"], "arms": ["identity", "shift", "resample", "oracle"]}},
]
pytestmark = [
    pytest.mark.ci,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::FutureWarning"),
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="workers are killed by their process number"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head and two nodes, of one worker each."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def study(pair: Path) -> StudyConfig:
    given = {"base": str(pair / "base"), "tuned": str(pair / "tuned")}
    return make_study({"pair": given, "prompts": {"file": str(pair / "prompts.jsonl")}, "measures": MEASURES})


@pytest.fixture(scope="module")
def alone(study: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """The rows of a run in this process, with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run(study, tmp_path_factory.mktemp("alone") / "run")[0]
    finally:
        torch.set_num_threads(before)


def run(
    study: StudyConfig, out: Path, *, meanwhile: Callable[[on_ray.RayCrew], None] | None = None, **options: Any
) -> tuple[Any, Any, Any]:
    """Rows, record and log of a run; `meanwhile` is called once a few cells are there."""
    with ExitStack() as stack:
        prepared, folder = stack.enter_context(opened(study, out, max_rows=64, **options))
        crew = stack.enter_context(on_ray.ray_crew(prepared, folder, "auto")) if options.get("ray") else None
        if meanwhile:
            threading.Thread(target=_after, args=(out / "cells", lambda: meanwhile(crew)), daemon=True).start()
        rows, record = execute(prepared, folder, crew=crew)
    return rows, record, (out / "log.txt").read_text().splitlines()


def _after(cells: Path, act: Callable[[], None]) -> None:
    while len(list(cells.glob("[0-9a-f]*/cell.json"))) < 5:
        time.sleep(0.005)
    act()


def computed(log: list[str]) -> list[str]:
    """Names of the cells that were computed, each as often as it was."""
    return [line.split("name=")[1].split()[0] for line in log if " computed " in line]


def pids(log: list[str]) -> list[int]:
    return [int(line.split("pid=")[1].split()[0]) for line in log if " worker " in line]


def test_three_workers_give_the_bits_of_one_process(cluster: Cluster, study: StudyConfig, alone: pl.DataFrame, tmp_path: Path) -> None:
    rows, record, log = run(study, tmp_path / "run", ray="auto", threads=1, workers=3)
    assert rows.equals(alone, null_equal=True)
    assert record["distributed"]["workers"] == 3
    assert record["distributed"]["lost"] == 0
    assert record["threads"] == 1
    assert len({line.rsplit(":", 1)[1] for line in log if " computed " in line}) == 3, "all of them worked"
    assert len(computed(log)) == len(set(computed(log))) == len(list((tmp_path / "run" / "cells").glob("*/cell.json")))


@pytest.mark.ci
def test_a_worker_that_is_killed_loses_nothing_that_was_finished(
    cluster: Cluster, study: StudyConfig, alone: pl.DataFrame, tmp_path: Path
) -> None:
    killed = []

    def kill(crew: on_ray.RayCrew) -> None:
        log = (tmp_path / "run" / "log.txt").read_text().splitlines()
        killed.append(pids(log)[0])
        os.kill(killed[0], signal.SIGKILL)

    rows, record, log = run(study, tmp_path / "run", meanwhile=kill, ray="auto", threads=1, workers=2)
    assert killed
    assert record["distributed"]["lost"] == 1
    assert rows.equals(alone, null_equal=True)
    assert len(computed(log)) == len(set(computed(log)))
    assert {line.rsplit(":", 1)[1] for line in log if " computed " in line} - {str(killed[0])}, "others went on"


@pytest.mark.slow
def test_a_node_that_goes_takes_its_work_nowhere(cluster: Cluster, study: StudyConfig, alone: pl.DataFrame, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=1, resources={"leaving": 1})
    rows, record, log = run(
        study, tmp_path / "run", meanwhile=lambda crew: cluster.remove_node(node, allow_graceful=False), ray="auto", threads=1, workers=4
    )
    assert rows.equals(alone, null_equal=True)
    assert record["distributed"]["lost"] >= 1
    assert len(computed(log)) == len(set(computed(log)))


@pytest.mark.slow
def test_a_cell_that_kills_its_workers_is_named(
    cluster: Cluster, study: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, dead = tmp_path / "run", set[int]()

    def hunt() -> None:
        while len(dead) < on_ray.DEATHS:
            log = (out / "log.txt").read_text().splitlines() if (out / "log.txt").is_file() else []
            for pid in set(pids(log)) - dead:
                os.kill(pid, signal.SIGKILL)
                dead.add(pid)
            time.sleep(0.002)

    threading.Thread(target=hunt, daemon=True).start()
    with pytest.raises(
        RunError, match=r"3 workers died of the same cell \(selfcheck, \d+ prompts\).*lower --max-rows or the number of --workers"
    ):
        run(study, out, ray="auto", threads=1, workers=1)


@pytest.mark.slow
def test_cells_may_lie_under_a_url(cluster: Cluster, study: StudyConfig, alone: pl.DataFrame, tmp_path: Path) -> None:
    url = (tmp_path / "shared").as_uri()
    rows, _, log = run(study, tmp_path / "run", ray="auto", threads=1, workers=2, cells=url)
    assert rows.equals(alone, null_equal=True)
    assert not list((tmp_path / "run" / "cells").glob("[0-9a-f]*")), "none lies in the run's folder"
    again, _, log = run(study, tmp_path / "again", threads=1, cells=url)
    assert again.equals(alone, null_equal=True)
    assert not computed(log), "another folder with the same cells computes nothing"


def test_a_worker_with_other_code_is_refused(cluster: Cluster, study: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "code_hash", lambda: "0" * 64)
    with pytest.raises(RunError, match=r"not what this run is \(code: [0-9a-f]{12} there, 000000000000 here\). Install the same mechdiff"):
        run(study, tmp_path / "run", ray="auto", threads=1, workers=1)


class Elsewhere(on_ray.Worker):
    """A worker whose module, this one, no node can import: as mechdiff's cannot where it is not installed."""


def test_workers_that_die_while_they_start_are_counted_and_their_error_is_said(
    cluster: Cluster, study: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were hired again and again, until no worker had come in time."""
    monkeypatch.setattr(on_ray, "Worker", Elsewhere)
    with pytest.raises(
        RunError,
        match=r"3 workers died while they were starting, and none is left: ModuleNotFoundError: No module named 'test_on_ray'.*every node",
    ):
        run(study, tmp_path / "run", ray="auto", threads=1, workers=1)
    assert len([line for line in (tmp_path / "run" / "log.txt").read_text().splitlines() if " worker_lost " in line]) == on_ray.DEATHS


def test_a_token_that_a_cluster_refuses_is_not_called_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**how: Any) -> None:
        """As Ray 2.60 says it: what is wrong stands in the cause."""
        cause = "Failed to connect to GCS. Last connection error: ...\nRPC error: InvalidAuthToken: Authentication token is missing or incorrect."
        raise ConnectionError("Failed to connect to Ray cluster at 192.0.2.7:6379") from RuntimeError(cause)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    for address in ("auto", "ray.example:6379"):
        with (
            pytest.raises(RunError, match=f"--ray {address}: the cluster there wants a token and refuses .*RAY_AUTH_TOKEN"),
            on_ray.cluster(address),
        ):
            pass


def test_what_a_user_can_put_right_is_said(cluster: Cluster, study: StudyConfig, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"the cluster has 3 CPUs, 0 GPUs, a worker takes 64 CPUs and 0 GPUs. Lower --threads"):
        run(study, tmp_path / "run", ray="auto", threads=64)
    with pytest.raises(RunError, match="--cells nowhere://x: "):
        RunFolder.joined(tmp_path, "nowhere://x")
