"""How long the rank of the change takes for a whole model, beside the route through d x d matrices, in one run.

    .venv/bin/python benchmarks/regression.py [--layers 30] [--kinds 3] [--prompts 350] [--width 576] [--threads 2]

For each of layers x kinds: penalty by cross-validation, reduced-rank regression of every rank, its rank by the one-standard-error rule. The plain
route solves the same penalised regressions (nine penalties and three shares of one, in five folds, and on all rows) with X'X of d x d and takes
the singular vectors of the fitted values; it is run on a few sites, and the ratio is by site. States are random, their variances fall as 1/i.
"""

import argparse
import math
import time

import torch
from torch import Tensor

from mechdiff.maps.refits import permuted_r2
from mechdiff.maps.regression import LAMBDAS, SHRINK_LESS, Examples, cross_validated, decompose, fitted_axes, fold_rows, ridge

PLAIN_SITES = 2
DRAWS = 200


def site(n: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """States, and a change of rank 4 with noise."""
    random = torch.Generator().manual_seed(seed)
    states = torch.randn(n, d, generator=random) * torch.arange(1, d + 1) ** -0.5
    along = states @ torch.randn(d, 4, generator=random)
    return states, along @ torch.randn(4, d, generator=random) / d**0.5 + 0.1 * torch.randn(n, d, generator=random)


def ours(states: Tensor, change: Tensor) -> int:
    found = cross_validated(states, change, torch.arange(len(states)))
    inputs = decompose(states)
    assert inputs.left is not None
    projected = inputs.left.T @ (change - change.mean(0)).double()
    ridge(inputs, projected, found.lambda_of_ranks)
    fitted_axes(inputs, projected, found.lambda_of_ranks)
    return found.rank_one_se


def plain(states: Tensor, change: Tensor) -> None:
    x, z = states.double(), change.double()
    every = torch.arange(len(x))
    errors = torch.zeros(len(LAMBDAS))
    splits = [(held, every[~torch.isin(every, held)]) for held in fold_rows(every, 5, 0)]

    def solved(rows: Tensor, lam: float) -> Tensor:
        if math.isinf(lam):
            return torch.zeros(x.shape[1], z.shape[1], dtype=torch.float64)
        centred = x[rows] - x[rows].mean(0)
        squares = centred.T @ centred
        squares += max(lam, 1e-10) * squares.trace() / len(squares) * torch.eye(len(squares), dtype=torch.float64)
        return torch.linalg.solve(squares, centred.T @ (z[rows] - z[rows].mean(0)))

    for held, rest in splits:
        for number, lam in enumerate(LAMBDAS):
            missed = z[held] - z[rest].mean(0) - (x[held] - x[rest].mean(0)) @ solved(rest, lam)
            errors[number] += float(missed.square().sum())
    best = LAMBDAS[int(errors.argmin())]
    for share in SHRINK_LESS if 0 < best < math.inf else (1.0,):
        for held, rest in [*splits, (every, every)]:
            b = solved(rest, best * share)
            axes = torch.linalg.svd((x[rest] - x[rest].mean(0)) @ b, full_matrices=False).Vh.T
            (((x[held] - x[rest].mean(0)) @ b) @ axes).cumsum(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 30), ("kinds", 3), ("prompts", 350), ("width", 576), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    count = args.layers * args.kinds

    started = time.perf_counter()
    chosen = [ours(*site(args.prompts, args.width, seed)) for seed in range(count)]
    seconds = time.perf_counter() - started
    print(
        f"{count} sites, {args.prompts} prompts, width {args.width}, {args.threads} threads: {seconds:.1f} s, {seconds / count:.3f} s a site"
    )
    print(f"planted rank 4; chosen: {sorted(set(chosen))}, 4 in {chosen.count(4)} of {count}")

    started = time.perf_counter()
    for seed in range(PLAIN_SITES):
        plain(*site(args.prompts, args.width, seed))
    of_plain = (time.perf_counter() - started) / PLAIN_SITES
    print(f"through d x d matrices: {of_plain:.2f} s a site, {of_plain / (seconds / count):.1f} times as long")

    states, change = site(args.prompts, args.width, 0)
    n_fit, groups = args.prompts * 4 // 5, torch.arange(args.prompts)
    fit = Examples(inputs=states[:n_fit], targets=change[:n_fit], groups=groups[:n_fit])
    test = Examples(inputs=states[n_fit:], targets=change[n_fit:], groups=groups[n_fit:])
    for name, rank in (("ridge", None), ("rrr, rank 4", 4)):
        started = time.perf_counter()
        permuted_r2(fit, test, draws=DRAWS, seed=0, rank=rank)
        print(f"{DRAWS} refits on permuted prompts, {name}: {time.perf_counter() - started:.2f} s")


if __name__ == "__main__":
    main()
