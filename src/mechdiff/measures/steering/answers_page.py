"""The page holds one vector over whole answers, that of the answers themselves, against the one of how answers open."""

import polars as pl

from mechdiff import labels
from mechdiff.measures.divergence import both_answers, over_answers
from mechdiff.measures.divergence.words import whose
from mechdiff.measures.transport.findings import readout_site
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import share, with_interval

WAYS = {"base<-base": "added to the base", "tuned<-tuned": "ablated in the tuned model"}
RANDOM = ", random"
"""How a name ends that is the mean of random directions."""
SHOWN = 12
"""Edits of either outcome in the table."""


def _edits(rows: pl.DataFrame, direction: str, metric: str, what: str | None) -> pl.DataFrame:
    """Rows of one vector added, or one direction ablated, with a `name`; random ones as their mean."""
    chosen = over_answers.effects(rows, "steering", direction, metric, what, arm=["add", "ablate"], rank=1)
    dose = pl.when(pl.col("strength").is_null()).then(pl.lit("")).otherwise(pl.format(", s = {}", "strength"))
    real = chosen.filter(pl.col("control").is_null()).with_columns(name=pl.concat_str("name", dose))
    drawn = chosen.filter(labels.is_random_edit(), pl.col("strength").is_null())
    random = drawn.group_by("name", "prompt").agg(pl.col("value").mean()).with_columns(pl.col("name") + RANDOM)
    return pl.concat([part.select("name", "prompt", "value") for part in (real, random)])


def _single(rows: pl.DataFrame, direction: str, metric: str, what: str | None) -> pl.DataFrame:
    """The same without random directions and other strengths than 1."""
    return _edits(rows, direction, metric, what).filter(~pl.col("name").str.contains(","))


def parts(run: Run) -> list[dict]:
    """The edits that do most by either outcome, side by side; the same over the base's answers, where both models' were read."""
    counted = [one for one in run.by_answers if over_answers.counted(one, "steering")]
    tables = [
        part for one in counted for part in over_answers.beside(over_answers.both_ways(one, _edits, WAYS), "edit", whose(one), top=SHOWN)
    ]
    return [*tables, *both_answers.parts(run, _edits, "edit", WAYS, top=SHOWN)]


def lead(run: Run) -> list[str]:
    """How far the answers' mean difference leads over the answer; nothing where D over answers is not above the floor."""
    return [*(said for one in run.by_answers for said in _lead(one)), *both_answers.disagreement(run, _single, "edit", WAYS)]


def _lead(run: Run) -> list[str]:
    found, both = over_answers.counted(run, "steering"), over_answers.both_ways(run, _edits, WAYS)
    added = both[WAYS["base<-base"]]
    top = over_answers.strongest(added.filter(~pl.col("name").str.contains(",")), readout_site(run.rows))
    if found is None or top is None:
        return []
    best, n = top
    random = added.filter(pl.col("name") == best["name"] + RANDOM)["answer"]
    beside = f", random ones as long {share(random[0])}" if len(random) else ""
    chosen = f"; the best of {n} sites, so optimistically biased" if n > 1 else ""
    said = f"Added at every position of {whose(run)} ({found.n_tokens} tokens), the mean difference along other prompts' answers at {best['name']} "
    said += f"recovers {with_interval(best['answer'], best['low'], best['high'], digits=2)} of D over the answer{beside}{chosen}"
    first = (
        ""
        if best["first"] is None
        else f"; the mean difference at the last prompt token recovers {share(best['first'])} at the first token"
    )
    alone = {way: of.filter(~pl.col("name").str.contains(",")) for way, of in both.items()}
    return [f"{said}{first}.", *over_answers.disagreement(alone, "edit", whose(run))]
