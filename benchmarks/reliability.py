"""What a run survives: killed at random moments it goes on, gives the same bits, and computes nothing twice.

python benchmarks/reliability.py [--kills 50]      about ten minutes; the last line says how many came out right; writes docs/RELIABILITY.md

Each trial is a study of a tiny pair in a process of its own, killed (SIGKILL) at a random moment while it runs: before its first cell, between any
two, or behind the last; then run again to its end. Right is: the same rows, bit for bit, as the undisturbed run's; every cell computed once, but for
the one in flight.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import polars as pl

from mechdiff.validate import edits, made, planted

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "RELIABILITY.md"
MEASURES = ["divergence", "{similarity: {permutations: 20}}", "patching", "weights", "grafting", "{rank: {sites: [resid_post]}}"]


def write_study(folder: Path) -> Path:
    """A tiny planted pair, its prompts, and a study of it."""
    net, tokenizer = made.tiny_net(), made.byte_tokenizer(made.CHATML)
    made.save(net, tokenizer, folder / "base")
    made.save(planted.edited(net, edits.edit_attention), tokenizer, folder / "tuned")
    texts = [f"Say something about the number {i * 7919 % 1000}{'!' * (i % 5)}" for i in range(32)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"id": f"p{i}", "text": text}) + "\n" for i, text in enumerate(texts)))
    study = folder / "study.yaml"
    study.write_text(f"pair: {{base: base, tuned: tuned}}\nprompts: {{file: prompts.jsonl}}\nmeasures: [{', '.join(MEASURES)}]\n")
    return study


def started(study: Path, out: Path) -> subprocess.Popen[bytes]:
    """`mechdiff run` in a process of its own."""
    code = "from mechdiff.cli.main import main; main()"
    command = [sys.executable, "-c", code, "run", str(study), "--out", str(out), "--threads", "1"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def computed(out: Path) -> Counter[str]:
    """How often each cell was computed, by the log."""
    lines = (out / "log.txt").read_text(encoding="utf-8").splitlines() if (out / "log.txt").is_file() else []
    return Counter(line.split(" name=")[1].split()[0] for line in lines if " computed " in line)


def n_cells(out: Path) -> int:
    return len(list(out.glob("cells/[0-9a-f]*/cell.json")))


def watched(child: subprocess.Popen[bytes], out: Path, cells: int) -> bool:
    """Waits until so many cells are there; False where the run ended before that."""
    while n_cells(out) < cells:
        if child.poll() is not None:
            return False
        time.sleep(0.002)
    return True


def killed(study: Path, out: Path, cells: int, after: float) -> bool:
    """A run that is killed so many seconds after so many of its cells are there; False where it had ended by itself."""
    child = started(study, out)
    if watched(child, out, cells):
        time.sleep(after)
    alive = child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    return alive


def trials(n: int, folder: Path, seed: int = 0) -> dict[str, int]:
    """So many kills, each followed by a run to the end: how many came out right, and when they fell.

    One in four falls before the first cell, one in four behind the last (intervals, figures, the page), two at any cell between.
    """
    study, whole = write_study(folder), folder / "whole"
    begun = time.perf_counter()
    child = started(study, whole)
    assert watched(child, whole, 1)
    first = time.perf_counter() - begun
    assert child.wait() == 0
    expected, every = pl.read_parquet(whole / "rows.parquet"), n_cells(whole)
    behind = time.time() - max(file.stat().st_mtime for file in whole.glob("cells/*/cell.json"))
    draw, found = random.Random(seed), Counter[str]()
    while (i := sum(found[name] for name in WHEN)) < n:
        out = folder / f"killed{i}"
        shutil.rmtree(out, ignore_errors=True)
        cells, longest = ((0, first), (draw.randrange(1, every), 0.05), (draw.randrange(1, every), 0.05), (every, behind))[i % 4]
        if not killed(study, out, cells, draw.uniform(0.0, longest)):
            print("it had ended: killed again", flush=True)
            continue
        there = n_cells(out)
        found[WHEN[0] if not there else WHEN[1] if there < every else WHEN[2]] += 1
        ended = started(study, out).wait()
        same = ended == 0 and pl.read_parquet(out / "rows.parquet").equals(expected, null_equal=True)
        times = computed(out)
        once = sum(times.values()) <= len(times) + 1  # a cell may be there and its line not written, or the reverse
        found["same bits"] += same
        found["nothing computed twice"] += once
        found["right"] += same and once
        print(
            f"kill {i + 1} of {n}: {there} of {every} cells were there; {'same bits' if same else 'OTHER ROWS'}, "
            f"{'nothing computed twice' if once else 'COMPUTED TWICE'}",
            flush=True,
        )
    return dict(found)


WHEN = "before the first cell", "between the first cell and the last", "after the last cell"

FAULTS = (
    ("killed at any moment (SIGKILL)", "the same command goes on; the same bits, nothing finished computed again", "test_faults.py: kills"),
    ("Ctrl-C", "exit code 130 and how to go on; as above", "test_faults.py"),
    ("a worker is killed, a node is gone (Ray)", "its cells go to others; the same bits", "test_on_ray.py"),
    (
        "too little memory in a pass",
        "half the prompts at a time, down to one; then a message",
        "test_faults.py, test_generation.py, test_continued.py",
    ),
    ("a cell that kills its workers", "after three deaths the run names it", "test_on_ray.py"),
    (
        "the disk is full, at each of its writes",
        "what is lost (nothing) and how much is free; the same command goes on",
        "test_run_folder.py",
    ),
    (
        "an artifact is cut short, flipped, or another's",
        "found by its hash, named, computed again",
        "test_run_folder.py, test_faults.py",
    ),
    ("two runs in one folder", "the second is refused; the lock dies with its process", "test_run_folder.py"),
    ("a clock that jumps", "nothing depends on it", "test_faults.py"),
    ("a folder that may not be written", "a message; nothing half-made", "test_run_folder.py"),
    ("a model's file changes before a run goes on", "the folder is refused: it holds another study's run", "test_faults.py"),
    ("NaN or infinity in a prompt's states", "that prompt is left out and named; the rest is as without it", "test_faults.py"),
    ("NaN in a model's file", "refused, with the tensor's name", "test_pair.py"),
)

SAME_BITS = (
    "## What “the same bits” holds for",
    "",
    "On one machine, with the same versions of the libraries, the same device, dtype and number of threads, all of this is equal to the last bit, on",
    "processors with AVX-512 and without (`make test-avx2` compares once more as one with AVX2 alone computes):",
    "",
    "- the rows of one study, whether it ran through or was killed and went on, and in whatever order and by which worker its cells were computed;",
    "- the logits of models that hold the same weights: in memory, from a file, from several files, a base under an adapter that is switched off, a",
    "  network whose graft was taken out again. A kernel may sum in another order where a matrix begins at another address, so what is read from a",
    "  file (weights, adapters, maps, arrays of finished cells) is put at a multiple of 64 bytes, where torch puts its own tensors;",
    "- a state that is read and written back at its site; a map that is saved and read again.",
    "",
    "It does not hold between processors, devices, versions of torch or numbers of threads, nor between two ways of computing one thing (replay",
    "and a whole forward pass, one prompt and several in a pass): these agree within rounding. Each run measures its own rounding, as the noise",
    "floor of every metric, gives no share of what is under three floors, and refuses a model where replay strays further (`engine/selfcheck.py`).",
    "",
)


def page(found: dict[str, int], n: int) -> str:
    """docs/RELIABILITY.md."""
    when = ", ".join(f"{found.get(name, 0)} {name}" for name in WHEN)
    lines = [
        "# What a run survives",
        "",
        f"Killed {n} times at random moments ({when}) and run again: {found.get('same bits', 0)} gave the same rows bit for bit, in",
        f"{found.get('nothing computed twice', 0)} nothing finished was computed again. Written by `make reliability` (`benchmarks/reliability.py`);",
        "three kills, and every line below, run in CI.",
        "",
        "| what happens | what the run does | where it is tested |",
        "|---|---|---|",
        *(f"| {what} | {does} | {where} |" for what, does, where in FAULTS),
        "",
        *SAME_BITS,
    ]
    return "\n".join(lines)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--kills", type=int, default=50)
    asked.add_argument("--seed", type=int, default=0)
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = trials(given.kills, Path(folder), given.seed)
    if given.kills >= 50:
        PAGE.write_text(page(found, given.kills), encoding="utf-8")
    print(f"{given.kills} kills: {found.get('right', 0)} right")
    sys.exit(found.get("right", 0) < given.kills)


if __name__ == "__main__":
    main()
