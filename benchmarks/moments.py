"""Sums over a million rows at d = 576: how fast, and in how much memory?

python benchmarks/moments.py [--rows 1000000] [--width 576]      a minute on two cores; the last lines are the numbers

The stream is made as it is read: states with a change of rank 8 beside noise. Memory is the most that the process held after a tenth of the rows and
after all of them: flat, or growing with the rows. The planted rank, and R2 of the change, must come out.
"""

import argparse
import resource
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from mechdiff.maps.moments import Moments, chosen, merged

CHUNK, RANK, FOLDS = 4096, 8, 5


def stream(rows: int, d: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunks of pairs of states; the same numbers whenever they are asked for."""
    fixed = torch.Generator().manual_seed(0)
    scale = torch.linspace(3, 0.1, d)
    change = torch.randn(d, RANK, generator=fixed) @ torch.randn(RANK, d, generator=fixed) / d
    shift = torch.randn(d, generator=fixed)
    for first in range(start, rows, CHUNK):
        draw = torch.Generator().manual_seed(first + 1)
        x = torch.randn(min(CHUNK, rows - first), d, generator=draw) * scale
        yield x, x + shift + x @ change + 0.5 * torch.randn(len(x), d, generator=draw)


def held() -> float:
    """The most that this process held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rows", type=int, default=1_000_000)
    asked.add_argument("--width", type=int, default=576)
    given = asked.parse_args()
    folds: list[Moments | None] = [None] * FOLDS
    centre, spent, begun, early = None, 0.0, time.perf_counter(), 0.0
    for number, (x, y) in enumerate(stream(given.rows, given.width)):
        centre = centre or (x.double().mean(0), y.double().mean(0))
        at = time.perf_counter()
        had = folds[number % FOLDS]
        folds[number % FOLDS] = had.taking(x, y) if had else Moments.of(x, y, centre)
        spent += time.perf_counter() - at
        if (number + 1) * CHUNK >= given.rows // 10 and not early:
            early = held()
    late = held()
    whole = [fold for fold in folds if fold]
    found, total = chosen(whole), merged(whole)
    print(
        f"{given.rows:,} rows at d = {given.width}: {given.rows / spent:,.0f} rows/s into the sums ({time.perf_counter() - begun:.0f} s in all)"
    )
    print(f"most memory after a tenth of the rows {early:,.0f} MiB, after all {late:,.0f} MiB: {late - early:,.0f} MiB more")
    print(f"planted rank {RANK}, found {found.rank}; R2 of the change held out {found.r2:.3f}; CKA {total.cka():.4f}")


if __name__ == "__main__":
    main()
