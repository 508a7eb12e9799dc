"""The page holds maps over whole answers, fitted on other prompts' answers, against those of the decision position."""

import polars as pl

from mechdiff.measures.divergence import both_answers, over_answers
from mechdiff.measures.divergence.words import whose
from mechdiff.measures.transport import findings
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import share, with_interval

WAYS = {"base<-base": "the base's own, mapped"}
SHOWN = 12
"""Maps of either outcome in the table."""
BETWEEN = ", "
"""Between site and arm in a name."""


def _maps(rows: pl.DataFrame, direction: str, metric: str, what: str | None) -> pl.DataFrame:
    """Rows of mapped states written at full strength, with a `name`."""
    chosen = over_answers.effects(rows, "transport", direction, metric, what, control=None, strength=None)
    return chosen.with_columns(name=pl.concat_str("name", pl.lit(BETWEEN), "arm"))


def parts(run: Run) -> list[dict]:
    """The maps that do most by either outcome, side by side; the same over the base's answers, where both models' were read."""
    counted = [one for one in run.by_answers if over_answers.counted(one, "transport")]
    tables = [
        part
        for one in counted
        for part in over_answers.beside(over_answers.both_ways(one, _maps, WAYS), "site, map", whose(one), top=SHOWN)
    ]
    return [*tables, *both_answers.parts(run, _maps, "site, map", WAYS, top=SHOWN)]


def lead(run: Run) -> list[str]:
    """What the best map recovers over answers, and what one constant shift does there."""
    return [*(said for one in run.by_answers for said in _lead(one)), *both_answers.disagreement(run, _maps, "map", WAYS)]


def _lead(run: Run) -> list[str]:
    if (found := over_answers.counted(run, "transport")) is None:
        return []
    both = over_answers.both_ways(run, _maps, WAYS)
    every = both[WAYS["base<-base"]]
    if (top := over_answers.strongest(every, f"{findings.readout_site(run.rows)}{BETWEEN}")) is None:
        return []
    best, n = top
    site, _, arm = best["name"].partition(BETWEEN)
    where = f"patched in at every position of {whose(run)} ({found.n_tokens} tokens)"
    said = f"Fitted on other prompts' answers and {where}, {arm} at {site} recovers most: "
    said += f"{with_interval(best['answer'], best['low'], best['high'], digits=2)} of D over the answer (the best of {n}, so "
    said += "optimistically biased)"
    shift = every.filter(pl.col("name") == f"{site}{BETWEEN}shift")["answer"]
    said += f"; one constant shift there {share(shift[0])}" if len(shift) and arm != "shift" else ""
    first = (
        "" if best["first"] is None else f"; fitted on the last prompt token {arm} recovers {share(best['first'])} there at the first token"
    )
    return [f"{said}{first}.", *over_answers.disagreement(both, "map", whose(run))]
