"""This script prints how large and how tangled the package is, each bar beside its limit, and names what is over: `make shape`."""

import ast
import io
import keyword
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import combinations

import imports

RUN = 6
"""Lines of code that make a repeated run."""
COMMON = 8
"""A run that stands in more places than this is an idiom, no copy."""


@dataclass(frozen=True)
class Bar:
    """One count of the package and how high it may be; `over` names what to mend where it is higher."""

    name: str
    value: int
    limit: int
    over: list[str] = field(default_factory=list)


def folders() -> Bar:
    """Files that lie directly in a folder, templates included; an empty `__init__.py` is none."""
    files = (
        path for path in imports.SOURCE.rglob("*") if path.is_file() and path.name != "__init__.py" and "__pycache__" not in path.parts
    )
    return largest("files in the largest folder", 20, Counter(str(path.parent.relative_to(imports.SOURCE)) for path in files).items())


def file_lines() -> Bar:
    lines = ((name, len(imports.file_of(name).read_text().splitlines())) for name in imports.modules())
    return largest("lines of the longest file", 350, lines)


def function_lines() -> Bar:
    """Lines of a function from `def` to its end, its docstring included."""
    lines = ((f"{module}.{f.name}", f.end_lineno - f.lineno + 1) for module, f in functions())
    return largest("lines of the longest function", 60, lines)


def parameters() -> Bar:
    """Functions with seven parameters or more; `self` and `cls` count for none, nor do the options of a command."""
    many = []
    for module, f in functions():
        if module.startswith("cli."):
            continue
        names = [one.arg for one in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs, f.args.vararg, f.args.kwarg) if one]
        count = len([name for name in names if name not in ("self", "cls")])
        if count >= 7:
            many.append(f"{module}.{f.name}: {count}")
    return Bar("functions with seven parameters or more", len(many), 12, many)


def readme() -> Bar:
    return Bar("lines of the README", len((imports.ROOT / "README.md").read_text().splitlines()), 80)


def circles() -> Bar:
    """Modules, then entries of the reading order, that import each other."""
    rooms = defaultdict(set)
    for module in imports.modules():
        rooms[imports.room(module)] |= {imports.room(name) for name in imports.imported(module)} - {imports.room(module)}
    found = []
    for graph in ({module: imports.imported(module) for module in imports.modules()}, rooms):
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            found.append(" <- ".join(error.args[1]))
    return Bar("circles of imports", len(found), 0, found)


def arrows() -> Bar:
    """Imports of a folder that comes later in the reading order, late ones and a page's texts included."""
    found = [f"{module} -> {name}" for module in imports.modules() for name in imports.upward(module)]
    return Bar("imports against the reading order", len(found), 0, found)


def repeats() -> Bar:
    """Pairs of functions that share six lines of code or more.

    Lines are compared by their shape: names, strings and numbers count for one each, keywords and operators for themselves. Only lines of
    functions are compared, signatures included; docstrings, comments, imports, decorators, fields of classes, blank lines and lone brackets are
    passed over. A run may go on into the next function; runs of the same two functions, and runs that overlap in both places, count once. What
    stands in more than eight places is an idiom, no copy.
    """
    places = defaultdict(list)
    for module in imports.modules():
        lines = list(shapes(module))
        for start in range(len(lines) - RUN + 1):
            part = lines[start : start + RUN]
            places[tuple(line.shape for line in part)].append((start, part[0], part[-1]))
    runs: list[Run] = []
    for found in places.values():
        for (i, first, last), (j, other, end) in combinations(found, 2) if len(found) <= COMMON else ():
            if first.module != other.module or j - i >= RUN:
                runs.append(Run((first, last), (other, end)))
    joined: list[Run] = []
    for run in sorted(runs, key=lambda run: (run.here, run.there)):
        for place, one in enumerate(joined):
            if run.meets(one):
                joined[place] = one.with_(run)
                break
        else:
            joined.append(run)
    joined.sort(key=lambda run: run.here[0].number - run.here[1].number)
    return Bar("pairs of functions that share six lines", len(joined), 20, [str(run) for run in joined])


@dataclass(frozen=True, order=True)
class Line:
    """One line of code of a function, as repeats are looked for."""

    module: str
    number: int
    function: str
    shape: str


@dataclass(frozen=True)
class Run:
    """The same lines in two places, each from its first to its last."""

    here: tuple[Line, Line]
    there: tuple[Line, Line]

    def meets(self, other: "Run") -> bool:
        """Whether both places are those of another run: the same two functions, or the same lines."""
        pairs = ((self.here, other.here), (self.there, other.there))
        same = all(a[0].function == b[0].function for a, b in pairs)
        return same or all(a[0].module == b[0].module and a[0].number <= b[1].number and b[0].number <= a[1].number for a, b in pairs)

    def with_(self, other: "Run") -> "Run":
        here, there = ((min(a[0], b[0]), max(a[1], b[1])) for a, b in ((self.here, other.here), (self.there, other.there)))
        return Run(here, there)

    def __str__(self) -> str:
        return " ~ ".join(f"{first.module}:{first.number}-{last.number}" for first, last in (self.here, self.there))


def shapes(module: str) -> Iterator[Line]:
    """Lines of code of a module's functions, in order."""
    source = imports.file_of(module).read_text()
    owner: dict[int, str] = {}
    passed: set[int] = set()
    for node in imports.nodes(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            owner |= dict.fromkeys(range(node.lineno, node.end_lineno + 1), f"{module}.{node.name}:{node.lineno}")
        said = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if said or isinstance(node, ast.Import | ast.ImportFrom):
            passed |= set(range(node.lineno, node.end_lineno + 1))
    parts = defaultdict(list)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        name = token.type == tokenize.NAME and not keyword.iskeyword(token.string)
        if name or token.type in (tokenize.STRING, tokenize.NUMBER):
            parts[token.start[0]].append("_")
        elif token.type in (tokenize.NAME, tokenize.OP):
            parts[token.start[0]].append(token.string)
    for number, part in sorted(parts.items()):
        if number in owner and number not in passed and any(text == "_" or text.isalpha() for text in part):
            yield Line(module, number, owner[number], " ".join(part))


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function of the package with its module, methods and inner ones included."""
    for module in imports.modules():
        for node in imports.nodes(module):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield module, node


def largest(name: str, limit: int, sizes: Iterable[tuple[str, int]]) -> Bar:
    """The largest of these sizes; those over the limit are named, the largest first."""
    found = sorted(sizes, key=lambda one: one[1], reverse=True)
    return Bar(name, found[0][1] if found else 0, limit, [f"{what}: {size}" for what, size in found if size > limit])


def bars() -> list[Bar]:
    return [folders(), file_lines(), function_lines(), parameters(), readme(), repeats(), circles(), arrows()]


def main() -> int:
    found = bars()
    for bar in found:
        print(f"{bar.name:42} {bar.value:5}   at most {bar.limit:3}{'   OVER' if bar.value > bar.limit else ''}")
    for bar in found:
        if bar.value > bar.limit or "-v" in sys.argv:
            print(f"\n{bar.name}:", *bar.over, sep="\n  ")
    return int(any(bar.value > bar.limit for bar in found))


if __name__ == "__main__":
    sys.exit(main())
