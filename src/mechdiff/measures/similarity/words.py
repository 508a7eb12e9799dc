"""The page's sentences say how alike the two models' activations are."""

import polars as pl

from mechdiff import terms
from mechdiff.measures.grafting.words import BIASED
from mechdiff.measures.similarity import findings
from mechdiff.measures.similarity.findings import LeastSimilar
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import with_interval


def lead(run: Run) -> list[str]:
    """The site of the lowest CKA."""
    return how_similar(run.rows, run.summary)


def how_similar(rows: pl.DataFrame, summary: pl.DataFrame) -> list[str]:
    """The site of the lowest CKA, by other prompts where there are some, and at how many sites CKA is 1 to three digits."""
    found = findings.least_similar(rows, summary)
    return [] if found is None else [f"{_where(found)} activations differ most in shape at {lowest_cka(found)}."]


def _where(found: LeastSimilar) -> str:
    return f"On the {terms.of_split(found.chosen_on)} prompts" if found.chosen_on else "By CKA,"


def lowest_cka(found: LeastSimilar) -> str:
    """ "L26.attn_out (lowest on the select prompts; ...): CKA 0.884 [95 % CI: 0.750, 1.000]; at 5 of 90 sites it is 1.000 to three digits"."""
    how = (
        f"lowest CKA on the {terms.of_split(found.chosen_on)} prompts; on these others may be lower"
        if found.chosen_on
        else f"of {found.sites} sites, {BIASED}"
    )
    high = None if found.high is None else min(found.high, 1.0)
    value = with_interval(found.cka, found.low, high, decimals=3, coverage=1.0)
    return f"{found.name} ({how}): CKA {value}; at {found.same} of {found.sites} sites it is 1.000 to three digits"
