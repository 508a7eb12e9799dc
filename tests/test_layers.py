"""One reading order, written once (the README's file tree), kept here: a module imports only modules above it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "mechdiff"


def reading_order() -> list[str]:
    """Module names in the order of the README's tree: "engine.sites" and so on."""
    tree = re.search(r"```\nsrc/mechdiff/\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert tree, "README.md has no file tree that starts with src/mechdiff/"
    order, folder = [], ""
    for line in tree[1].splitlines():
        entry = re.match(r"(  |    )(\w+)(/|\.py)", line)
        if not entry:
            continue
        indent, name, kind = entry.groups()
        if kind == "/":
            folder = f"{name}."
            continue
        order.append((folder if indent == "    " else "") + name)
    return order


ORDER = reading_order()


def modules() -> list[str]:
    found = (path.relative_to(SOURCE).with_suffix("") for path in SOURCE.rglob("*.py") if path.name != "__init__.py")
    return sorted(".".join(path.parts) for path in found)


def imported(module: str) -> set[str]:
    """Modules of mechdiff that a module imports, anywhere in it, also lazily."""
    tree = ast.parse((SOURCE / (module.replace(".", "/") + ".py")).read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mechdiff":
            inside = ".".join(node.module.split(".")[1:])
            names |= {f"{inside}.{alias.name}".strip(".") for alias in node.names} | {inside}
        elif isinstance(node, ast.Import):
            names |= {".".join(alias.name.split(".")[1:]) for alias in node.names if alias.name.startswith("mechdiff.")}
    return names & set(modules())


def test_the_readme_lists_every_module_once() -> None:
    assert sorted(ORDER) == modules()


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_modules_above_it(module: str) -> None:
    below = [name for name in imported(module) if ORDER.index(name) >= ORDER.index(module)]
    assert not below, f"{module} imports {below}, which come after it in the reading order"


@pytest.mark.parametrize("module", [name for name in modules() if "." in name])
def test_nobody_inside_imports_the_facade(module: str) -> None:
    tree = ast.parse((SOURCE / (module.replace(".", "/") + ".py")).read_text())
    facade = [n for n in ast.walk(tree) if isinstance(n, ast.Import) and any(alias.name == "mechdiff" for alias in n.names)]
    assert not facade


def test_package_files_are_empty() -> None:
    for path in SOURCE.glob("*/__init__.py"):
        assert not path.read_text().strip(), path


@pytest.mark.parametrize(
    "folder", ["study.config", "study.artifacts", "engine.sites", "engine.families", "report.statistics", "cli", "rows"]
)
def test_no_torch_where_none_is_needed(folder: str) -> None:
    import subprocess
    import sys

    code = f"import sys, mechdiff.{folder}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
