"""The reading order, written once (the tree of docs/ARCHITECTURE.md), is kept here: folders import only folders above, and no files each other."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from imports import KITS, SOURCE, file_of, imported, modules, reading_order, room, upward

LIGHT = ("measure", "plan", "findings", "charts", "words", "page", "compare", "tiles")
"""Files of a measure that load no torch."""


def test_the_tree_lists_every_folder_once() -> None:
    assert sorted(reading_order()) == sorted({room(module) for module in modules()})


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_folders_above_its_own(module: str) -> None:
    below = upward(module)
    assert not below, f"{module} imports {below}, which come after it in the reading order"


@pytest.mark.parametrize("module", [name for name in modules() if room(name) in KITS])
def test_a_kit_knows_no_measure(module: str) -> None:
    assert not [name for name in imported(module) if name.startswith("measures.")]


def test_no_modules_import_each_other() -> None:
    TopologicalSorter({module: imported(module) for module in modules()}).prepare()  # raises CycleError, which names them


@pytest.mark.parametrize("module", [name for name in modules() if name.endswith(".verify")])
def test_a_second_way_imports_nothing_of_its_measure(module: str) -> None:
    assert not [name for name in imported(module) if room(name) == room(module) and not name.endswith(".plan")]


@pytest.mark.parametrize("module", [name for name in modules() if "." in name])
def test_nobody_inside_imports_the_facade(module: str) -> None:
    tree = ast.parse(file_of(module).read_text())
    facade = [n for n in ast.walk(tree) if isinstance(n, ast.Import) and any(alias.name == "mechdiff" for alias in n.names)]
    assert not facade


def test_package_files_are_empty() -> None:
    for path in SOURCE.rglob("*/__init__.py"):
        assert not path.read_text().strip(), path


def test_no_torch_where_none_is_needed() -> None:
    light = [name for name in modules() if room(name) in ("statistics", "report", "comparison", "labels", "rows", "cli")]
    light += [name for name in modules() if name.startswith("measures.") and name.split(".")[-1] in LIGHT]
    light += [
        "study.config",
        "study.planner",
        "study.plan",
        "store.run_folder",
        "architectures.sites",
        "architectures.families",
        "measures.catalogue",
        "api",
    ]
    code = "import sys; " + "; ".join(f"import mechdiff.{name}" for name in light) + "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
