"""`make shape` counts what it says, and names what is over a limit."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COPIED = """def {name}({first}):
    total = 0
    for one in {first}:
        if one > {number}:
            total += one
    left = total - {number}
    return left
"""


def shape(root: Path) -> tuple[int, str]:
    run = subprocess.run([sys.executable, root / "tools" / "shape.py"], capture_output=True, text=True, check=False)
    assert not run.stderr, run.stderr
    return run.returncode, run.stdout


def package(root: Path, files: dict[str, str]) -> Path:
    """A package of two folders, `low` above `high` in the reading order, with these files."""
    shutil.copytree(ROOT / "tools", root / "tools")
    tree = "```\nsrc/mechdiff/\n  low/      below\n  high/     above\n```\n"
    for name, text in {"README.md": "One.\n", "docs/ARCHITECTURE.md": tree, "src/mechdiff/low/__init__.py": "", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_small_package_is_within_every_limit(tmp_path: Path) -> None:
    code, said = shape(package(tmp_path, {"src/mechdiff/low/a.py": "A = 1\n", "src/mechdiff/high/b.py": "from mechdiff.low import a\n"}))
    assert code == 0
    assert "OVER" not in said


def test_what_is_over_a_limit_is_named(tmp_path: Path) -> None:
    code, said = shape(
        package(
            tmp_path,
            {
                "README.md": "line\n" * 81,
                "src/mechdiff/low/long.py": "A = 1\n" * 351,
                "src/mechdiff/low/up.py": "def late():\n    from mechdiff.high import down\n",
                "src/mechdiff/high/down.py": "from mechdiff.low.up import late\n",
                "src/mechdiff/high/page.py": 'HERE = "mechdiff.high"\nPLACE = f"{HERE}.down:late"\n',
                "src/mechdiff/high/run.py": "def run():\n" + "    print(1)\n" * 60,
                "src/mechdiff/cli/verb.py": "def verb(a, b, c, d, e, f, g, h): ...\n",
                **{f"src/mechdiff/high/many{i}.py": f"def many{i}(a, b, c, d, e, f, g): ...\n" for i in range(20)},
            },
        )
    )
    assert code == 1
    for line in (
        "files in the largest folder 23 at most 20 OVER",
        "lines of the longest file 351 at most 350 OVER",
        "lines of the longest function 61 at most 60 OVER",
        "functions with seven parameters or more 20 at most 12 OVER",
        "lines of the README 81 at most 80 OVER",
        "circles of imports 2 at most 0 OVER",
        "imports against the reading order 1 at most 0 OVER",
    ):
        assert line in [" ".join(said_line.split()) for said_line in said.splitlines()], said
    for name in ("  high: 23", "  low.long: 351", "  high.run.run: 61", "  high.many0.many0: 7", "  low.up -> high.down"):
        assert name in said.splitlines(), said


def test_a_copy_counts_whatever_its_names_and_numbers(tmp_path: Path) -> None:
    twice = {f"src/mechdiff/low/{name}.py": COPIED.format(name=name, first=f"of_{name}", number=n) for n, name in enumerate(("one", "two"))}
    package(tmp_path, twice)
    _, said = shape(tmp_path)
    assert "functions that share six lines 1 " in " ".join(said.split())
    (tmp_path / "src/mechdiff/low/two.py").write_text(twice["src/mechdiff/low/two.py"].replace("total +=", "total -="))
    _, said = shape(tmp_path)
    assert "functions that share six lines 0 " in " ".join(said.split())


@pytest.mark.slow
def test_the_package_is_within_its_bars() -> None:
    code, said = shape(ROOT)
    assert code == 0, said
