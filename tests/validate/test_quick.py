"""A quick validation plants some truths, and says which it leaves out."""

import json
from collections.abc import Iterator

import pytest

from mechdiff.cli.main import main
from mechdiff.validate import validation
from mechdiff.validate.checks import Check, same
from mechdiff.validate.planted import Bench


def holds(bench: Bench) -> Iterator[Check]:
    """Something that holds."""
    yield same("this", 1, 1)


def fails(bench: Bench) -> Iterator[Check]:
    """Something that fails."""
    yield same("that", 1, 2)


def ended(*told: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["mechdiff", "validate", *told])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "TRUTHS", {"P0": (holds,), "P1": (fails,), "P2": (holds,)})


def test_every_quick_truth_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert [name for name in validation.TRUTHS if name in validation.QUICK] == list(validation.QUICK)


def test_what_is_left_out_is_said_and_not_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("--quick", monkeypatch=monkeypatch) == 0
    assert "left out: P1 (Something that fails)" in capsys.readouterr().out
    assert ended(monkeypatch=monkeypatch) == 1
    assert "left out" not in capsys.readouterr().out
    assert ended("--quick", "--json", monkeypatch=monkeypatch) == 0
    said = json.loads(capsys.readouterr().out)
    assert [one["truth"] for one in said["truths"]] == ["P0", "P2"]
    assert said["left_out"] == {"P1": "Something that fails."}


def test_quick_and_a_choice_do_not_go_together(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("--quick", "--only", "P0", monkeypatch=monkeypatch) != 0
    assert "--quick and --only" in capsys.readouterr().err
