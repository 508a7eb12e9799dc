"""The examples in docstrings of the Python interface, and in docs/PYTHON.md, run and print what they say."""

import doctest
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import mechdiff
from mechdiff import api
from mechdiff.results import finished as finished_run


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(recurse=True)
    found = [*finder.find(finished_run.Run, "Run"), *finder.find(api.diff, "diff"), *finder.find(finished_run.open_run, "open_run")]
    return [one for one in found if one.examples]


@pytest.fixture
def names(finished: mechdiff.Run, held: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the examples speak of: two models and a finished run."""
    monkeypatch.setattr(api, "build_report", lambda place, chapters: None)
    monkeypatch.setattr(api, "_live", lambda folder, prepared, opened: nullcontext(lambda look: None))
    return {"mechdiff": mechdiff, "run": finished, "folder": finished.path, **held}


@pytest.mark.parametrize("example", examples(), ids=lambda one: one.name)
def test_an_example_prints_what_it_says(example: doctest.DocTest, names: dict[str, Any], tmp_path: Path) -> None:
    example.globs = {**names, **({"folder": tmp_path / "run"} if example.name == "diff" else {})}
    said: list[str] = []
    found = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(example, out=said.append)
    assert found.attempted
    assert not found.failed, "".join(said)


def test_what_a_user_calls_first_has_an_example() -> None:
    named = {one.name.rpartition(".")[2] for one in examples()}
    assert named >= {"diff", "open_run", "results", "answers", "tables", "table", "top", "tokens", "figures", "figure", "card"}
