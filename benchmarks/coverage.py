"""How often do the intervals hold the truth? Simulated log-normal values per prompt, at several coefficients of variation and numbers of prompts.

python benchmarks/coverage.py          writes src/mechdiff/data/coverage.json and prints the table of docs/STATISTICS.md
"""

import json
from pathlib import Path

import numpy as np

from mechdiff.report import intervals

CVS, PROMPTS, REPEATS, SEED = (0.5, 1.0, 2.0, 3.5), (10, 16, 32, 64, 150), 2000, 0
OUT = Path(__file__).parents[1] / "src" / "mechdiff" / "data" / "coverage.json"


def simulated(cv: float, n: int, repeats: int = REPEATS, seed: int = SEED) -> dict[str, float]:
    """Coverage of the BCa interval of the mean, and of the t interval of the geometric mean, of log-normal values of mean 1."""
    spread = np.sqrt(np.log1p(cv**2))
    values = np.random.default_rng([seed, round(10 * cv), n]).lognormal(-(spread**2) / 2, spread, (n, repeats))
    low, high = intervals.bca_means(values, seed=seed)
    _, log_low, log_high = intervals.geometric(values)
    truth = np.exp(-(spread**2) / 2)
    return {"mean": float(((low <= 1) & (high >= 1)).mean()), "geometric": float(((log_low <= truth) & (log_high >= truth)).mean())}


def main() -> None:
    table = [{"cv": cv, "n": n, **simulated(cv, n)} for cv in CVS for n in PROMPTS]
    OUT.write_text(json.dumps({"repeats": REPEATS, "seed": SEED, "law": "log-normal", "table": table}, indent=1) + "\n")
    print("| CV | prompts | BCa, mean | log-t, geometric mean |\n|---|---|---|---|")
    for one in table:
        print(f"| {one['cv']} | {one['n']} | {one['mean']:.1%} | {one['geometric']:.1%} |")


if __name__ == "__main__":
    main()
