"""A tutorial is a notebook: this module runs it, writes what it printed into it, and makes a page of it.

A cell whose first line is `%%bash` is a command of the shell; any other is Python, and all cells of a notebook share one scope. What is written
back is text alone, so that the files stay small and a change of one line is a change of one line.
"""

import ast
import contextlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LONGEST = 60
"""Lines of an output that a page shows; the rest is counted."""
PATH = re.compile(r"(?<![\w./:-])/(?:[\w.@+-]+/)+([\w.@+-]+)")
"""A path from the root, of which its last part is kept: the rest is of one machine."""
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


def read(path: Path) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(path.read_text())
    return notebook


def cells(notebook: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(kind, source, what was printed) of each cell."""
    for cell in notebook["cells"]:
        printed = "".join("".join(one.get("text") or one.get("data", {}).get("text/plain", "")) for one in cell.get("outputs", ()))
        yield cell["cell_type"], "".join(cell["source"]), printed


def page(notebook: dict[str, Any], name: str) -> str:
    """The notebook as Markdown, each output under its cell."""
    said = []
    for kind, source, printed in cells(notebook):
        if kind == "markdown":
            said.append(source)
            continue
        shell = source.startswith("%%bash\n")
        said.append(f"```{'bash' if shell else 'python'}\n{source.removeprefix('%%bash').strip()}\n```")
        if printed.strip():
            said.append(f"```text\n{shortened(printed)}\n```")
    said.append(f"*This page is a notebook: [{name}.ipynb]({name}.ipynb). What stands under its cells is what they printed.*")
    return "\n\n".join(said) + "\n"


def shortened(printed: str) -> str:
    lines = printed.strip("\n").splitlines()
    return "\n".join(lines if len(lines) <= LONGEST else [*lines[:LONGEST], f"... and {len(lines) - LONGEST} lines more"])


def pages(folder: Path) -> dict[str, str]:
    """tutorials/NAME.md of each notebook of a folder."""
    return {f"tutorials/{path.stem}.md": page(read(path), path.stem) for path in sorted(folder.glob("*.ipynb"))}


# --- running ------------------------------------------------------------------------------------------------------------


def shell(command: str, folder: Path) -> str:
    """What a command prints on standard output; a command that fails is an error, as it is in a notebook."""
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, env=_environment(), check=False)
    if done.returncode:
        raise RuntimeError(f"exit {done.returncode} of\n{command}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def _environment() -> dict[str, str]:
    """Plain text, 120 characters wide, and this Python's programs first."""
    return {**os.environ, "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def python(source: str, scope: dict[str, Any]) -> str:
    """What a cell of Python prints, and the value of its last line where that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) and not source.rstrip().endswith(";") else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "<cell>", "exec"), scope)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), scope)  # type: ignore[attr-defined]
            if value is not None:
                print(value if isinstance(value, str) or hasattr(value, "columns") else repr(value))
    return printed.getvalue()


def run(notebook: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The notebook with what its cells print, run from the top in a folder."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    made = []
    with contextlib.chdir(folder):
        for number, cell in enumerate(notebook["cells"]):
            source = "".join(cell["source"])
            if cell["cell_type"] == "code":
                try:
                    printed = shell(source.removeprefix("%%bash\n"), folder) if source.startswith("%%bash\n") else python(source, scope)
                except BaseException as error:
                    error.add_note(f"in cell {number}:\n{source}")
                    raise
                printed = PATH.sub(r"\1", CONTROL.sub("", printed).replace(f"{folder}/", ""))
                text = [line.rstrip() + "\n" for line in printed.rstrip().splitlines()]
                cell = cell | {"outputs": [{"name": "stdout", "output_type": "stream", "text": text}] if text else []}
            made.append(cell)
    return notebook | {"cells": made}


def write(notebook: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    """Runs the notebooks that are named, all of one call in one new folder, and writes what they printed into them."""
    import tempfile

    paths = [Path(name).resolve() for name in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            write(run(read(path), Path(folder)), path)
            print(path)


if __name__ == "__main__":
    main()
