"""Do two commits compute the same? Both run one study of every measure on the same tiny pair (tests/every_measure.py); what they wrote is compared.

python benchmarks/same_rows.py                 HEAD~1 and HEAD
python benchmarks/same_rows.py step1 .         a tag, and the working tree as it stands
It exits 1 where the names of cells or the bytes of rows.parquet differ; --summary and --page make these two count as well. About two minutes.
"""

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from difflib import unified_diff
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

ROOT = Path(__file__).resolve().parent.parent
RUN = """
import sys, mechdiff
assert mechdiff.__file__.startswith(sys.argv[1]), f"{mechdiff.__file__} was imported, not what lies in {sys.argv[1]}"
mechdiff.run("study.yaml", out=sys.argv[2])
"""
CLOCK = re.compile(r'<th scope="row">(seconds|started, finished)</th>\s*<td>[^<]*</td>')
SHOWN = 5
"""Differences that are printed of each kind."""
WIDE = 150
"""Characters of a line of the page."""


def source(commit: str, place: Path) -> Path:
    """The folder `src` of a commit, unpacked in `place`; of the working tree where the commit is a dot."""
    if commit == ".":
        return ROOT / "src"
    packed = subprocess.run(["git", "archive", commit, "src"], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(place, filter="data")
    return place / "src"


def study(place: Path, sources: dict[str, Path]) -> dict[str, Path]:
    """Side -> the folder of the run that its code makes of `place`/study.yaml. Both run at the same time."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    started = {
        side: subprocess.Popen([sys.executable, "-c", RUN, str(src), f"{side} run"], cwd=place, env={**env, "PYTHONPATH": str(src)})
        for side, src in sources.items()
    }
    failed = [side for side, process in started.items() if process.wait()]
    if failed:
        sys.exit(f"the {' and the '.join(failed)} code did not finish the study: see above")
    return {side: place / f"{side} run" for side in sources}


def cells(run: Path) -> dict[str, str]:
    """Name of each cell -> its stage."""
    planned = {cell["name"]: cell["stage"] for cell in json.loads((run / "cells" / "plan.json").read_text())["cells"]}
    return {folder.name: planned.get(folder.name, "not in the plan") for folder in (run / "cells").iterdir() if folder.is_dir()}


def page(run: Path) -> str:
    """The page without what the clock said, a line a tag."""
    return CLOCK.sub("", (run / "report.html").read_text()).replace("><", ">\n<")


def hashed(run: Path) -> dict[str, str]:
    """What is compared -> its SHA-256."""
    return {
        "cells": sha256("\n".join(sorted(cells(run))).encode()).hexdigest(),
        "rows": sha256((run / "rows.parquet").read_bytes()).hexdigest(),
        "summary": sha256((run / "summary.parquet").read_bytes()).hexdigest(),
        "page": sha256(page(run).encode()).hexdigest(),
    }


def differences(old: Path, new: Path) -> list[str]:
    """Sentences that say which cells, rows and lines of the page are not the same."""
    said = []
    for here, there, side in ((old, new, "old"), (new, old, "new")):
        for stage in sorted({stage for name, stage in cells(here).items() if name not in cells(there)}):
            said.append(f"{stage}: cells that only {side} has")
    tables = [pl.read_parquet(run / "rows.parquet") for run in (old, new)]
    key = [name for name in tables[0].columns if name != "value"]
    if tables[1].columns != tables[0].columns:
        return [*said, f"columns of rows: {tables[0].columns}, {tables[1].columns}"]
    for here, there, side in ((*tables, "old"), (*tables[::-1], "new")):
        alone = here.join(there, on=key, how="anti", nulls_equal=True)
        kinds = alone.group_by("measure", "metric").len().sort("len", descending=True)
        said += [f"{n} rows of {measure}, {metric}, that only {side} has" for measure, metric, n in kinds.head(SHOWN).rows()]
    both = tables[0].join(tables[1], on=key, nulls_equal=True, suffix="_new").filter(~pl.col("value").eq_missing(pl.col("value_new")))
    kinds = both.group_by("measure", "metric").len().sort("len", descending=True)
    said += [f"{n} values of {measure}, {metric}, differ" for measure, metric, n in kinds.head(SHOWN).rows()]
    lines = unified_diff(*(page(run).splitlines() for run in (old, new)), n=0, lineterm="")
    changed = [line[:WIDE] for line in lines if not line.startswith(("---", "+++", "@@"))]
    return said + [f"page: {line}" for line in changed[: 2 * SHOWN]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", nargs="?", default="HEAD~1", help="a commit, or . for the working tree")
    parser.add_argument("new", nargs="?", default="HEAD", help="likewise")
    parser.add_argument("--summary", action="store_true", help="fail where summary.parquet differs")
    parser.add_argument("--page", action="store_true", help="fail where report.html differs")
    asked = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    from every_measure import made

    with TemporaryDirectory() as temporary:
        place = Path(temporary).resolve()
        made(place)
        runs = study(place, {"old": source(asked.old, place / "old"), "new": source(asked.new, place / "new")})
        here, there = (hashed(run) for run in runs.values())
        print(f"| what | {asked.old} | {asked.new} | same |\n|---|---|---|---|")
        for what in here:
            print(f"| {what} | {here[what][:12]} | {there[what][:12]} | {'yes' if here[what] == there[what] else 'NO'} |")
        print("\n".join(differences(**runs)))
    counted = ["cells", "rows", *(["summary"] if asked.summary else []), *(["page"] if asked.page else [])]
    sys.exit(any(here[what] != there[what] for what in counted))


if __name__ == "__main__":
    main()
