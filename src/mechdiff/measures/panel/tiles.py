"""What changed on texts that have nothing to do with the study, in one sentence for a reader who has a minute."""

from mechdiff.measures.panel import findings
from mechdiff.measures.panel.plan import ALSO
from mechdiff.measures.panel.words import name
from mechdiff.report.headlines import Candidate, Number, told
from mechdiff.report.overview.scales import KL
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import listed, nats, share

CHANGES = {
    ("loss", True): "Worse predicted",
    ("loss", False): "Better predicted",
    ("right", True): "More right answers",
    ("right", False): "Fewer right answers",
    ("refusal", True): "Refusals likelier",
    ("refusal", False): "Refusals less likely",
}
"""What is said of a score that rose, or fell."""
MOST = 3
"""Groups that a sentence names."""


def what_else(run: Run) -> list[Candidate]:
    """How far apart the two models are on unrelated texts, and which scores changed there."""
    found = findings.overall(run.rows)
    if not {"kl", "top1"} <= found.keys():
        return []
    (kl, *ends, n), (top1, *top1_ends, m) = found["kl"], found["top1"]
    groups = len([one for one in findings.groups(run.summary)["group"].to_list() if one != ALSO])
    apart = Number(
        shown=nats(kl),
        value=kl,
        of=f"KL(tuned ‖ base) per position, mean over texts of {groups} groups",
        unit="nats",
        n=n,
        low=ends[0],
        high=ends[1],
    )
    same = Number(shown=share(top1), value=top1, of="part of positions with the same likeliest token, mean over texts", n=m, low=top1_ends[0],
                  high=top1_ends[1])  # fmt: skip
    said = told(f"{KL.word(kl)}. On unrelated texts predictions differ by ", apart, " nats per token; the likeliest token is the same at ", same,
                " of positions.", n=n)  # fmt: skip
    return [said, *_changed(run)]


def _changed(run: Run) -> list[Candidate]:
    """Scores of groups that changed beyond chance, corrected over all of them."""
    by: dict[str, list[str]] = {}
    for one in sorted((one for one in findings.changes(run.rows, run.summary) if one.found), key=lambda one: one.p):
        by.setdefault(CHANGES[one.score, one.change > 0], []).append(name(one.group))
    return [
        told(f"{what}: {listed(names if len(names) <= MOST else [*names[:MOST], f'{len(names) - MOST} more'])}.")
        for what, names in by.items()
    ]
