"""How long maps of states take to fit, beside the same formulas with d x d matrices.

    python benchmarks/maps.py                 one site at N = 350, d = 4096; the dense formulas take minutes there (--dense 1024 is quicker)
    python benchmarks/maps.py --all           30 layers x 3 sites at N = 350, d = 576 in full, instead of three sites times thirty

States are random, with a spectrum that falls as 1/i, and a change of 32 dimensions and noise. Like is timed against like: one penalty, one fit,
the dense formulas being those that the tests hold the maps against. What cross-validation would cost the dense way is that time multiplied, and
is said to be so.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from mechdiff.maps.anchored import Pairs
from mechdiff.maps.maps import DEFAULT, Map
from mechdiff.maps.regression import FOLDS, LAMBDAS, fitted_axes
from mechdiff.measures.rank.formula import ranks
from oracles import maps as oracle

ROWS, SITES = 350, 90


def states(d: int, seed: int, n: int = ROWS) -> tuple[Tensor, Tensor]:
    """Source and target, float32 as they are captured."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    source = normal(n, d) * torch.arange(1, d + 1) ** -0.5 + normal(d)
    return source, source + (source @ normal(d, 32)) @ normal(32, d) / d + 0.01 * normal(n, d)


def seconds(run: Callable[[], object]) -> Tensor:
    """`[2]`: on the wall, and of processor time over all threads. On a machine shared with others the first measures them too.

    Half of the second, with two threads, is the least that the first could be.
    """
    start = torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)
    run()
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64) - start


def said(taken: Tensor) -> str:
    return f"{float(taken[0]):10.3f}{float(taken[1]):10.3f}"


def arms(source: Tensor, target: Tensor, select: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Seconds of each default arm; the first that needs it pays for what they share."""
    pairs = Pairs.of(source, target, select=select)
    return {arm: seconds(lambda arm=arm: Map(arm).fit_pairs(pairs)) for arm in DEFAULT}  # type: ignore[misc]


def every_rank(source: Tensor, target: Tensor) -> None:
    pairs = Pairs.of(source, target)
    for rank in ranks(fitted_axes(pairs.decomposed, pairs.projected, 0.01).shape[1]):
        Map("rrr", rank=rank, lam=0.01).fit_pairs(pairs)


def one_site(d: int) -> None:
    source, target = states(d, 0)
    taken = arms(source, target, states(d, 1, 60)) | {"rrr, all ranks": seconds(lambda: every_rank(source, target))}
    print(f"one site, N = {ROWS}, d = {d}, {torch.get_num_threads()} threads: seconds on the wall, of processor")
    for name, value in taken.items():
        print(f"  {name:22}{said(value)}")
    print(f"  {'sum':22}{said(torch.stack(list(taken.values())).sum(0))}", flush=True)


def beside_dense(d: int, with_procrustes: bool) -> None:
    source, target = states(d, 0)
    x, y = source.double(), target.double()
    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "anchored_ridge": (lambda: Map("anchored_ridge", lam=0.1).fit(source, target), lambda: oracle.ridge_of_change(x, y, 0.1)),
        "anchored_procrustes": (
            lambda: Map("anchored_procrustes", lam=0.1).fit(source, target),
            lambda: oracle.anchored_procrustes(x, y, 0.1),
        ),
    }
    print(f"one penalty, one fit, d = {d}: seconds on the wall, of processor; thin, then dense")
    for name, (thin, dense) in pairs.items():
        if name == "anchored_procrustes" and not with_procrustes:
            continue
        ours, theirs = seconds(thin), seconds(dense)
        print(f"  {name:22}{said(ours)} {said(theirs)}{float(theirs[1] / ours[1]):8.1f} times (processor)", flush=True)
        if name == "anchored_ridge":
            solves = FOLDS * (len(LAMBDAS) - 1)
            print(f"  {'':22}{'':20} {said(theirs * solves)} for its {solves} solves of cross-validation (multiplied, not run)")


def whole_study(d: int, every: bool) -> None:
    """Fits of all sites, from base to tuned and back."""
    sites = SITES if every else 3

    def run() -> None:
        for seed in range(sites):
            source, target = states(d, seed)
            select = states(d, SITES + seed, 60)
            arms(source, target, select)
            arms(target, source, select[::-1])

    taken = seconds(run)
    how = "measured" if every else f"from {sites} sites"
    print(f"{SITES} sites, N = {ROWS}, d = {d}, default arms, both ways: {said(taken / sites * SITES)} seconds ({how})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="all 90 sites instead of three")
    parser.add_argument("--dense", type=int, default=4096, metavar="D", help="width at which the dense formulas run; 0: not at all")
    parser.add_argument("--no-procrustes", action="store_true", help="leave out the dense singular value decomposition")
    parser.add_argument("--only-dense", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if not asked.only_dense:
        one_site(4096)
        whole_study(576, asked.all)
    if asked.dense:
        beside_dense(asked.dense, not asked.no_procrustes)


if __name__ == "__main__":
    main()
