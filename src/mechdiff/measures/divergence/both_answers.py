"""Where both models' answers were read, what does most over the tuned model's own is held against the base's, on the same prompts.

A site that carries the change where the tuned model speaks need not carry it where both read what the base says. So the part of the way to the other
model's logits over the tuned model's answers (a share that adds: Fisher overlap over Fisher total) stands beside that over the base's, and their
difference is tested, family-wise over everything in all directions. What is named is the largest of many differences on the prompts that it is given
for, so that it is said of how many, with the interval of the difference.
"""

from collections.abc import Mapping

import polars as pl

from mechdiff.measures.divergence import over_answers
from mechdiff.measures.divergence.over_answers import LEAST, LEVEL, SPOKEN, TOP, WAYS, Rows
from mechdiff.measures.divergence.words import answers_differ
from mechdiff.report.headlines import Candidate
from mechdiff.report.parts import Run, table
from mechdiff.report.phrasing import listed, share, shown, with_interval
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
    return over_answers.across(found)


def _totals(rows: pl.DataFrame) -> pl.DataFrame:
    return where(rows, measure=OF_THE_PAIR, metric=over(TOTAL, ANSWER), control=None, unit=None).select("prompt", total="value")


def parts(run: Run, effects: Rows, noun: str, ways: Mapping[str, str] = WAYS, *, top: int = TOP) -> list[dict]:
    """The table of what does most over either model's answers; nothing where those of one were read."""
    lines = []
    for way, both in compared(run, effects, ways).items():
        chosen = {name for by in ("first", "answer") for name in both.sort(by, descending=True, nulls_last=True).head(top)["name"]}
        for row in both.filter(pl.col("name").is_in(chosen)).sort("first", descending=True).iter_rows(named=True):
            lines.append((
                row["name"], way, share(row["first"], 3), shown(row["answer"], row["low"], row["high"], digits=2),
                shown(row["apart"], row["apart_low"], row["apart_high"], digits=2), "–" if row["p"] is None else f"{row['p']:.2g}",
            ))  # fmt: skip
    over = ("over the tuned model's answers", "over the base's")
    columns = (noun, "direction", *over, "difference", "p (family-wise)")
    return [table(columns, lines, title=TITLE)] if lines else []


def clause(run: Run, effects: Rows, ways: Mapping[str, str] = WAYS) -> list[Candidate]:
    """For the verdict: "whose answers are read matters most at L24.attn_out (...)", and of how many that is the largest.

    With the interval of the difference; nothing where none is shown.
    """
    found = _tested(run, effects, ways)
    apart = _apart(found)
    if apart.is_empty():
        return []
    row = apart.row(0, named=True)
    text = f"whose answers are read matters{' most' * (len(apart) > 1)} at {_named(row, ' of the way in logits')}, {_chosen(len(found), 1)}"
    return [Candidate(text=text, n=row["n"], tested=row["p"] < LEVEL)]


def _named(row: dict, unit: str = "") -> str:
    """ "L1.mlp_out (tuned into base: 0.50 over the tuned model's, 0.10 over the base's; difference −0.40 (95 %: ...))"."""
    difference = with_interval(row["apart"], row["apart_low"], row["apart_high"], digits=2)
    ends = f"{share(row['first'])}{unit} over the tuned model's, {share(row['answer'])} over the base's"
    return f"{row['name']} ({row['way']}: {ends}; difference {difference})"


def _chosen(n: int, named: int) -> str:
    """What was compared, and that those named were chosen by their size; of one alone nothing was chosen."""
    if n == 1:
        return "the one compared"
    return f"the {f'{named} ' * (named > 1)}largest of {n} differences on these prompts, so optimistically biased"


def _tested(run: Run, effects: Rows, ways: Mapping[str, str]) -> pl.DataFrame:
    """What has a test of its difference, of all directions, with its `way`."""
    found = [both.with_columns(way=pl.lit(way)) for way, both in compared(run, effects, ways).items()]
    return pl.concat(found).filter(pl.col("p").is_not_null()) if found else pl.DataFrame()


def _apart(tested: pl.DataFrame) -> pl.DataFrame:
    """What surely has another share over the base's answers, the furthest first."""
    if tested.is_empty():
        return tested
    return tested.filter(pl.col("p") < LEVEL, pl.col("apart").abs() >= LEAST).sort(-pl.col("apart").abs(), "name")


def disagreement(run: Run, effects: Rows, noun: str, ways: Mapping[str, str] = WAYS) -> list[str]:
    """Which of these have another share over the base's answers, by a test; else that none was shown to, or that it cannot be tested."""
    if not any(len(both) for both in compared(run, effects, ways).values()):
        return []
    found = _tested(run, effects, ways)
    if found.is_empty():
        return [
            f"Whether a single {noun} goes another part of the way in logits over the base's answers cannot be tested on so few prompts."
        ]
    apart = _apart(found).head(SPOKEN)
    if apart.is_empty():
        where = f"over the base's answers that is {LEAST:g} or more from that over the tuned model's"
        return [f"No single {noun} was shown to go a part of the way in logits {where}."]
    names = listed(map(_named, apart.iter_rows(named=True)))
    how = f"parts of the way in logits, family-wise p < {LEVEL:g}; {_chosen(len(found), len(apart))}"
    return [f"Whose answers are read makes a difference at {names} ({how})."]
