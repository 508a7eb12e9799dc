"""docs/MAP.md and docs/architecture.svg are what the code says, and every module says in a sentence what it is."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for path in (ROOT / "src" / "mechdiff").rglob("*.py") if path.name != "__init__.py")


@pytest.mark.slow
def test_map_and_picture_are_what_the_code_says() -> None:
    run = subprocess.run([sys.executable, ROOT / "tools" / "map.py", "--check"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT / "src" / "mechdiff")))
def test_a_module_begins_with_a_sentence(path: Path) -> None:
    said = ast.get_docstring(ast.parse(path.read_text()))
    assert said, "it has no docstring"
    first = " ".join(said.partition("\n\n")[0].split())
    sentence = re.match(r"(.*?[.?!](?=\s|$)|.*:$)", first)
    assert sentence, f"it does not begin with a sentence: {first!r}"
    assert re.match(r"[A-Z]|mechdiff", first), f"it begins in the middle: {first!r}"
    assert len(sentence[1].split()) >= 4, f"it begins with a title: {sentence[1]!r}"
    assert not re.match(r"What the \w+ says? (about|of)", first), f"a clause is no sentence: {first!r}"
