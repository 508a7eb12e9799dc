"""Over whole answers patches may matter elsewhere than at the next token: where they agree, where not, and what may be said of it.

The other model's activation is written at every position of an answer (divergence/over_answers.py).
"""

import polars as pl

from mechdiff import labels
from mechdiff.measures.divergence import both_answers, over_answers
from mechdiff.measures.divergence.over_answers import WAYS, Answered
from mechdiff.measures.divergence.words import answered_by, whose
from mechdiff.measures.patching import charts, findings
from mechdiff.measures.patching.findings import Crossing
from mechdiff.report.difference import BOTH, STREAM, site_name
from mechdiff.report.headlines import Candidate
from mechdiff.report.parts import Drawn, Run, table
from mechdiff.report.phrasing import nats, shown
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
    """The map over answers, and a table of the outputs that do most by either outcome; the same over the base's answers, where both were read."""
    beside = both_answers.parts(run, _outputs, "output")
    return [*(part for one in run.by_answers for part in _parts(one, of=None if one is run else one)), *beside]


def _parts(run: Run, of: Run | None) -> list[Drawn | dict]:
    """Over one model's answers; `of`: the run that figures are drawn from, where it is not the page's."""
    found = answered(run)
    if found is None or not found.counts:
        return []
    shares = findings.site_shares(run.rows, run.summary, unit=found.unit, what=ANSWER)
    if shares["share"].drop_nulls().is_empty():
        return []
    caption = (
        f"The same over {whose(run)}: the activation is patched in at every position of the first {found.n_tokens} tokens, and a share "
        f"is of D over them ({nats(found.d)} nats per token on {answered_by(run, found.n)}; at the first token {nats(found.first)})."
    )
    drawn = Drawn(
        name="causal_map_answer" if of is None else "causal_map_answer_of_base", chart=charts.causal_map,
        options={"unit": found.unit, "what": ANSWER}, caption=caption, reading="causal_map_answer", of=of,
    )  # fmt: skip
    beside = over_answers.beside(over_answers.both_ways(run, _outputs), "output", whose(run), added=over_answers.fisher(run, _outputs))
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
            *(shown(*(row[f"{what}{of}"] for what in ("share", "low", "high")), digits=2) for of in ("", "_along")),
        ]
        for row in inner.with_columns(name=site_name()).head(PARTING).iter_rows(named=True)
    ]
    columns = ["site", "direction", "patched in there alone", "at every position of the answer"]
    title = (
        f"Share of D at the first position of {whose(run)} where the two models part, on the {answered_by(run, n)} where they do "
        f"({len(lines)} largest of {len(inner)}: optimistic; without the last block's output, which carries all of D by construction)"
    )
    return [table(columns, lines, title=title)] if lines else []


def lead(run: Run) -> list[str]:
    """How large D is over answers, from where on more than half of it is carried over, and whether the first token says the same.

    Where both models' answers were read, over either's, and where they disagree.
    """
    return [*(said for one in run.by_answers for said in _lead(one)), *both_answers.disagreement(run, _outputs, "output")]


def _lead(run: Run) -> list[str]:
    found = answered(run)
    if found is None:
        return []
    said = [over_answers.how_large(run, found)]
    if not found.counts:
        return said
    there = half_ways(run.rows, unit=found.unit, what=ANSWER)
    if there:
        passed = " and ".join(f"{crossing(one)} ({WAYS[way]})" for way, one in there.items())
        does = "goes more than half of the way in logits" if in_logits(there) else "carries more than half of that D"
        said.append(f"Patched at every position of {whose(run)}, the residual stream {does} {passed}.")
    return [*said, *over_answers.disagreement(over_answers.both_ways(run, _outputs), "output", whose(run))]


def alone(run: Run) -> list[str]:
    """The same where the next tokens do not differ: nothing unless whole answers do."""
    return lead(run) if any(found and found.counts for found in map(answered, run.by_answers)) else []


def clause(run: Run) -> list[Candidate]:
    """From where on more than half of D over answers is carried over, for the verdict; nothing where answers were not looked at.

    Where both models' were read, over either's, and the outputs at which it matters whose they are.
    """
    said: list[str] = []
    n = 0
    for one in run.by_answers:
        found = answered(one)
        passed = in_brief(one.rows, unit=found.unit, what=ANSWER) if found and found.counts else ""
        if found and passed:
            tokens = f"{found.n_tokens} tokens of {whose(one)}" if run.over_base else f"{found.n_tokens} answer tokens"
            does = "" if said else f" patches of the residual stream {how_far(half_ways(one.rows, unit=found.unit, what=ANSWER))}"
            opening = f"over the base's (D {nats(found.d)})" if said else f"over {tokens} (D {nats(found.d)} nats per token)"
            said.append(f"{opening}{does} {passed}")
            n = found.n
    return [Candidate(text="; ".join(said), n=n), *both_answers.clause(run, _outputs)] if said else []


def half_ways(rows: pl.DataFrame, *, unit: str | None = None, what: str | None = None, of_kl: bool = False) -> dict[str, Crossing]:
    """By direction: where along the residual stream half of the way in logits (or `of_kl`, of D) is passed, where it is."""
    found = {way: findings.half_way(rows, way, unit=unit, what=what, of_kl=of_kl) for way in BOTH}
    return {way: one for way, one in found.items() if one is not None}


def in_logits(found: dict[str, Crossing]) -> bool:
    """Whether crossings are of the way in logits."""
    return any(one.in_logits for one in found.values())


def how_far(found: dict[str, Crossing]) -> str:
    """What is said of patches that pass one half."""
    return "go more than half of the way in logits" if in_logits(found) else "carry more than half of D"


def in_brief(rows: pl.DataFrame, *, unit: str | None = None, what: str | None = None, of_kl: bool = False) -> str:
    """ "from L2.resid_post on (base into tuned) and from ...", or "from L2.resid_post on, in both directions"; empty where none passes one half."""
    there = half_ways(rows, unit=unit, what=what, of_kl=of_kl)
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
