"""The measure that docs/ARCHITECTURE.md works through is added to a copy of the package as the page says: it works, and touches no other file."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml

import every_measure

pytestmark = pytest.mark.ci

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
KINDS = ("sums", "prose")
RUN = """
import json, sys, mechdiff
from pathlib import Path
place = Path(sys.argv[1])
assert str(place) in mechdiff.__file__, f"{mechdiff.__file__} was imported, not the copy"
run = mechdiff.run(place / "pico" / "study.yaml", out=place / "run")
verified = mechdiff.verify(place / "run", rows=None)
print(json.dumps({"passed": verified.passed, "table": verified.table()}))
"""


def files() -> dict[str, str]:
    """What each file of the example holds, as the page has it."""
    found = {"__init__.py": ""}
    for name, text in re.findall(r"^\*\*\d\.\*\* `kinds/([\w.]+)`(?:(?!^\*\*\d).)*?^```\w+\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        found[name] = text
    return found


def entered(catalogue: str) -> str:
    """The catalogue with the page's line as the last of its list."""
    (line,) = re.findall(r'^ +"mechdiff\.measures\.kinds\.measure:KINDS",\n', PAGE, re.MULTILINE)
    listed, after = re.split(r"(?<=,\n)(?=\)\n)", catalogue, maxsplit=1)
    return listed + line + after


def study_of_kinds(place: Path) -> None:
    """The pico pair, six prompts of each kind, and a study of `kinds` alone."""
    place.mkdir()
    study = yaml.safe_load(every_measure.made(place).read_text())
    lines = [every_measure.prompt(number) | {"meta": {"kind": KINDS[number % 2]}} for number in range(12)]
    (place / "report.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    study |= {"prompts": {"report": "report.jsonl"}, "measures": ["kinds"]}
    (place / "study.yaml").write_text(yaml.safe_dump(study))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the measure added, and a finished run of it."""
    place = tmp_path_factory.mktemp("worked")
    shutil.copytree(ROOT / "src", place / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    package = place / "src" / "mechdiff" / "measures"
    (package / "kinds").mkdir()
    for name, text in files().items():
        (package / "kinds" / name).write_text(text)
    (package / "catalogue.py").write_text(entered((package / "catalogue.py").read_text()))
    study_of_kinds(place / "pico")
    env = {**os.environ, "PYTHONPATH": str(place / "src"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", RUN, str(place)], env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (place / "verified.json").write_text(run.stdout.splitlines()[-1])
    return place


def test_the_example_has_eight_files() -> None:
    assert sorted(files()) == ["__init__.py", "compute.py", "findings.py", "measure.py", "page.py", "plan.py", "reading.html", "verify.py"]


def test_nothing_is_touched_but_the_folder_and_one_line(place: Path) -> None:
    def held(root: Path) -> dict[str, str]:
        texts = (path for path in root.rglob("*") if path.suffix in (".py", ".html", ".css", ".js"))
        return {str(path.relative_to(root)): path.read_text() for path in texts}

    old, new = held(ROOT / "src" / "mechdiff"), held(place / "src" / "mechdiff")
    changed = {name for name in old | new if old.get(name) != new.get(name)}
    assert changed == {"measures/catalogue.py", *(f"measures/kinds/{name}" for name in files())}
    lines = [text["measures/catalogue.py"].splitlines() for text in (old, new)]
    assert len(lines[1]) == len(lines[0]) + 1
    assert len(set(lines[1]) - set(lines[0])) == 1, "its page, in the list"


def test_its_rows_are_summarised_by_kind(place: Path) -> None:
    summary = pl.read_parquet(place / "run" / "summary.parquet").filter(measure="kinds")
    assert summary.select("unit", "n").sort("unit").rows() == [("prose", 6), ("sums", 6)]
    rows = pl.read_parquet(place / "run" / "rows.parquet")
    d = rows.filter(pl.col("unit").is_null(), measure="divergence", split="report", metric="kl_tuned_base_nats")
    assert rows.filter(measure="kinds").join(d, on="prompt").select((pl.col("value") - pl.col("value_right")).abs().max()).item() < 1e-9
    assert summary["ci_low"].null_count() == 0, "six prompts have an interval"


def test_its_section_stands_on_the_page(place: Path) -> None:
    page = (place / "run" / "report.html").read_text()
    section = page[page.index('<section id="kinds"') :].partition("</section>")[0]
    assert "On which kinds of prompt do they differ?" in section
    assert 'id="d_by_kind"' in section
    assert "How to read this" in section
    assert all(f">{kind}</th>" in section for kind in KINDS)


def test_its_rows_come_out_another_way(place: Path) -> None:
    verified = json.loads((place / "verified.json").read_text())
    assert verified["passed"]
    (kinds,) = [row for row in verified["table"] if row[0] == "kinds"]
    assert kinds[1:3] == [12, 0], "every row, none left out"
