"""Several studies in one call, the log beside the bar, and the state of a run, from the command line."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mechdiff.cli.main import main
from mechdiff.store.tables import read_rows

CODE = "from mechdiff.cli.main import main; main()"


def mechdiff(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", CODE, *map(str, words)], capture_output=True, text=True, check=False)


Refused = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """What the command says, in this process, as it ends with 1."""

    def call(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["mechdiff", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        return " ".join(capsys.readouterr().err.split())

    return call


@pytest.fixture(scope="module")
def studies(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two studies of one pair, with other seeds."""
    folder = tmp_path_factory.mktemp("studies")
    for seed in (0, 1):
        (folder / f"seed{seed}.yaml").write_text(
            f"pair: {{base: {pair}/base, tuned: {pair}/tuned}}\nprompts: {{file: {pair}/prompts.jsonl}}\nseed: {seed}\n"
            "measures: [divergence, {patching: {sites: [attn_out], arms: [identity]}}]\n"
        )
    return sorted(folder.glob("*.yaml"))


@pytest.mark.ci
def test_a_sweep_runs_every_study_in_a_folder_of_its_own(studies: list[Path], tmp_path: Path) -> None:
    done = mechdiff("run", *studies, "--out", tmp_path / "sweep", "--at-once", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "sweep" / name / "report.html") for name in ("seed0", "seed1")]
    first, second = (read_rows(tmp_path / "sweep" / name) for name in ("seed0", "seed1"))
    assert not first.equals(second)
    again = mechdiff("run", studies[0], "--out", tmp_path / "sweep" / "seed0", "--verbose")
    assert again.returncode == 0
    assert "started cells=" in again.stderr
    assert " computed " not in again.stderr, "the sweep's cells are this run's"
    told = mechdiff("status", tmp_path / "sweep" / "seed1")
    assert told.returncode == 0
    assert told.stdout.startswith("100% of the work is done; the run is finished")


def test_studies_of_one_name_are_refused(studies: list[Path], tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "seed0.yaml").write_text(studies[0].read_text())
    assert "two study files are called seed0" in refused("run", studies[0], tmp_path / "seed0.yaml", "--out", tmp_path / "sweep")


def test_the_state_of_what_is_no_run(tmp_path: Path, refused: Refused) -> None:
    assert "no mechdiff run. Give the folder that `mechdiff run` was told." in refused("status", tmp_path)
