"""How often do the intervals hold the truth, and how often do the tests find what is not there? At several skews and numbers of prompts.

python benchmarks/coverage.py          a minute; writes src/mechdiff/data/coverage.json and prints the table of docs/STATISTICS.md
"""

import json
from pathlib import Path

import numpy as np

from mechdiff.statistics import intervals, simulated
from mechdiff.validate import skewed

POWERED = (5, 6, 8, 10, 12, 16, 24, 32, 64, 150)
"""Numbers of prompts at which the power of `mean_p` is simulated."""
STUDIES = 8000
"""Of normal values, at each."""
CVS, PROMPTS, REPEATS, SEED = (0.5, 1.0, 1.5, 2.0, 3.5), (5, 8, 10, 16, 32, 64, 150), 2000, 0
FEWER = REPEATS // skewed.FEWER
MOST = {
    name: round(skewed.most(studies), 4)
    for name, studies in (("mean_p", REPEATS), ("presence", REPEATS), ("family_p", FEWER), ("holm", FEWER))
}
"""False alarms of a test that is spoken of."""
OUT = Path(__file__).parents[1] / "src" / "mechdiff" / "data" / "coverage.json"
COLUMNS = {
    "mean": "mean",
    "share": "share of D",
    "geometric": "geometric mean",
    "mean_p": "`mean_p`",
    "presence": "`presence`",
    "family_p": "`family_p`",
    "holm": "`holm`",
}


def table(found: list[dict[str, float]]) -> str:
    """Coverage of the intervals and false alarms of the tests, as a table of a page; in bold what is not spoken of."""
    lines = [f"| CV | prompts | {' | '.join(COLUMNS.values())} |", "|---" * (2 + len(COLUMNS)) + "|"]
    for one in found:
        cells = [f"**{one[name]:.1%}**" if one[name] > MOST.get(name, 1) else f"{one[name]:.1%}" for name in COLUMNS]
        lines.append(f"| {one['cv']} | {one['n']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write() -> list[dict[str, float]]:
    """Simulates all, and writes the table that `statistics/simulated.py` reads."""
    found = [{"cv": cv, "n": n, **skewed.simulated(cv, n, REPEATS, seed=SEED)} for cv in CVS for n in PROMPTS]
    seen = {"levels": skewed.LEVELS, "n": POWERED, "errors": [skewed.multiples(n, STUDIES, seed=SEED) for n in POWERED]}
    told = {"repeats": REPEATS, "seed": SEED, "law": "log-normal", "most": MOST, "detectable": seen, "table": found}
    OUT.write_text(json.dumps(told, indent=1) + "\n")
    return found


def of_power() -> str:
    """How many standard errors are detectable, and how often a skewed mean of that size is found, as a table of a page."""
    lines = [
        "| prompts | detectable, in standard errors | found, normal | CV 0.5, tail's side | other side | CV 1, tail's side | other side |",
        "|---" * 7 + "|",
    ]
    for n in (8, 16, 32, 64):
        mean = float(simulated.detectable(np.array(1.0), n))
        normal = np.random.default_rng([SEED + 1, n]).normal(mean, 1, (n, REPEATS))
        found = [
            float((intervals.mean_p(normal) <= 0.05).mean()),
            *(one for cv in (0.5, 1.0) for one in skewed.powers(cv, n, REPEATS, mean)),
        ]
        lines.append(f"| {n} | {mean * n**0.5:.2f} | {' | '.join(f'{one:.0%}' for one in found)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(write()))
    print(of_power())
