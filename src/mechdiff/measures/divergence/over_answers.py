"""Shares of D over whole answers stand beside those at their first token, on the same prompts, with their difference tested.

What is edited at every position of an answer is scored at every position of it (study/answers.py), and a share is the mean effect over these
positions, of D over the same positions. Both outcomes are compared on the prompts that have both, so that their difference is no other set of
prompts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from mechdiff import labels
from mechdiff.measures.divergence.words import NO_SHARE, answered_by, whose, why_no_share
from mechdiff.report import difference, effect_shares
from mechdiff.report.difference import BREAKAGE, RECOVERY
from mechdiff.report.parts import Run, table
from mechdiff.report.phrasing import listed, nats, share, shown, with_interval
from mechdiff.rows import OVERLAP, where
from mechdiff.shares import ANSWER, OF_THE_PAIR, OTHER, over
from mechdiff.statistics import floors, intervals, simulated, summary
from mechdiff.statistics.memory import once

WAYS = {BREAKAGE: "base into tuned", RECOVERY: "tuned into base"}
LEVEL = 0.05
"""Family-wise, over everything that is compared, in all directions together."""
LEAST = 0.05
"""Shares that are less apart are not spoken of, however sure that is."""
SPOKEN = 4
TOP = 5
"""Of each outcome in the table."""
AGAINST = {
    "name": pl.String,
    "first": pl.Float64,
    "answer": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "apart": pl.Float64,
    "apart_low": pl.Float64,
    "apart_high": pl.Float64,
    "p": pl.Float64,
    "n": pl.Int64,
}
"""What `against_first` gives: `low high` of `answer`, `apart` the answer's share less the first's with its ends, on `n` prompts (clusters)."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The outcome over answers, where a measure has it."""

    unit: str
    """The positions, as rows have them: answer_16."""
    n_tokens: int
    n: int
    """Prompts (clusters) with an answer."""
    d: float
    """Mean D over the positions of the answers, in nats a token."""
    low: float | None
    high: float | None
    coverage: float | None
    first: float
    """D at the next token, on the same prompts."""
    counts: bool
    """Whether D over answers is above three noise floors."""


@once
def answered(rows: pl.DataFrame, table: pl.DataFrame, measure: str) -> Answered | None:
    """What stands behind a measure's shares over answers; None where it has none. `table`: the summary."""
    written = where(rows, measure=measure).filter(labels.is_over_answer())
    units = written.select(labels.answer_words()).to_series().unique().to_list()
    d = where(table, measure=OF_THE_PAIR, metric=floors.d_metric(rows, ANSWER), control=None, unit=None)
    if not units or d.is_empty():
        return None
    split = difference.reported(rows, measure)
    both = difference.totals(rows, split, ANSWER).join(difference.totals(rows, split), on="prompt", suffix="_first")
    one = d.row(0, named=True)
    return Answered(
        unit=units[0],
        n_tokens=labels.n_positions(units[0]) or 0,
        n=one["n"],
        d=one["mean"],
        low=one["ci_low"],
        high=one["ci_high"],
        coverage=one["coverage"],
        first=float(both["total_first"].to_numpy().mean()),
        counts=not NO_SHARE & set((one["flag"] or "").split(";")),
    )


def counted(run: Run, measure: str) -> Answered | None:
    """`answered`, where there is a D over answers to take shares of."""
    found = answered(run.rows, run.summary, measure)
    return found if found and found.counts else None


def effects(rows: pl.DataFrame, measure: str, direction: str, metric: str, what: str | None, **columns: object) -> pl.DataFrame:
    """Rows of a measure's runs at whole sites, on the reported prompts, with a `name` for each site: at the next token (None), or over answers."""
    found = where(rows, measure=measure, direction=direction, metric=metric, split=difference.reported(rows, measure), **columns)
    there = labels.is_over_answer() if what else pl.col("unit").is_null()
    return found.filter(there, pl.col("layer").is_not_null()).with_columns(name=difference.site_name())


def strongest(found: pl.DataFrame, last: str) -> tuple[dict, int] | None:
    """What has the largest share over answers, and of how many; not at the site `last` unless there is no other: it is the one that is read from."""
    inner = found.filter(~pl.col("name").str.starts_with(last))
    candidates = found if inner.is_empty() else inner
    if candidates.is_empty():
        return None
    return candidates.sort(-pl.col("answer"), "name").row(0, named=True), len(candidates)


def how_large(run: Run, found: Answered) -> str:
    """ "Over the first 16 tokens of the answers to 8 prompts D is 1.9 (...) nats a token, at the first token 8.1 (same prompts)." """
    opening = f"Over the first {found.n_tokens} tokens of {whose(run)} to {answered_by(run, found.n)}"
    if not found.counts:
        return f"{opening} D = {nats(found.d)} nats per token is not above three times the numerical noise: no share of it is given."
    mean = with_interval(found.d, found.low, found.high, coverage=found.coverage)
    return f"{opening} D is {mean} nats per token, at the first token {nats(found.first)} (same prompts)."


def against_first(run: Run, first: pl.DataFrame, answer: pl.DataFrame, *, runner: str = "base", recovered: bool) -> pl.DataFrame:
    """AGAINST for everything with a name: shares of D at the next token and over answers, and whether their difference can be told from 0.

    `first` and `answer` are rows of effects, each with a column `name`; both are cut to the names and prompts that they have in common. `p` is
    family-wise over names, null where the test does not speak at so few prompts. Where there is no D at the next token `first` is null, and what
    depends on it. `recovered`: an effect takes off from the divergence of the two models, instead of adding to it.
    """
    there = not why_no_share(difference.difference(run.rows, run.summary))
    of_answer, of_first = (answer, _totals(run.rows, runner, ANSWER)), (first, _totals(run.rows, runner, None))
    return beside_each_other(of_first if there else None, of_answer, recovered=recovered)


Effects = tuple[pl.DataFrame, pl.DataFrame]
"""Rows of effects with a column `name`, and `prompt total`: what each prompt's are a share of."""


def beside_each_other(first: Effects | None, answer: Effects, *, recovered: bool) -> pl.DataFrame:
    """AGAINST for two kinds of effects, each a share of its own total, on the names and prompts that both have; see `against_first`."""
    named = answer[0].select("name", "prompt")
    named = named.join(first[0].select("name", "prompt"), on=["name", "prompt"]).unique() if first else named.unique()
    if named.is_empty():
        return pl.DataFrame(schema=AGAINST)
    shares: list[np.ndarray] = []
    moved: list[np.ndarray] = []
    skew = 0.0
    for of, total in (first, answer) if first else (answer,):
        kept = of.join(named, on=["name", "prompt"]).join(total, on="prompt")
        _, names, effect = summary.prompt_matrix(kept, by="name")
        d = kept.unique("prompt").sort("prompt")["total"].to_numpy()
        if not len(d) or d.mean() <= 0:
            return pl.DataFrame(schema=AGAINST)
        effect = d[:, None] - effect if recovered else effect
        share, low, high = intervals.share_intervals(effect, d)
        shares.append(share)
        moved.append((effect - share * d[:, None]) / d.mean())  # each prompt's influence on the share
        skew = max(skew, float(simulated.cv_of(d[:, None])[0]))
    nothing = np.full(len(names), np.nan)
    apart, ends, p = (shares[-1] - shares[0] if first else nothing), (nothing, nothing), nothing
    if first:
        by_prompt = moved[-1] - moved[0] + apart
        ends = intervals.mean_intervals(by_prompt)
        p = intervals.family_p(by_prompt) if simulated.speaks("family_p", len(by_prompt), skew) else nothing
    columns = {
        "name": names,
        "first": shares[0] if first else nothing,
        "answer": shares[-1],
        "low": low,
        "high": high,
        "apart": apart,
        "apart_low": ends[0],
        "apart_high": ends[1],
        "p": p,
        "n": [len(moved[-1])] * len(names),
    }
    return pl.DataFrame(columns, schema=AGAINST).with_columns(pl.col(pl.Float64).fill_nan(None))


Rows = Callable[[pl.DataFrame, str, str, str | None], pl.DataFrame]
"""From a run's rows, a direction, a metric and one of `shares.OVER` (None: the next token) to the rows of effects, each with a `name`."""


@once
def both_ways(run: Run, effects: Rows, ways: Mapping[str, str] = WAYS) -> dict[str, pl.DataFrame]:
    """`against_first` of each of these directions, by its words, with one family of tests (`across`).

    Where a model writes an edited state of its own, an effect is what that takes off its divergence from the other model.
    """
    found = {}
    for direction, word in ways.items():
        within = direction in labels.WITHIN
        metrics = {
            what: (over(OTHER, what) if what else OTHER) if within else floors.effect_metric(run.rows, direction, what)
            for what in (None, ANSWER)
        }
        first, answer = (effects(run.rows, direction, metric, what) for what, metric in metrics.items())
        runner = labels.runner(direction) if within else "base"
        found[word] = against_first(run, first, answer, runner=runner, recovered=direction != BREAKAGE)
    return across(found)


def across(found: Mapping[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    """The same with `p` family-wise over all directions, for sentences speak of them together: times how many families are tested (Bonferroni)."""
    families = sum(both["p"].null_count() < len(both) for both in found.values())
    return {way: both.with_columns((pl.col("p") * families).clip(upper_bound=1.0)) for way, both in found.items()}


def fisher(run: Run, effects: Rows) -> dict[str, dict[str, float]]:
    """By direction, in words, and name: shares of D over the answer that add to first order."""
    metric = over(OVERLAP, ANSWER)
    return {
        word: dict(
            effect_shares.additive(run.rows, effects(run.rows, direction, metric, ANSWER), ANSWER).select("name", "additive").iter_rows()
        )
        for direction, word in WAYS.items()
    }


def _totals(rows: pl.DataFrame, runner: str, what: str | None) -> pl.DataFrame:
    """`prompt total`: D of each prompt; or where the tuned model runs and is led to the base, its reverse."""
    found = where(rows, measure=OF_THE_PAIR, metric=floors.between_models(rows, what)[runner], control=None, unit=None)
    return found.select("prompt", total="value")


def beside(
    found: Mapping[str, pl.DataFrame],
    what: str,
    whose: str = "the answers",
    *,
    added: Mapping[str, Mapping[str, float]] | None = None,
    top: int = TOP,
) -> list[dict]:
    """The table of what does most by either outcome. `found`: AGAINST by direction; `what` a name is ("output", "head"); `whose` the answers are.

    `added`: by direction and name, shares over the answer that add to first order.
    """
    lines = []
    for way, both in found.items():
        chosen = {name for by in ("first", "answer") for name in both.sort(by, descending=True, nulls_last=True).head(top)["name"]}
        for row in both.filter(pl.col("name").is_in(chosen)).sort("answer", descending=True).iter_rows(named=True):
            lines.append((
                row["name"], way, share(row["first"], 3), shown(row["answer"], row["low"], row["high"], digits=3),
                *([share(added[way].get(row["name"]), 3)] if added else []), share(row["apart"], 3),
                "–" if row["p"] is None else f"{row['p']:.2g}",
            ))  # fmt: skip
    extra = ("Fisher share",) if added else ()
    columns = (what, "direction", "share at the first token", "share over the answer", *extra, "difference", "p (family-wise)")
    of = "" if whose == "the answers" else f" ({whose})"
    return [table(columns, lines, title=f"The first token against the whole answer, on the same prompts{of}")] if lines else []


def disagreement(found: Mapping[str, pl.DataFrame], noun: str, whose: str = "the answers") -> list[str]:
    """Which of these have another share of D over the answer than at the first token, by a test; else that none was shown to.

    `whose` the answers are: the sentence names the model where that is said.
    """
    over, first = ("the answer", "its first token") if whose == "the answers" else (whose, "their first token")
    tested = pl.concat([both.with_columns(way=pl.lit(way)) for way, both in found.items()]).filter(pl.col("p").is_not_null())
    if tested.is_empty():
        if all(both["first"].null_count() == len(both) for both in found.values()):
            return []
        return [f"Whether a single {noun} carries another share of D over {over} than at {first} cannot be tested on so few prompts."]
    apart = tested.filter(pl.col("p") < LEVEL, pl.col("apart").abs() >= LEAST).sort(-pl.col("apart").abs(), "name").head(SPOKEN)
    if apart.is_empty():
        return [f"No single {noun} was shown to carry a share of D over {over} that is {LEAST:g} or more from that at {first}."]
    names = [
        f"{row['name']} ({row['way']}: {share(row['answer'])} over {over}, {share(row['first'])} at {first})"
        for row in apart.iter_rows(named=True)
    ]
    return [f"The first token misleads at {listed(names)} (family-wise p < {LEVEL:g})."]
