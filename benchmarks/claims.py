"""What the README and the docs claim, the command that shows it, and the number that it gave.

    make claims                                 every command, about half an hour on two cores; writes docs/CLAIMS.md
    python benchmarks/claims.py --only NAME     one claim; the others keep their numbers

Exit code 1 where a number is not what is claimed. A claim's number is taken from what its command prints; where there is none to take, it is the
seconds that the command took.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOUND, PAGE = ROOT / "benchmarks" / "claims.json", ROOT / "docs" / "CLAIMS.md"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence, and what shows it."""

    says: str
    command: str
    number: str | None
    """What the number is in what the command prints: a pattern with one group, whose worst match counts. None: the seconds."""
    least: float | None = None
    most: float | None = None
    """What the number must be."""
    runs: str = "make claims"
    """Where the command runs by itself."""

    def worst(self, printed: str, seconds: float) -> float:
        """The number that comes nearest to failing; NaN where the command prints none."""
        if self.number is None:
            return seconds
        numbers = [float(one.replace(",", "")) for one in re.findall(self.number, printed, re.MULTILINE)]
        return (min(numbers) if self.least is not None else max(numbers)) if numbers else float("nan")

    def holds(self, number: float) -> bool:
        return (self.least is None or number >= self.least) and (self.most is None or number <= self.most)

    @property
    def asked(self) -> str:
        """What the number must be, in words."""
        parts = [f"{sign} {limit:,g}" for sign, limit in (("≥", self.least), ("≤", self.most)) if limit is not None]
        return " and ".join(parts)


CLAIMS: dict[str, Claim] = {
    "planted": Claim(
        says="Every planted truth comes out, in a network made in code (30 truths)",
        command="mechdiff validate", number=r"^(\d+) truths, \d+ checks: all hold", least=30, runs="CI",
    ),
    "planted-seconds": Claim(says="... in under four minutes on two cores, seconds", command="mechdiff validate", number=None, most=240),
    "planted-real": Claim(
        says="Those that hold in any model come out in SmolLM2-135M (9 truths)",
        command="mechdiff validate --real --no-power", number=r"^(\d+) truths, \d+ checks: all hold", least=9,
    ),
    "properties": Claim(
        says="Laws hold for drawn families, sites, positions, dtypes and spectra (hypothesis): tests that pass",
        command="python -m pytest -p no:xdist tests/properties", number=r"^(\d+) passed", least=40, runs="CI",
    ),
    "faults": Claim(
        says="Faults that a prototype published are refused, warned of or cannot be expressed: tests that pass",
        command="python -m pytest -p no:xdist tests/prototype", number=r"^(\d+) passed", least=50, runs="CI",
    ),
    "others": Claim(
        says="Patches, CKA, maps, divergences and integrated gradients equal eight other libraries': comparisons that pass",
        command="make oracles", number=r"^(\d+) passed", least=21, runs="CI",
    ),
    "nulls": Claim(
        says="Tests raise no more false alarms than they say, and intervals hold the truth: simulations that hold",
        command="make validate-long", number=r"^(\d+) tests and intervals, 0 do not hold", least=29, runs="CI, 200 studies each",
    ),
    "replay": Claim(
        says="A patched forward pass by replay, against the fastest other tool in the same run: times as fast",
        command="make bench", number=r"^\| \*\*mechdiff replay\*\*, 90 variants a prompt \| 720 \| [\d.]+ \| ([\d.]+)", least=100,
    ),
    "heads": Claim(
        says="The map of every head in both directions, against whole hooked passes: times as fast",
        command="python benchmarks/heads.py", number=r"min, (\d+) times", least=40,
    ),
    "rank": Claim(
        says="Rank of the change, against d x d matrices: times as fast",
        command="python benchmarks/regression.py --layers 6", number=r"([\d.]+) times as long", least=3,
    ),
    "summary": Claim(
        says="Five million rows to intervals, seconds",
        command="python benchmarks/summarise.py", number=r"numbers: ([\d.]+) s", most=60,
    ),
    "memory": Claim(
        says="... GiB at most", command="python benchmarks/summarise.py", number=r"s, ([\d.]+) GiB at most", most=4,
    ),
    "log-t": Claim(
        says="Coverage of the 95 % interval of a geometric mean, least of 20 settings of 2,000 studies each, %",
        command="python benchmarks/coverage.py", number=r"([\d.]+)% \|$", least=93,
    ),
    "demo": Claim(
        says="Two real fine-tunes with every measure, and their comparison, on two cores, seconds",
        command="mechdiff demo --contrast --out runs/claims", number=None, most=480,
    ),
    "verify": Claim(
        says="Published numbers come out of whole hooked forward passes, one at a time: rows that agree, of 200 drawn",
        command="mechdiff verify runs/claims/kazakh --rows 200", number=r"^(\d+) rows and \d+ answers: all agree", least=150,
    ),
    "report": Claim(says="A report is built from a run's folder in, seconds", command="mechdiff report runs/claims/kazakh", number=None, most=25),
    "resume": Claim(
        says="A run killed at a random moment goes on, gives the same bits and computes nothing finished again: of 3 kills (50: docs/RELIABILITY.md)",
        command="python benchmarks/reliability.py --kills 3", number=r"^3 kills: (\d+) right", least=3, runs="CI",
    ),
    "ray": Claim(
        says="The same bits on Ray with three nodes, a worker killed and a node gone: tests that pass",
        command="python -m pytest -p no:xdist -m 'not gpu' tests/study/test_on_ray.py", number=r"^(\d+) passed", least=7, runs="CI",
    ),
    "moments": Claim(
        says="A stream of a million rows at d = 576 into sums: rows a second",
        command="python benchmarks/moments.py", number=r"([\d,]+) rows/s", least=5000,
    ),
    "flat": Claim(
        says="... MiB more in memory after all rows than after a tenth",
        command="python benchmarks/moments.py", number=r"MiB: ([\d,-]+) MiB more", most=50,
    ),
    "rounded": Claim(
        says="Matrices in 8 and 4 bits: what they are, every measure of states, adapters, files stored so: tests that pass",
        command="python -m pytest -p no:xdist tests/models/test_quantization.py", number=r"^(\d+) passed", least=15, runs="CI",
    ),
    "plan": Claim(
        says="What `mechdiff plan` foretells of five studies is off by at most, %",
        command="python benchmarks/scale.py", number=r"^plan and run at most (\d+)% apart", most=30,
    ),
}  # fmt: skip
"""In the order in which they run: later ones use what earlier ones left."""


@cache
def run(command: str) -> tuple[int, str, float]:
    """Exit code, what was printed, seconds; each command runs once."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    started = time.perf_counter()
    done = subprocess.run(
        command, shell=True, cwd=ROOT, env={**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, time.perf_counter() - started


def measure(claim: Claim) -> dict[str, float]:
    """A claim's number, the seconds of its command and its exit code."""
    code, printed, seconds = run(claim.command)
    number = claim.worst(printed, seconds)
    if code or not claim.holds(number):
        print(printed[-3000:], f"\n{claim.command}: exit code {code}, {number:g} where {claim.asked} is claimed", file=sys.stderr)
    return {"number": float(f"{number:.4g}"), "seconds": round(seconds, 1), "exit": code}


def page(found: dict[str, dict[str, float]]) -> str:
    """docs/CLAIMS.md."""
    lines = [
        "# Claims",
        "",
        "What the README and these pages claim, the command that shows it, and what it gave when it last ran. Written by `make claims`",
        "(`benchmarks/claims.py`); what says CI runs there on every change.",
        "",
        "| claim | command | found | must be | seconds of the command | runs |",
        "|---|---|---|---|---|---|",
    ]
    for name, claim in CLAIMS.items():
        one = found[name]
        lines.append(f"| {claim.says} | `{claim.command}` | {one['number']:,g} | {claim.asked} | {one['seconds']:g} | {claim.runs} |")
    return "\n".join([*lines, "", f"Measured on {platform.machine()}, {os.cpu_count()} cores, no GPU.", ""])


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--only", nargs="*", choices=list(CLAIMS), default=list(CLAIMS))
    found = json.loads(FOUND.read_text()) if FOUND.is_file() else {}
    done: dict[str, dict[str, float]] = {}
    for name in asked.parse_args().only:
        claim = CLAIMS[name]
        found[name] = measure(claim)
        done[name] = found[name]
        print(f"{name}: {found[name]['number']:g} ({claim.asked}), {found[name]['seconds']:g} s", flush=True)
        FOUND.write_text(json.dumps(found, indent=1) + "\n")
    if set(CLAIMS) <= set(found):
        PAGE.write_text(page(found))
    sys.exit(any(one["exit"] or not CLAIMS[name].holds(one["number"]) for name, one in done.items()))


if __name__ == "__main__":
    main()
