"""What a report costs to build at two commits, from the same run's folder: processor time and memory.

python benchmarks/page.py OLD NEW RUN [--pairs 4]      a commit, or . for the working tree; some minutes; prints lines for docs/SPEED.md

Each build is a process of its own on a copy of RUN, old and new in turn. "Page" is what `build_report` takes, the whole process has Python's start
and the imports too.
It exits 1 where the new page takes more than half of the old one's processor time, by medians.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from same_rows import source

AT_MOST = 0.5
MEASURED = ("page", "process", "MB")
"""CPU seconds of the page and of the whole process, and the most memory that it took."""
BUILD = """
import json, resource, sys, time
from pathlib import Path
from mechdiff import api
assert api.__file__.startswith(sys.argv[1]), f"{api.__file__} was imported, not what lies in {sys.argv[1]}"
started = time.process_time()
page = api.Run(Path(sys.argv[2])).report()
ended = time.process_time()
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"page": ended - started, "process": ended, "MB": most, "page_MB": page.stat().st_size / 1e6}))
"""


def built(src: Path, run: Path) -> dict[str, float]:
    """CPU seconds of the page and of the whole process, the most memory that it took, and the page's size."""
    env = {**os.environ, "PYTHONPATH": str(src), "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    env |= {
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(run.parent / "compiled"),
    }  # as installed: compiled once, which is not counted
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(src)], env=env, check=True)
    done = subprocess.run([sys.executable, "-c", BUILD, str(src), str(run)], env=env, cwd=run.parent, check=True, capture_output=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def lines(commits: dict[str, str], found: dict[str, list[dict[str, float]]]) -> list[str]:
    """A table: medians, with the least and the most."""
    rows = ["| build | page, CPU s | whole process, CPU s | largest memory, MB | page, MB |", "|---|---|---|---|---|"]
    for side, commit in commits.items():
        cells = []
        for name, digits in (("page", 1), ("process", 1), ("MB", 0), ("page_MB", 1)):
            values = [one[name] for one in found[side]]
            span = "" if name == "page_MB" else f" ({min(values):.{digits}f} to {max(values):.{digits}f})"
            cells.append(f"{statistics.median(values):.{digits}f}{span}")
        rows.append(f"| {commit} | {' | '.join(cells)} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("old", "new"):
        parser.add_argument(name, help="a commit, or . for the working tree")
    parser.add_argument("run", type=Path, help="a finished run's folder, which is copied")
    parser.add_argument("--pairs", type=int, default=4)
    asked = parser.parse_args()
    commits = {"old": asked.old, "new": asked.new}
    found: dict[str, list[dict[str, float]]] = {side: [] for side in commits}
    with TemporaryDirectory() as temporary:
        place = Path(temporary).resolve()
        sources = {side: source(commit, place / f"{side} source") for side, commit in commits.items()}
        for side in commits:
            shutil.copytree(asked.run, place / side, ignore=shutil.ignore_patterns("cells", "figures", "report.html"))
        for pair in range(asked.pairs):
            for side, src in sources.items():
                found[side].append(built(src, place / side))
                print(f"pair {pair + 1}, {commits[side]}: {found[side][-1]}", file=sys.stderr, flush=True)
    print("\n".join(lines(commits, found)))
    ratios = [
        statistics.median(one[name] for one in found["new"]) / statistics.median(one[name] for one in found["old"]) for name in MEASURED
    ]
    print(
        f"\n{ratios[0]:.2f} times the processor time of the page (at most {AT_MOST}), {ratios[1]:.2f} of the process, {ratios[2]:.2f} the memory."
    )
    sys.exit(ratios[0] > AT_MOST)


if __name__ == "__main__":
    main()
