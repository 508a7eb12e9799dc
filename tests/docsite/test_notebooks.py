"""Notebooks are run and shown by tools/docsite/notebooks.py; what a cell prints is what its page shows."""

from pathlib import Path

import pytest

from docsite import notebooks


def notebook(*sources: str, kind: str = "code") -> dict:
    return {"cells": [{"cell_type": kind, "source": [source]} for source in sources], "nbformat": 4}


def test_cells_share_a_scope_and_show_their_last_value(tmp_path: Path) -> None:
    made = notebooks.run(notebook("x = 2\nprint('two')\nx + 1", "y = x * 5", "%%bash\necho shell in $(basename $PWD)", "y;"), tmp_path)
    assert [printed for _, _, printed in notebooks.cells(made)] == ["two\n3\n", "", f"shell in {tmp_path.name}\n", ""]


def test_a_cell_that_fails_stops_the_notebook_and_is_named(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as python:
        notebooks.run(notebook("1 / 1", "1 / 0"), tmp_path)
    assert "in cell 1:\n1 / 0" in python.value.__notes__[0]
    with pytest.raises(RuntimeError, match="exit 3"):
        notebooks.run(notebook("%%bash\nexit 3"), tmp_path)


def test_a_page_has_text_code_and_what_was_printed() -> None:
    made = {"cells": [*notebook("# Title", kind="markdown")["cells"], *notebook("%%bash\nmechdiff ls")["cells"]]}
    made["cells"][1]["outputs"] = [{"output_type": "stream", "text": ["a run\n"]}]
    page = notebooks.page(made, "name")
    assert page.startswith("# Title\n\n```bash\nmechdiff ls\n```\n\n```text\na run\n```")
    assert "(name.ipynb)" in page


def test_long_outputs_are_cut_and_counted() -> None:
    assert notebooks.shortened("x\n" * 70).endswith("\n... and 10 lines more")
    assert notebooks.shortened("x\n" * 60).count("x") == 60
