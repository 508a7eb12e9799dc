"""Over whole answers patches may matter elsewhere than at the next token: where they agree, where not, and what may be said of it.

The other model's activation is written at every position of an answer (divergence/over_answers.py).
"""

import polars as pl

from mechdiff import labels
from mechdiff.measures.divergence import over_answers
from mechdiff.measures.divergence.over_answers import WAYS, Answered
from mechdiff.measures.divergence.words import answered_by
from mechdiff.measures.patching import charts, findings
from mechdiff.measures.patching.findings import Crossing
from mechdiff.report.difference import BOTH, STREAM, site_name
from mechdiff.report.headlines import Candidate
from mechdiff.report.parts import Drawn, Run, table
from mechdiff.report.phrasing import nats, with_ends
from mechdiff.rows import where
from mechdiff.shares import ANSWER, DIVERGENT

PARTING = 8
"""Sites that are shown where the two models part."""


def answered(run: Run) -> Answered | None:
    """What stands behind the shares over answers; None where patches were not scored over answers."""
    return over_answers.answered(run.rows, run.summary, "patching")


def _outputs(rows: pl.DataFrame, direction: str, metric: str, what: str | None) -> pl.DataFrame:
    """Rows of every output patched by itself, with its `name`."""
    written = over_answers.effects(rows, "patching", direction, metric, what, arm="identity", control=None, strength=None)
    return written.filter(~pl.col("site").is_in(STREAM))


def parts(run: Run) -> list[Drawn | dict]:
    """The map over answers, and a table of the outputs that do most by either outcome."""
    found = answered(run)
    if found is None or not found.counts:
        return []
    shares = findings.site_shares(run.rows, run.summary, unit=found.unit, what=ANSWER)
    if shares["share"].drop_nulls().is_empty():
        return []
    caption = (
        f"The same over whole answers: the activation is written at every position of the first {found.n_tokens} tokens of the answer, and a share "
        f"is of D over them ({nats(found.d)} nats a token on {answered_by(run, found.n)}; at the first token {nats(found.first)})."
    )
    drawn = Drawn(
        name="causal_map_answer", chart=charts.causal_map, options={"unit": found.unit, "what": ANSWER}, caption=caption, reading="causal_map_answer"
    )  # fmt: skip
    beside = over_answers.beside(over_answers.both_ways(run, _outputs), "output", added=over_answers.fisher(run, _outputs))
    return [drawn, *beside, *_where_they_part(run, found)]


def _where_they_part(run: Run, found: Answered) -> list[dict]:
    """Shares of D at the first position where the two models part: of what is written there alone, beside the same written at every position."""
    alone, along = (
        findings.site_shares(run.rows, run.summary, unit=unit, what=DIVERGENT)
        for unit in (labels.along_answer(labels.PARTING, found.n_tokens), found.unit)
    )
    both = alone.join(along, on=["direction", "layer", "site"], suffix="_along", maintain_order="left").filter(
        pl.col("share").is_not_null()
    )
    largest = both.sort(pl.max_horizontal("share", "share_along"), descending=True, nulls_last=True, maintain_order=True)
    known = where(run.rows, measure="patching", unit=labels.along_answer(labels.PARTING, found.n_tokens), control=None)
    n = known.filter(pl.col("layer").is_not_null())["prompt"].n_unique()
    read_from = (pl.col("layer") == run.manifest["pair"]["base"]["n_layers"] - 1) & (pl.col("site") == "resid_post")
    inner = largest.filter(~read_from)
    lines = [
        [
            row["name"],
            WAYS[row["direction"]],
            *(with_ends(*(row[f"{what}{of}"] for what in ("share", "low", "high"))) for of in ("", "_along")),
        ]
        for row in inner.with_columns(name=site_name()).head(PARTING).iter_rows(named=True)
    ]
    columns = ["site", "direction", "written there alone (95\u00a0%)", "at every position of the answer (95\u00a0%)"]
    title = (
        f"Share of D at the first position of the answer where the two models part, on the {answered_by(run, n)} where they do "
        f"({len(lines)} largest of {len(inner)}: optimistic; without the last block's output, which carries all of D by construction)"
    )
    return [table(columns, lines, title=title)] if lines else []


def lead(run: Run) -> list[str]:
    """How large D is over answers, from where on more than half of it is carried over, and whether the first token says the same."""
    found = answered(run)
    if found is None:
        return []
    said = [over_answers.how_large(run, found)]
    if not found.counts:
        return said
    if passed := [f"{crossing(one)} ({WAYS[way]})" for way, one in half_ways(run.rows, unit=found.unit, what=ANSWER).items()]:
        said.append(
            f"Patched at every position of the answer, the residual stream carries more than half of that D {' and '.join(passed)}."
        )
    return [*said, *over_answers.disagreement(over_answers.both_ways(run, _outputs), "output")]


def alone(run: Run) -> list[str]:
    """The same where the next tokens do not differ: nothing unless whole answers do."""
    found = answered(run)
    return lead(run) if found and found.counts else []


def clause(run: Run) -> list[Candidate]:
    """From where on more than half of D over answers is carried over, for the verdict; nothing where answers were not looked at."""
    found = answered(run)
    if found is None or not found.counts:
        return []
    passed = in_brief(run.rows, unit=found.unit, what=ANSWER)
    opening = f"over {found.n_tokens} answer tokens (D {nats(found.d)} nats a token)"
    text = f"{opening} patches of the residual stream carry more than half of D {passed}"
    return [Candidate(text=text, n=found.n)] if passed else []


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
        return f"from a site between {found.after} and {found.site} on (blocks between were not patched; {ends})"
    return f"from {found.site} on ({ends})"
