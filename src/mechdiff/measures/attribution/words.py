"""One sentence of the verdict says how far gradients rank heads as patching does, and on which heads the two models lean."""

import polars as pl

from mechdiff.measures.attribution import churn, findings
from mechdiff.measures.attribution.findings import ESTIMATES, TOGETHER
from mechdiff.measures.divergence.over_answers import counted
from mechdiff.measures.divergence.words import whose
from mechdiff.report.difference import BREAKAGE
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import decimal, with_interval

WAYS = {"grad_x_diff": "attribution patching", "integrated_gradients": "integrated gradients"}
WRITTEN = {True: "base into tuned", False: "tuned into base"}
WELL, POORLY = 0.8, 0.5
"""Rank correlations from which on gradients rank heads as patching does, and under which they are no guide: the whole interval lies there."""


def lead(run: Run) -> list[str]:
    """What gradients say of heads, at the next token and over answers."""
    return [*what_gradients_say(run.rows, run.summary, run.manifest), *over_answers(run)]


def over_answers(run: Run) -> list[str]:
    """How far gradients rank heads as patching does over whole answers; nothing where D over answers is not above the floor."""
    return [said for one in run.by_answers for said in _over_answers(one)]


def _over_answers(run: Run) -> list[str]:
    found = counted(run, "attribution")
    ranking = _ranking(findings.as_at_first(run.rows), run.manifest) if found else ""
    return [f"Over the first {found.n_tokens} tokens of {whose(run)} {ranking}."] if found and ranking else []


def what_gradients_say(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> list[str]:
    """ "Gradients rank heads as patching does: over 40 heads ...; of 5 heads that stand out ..."; nothing where neither was measured."""
    said = [words for words in (_ranking(rows, manifest), _churn(rows, summary, manifest)) if words]
    sentence = "; ".join(said)
    return [f"{sentence[0].upper()}{sentence[1:]}."] if said else []


def written(direction: str) -> str:
    """ "base into tuned": whose state is written into which model."""
    return WRITTEN[direction == BREAKAGE]


def _ranking(rows: pl.DataFrame, manifest: dict) -> str:
    """The rank correlation of the crudest estimate there is, in the direction where it is lower, beside that of the other."""
    found = findings.agreement(rows, manifest).filter(pl.col("group") == TOGETHER, pl.col("rho").is_not_null())
    lowest = {arm: found.filter(pl.col("arm") == arm).sort("rho", maintain_order=True) for arm in ESTIMATES}
    known = [(arm, table.row(0, named=True)) for arm, table in lowest.items() if not table.is_empty()]
    if not known:
        return ""
    arm, one = known[0]
    low, high = ((one["rho"] if one[end] is None else one[end]) for end in ("rho_low", "rho_high"))
    how = (
        "rank heads as patching does"
        if low >= WELL
        else "rank heads roughly as patching does"
        if low >= POORLY
        else "are no guide to heads here"
        if high < POORLY
        else "may or may not rank heads as patching does"
    )
    both = ", the lower of both directions" if len(lowest[arm]) > 1 else ""
    sentence = f"gradients {how}: over the {one['heads']} heads that were patched, "
    correlation = with_interval(one["rho"], one["rho_low"], one["rho_high"], decimals=2)
    sentence += f"{WAYS[arm]} has a rank correlation of {correlation} with the effects ({written(one['direction'])}{both})"
    return sentence + "".join(f", {WAYS[other]} {decimal(line['rho'])}" for other, line in known[1:])


def _churn(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> str:
    """How many heads stand out in both models, and how many were shown to enter or to leave."""
    found = churn.churn(rows, summary, manifest)
    if found["state"].drop_nulls().is_empty():
        return ""
    count = churn.moved(found)
    stay = f"{count['stayed']} head{'s stand' if count['stayed'] != 1 else ' stands'} out in both models"
    if not count["entered"] + count["left"]:
        return f"{stay}; that any head stands out in one of them alone could not be shown (tuned − base, all heads together)"
    return f"{stay}, {count['entered']} in the tuned one alone and {count['left']} in the base alone (tuned − base, p ≤ 0.05, all heads together)"
