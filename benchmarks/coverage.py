"""How often do the intervals hold the truth, and how often do the tests find nothing's trace? At several skews and numbers of prompts.

python benchmarks/coverage.py          writes src/mechdiff/data/coverage.json and prints the table of docs/STATISTICS.md
"""

import json
from pathlib import Path

import numpy as np

from mechdiff.report import intervals
from mechdiff.validate import skewed

CVS, PROMPTS, REPEATS, SEED = (0.5, 1.0, 2.0, 3.5), (5, 8, 10, 16, 32, 64, 150), 2000, 0
FAMILY, FAMILIES = 8, 250
"""Columns of a family, and families: as many p as there are studies."""
MOST = 0.05 + 2 * (0.05 * 0.95 / REPEATS) ** 0.5
"""False alarms of a test that is spoken of."""
OUT = Path(__file__).parents[1] / "src" / "mechdiff" / "data" / "coverage.json"


def simulated(cv: float, n: int, repeats: int = REPEATS, seed: int = SEED) -> dict[str, float]:
    """Coverage of the intervals of a mean and of a geometric mean, of log-normal values of mean 1; the largest false-alarm rate of each test."""
    random = np.random.default_rng([seed, round(10 * cv), n])
    values = skewed.lognormal(random, cv, (n, repeats))
    low, high = intervals.mean_intervals(values, seed=seed)
    _, log_low, log_high = intervals.geometric(values)
    truth = np.exp(-np.log1p(cv**2) / 2)
    found = {"mean": float(((low <= 1) & (high >= 1)).mean()), "geometric": float(((log_low <= truth) & (log_high >= truth)).mean())}
    rates = [float((intervals.mean_p(skewed.null(name, random, cv, (n, repeats)), seed=seed) <= 0.05).mean()) for name in skewed.NULLS]
    return {**found, "mean_p": max(rates)}


def main() -> None:
    table = [{"cv": cv, "n": n, **simulated(cv, n)} for cv in CVS for n in PROMPTS]
    told = {"repeats": REPEATS, "seed": SEED, "law": "log-normal", "most": round(MOST, 4), "table": table}
    OUT.write_text(json.dumps(told, indent=1) + "\n")
    print("| CV | prompts | bootstrap-t, mean | log-t, geometric mean | false alarms of `mean_p` |\n|---|---|---|---|---|")
    for one in table:
        print(f"| {one['cv']} | {one['n']} | {one['mean']:.1%} | {one['geometric']:.1%} | {one['mean_p']:.1%} |")


if __name__ == "__main__":
    main()
