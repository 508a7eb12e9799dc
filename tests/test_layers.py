"""The reading order, written once (the tree of docs/ARCHITECTURE.md), is kept here: folders import only folders above, and no files each other."""

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "mechdiff"
KITS = ("prompts", "models", "engine", "maps", "store", "statistics", "study", "report", "comparison", "audit")
PENDING: set[str] = set()


def reading_order() -> list[str]:
    """Folders and top files in the order of the tree: "rows", "engine", "measures.heads" and so on."""
    tree = re.search(r"```\nsrc/mechdiff/\n(.*?)```", (ROOT / "docs" / "ARCHITECTURE.md").read_text(), re.DOTALL)
    assert tree, "docs/ARCHITECTURE.md has no file tree that starts with src/mechdiff/"
    order, folder = [], ""
    for line in tree[1].splitlines():
        entry = re.match(r"(  |    )(\w+)(/|\.py)", line)
        assert entry, f"no entry of the tree: {line!r}"
        indent, name, kind = entry.groups()
        inner = indent == "    "
        if kind == "/" and name == "measures":
            folder = "measures."
            continue
        order.append((folder if inner else "") + name)
    return order


ORDER = reading_order()


def modules() -> list[str]:
    found = (path.relative_to(SOURCE).with_suffix("") for path in SOURCE.rglob("*.py") if path.name != "__init__.py")
    return sorted(".".join(path.parts) for path in found)


def room(module: str) -> str:
    """The entry of the tree that a module belongs to."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "measures" else parts[0]


@cache
def imported(module: str, *, late: bool = True) -> frozenset[str]:
    """Modules of mechdiff that a module imports: anywhere in it, or where it is loaded; with places that its page names as text ("module:name")."""
    tree = ast.parse((SOURCE / (module.replace(".", "/") + ".py")).read_text())
    names = set()
    for node in ast.walk(tree) if late else tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mechdiff":
            inside = ".".join(node.module.split(".")[1:])
            names |= {f"{inside}.{alias.name}".strip(".") for alias in node.names} | {inside}
        elif isinstance(node, ast.Import):
            names |= {".".join(alias.name.split(".")[1:]) for alias in node.names if alias.name.startswith("mechdiff.")}
        elif late and isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"mechdiff[.\w]*:\w+", node.value):
            names.add(node.value.partition(":")[0].removeprefix("mechdiff."))
    return frozenset(names & set(modules()))


def test_the_tree_lists_every_folder_once() -> None:
    assert sorted(ORDER) == sorted({room(module) for module in modules()})


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_folders_above_its_own(module: str) -> None:
    if room(module) in PENDING:
        return
    below = [name for name in imported(module) if room(name) != room(module) and ORDER.index(room(name)) > ORDER.index(room(module))]
    assert not below, f"{module} imports {below}, which come after it in the reading order"


@pytest.mark.parametrize("module", [name for name in modules() if room(name) in KITS and room(name) not in PENDING])
def test_a_kit_knows_no_measure(module: str) -> None:
    assert not [name for name in imported(module) if name.startswith("measures.")]


def test_no_modules_import_each_other() -> None:
    TopologicalSorter({module: imported(module, late=False) for module in modules()}).prepare()  # raises CycleError, which names them


@pytest.mark.parametrize("module", [name for name in modules() if name.endswith(".verify")])
def test_a_second_way_imports_nothing_of_its_measure(module: str) -> None:
    assert not [name for name in imported(module) if room(name) == room(module) and not name.endswith(".plan")]


@pytest.mark.parametrize("module", [name for name in modules() if "." in name])
def test_nobody_inside_imports_the_facade(module: str) -> None:
    tree = ast.parse((SOURCE / (module.replace(".", "/") + ".py")).read_text())
    facade = [n for n in ast.walk(tree) if isinstance(n, ast.Import) and any(alias.name == "mechdiff" for alias in n.names)]
    assert not facade


def test_package_files_are_empty() -> None:
    for path in SOURCE.rglob("*/__init__.py"):
        assert not path.read_text().strip(), path


def test_no_torch_where_none_is_needed() -> None:
    light = [name for name in modules() if room(name) in ("statistics", "report", "comparison", "labels", "rows", "cli")]
    light += [name for name in modules() if name.startswith("measures.") and name.split(".")[-1] in LIGHT]
    light += ["study.config", "study.planner", "study.plan", "store.run_folder", "models.sites", "models.families", "measures.catalogue"]
    code = "import sys; " + "; ".join(f"import mechdiff.{name}" for name in light) + "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


LIGHT = ("measure", "plan", "findings", "charts", "words", "page", "compare")
"""Files of a measure that load no torch."""
