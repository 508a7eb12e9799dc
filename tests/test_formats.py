"""docs/FORMATS.md says what forms really do: every row names a test that exists."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "FORMATS.md"


def test_every_row_has_its_test() -> None:
    rows = [line.rsplit("|", 2)[1] for line in PAGE.read_text().splitlines() if line.startswith("| ") and not line.startswith("| form")]
    named = [re.findall(r"`(test_\w+)`", row) for row in rows]
    assert len(rows) >= 20
    assert all(found or row.strip() == "the same" for found, row in zip(named, rows, strict=True)), "a row without a test"
    written = {
        node.name
        for path in HERE.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert {name for names in named for name in names} <= written
