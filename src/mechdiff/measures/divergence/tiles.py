"""How much do the two models differ, in one sentence for a reader who has a minute."""

from mechdiff.measures.divergence.words import answers_differ
from mechdiff.report import difference
from mechdiff.report.difference import Difference
from mechdiff.report.headlines import Candidate, Number, told
from mechdiff.report.overview.scales import KL
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import nats, share
from mechdiff.rows import where
from mechdiff.shares import ANSWER
from mechdiff.statistics import floors

NEXT = "KL(tuned ‖ base) of the next token, mean over test prompts"


def how_much(run: Run) -> list[Candidate]:
    """D on its scale, and on how many prompts the likeliest next token differs; over whole answers where only these differ."""
    found = difference.difference(run.rows, run.summary)
    if found is None:
        return []
    if not found.counts:
        return [_over_answers(run, found) if answers_differ(run) else _none(found)]
    if not found.divides:
        js = Number(
            shown=nats(found.js), value=found.js or 0.0, of="JS divergence of the next token over all tokens", unit="nats", n=found.n
        )
        return [
            told(
                "They differ only in tokens that one of the two lacks: JS divergence ", js, " nats at the next token.", n=found.n, needed=1
            )
        ]
    outside = "Tokens that only one of the two models has are left out of this number." if found.mass_outside is not None else ""
    opening = f"{KL.word(found.mean)}. On your prompts the next token's probabilities differ by "
    return [told(opening, _d(found, NEXT), " nats", *_likeliest(found), ".", n=found.n, needed=1, caveat=outside)]


def _d(found: Difference, of: str) -> Number:
    ends = (None, None) if found.low != found.low else (found.low, found.high)
    return Number(shown=nats(found.mean), value=found.mean, of=of, unit="nats", n=found.n, low=ends[0], high=ends[1])


def _likeliest(found: Difference) -> tuple[str | Number, ...]:
    """ "; the likeliest token differs on 10 of 10", or on which share of clusters."""
    if found.other_token is None or found.other_share is None:
        return ()
    whole = abs(found.other_share * found.n - found.other_token) < 1e-6
    shown = f"{found.other_token} of {found.n}" if whole else f"{share(found.other_share)} of them"
    of = "part of the test prompts on which the two models' likeliest next tokens differ"
    return "; the likeliest token differs on ", Number(shown=shown, value=found.other_share, of=of, n=found.n)


def _none(found: Difference) -> Candidate:
    d = Number(shown=nats(found.mean), value=found.mean, of=NEXT, unit="nats", n=found.n)
    return told("None. On your prompts the next token's probabilities differ by ", d, " nats, no more than rounding.", n=found.n, needed=1)


def _over_answers(run: Run, found: Difference) -> Candidate:
    d = where(run.summary, measure="divergence", metric=floors.d_metric(run.rows, ANSWER), control=None, unit=None).row(0, named=True)
    along = Number(shown=nats(d["mean"]), value=d["mean"], of="KL(tuned ‖ base) per token of the answers", unit="nats", n=d["n"],
                   low=d["ci_low"], high=d["ci_high"])  # fmt: skip
    return told(
        f"{KL.word(d['mean'])}. The first token does not differ; along whole answers ", along, " nats per token.", n=d["n"], needed=1
    )
