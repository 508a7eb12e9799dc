"""Every test and interval of a report where the truth is known: how often does each find something that is not there?

python benchmarks/nulls.py [JOBS]   2,000 studies each, about five minutes of one core, on JOBS processes (2); writes docs/NULLS.md
                                    and data/coverage.json (the table by skew); exit code 1 where one does not hold
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import coverage

from mechdiff.validate import nulls, skewed
from mechdiff.validate.rates import Rate

REPEATS, COSTLY = 2000, 1000
PAGE = Path(__file__).parents[1] / "docs" / "NULLS.md"


BY_SKEW = f"""## By skew and number of prompts

Values per prompt of a known mean, log-normal or with log-normal parts, {coverage.REPEATS:,} studies in each cell ({coverage.FEWER} of the
families of {skewed.FAMILY} tests). The first three columns: how often a 95 % interval holds the truth; where that is under 93 % a page prints the
measured share in the place of "95 %". The last four: how often p ≤ 0.05 though the mean is 0 (`presence`: on the worse side), the largest rate over
{len(skewed.NULLS)} distributions ({"; ".join(skewed.NULLS)}). **Bold**: more than 5 % and two standard errors; `simulated.speaks` is then false.
Fewer than 5 prompts, or clusters of prompts, have no interval and no p: 16 prompts in 4 clusters have none; 32 in 8 clusters are 8. Written to
`data/coverage.json`.
"""
OF_POWER = """## What a null result would have shown

The mean, in standard errors, that `mean_p` finds in 4 of 5 studies of normal values (`simulated.detectable`, from `data/coverage.json`), and
how often it finds that same mean of log-normal values: on the side of their long tail, and on the other, where large values may have been missed.
"""


def page(rates: list[Rate], by_skew: list[dict[str, float]]) -> str:
    """docs/NULLS.md."""
    lines = [
        "# Where there is nothing to find",
        "",
        f"Simulated studies in which the truth is known, {REPEATS:,} of each kind, {COSTLY:,} where every one is a family of tests or fits",
        "a hundred maps anew. Written by `make validate-long` (studies: `src/mechdiff/validate/nulls.py`, `spreads.py`); 200 of each run in CI.",
        "",
    ]
    kinds = {
        "false alarms": "How often a test says p ≤ 0.05 (or q) though nothing is there. It should in 5 %; passes up to two standard errors more.",
        "coverage": "How often a 95 % interval, or set, holds the truth.",
        "power": "How often an effect is found that a null result \"would have found with 80 %\".",
    }  # fmt: skip
    for kind, teaches in kinds.items():
        lines += [f"## {kind.capitalize()}", "", teaches, "", "| what | found | passes | studies |", "|---|---|---|---|"]
        for one in rates:
            if one.kind == kind:
                passes = f"≤ {one.most:.1%}" if kind == "false alarms" else f"{one.least:.0%} to {one.most:.0%}"
                lines.append(f"| {one.what} | {one.found:.1%}{'' if one.holds else ' **(no)**'} | {passes} | {one.repeats:,} |")
        lines.append("")
    return "\n".join([*lines, BY_SKEW, coverage.table(by_skew), "", OF_POWER, coverage.of_power(), ""])


def main() -> None:
    found, jobs = [], int(sys.argv[1]) if len(sys.argv) > 1 else 2
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for rates in pool.map(partial(nulls.rates_of, repeats=REPEATS, costly=COSTLY), (*nulls.SIMULATIONS, *nulls.COSTLY)):
            for rate in rates:
                found.append(rate)
                print(f"{'holds' if rate.holds else 'DOES NOT HOLD'}: {rate.kind}, {rate.found:.1%}: {rate.what}", flush=True)
    PAGE.write_text(page(found, coverage.write()), encoding="utf-8")
    failed = sum(not rate.holds for rate in found)
    print(f"{len(found)} tests and intervals, {failed} do not hold")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
