"""How often do the intervals hold the truth, and how often do the tests find what is not there? At several skews and numbers of prompts.

python benchmarks/coverage.py          a minute; writes src/mechdiff/data/coverage.json and prints the table of docs/STATISTICS.md
"""

import json
from pathlib import Path

from mechdiff.validate import skewed

CVS, PROMPTS, REPEATS, SEED = (0.5, 1.0, 2.0, 3.5), (5, 8, 10, 16, 32, 64, 150), 2000, 0
FEWER = REPEATS // skewed.FEWER
MOST = {name: round(skewed.most(studies), 4) for name, studies in (("mean_p", REPEATS), ("family_p", FEWER), ("holm", FEWER))}
"""False alarms of a test that is spoken of."""
OUT = Path(__file__).parents[1] / "src" / "mechdiff" / "data" / "coverage.json"
COLUMNS = {
    "mean": "mean",
    "share": "share of D",
    "geometric": "geometric mean",
    "mean_p": "`mean_p`",
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
    """Simulates all, and writes the table that `report/simulated.py` reads."""
    found = [{"cv": cv, "n": n, **skewed.simulated(cv, n, REPEATS, seed=SEED)} for cv in CVS for n in PROMPTS]
    told = {"repeats": REPEATS, "seed": SEED, "law": "log-normal", "most": MOST, "table": found}
    OUT.write_text(json.dumps(told, indent=1) + "\n")
    return found


if __name__ == "__main__":
    print(table(write()))
