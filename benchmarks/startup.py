"""How long does it take until `mechdiff` is imported, and until its help stands, beside another build of it?

    python benchmarks/startup.py [--beside OTHER/src] [--times 9]

Each command runs in a process of its own, both builds in turn, so that both meet the same machine; the smallest of `--times` runs counts, and the
seconds of the processor beside those of the clock.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1] / "src"
HELP = """import sys
sys.argv = ["mechdiff", "--help"]
try:
    from mechdiff.cli.main import main
except ModuleNotFoundError:  # builds of one file
    from mechdiff.cli import main
main()"""
COMMANDS = {"import mechdiff": "import mechdiff", "mechdiff --help": HELP}


def seconds(code: str, source: Path) -> tuple[float, float]:
    """By the clock, and of the processor."""
    before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(source)}, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--times", type=int, default=9)
    asked = parser.parse_args()
    builds = {"this build": HERE, **({"the other": asked.beside} if asked.beside else {})}
    for name, code in COMMANDS.items():
        took: dict[str, list[tuple[float, float]]] = {build: [] for build in builds}
        for _ in range(asked.times):
            for build, source in builds.items():
                took[build].append(seconds(code, source))
        best = {build: tuple(min(one[place] for one in all_of) for place in (0, 1)) for build, all_of in took.items()}
        for build, (clock, processor) in best.items():
            print(f"{name:16} {build:11} {clock:.3f} s by the clock, {processor:.3f} s of the processor")
        if asked.beside:
            print(f"{name:16} ratio       {best['this build'][0] / best['the other'][0]:.2f} by the clock, "
                  f"{best['this build'][1] / best['the other'][1]:.2f} of the processor")  # fmt: skip


if __name__ == "__main__":
    main()
