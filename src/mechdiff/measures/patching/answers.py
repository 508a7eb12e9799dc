"""Over whole answers patches may matter elsewhere than at the next token: where they agree, where not, and what may be said of it.

The other model's activation is written at every place of an answer (study/answers.py), and a share is the mean effect over these places, of D over
the same places. Both outcomes are compared on the prompts that have both, so that their difference is no other set of prompts.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from mechdiff import labels
from mechdiff.measures.divergence.words import NO_SHARE, answered_by
from mechdiff.measures.patching import charts, findings
from mechdiff.measures.patching.findings import Crossing
from mechdiff.report import difference, effect_shares
from mechdiff.report.difference import BOTH, BREAKAGE, RECOVERY, STREAM
from mechdiff.report.headlines import Candidate
from mechdiff.report.parts import Drawn, Run, table
from mechdiff.report.phrasing import between, listed, nats, share, with_interval
from mechdiff.rows import OVERLAP, where
from mechdiff.shares import ANSWER, over
from mechdiff.statistics import floors, intervals, simulated, summary
from mechdiff.statistics.memory import once

LEVEL = 0.05
"""Family-wise, over all outputs of a direction."""
LEAST = 0.05
"""Shares that are less apart are not spoken of, however sure that is."""
SPOKEN = 4
TOP = 5
"""Outputs of each outcome in the table."""


WAYS = {BREAKAGE: "base into tuned", RECOVERY: "tuned into base"}
COLUMNS = ("output", "patch", "share at the first token", "share over the answer", "95 %", "Fisher share", "difference", "p (family-wise)")


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The outcome over answers, where it was measured."""

    unit: str
    """Of its rows, such as answer_16."""
    n_tokens: int
    n: int
    """Prompts (clusters) with an answer."""
    d: float
    """Mean D over the places of the answers, in nats a token."""
    low: float | None
    high: float | None
    coverage: float | None
    first: float
    """D at the next token, on the same prompts."""
    counts: bool
    """Whether D over answers is above three noise floors."""


@once
def answered(rows: pl.DataFrame, table: pl.DataFrame) -> Answered | None:
    """What stands behind the shares over answers; None where patches were not scored over answers. `table`: the summary."""
    units = rows.filter(pl.col("measure") == "patching", labels.is_over_answer())["unit"].unique().to_list()
    d = where(table, measure="divergence", metric=floors.d_metric(rows, ANSWER), control=None, unit=None)
    if not units or d.is_empty():
        return None
    split = difference.reported(rows, "patching")
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


@once
def against_first(rows: pl.DataFrame, direction: str) -> pl.DataFrame:
    """`name layer site first answer apart p` of every output: shares of D at the next token and over answers on the same prompts, and whether their
    difference can be told from 0, family-wise over the outputs (null where the test does not speak at so few prompts)."""
    units = rows.filter(pl.col("measure") == "patching", labels.is_over_answer())["unit"].unique().to_list()
    split = difference.reported(rows, "patching")
    tables = {}
    for what, unit in ((None, None), (ANSWER, units[0] if units else None)):
        written = where(
            rows, measure="patching", direction=direction, metric=floors.effect_metric(rows, direction, what), split=split, arm="identity",
            unit=unit, control=None, strength=None,
        ).filter(~pl.col("site").is_in(STREAM), pl.col("layer").is_not_null())  # fmt: skip
        total = difference.totals(rows, split, what)
        tables[what] = written.with_columns(name=difference.site_name()).join(total, on="prompt")
    shared = tables[ANSWER].select("name", "prompt", "layer", "site").join(tables[None].select("name", "prompt"), on=["name", "prompt"])
    if shared.is_empty():
        return pl.DataFrame(schema=_AGAINST)
    found: dict[str | None, np.ndarray] = {}
    moved: list[np.ndarray] = []
    for what, of in tables.items():
        kept = of.join(shared.select("name", "prompt"), on=["name", "prompt"])
        _, names, effect = summary.prompt_matrix(kept, by="name")
        d = kept.unique("prompt").sort("prompt")["total"].to_numpy()
        if direction == RECOVERY:
            effect = d[:, None] - effect
        if d.mean() <= 0:
            return pl.DataFrame(schema=_AGAINST)
        found[what] = effect.mean(axis=0) / d.mean()
        moved.append((effect - found[what] * d[:, None]) / d.mean())  # each prompt's influence on the share
    apart = found[ANSWER] - found[None]
    speaks = simulated.speaks("mean_p", len(moved[0]), float(simulated.cv_of(d[:, None])[0]))
    p = intervals.family_p(moved[1] - moved[0] + apart) if speaks else np.full(len(apart), np.nan)
    sites = shared.unique("name").select("name", "layer", "site")
    columns = {"name": names, "first": found[None], "answer": found[ANSWER], "apart": apart, "p": p}
    return pl.DataFrame(columns).join(sites, on="name").with_columns(pl.col("p").fill_nan(None)).select(list(_AGAINST))


def parts(run: Run) -> list[Drawn | dict]:
    """The map over answers, and a table of the outputs that do most by either outcome."""
    found = answered(run.rows, run.summary)
    if found is None or not found.counts:
        return []
    shares = findings.site_shares(run.rows, run.summary, unit=found.unit, what=ANSWER)
    if shares["share"].drop_nulls().is_empty():
        return []
    caption = (
        f"The same over whole answers: the activation is written at every place of the first {found.n_tokens} tokens of the answer, and a share is "
        f"of D over them ({nats(found.d)} nats a token on {answered_by(run, found.n)}; at the first token {nats(found.first)})."
    )
    drawn = Drawn(
        name="causal_map_answer", chart=charts.causal_map, options={"unit": found.unit, "what": ANSWER}, caption=caption, reading="causal_map_answer"
    )  # fmt: skip
    return [drawn, *_table(run, found)]


def _table(run: Run, found: Answered) -> list[dict]:
    lines = []
    for direction, word in WAYS.items():
        both = against_first(run.rows, direction)
        chosen = {name for by in ("first", "answer") for name in both.sort(by, descending=True).head(TOP)["name"]}
        ends = findings.site_shares(run.rows, run.summary, unit=found.unit, what=ANSWER).filter(pl.col("direction") == direction)
        named = {row["name"]: row for row in ends.with_columns(name=difference.site_name()).iter_rows(named=True)}
        overlaps = where(
            run.rows, measure="patching", direction=direction, metric=over(OVERLAP, ANSWER), unit=found.unit, control=None
        ).filter(pl.col("layer").is_not_null())  # fmt: skip
        added = dict(effect_shares.additive(run.rows, overlaps.with_columns(name=difference.site_name()), ANSWER).iter_rows())
        for row in both.filter(pl.col("name").is_in(chosen)).sort("answer", descending=True).iter_rows(named=True):
            end = named[row["name"]]
            lines.append((
                row["name"], word, share(row["first"], 3), share(row["answer"], 3), between(end["low"], end["high"], digits=3),
                share(added.get(row["name"]), 3), share(row["apart"], 3), "–" if row["p"] is None else f"{row['p']:.2g}",
            ))  # fmt: skip
    return [table(COLUMNS, lines, title="The first token against the whole answer, on the same prompts")] if lines else []


def lead(run: Run) -> list[str]:
    """How large D is over answers, from where on more than half of it is carried over, and whether the first token says the same."""
    found = answered(run.rows, run.summary)
    if found is None:
        return []
    mean = with_interval(found.d, found.low, found.high, coverage=found.coverage)
    size = f"D is {mean} nats a token, at the first token {nats(found.first)} (same prompts)"
    opening = f"Over the first {found.n_tokens} tokens of the answers to {answered_by(run, found.n)}"
    if not found.counts:
        return [f"{opening} D = {nats(found.d)} nats a token is not above three times the noise floor: no share of it is given."]
    said = [f"{opening} {size}."]
    if passed := [f"{crossing(one)} ({WAYS[way]})" for way, one in half_ways(run.rows, unit=found.unit, what=ANSWER).items()]:
        said.append(f"Patched at every place of the answer, the residual stream carries more than half of that D {' and '.join(passed)}.")
    return [*said, *_disagreement(run.rows)]


def alone(run: Run) -> list[str]:
    """The same where the next tokens do not differ: nothing unless whole answers do."""
    found = answered(run.rows, run.summary)
    return lead(run) if found and found.counts else []


def clause(run: Run) -> list[Candidate]:
    """From where on more than half of D over answers is carried over, for the verdict; nothing where answers were not looked at."""
    found = answered(run.rows, run.summary)
    if found is None or not found.counts:
        return []
    passed = in_brief(run.rows, unit=found.unit, what=ANSWER)
    opening = f"over {found.n_tokens} answer tokens (D {nats(found.d)} nats a token)"
    text = f"{opening} patches of the residual stream carry more than half of D {passed}"
    return [Candidate(text=text, n=found.n)] if passed else []


def _disagreement(rows: pl.DataFrame) -> list[str]:
    """Which outputs carry another share of D over the answer than at the first token, by a test; else that none was shown to."""
    apart: list[tuple[float, str]] = []
    tested = 0
    for way, word in WAYS.items():
        both = against_first(rows, way).filter(pl.col("p").is_not_null())
        tested += len(both)
        for row in both.filter(pl.col("p") < LEVEL, pl.col("apart").abs() >= LEAST).iter_rows(named=True):
            said = f"{row['name']} ({word}: {share(row['answer'])} over the answer, {share(row['first'])} at its first token)"
            apart.append((-abs(row["apart"]), said))
    if apart:
        return [f"The first token misleads at {listed(said for _, said in sorted(apart)[:SPOKEN])} (family-wise p < {LEVEL:g})."]
    if tested:
        return [f"No single output was shown to carry a share of D over the answer that is {LEAST:g} or more from that at its first token."]
    return ["Whether single outputs carry another share of D over the answer than at its first token cannot be tested on so few prompts."]


def half_ways(rows: pl.DataFrame, *, unit: str | None = None, what: str | None = None) -> dict[str, Crossing]:
    """By direction: where along the residual stream a share of D passes one half, where it does."""
    found = {way: findings.half_way(rows, way, unit=unit, what=what) for way in BOTH}
    return {way: one for way, one in found.items() if one is not None}


def in_brief(rows: pl.DataFrame, *, unit: str | None = None, what: str | None = None) -> str:
    """ "from L2.resid_post on (base into tuned) and from ...", or "from L2.resid_post on, in both directions"; empty where none passes one half."""
    there = half_ways(rows, unit=unit, what=what)
    if len(there) > 1 and len({one.site for one in there.values()}) == 1:
        return f"{crossing(next(iter(there.values())), brief=True)}, in both directions"
    return " and ".join(f"{crossing(one, brief=True)} ({WAYS[way]})" for way, one in there.items())


def crossing(found: Crossing, *, brief: bool = False) -> str:
    """ "from L26.resid_mid on (95 % set: L25.resid_post to L26.resid_mid)", or between which of a few sites it lies."""
    if brief:
        ends = "" if found.earliest == found.latest else f" [{found.earliest}, {found.latest}]"
        return f"from between {found.after} and {found.site}{ends} on" if found.after else f"from {found.site}{ends} on"
    ends = "the same site in 95 % of resamples" if found.earliest == found.latest else f"95 % set: {found.earliest} to {found.latest}"
    if found.after is not None:
        return f"from a place between {found.after} and {found.site} on (blocks between were not patched; {ends})"
    return f"from {found.site} on ({ends})"


_AGAINST = {
    "name": pl.String, "layer": pl.Int64, "site": pl.String, "first": pl.Float64, "answer": pl.Float64, "apart": pl.Float64, "p": pl.Float64,
}  # fmt: skip
