"""The record names versions and source, and never a secret."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mechdiff.store.record import environment, plain


def test_versions_and_platform() -> None:
    found = environment()
    assert {"python", "polars", "numpy"} <= set(found["versions"])
    assert set(found["platform"]) == {"system", "release", "machine", "cpus"}
    json.dumps(found)


def test_git_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    assert environment()["git"] is None

    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e@x", *words], check=True, capture_output=True)

    git("init")
    assert environment()["git"] is None  # no commit yet
    Path("a").write_text("1")
    git("add", "a")
    git("commit", "-m", "one")
    state = environment()["git"]
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    Path("untracked").write_text("a run's folder may stand here")
    assert environment()["git"]["dirty"] is False
    Path("a").write_text("2")
    assert environment()["git"]["dirty"] is True
    monkeypatch.setenv("PATH", "")
    assert environment()["git"] is None


def test_plain_is_json_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    monkeypatch.setenv("SOME_API_KEY", "short")
    given = {
        "ref": "https://u:hf_0123456789@host/m",
        "d": (np.float32(0.5), np.int64(3), float("nan"), np.inf),
        "p": Path("a/short"),
        1: True,
    }
    said = plain(given)
    assert said == {"ref": "https://u:[removed]@host/m", "d": [0.5, 3, None, None], "p": "a/short", "1": True}
    json.dumps(said, allow_nan=False)
