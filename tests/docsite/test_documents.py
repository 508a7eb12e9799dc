"""Every command that a document shows is one: its verb, its options and its make target exist. Sizes have the words that the page gives them."""

import ast
import contextlib
import inspect
import json
import re
from functools import cache
from pathlib import Path

import pytest
import typer

import mechdiff
from docsite import notebooks
from mechdiff.cli.main import app
from mechdiff.report.overview.scales import table

ROOT = Path(__file__).resolve().parents[2]
HISTORY = {"LOG.md", "FAULTS.md", "MAP.md", "CLAIMS.md"}
"""What was, and what is read from the code."""
DOCUMENTS = sorted(
    {ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(path for path in (ROOT / "docs").rglob("*.md") if path.name not in HISTORY)}
)
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


@cache
def verbs() -> dict[str, set[str]]:
    """Command -> its options."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return {name: {one for param in command.params for one in (*param.opts, *param.secondary_opts)} for name, command in commands.items()}


def wrong(text: str) -> list[str]:
    """What is said to mechdiff in code and is no command of it."""
    found = []
    for block in re.findall(r"```(?:bash|text)?\n(.*?)```|`(mechdiff [^`\n]+)`", text, re.DOTALL):
        for line in re.sub(r"\\\n", " ", "".join(block)).splitlines():
            for call in re.findall(r"(?:^|[ (·]|\.venv/bin/)mechdiff ([a-z][\w-]*(?: .*)?)$", line.split("  #")[0].split("    ")[0]):
                verb, *rest = call.split(" · ")[0].split()
                options = {word.split("=")[0].strip("[]()'\"") for word in rest if re.match(r"\[?-{1,2}[a-z]", word)}
                if verb not in verbs():
                    found.append(f"{verb}: {line.strip()}")
                found += [
                    f"{verb} {one}" for one in options if verb in verbs() and one not in verbs()[verb] | {"--help", "-h", "-q", "--quiet"}
                ]
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_a_document_is_one(path: Path) -> None:
    assert wrong(path.read_text()) == []


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_every_command_of_a_tutorial_is_one(path: Path) -> None:
    notebook = notebooks.read(path)
    text = "\n".join(f"```bash\n{source}\n```" if kind == "code" else source for kind, source, _ in notebooks.cells(notebook))
    assert wrong(text) == []


def test_a_command_that_is_none_is_found() -> None:
    assert wrong("```bash\nmechdiff rn A B\nmechdiff run A B --promts x --seed 3   # mechdiff nothing\n```") == [
        "rn: mechdiff rn A B",
        "run --promts",
    ]
    assert [name for name, _ in calls("```python\nrun = mechdiff.diff(a, b)\n```\n`mechdiff.verify(run, rows=3)`")] == ["diff", "verify"]
    assert wrong("say `mechdiff show RUN --jsn`, or `mechdiff show RUN`") == ["show --jsn"]


def calls(text: str) -> list[tuple[str, ast.Call]]:
    """(name, call) of every `mechdiff.name(...)` in the Python of a document."""
    found = []
    for block, inline in re.findall(r"```python\n(.*?)```|`(mechdiff\.\w+\([^`\n]*\))`", text, re.DOTALL):
        with contextlib.suppress(SyntaxError):  # a sketch
            for node in ast.walk(ast.parse(block or inline)):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and getattr(node.func.value, "id", "") in ("mechdiff", "md")
                ):
                    found.append((node.func.attr, node))
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_call_of_a_document_fits_its_function(path: Path) -> None:
    for name, call in calls(path.read_text()):
        assert name in mechdiff.__all__, f"mechdiff.{name}"
        given = {one.arg: None for one in call.keywords if one.arg}
        inspect.signature(getattr(mechdiff, name)).bind_partial(*(one for one in call.args if ast.unparse(one) != "..."), **given)


def test_every_target_of_make_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for path in (*DOCUMENTS, *(ROOT / ".github").rglob("*.yml"), ROOT / ".ci" / "run"):
        for target in re.findall(r"(?:^|`|run: )make ([a-z][\w-]+)", path.read_text(), re.MULTILINE):
            assert f"\n{target}:" in makefile or target in ("it", "sure"), f"{path.name}: make {target}"


def test_words_for_sizes_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "start" / "first-page.md").read_text()
    for question, number, words in table():
        assert f"| {question} | {number} | {words} |" in page


def test_pictures_are_small_and_the_gallery_s_record_is_of_them() -> None:
    folder = ROOT / "docs" / "gallery"
    record = json.loads((folder / "gallery.json").read_text())
    assert {f"{one['name']}.png" for one in record} == {path.name for path in folder.glob("*.png")}
    assert len(record) == 3
    for one in record:
        assert (folder / f"{one['name']}.png").stat().st_size < 200_000
        assert [tile["title"] for tile in one["tiles"]] == [
            "How much?",
            "What?",
            "Where?",
            "How complicated?",
            "What else changed?",
            "How sure?",
        ]


def test_tutorials_are_small_and_were_run() -> None:
    for path in TUTORIALS:
        assert path.stat().st_size < 40_000, f"{path.name}: outputs are text, and short"
        code = [printed for kind, source, printed in notebooks.cells(notebooks.read(path)) if kind == "code"]
        assert any(code), f"{path.name} was not run: make tutorials"
        assert "/site-packages/" not in path.read_text(), "a path of somebody's machine"
