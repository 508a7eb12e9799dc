"""How far a run is, shown in a notebook, in a terminal and without either."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mechdiff import progress


def test_without_a_terminal_a_line_comes_where_a_stage_begins(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.shown() as (show, say):
        for what, share in (("capture base", 0.1), ("patching L3", 0.41), ("patching L4", 0.5), ("heads L1", 0.9)):
            show(what, share)
        say("a note [1]")
    out, err = capsys.readouterr()
    lines = [line.partition(", about")[0].split(maxsplit=1)[1] for line in err.splitlines()[:-1]]
    assert lines == ["preparing", "10 %  capture base", "41 %  patching L3", "90 %  heads L1"]
    assert err.endswith("a note [1]\n")
    assert out == ""


def test_nothing_is_shown_where_nothing_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.shown(False) as (show, say):
        show("x", 1.0)
        say("y")
    assert capsys.readouterr() == ("", "")


def test_a_notebook_has_one_line_that_renews_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, Any]] = []
    handle = SimpleNamespace(update=lambda told, raw: shown.append(("update", told)))

    def display(told: Any, *, raw: bool, display_id: bool = False) -> Any:
        shown.append(("display", told))
        return handle if display_id else None

    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    ipython.display = SimpleNamespace(display=display)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    clock = iter([0.0, 1.0, 1.2, 2.0, 2.1, 2.2])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.shown() as (show, say):
        show("a<b", 0.25)
        show("too soon", 0.3)
        show("c", 0.5)
        show("done", 1.0)
        say("<note>")
    assert [kind for kind, _ in shown] == ["display", "update", "update", "display"]
    assert shown[0][1]["text/html"].startswith("<pre>██████░░░░")
    assert "a&lt;b" in shown[0][1]["text/html"]
    assert "100%" in shown[2][1]["text/plain"]
    assert shown[3][1]["text/html"] == "<pre>&lt;note&gt;</pre>"


def test_a_terminal_has_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.Console, "is_terminal", True)
    monkeypatch.setattr(progress.Console, "is_dumb_terminal", False)
    with progress.shown() as (show, say):
        show("patching L3", 0.4)
        say("a [note]")
    err = capsys.readouterr().err
    assert "a [note]" in err
    assert "patching L3" in err
