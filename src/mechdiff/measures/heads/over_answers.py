"""Over whole answers other heads may carry the change than at the next token: every head, swapped at every position of the answer."""

import polars as pl

from mechdiff import labels
from mechdiff.measures.divergence import both_answers, over_answers
from mechdiff.measures.divergence.words import whose
from mechdiff.report import difference
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import share, with_interval
from mechdiff.rows import where


def _heads(rows: pl.DataFrame, direction: str, metric: str, what: str | None) -> pl.DataFrame:
    """Rows of every single head, with its `name`."""
    split = difference.reported(rows, "heads")
    rows = where(rows, measure="heads", direction=direction, metric=metric, split=split, arm="contribution", control=None)
    rows = rows.filter(labels.is_over_answer()).with_columns(unit=labels.beside_answer()) if what else rows
    return rows.filter(labels.is_head()).with_columns(name=pl.format("L{}.{}", "layer", "unit"))


def parts(run: Run) -> list[dict]:
    """The heads that do most by either outcome, side by side; the same over the base's answers, where both models' were read."""
    return [*(part for one in run.by_answers for part in _parts(one)), *both_answers.parts(run, _heads, "head")]


def _parts(run: Run) -> list[dict]:
    found = over_answers.counted(run, "heads")
    if found is None:
        return []
    return over_answers.beside(over_answers.both_ways(run, _heads), "head", whose(run), added=over_answers.fisher(run, _heads))


def lead(run: Run) -> list[str]:
    """The head that does most over answers, and where the first token says otherwise; nothing where D over answers is not above the floor."""
    return [*(said for one in run.by_answers for said in _lead(one)), *both_answers.disagreement(run, _heads, "head")]


def _lead(run: Run) -> list[str]:
    found = over_answers.counted(run, "heads")
    if found is None:
        return []
    both = over_answers.both_ways(run, _heads)
    every = pl.concat([of.with_columns(way=pl.lit(way)) for way, of in both.items()])
    if every.is_empty():
        return []
    most = every.sort(-pl.col("answer"), "name").row(0, named=True)
    size = with_interval(most["answer"], most["low"], most["high"], digits=2)
    where = f"Swapped at every position of {whose(run)} ({found.n_tokens} tokens)"
    added = over_answers.fisher(run, _heads)[most["way"]].get(most["name"])
    way = "" if added is None else f", {share(added)} of the way in logits"
    said = f"{where}, {most['name']} does most ({most['way']}): {size} of D over the answer{way}"
    chosen = f"the largest of {every['name'].n_unique()} heads in two directions on these prompts, so optimistically biased"
    return [f"{said} ({chosen}).", *over_answers.disagreement(both, "head", whose(run))]
