"""Tutorials do what they show: on a tiny pair every cell runs, and on the model of the demo every cell prints what its page says."""

import re
from pathlib import Path

import pytest

from docsite import notebooks

TUTORIALS = sorted((Path(__file__).resolve().parents[2] / "docs" / "tutorials").glob("*.ipynb"))
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def of_tiny_pair(notebook: dict, pair: Path) -> dict:
    """The notebook whose first cell of code names a tiny pair; a LoRA's folder and the demo's file are not looked into."""
    models = f'import os\n\nBASE, TUNED = "{pair / "base"}", "{pair / "tuned"}"\nos.environ.update(BASE=BASE, TUNED=TUNED)'
    place = next(i for i, cell in enumerate(notebook["cells"]) if cell["cell_type"] == "code")
    return notebook | {"cells": [cell | {"source": [models]} if i == place else cell for i, cell in enumerate(notebook["cells"])]}


@pytest.mark.ci
@pytest.mark.parametrize("name", ["lora"])
def test_every_cell_runs_on_a_tiny_pair(name: str, pair: Path, tmp_path: Path) -> None:
    (path,) = (one for one in TUTORIALS if one.stem == name)
    made = notebooks.run(of_tiny_pair(notebooks.read(path), pair), tmp_path)
    assert (tmp_path / "runs" / "lora" / "report.html").is_file()
    shown = "".join(printed for _, _, printed in notebooks.cells(made))
    assert all(f"{title}?" in shown for title in ("How much", "What", "Where", "How complicated", "What else changed", "How sure"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all: the run of the first tutorial is that of later ones."""
    return tmp_path_factory.mktemp("tutorials")


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(TUTORIALS, key=lambda path: path.stem != "lora"), ids=lambda path: path.stem)
def test_every_cell_prints_what_its_page_says(path: Path, folder: Path) -> None:
    """Words as they stand there; numbers to a hundredth of themselves, since another processor rounds otherwise; times are not compared."""
    notebook = notebooks.read(path)
    for (_, source, said), (_, _, printed) in zip(notebooks.cells(notebook), notebooks.cells(notebooks.run(notebook, folder)), strict=True):
        if "seconds" in said or " plan " in source:
            continue
        assert NUMBER.sub("#", printed) == NUMBER.sub("#", said), source
        for new, old in zip(NUMBER.findall(printed), NUMBER.findall(said), strict=True):
            assert float(new) == pytest.approx(float(old), rel=0.01, abs=0.01), source
