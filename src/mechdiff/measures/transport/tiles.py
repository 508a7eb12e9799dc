"""Whether one fixed vector is the change, in one sentence for a reader who has a minute."""

from mechdiff.measures.transport import findings
from mechdiff.report.headlines import Candidate, Number, told
from mechdiff.report.overview.scales import ONE_VECTOR
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import share

WAYS = {"shift": "one fixed vector added at layer {} recovers ", "mean": "one fixed activation patched in at layer {} recovers "}


def how_complicated(run: Run) -> list[Candidate]:
    """What the better of two constants recovers at the site that other prompts chose, beside the patch itself."""
    best = findings.carried(run.rows, run.summary)
    if best is None or best.trivial is None:
        return []
    one, top = best.trivial, best.ceiling
    value = max(0.0, one.share)
    part = Number(shown=share(value), value=one.share, of=f"part of the change (KL) recovered in the base by {one.arm} at {best.name}",
                  n=best.n, low=one.low, high=one.high)  # fmt: skip
    beside: tuple[str | Number, ...] = ()
    if top is not None:
        whole = Number(shown=share(top.share), value=top.share, of=f"part recovered by each prompt's own tuned activation at {best.name}", n=best.n,
                       low=top.low, high=top.high)  # fmt: skip
        beside = (" of the change, the full patch there ", whole)
    else:
        beside = (" of the change",)
    word = ONE_VECTOR.word(value)
    opening = f"{word} at the first token: " if word != ONE_VECTOR.steps[0][1] else f"{word}: "
    own = "" if best.chosen_on == "select" else "The site was chosen on the prompts that it is reported on."
    tested = one.low is not None and (one.low > 0 or word == ONE_VECTOR.steps[0][1])
    last = best.name == findings.readout_site(run.rows)
    return [told(opening, WAYS[one.arm].format(best.layer), part, *beside, ".", n=best.n, tested=tested, by_construction=last, caveat=own)]
