"""The page holds gradients over whole answers against true patches of the same positions, and beside those at the first token."""

import polars as pl

from mechdiff import labels
from mechdiff.measures.attribution import findings
from mechdiff.measures.attribution.findings import RANDOM, TOGETHER, TOP
from mechdiff.measures.attribution.words import written
from mechdiff.measures.divergence.over_answers import counted
from mechdiff.measures.divergence.words import whose
from mechdiff.report.parts import Run, table
from mechdiff.report.phrasing import shown

HEADS = 5
"""Of either direction that are named."""


def parts(run: Run) -> list[dict]:
    """Rank correlations with true effects, and the heads with the largest estimates; nothing where there is no D over answers."""
    return [part for one in run.by_answers for part in _parts(one)]


def _parts(run: Run) -> list[dict]:
    found = counted(run, "attribution")
    if found is None:
        return []
    over, summary = (findings.as_at_first(one) for one in (run.rows, run.summary))
    agreed = {(row["direction"], row["group"]): row for row in findings.agreement(over, run.manifest).iter_rows(named=True)}
    lines = []
    for direction in labels.CROSSED:
        groups = [agreed.get((direction, group)) for group in (TOGETHER, TOP, RANDOM)]
        if any(groups):
            cells = [shown(one["rho"], one["rho_low"], one["rho_high"], decimals=2) if one else "–" for one in groups]
            lines.append([written(direction), str(groups[0]["heads"] if groups[0] else 0), *cells])
    columns = ["direction", "patched heads", "all of them", "largest at the next token", "random others"]
    title = (
        f"Over {found.n_tokens} tokens of {whose(run)}: rank correlation of attribution patching with true effects "
        "(which heads have the largest estimates was found at the next token of validation prompts, not over answers)"
    )
    tables = [table(columns, lines, title=title)] if lines else []
    return tables + _heads(run, over, summary, found.n_tokens)


def _heads(run: Run, over: pl.DataFrame, summary: pl.DataFrame, n_tokens: int) -> list[dict]:
    lines = []
    for direction in labels.CROSSED:
        largest, _ = findings.top_heads(over, summary, direction)
        first = dict(findings.top_heads(run.rows, run.summary, direction)[0].select("name", "estimate").iter_rows())
        for row in largest.head(HEADS).iter_rows(named=True):
            estimate, effect = shown(row["estimate"], row["low"], row["high"]), shown(row["effect"], row["effect_low"], row["effect_high"])
            lines.append([row["name"], written(direction), estimate, effect, shown(first.get(row["name"]))])
    columns = ["head", "direction", "attribution patching", "true effect", "at the first token"]
    title = f"Heads with the largest estimates over {n_tokens} tokens of {whose(run)}, logits a token "
    title += "(ranked on these prompts, so optimistically biased)"
    return [table(columns, lines, title=title)] if lines else []
