"""The table of mechdiff's own faults in docs/FAULTS.md names, for each fault, a test of this folder that exists; no test is left out of it."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "FAULTS.md"


def test_every_fault_of_mechdiff_has_its_regression_test_and_each_test_its_fault() -> None:
    own = PAGE.read_text().split("# Mechdiff's own faults")[1]
    listed = [re.findall(r"`(test_\w+)`", line.rsplit("|", 2)[1]) for line in own.splitlines() if re.match(r"\| [A-Z]", line)]
    assert len(listed) >= 45
    assert all(listed), "a fault without a test"
    written = {
        node.name
        for path in HERE.glob("test_*.py")
        if path != Path(__file__)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert {name for names in listed for name in names} == written
