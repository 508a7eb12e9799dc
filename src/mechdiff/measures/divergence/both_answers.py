"""Where both models' answers were read, what does most over the tuned model's own is held against the base's, on the same prompts.

A site that carries the change where the tuned model speaks need not carry it where both read what the base says. So the part of the way to the other
model's logits over the tuned model's answers (a share that adds: Fisher overlap over Fisher total) stands beside that over the base's, and their
difference is tested, family-wise over everything of one direction.
"""

from collections.abc import Mapping

import polars as pl

from mechdiff.measures.divergence import over_answers
from mechdiff.measures.divergence.over_answers import LEAST, LEVEL, SPOKEN, TOP, WAYS, Rows
from mechdiff.measures.divergence.words import answers_differ
from mechdiff.report.parts import Run, table
from mechdiff.report.phrasing import between, listed, share
from mechdiff.rows import OVERLAP, TOTAL, where
from mechdiff.shares import ANSWER, OF_THE_PAIR, over
from mechdiff.statistics.memory import once

TITLE = "Part of the way in logits (shares that add) over the tuned model's answers and over the base's, on the same prompts"


@once
def compared(run: Run, effects: Rows, ways: Mapping[str, str] = WAYS) -> dict[str, pl.DataFrame]:
    """By direction, in words: `over_answers.AGAINST`, in which `first` is the share over the tuned model's answers and `answer` over the base's.

    Nothing where one model's answers alone were read, or D over either's is not above the noise floor.
    """
    if run.over_base is None or not all(answers_differ(one) for one in run.by_answers):
        return {}
    found = {}
    for direction, word in ways.items():
        tuned, base = ((effects(one.rows, direction, over(OVERLAP, ANSWER), ANSWER), _totals(one.rows)) for one in run.by_answers)
        found[word] = over_answers.beside_each_other(tuned, base, recovered=False)
    return found


def _totals(rows: pl.DataFrame) -> pl.DataFrame:
    return where(rows, measure=OF_THE_PAIR, metric=over(TOTAL, ANSWER), control=None, unit=None).select("prompt", total="value")


def parts(run: Run, effects: Rows, noun: str, ways: Mapping[str, str] = WAYS, *, top: int = TOP) -> list[dict]:
    """The table of what does most over either model's answers; nothing where those of one were read."""
    lines = []
    for way, both in compared(run, effects, ways).items():
        chosen = {name for by in ("first", "answer") for name in both.sort(by, descending=True, nulls_last=True).head(top)["name"]}
        for row in both.filter(pl.col("name").is_in(chosen)).sort("first", descending=True).iter_rows(named=True):
            lines.append((
                row["name"], way, share(row["first"], 3), share(row["answer"], 3), between(row["low"], row["high"], digits=3) or "–",
                share(row["apart"], 3), "–" if row["p"] is None else f"{row['p']:.2g}",
            ))  # fmt: skip
    columns = (noun, "direction", "over the tuned model's answers", "over the base's", "95\u00a0%", "difference", "p (family-wise)")
    return [table(columns, lines, title=TITLE)] if lines else []


def in_brief(run: Run, effects: Rows, ways: Mapping[str, str] = WAYS) -> str:
    """ "whose answers are read matters most at L24.attn_out (0.06 of the way over the tuned model's, 0.17 over the base's)"; empty if nowhere."""
    apart = _apart(run, effects, ways)
    if apart is None or apart.is_empty():
        return ""
    row = apart.row(0, named=True)
    ends = f"{share(row['first'])} of the way over the tuned model's, {share(row['answer'])} over the base's"
    return f"whose answers are read matters{' most' * (len(apart) > 1)} at {row['name']} ({row['way']}: {ends})"


def _apart(run: Run, effects: Rows, ways: Mapping[str, str]) -> pl.DataFrame | None:
    """What surely has another share over the base's answers, the furthest first; None where nothing was tested."""
    found = [both.with_columns(way=pl.lit(way)) for way, both in compared(run, effects, ways).items() if not both.is_empty()]
    tested = pl.concat(found).filter(pl.col("p").is_not_null()) if found else None
    if tested is None or tested.is_empty():
        return None
    return tested.filter(pl.col("p") < LEVEL, pl.col("apart").abs() >= LEAST).sort(-pl.col("apart").abs(), "name")


def disagreement(run: Run, effects: Rows, noun: str, ways: Mapping[str, str] = WAYS) -> list[str]:
    """Which of these have another share over the base's answers, by a test; else that none was shown to, or that it cannot be tested."""
    if not any(len(both) for both in compared(run, effects, ways).values()):
        return []
    apart = _apart(run, effects, ways)
    if apart is None:
        return [
            f"Whether a single {noun} goes another part of the way in logits over the base's answers cannot be tested on so few prompts."
        ]
    if apart.is_empty():
        where = f"over the base's answers that is {LEAST:g} or more from that over the tuned model's"
        return [f"No single {noun} was shown to go a part of the way in logits {where}."]
    names = [
        f"{row['name']} ({row['way']}: {share(row['first'])} over the tuned model's, {share(row['answer'])} over the base's)"
        for row in apart.head(SPOKEN).iter_rows(named=True)
    ]
    return [f"Whose answers are read makes a difference at {listed(names)} (parts of the way in logits, family-wise p < {LEVEL:g})."]
