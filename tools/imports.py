"""Modules of the package, what each imports, and the order in which docs/ARCHITECTURE.md lists their folders: read from the syntax alone."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "mechdiff"
KITS = ("prompts", "files", "models", "engine", "maps", "store", "statistics", "study", "report", "comparison", "audit")
"""Folders that know no measure."""


@cache
def reading_order() -> dict[str, str]:
    """Folders and top files in the order of the tree, with what is said of each: "rows", "engine", "measures.heads" and so on."""
    tree = re.search(r"```\nsrc/mechdiff/\n(.*?)```", (ROOT / "docs" / "ARCHITECTURE.md").read_text(), re.DOTALL)
    assert tree, "docs/ARCHITECTURE.md has no file tree that starts with src/mechdiff/"
    order, folder = {}, ""
    for line in tree[1].splitlines():
        entry = re.match(r"(  |    )(\w+)(/|\.py) +(.*)", line)
        assert entry, f"no entry of the tree: {line!r}"
        indent, name, kind, said = entry.groups()
        inner = indent == "    "
        if kind == "/" and name == "measures":
            folder = "measures."
            continue
        order[(folder if inner else "") + name] = said
    return order


@cache
def modules() -> tuple[str, ...]:
    """Every module of the package but its `__init__` files: "engine.replay"."""
    found = (path.relative_to(SOURCE).with_suffix("") for path in SOURCE.rglob("*.py") if path.name != "__init__.py")
    return tuple(sorted(".".join(path.parts) for path in found))


def file_of(module: str) -> Path:
    return SOURCE / (module.replace(".", "/") + ".py")


@cache
def syntax(module: str) -> ast.Module:
    return ast.parse(file_of(module).read_text())


@cache
def nodes(module: str) -> tuple[ast.AST, ...]:
    """Every node of a module's tree."""
    return tuple(ast.walk(syntax(module)))


def room(module: str) -> str:
    """The entry of the tree that a module belongs to."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "measures" else parts[0]


@cache
def imported(module: str, *, late: bool = True) -> frozenset[str]:
    """Modules of mechdiff that a module imports: anywhere in it, or where it is loaded; with places that its page names as text ("module:name")."""
    tree = syntax(module)
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    names = set()
    for node in nodes(module) if late else tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mechdiff":
            inside = ".".join(node.module.split(".")[1:])
            names |= {f"{inside}.{alias.name}".strip(".") for alias in node.names} | {inside}
        elif isinstance(node, ast.Import):
            names |= {".".join(alias.name.split(".")[1:]) for alias in node.names if alias.name.startswith("mechdiff.")}
        elif late:
            place = re.fullmatch(r"mechdiff\.([.\w]+):\w+", text(node, constants))
            names |= {place[1]} if place else set()
    return frozenset(names & set(modules()))


def text(node: ast.AST, constants: dict[str, str]) -> str:
    """The string that a node stands for: written out, or put together from constants of its module (f"{HERE}.compute:rows"); else nothing."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(text(part.value if isinstance(part, ast.FormattedValue) else part, constants) for part in node.values)
    return constants.get(node.id, "") if isinstance(node, ast.Name) else ""


def upward(module: str) -> list[str]:
    """Modules that `module` imports although their folder comes after its own in the reading order."""
    order = list(reading_order())
    return sorted(name for name in imported(module) if order.index(room(name)) > order.index(room(module)))
