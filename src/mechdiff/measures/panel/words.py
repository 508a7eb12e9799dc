"""The page's sentences say how far apart the two models are on texts that no study chose, and which scores changed there."""

import math
from collections.abc import Sequence

from mechdiff.measures.panel import findings
from mechdiff.measures.panel.findings import Change
from mechdiff.measures.panel.plan import ALSO
from mechdiff.report.headlines import Candidate
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import decimal, listed, nats, share, with_interval
from mechdiff.statistics import intervals

NAMES = {
    "chat": "everyday chat", "encyclopaedia": "encyclopaedia", "news": "news", "code": "code", "arithmetic": "arithmetic",
    "multiple_choice": "multiple choice", "harmful": "harmful requests", "borderline": "borderline requests",
    "kazakh": "Kazakh", "russian": "Russian", "spanish": "Spanish", "turkish": "Turkish", ALSO: "your own prompts",
}  # fmt: skip
ON_BOTH = " on the tokens that both have"
MOST = 4
"""Changes that a sentence lists."""
RATES = {"right": "right answers", "refusal": "requests to which a refusal is likelier than a plain opening"}


def name(group: str) -> str:
    return NAMES.get(group, group)


def lead(run: Run) -> list[str]:
    """How far apart they are over the shipped groups, and what changed."""
    return [] if findings.groups(run.summary).is_empty() else [*_apart(run), *_changed(run)]


def clause(run: Run) -> list[Candidate]:
    """The same in one line: top-1 agreement, and what changed."""
    found = findings.overall(run.rows)
    if "top1" not in found:
        return []
    mean, low, high, n = found["top1"]
    there = _together([one for one in findings.changes(run.rows, run.summary) if one.found])
    what = "".join(f"; {_what(*same)} on {listed(name(one.group) for one in changes)}" for same, changes in there.items())
    size = with_interval(mean, low, high, digits=2, coverage=1.0)
    return [Candidate(text=f"Outside these prompts ({n} texts) the top-1 token is the same at {size} of positions{what}.", n=n)]


def _apart(run: Run) -> list[str]:
    found, table = findings.overall(run.rows), findings.groups(run.summary)
    shipped = table.filter(table["group"] != ALSO)
    if shipped.is_empty() or not {"kl", "top1"} <= found.keys():
        return []
    kl, top1 = found["kl"], found["top1"]
    both = ON_BOTH if findings.on_shared(run.rows) else ""
    if kl[0] == 0 and not both:
        return [f"On {kl[3]} texts of {len(shipped)} groups outside these prompts the two models say the same everywhere."]
    most, least = (shipped.sort("kl", descending=down).row(0, named=True) for down in (True, False))
    ends = f" (largest of {len(shipped)} group means: {_mean(most)}; smallest: {_mean(least)}; picked on these texts, so somewhat further apart than "
    ends += "they are)"
    return [
        f"Outside these prompts ({kl[3]} texts of {len(shipped)} groups) the two models have the same top-1 token at "
        f"{with_interval(*top1[:3], digits=2, coverage=1.0)} of positions, on average over texts; KL(tuned ‖ base){both} is "
        f"{with_interval(*kl[:3], coverage=1.0)} nats a position{ends if len(shipped) > 1 else ''}."
    ]


def _mean(group: dict) -> str:
    """A group's mean with its interval."""
    return f"{name(group['group'])}, {with_interval(group['kl'], group['low'], group['high'], coverage=1.0)}"


def _changed(run: Run) -> list[str]:
    every = findings.changes(run.rows, run.summary)
    tested = [one for one in every if not math.isnan(one.p)]
    if not tested:
        n = min((one.n for one in every), default=0)
        return [f"With {n} texts a group no change of a score is tested: a test takes {intervals.FEWEST}."] if every else []
    there = sorted((one for one in tested if one.found), key=lambda one: one.p)
    untested = f"; {len(every) - len(tested)} more have too few texts for a test" if len(tested) < len(every) else ""
    family = f"corrected over {len(tested)} scores of all groups{untested}"
    if not there:
        few = min(one.n for one in tested)
        return [
            f"No loss, rate of right answers or refusals changed beyond chance ({family}); with {few} texts a group only large changes would show."
        ]
    said = [f"{_what(*same)} on {listed(map(_sized, changes))}" for same, changes in _together(there[:MOST]).items()]
    rest = f"; and {len(there) - MOST} more" if len(there) > MOST else ""
    return [f"What changed ({family}, p at most {nats(max(one.p for one in there))}): {'; '.join(said)}{rest}."]


def _together(changes: Sequence[Change]) -> dict[tuple[str, bool], list[Change]]:
    """By score, and whether it rose."""
    found: dict[tuple[str, bool], list[Change]] = {}
    for one in changes:
        found.setdefault((one.score, one.change > 0), []).append(one)
    return found


def _what(score: str, rose: bool) -> str:
    return f"{'the loss' if score == 'loss' else RATES[score]} {'rose' if rose else 'fell'}"


def _sized(one: Change) -> str:
    """ "code by 0.0241 (95 %: ...) nats a token (perplexity × 1.02)", "sums from 0.75 to 0.25 of 12"."""
    if one.score == "loss":
        size = with_interval(abs(one.change), *_ends(one), coverage=1.0)
        return f"{name(one.group)} by {size} nats per token (perplexity × {decimal(math.exp(one.change))})"
    return f"{name(one.group)} from {share(one.base)} to {share(one.tuned)} of {one.n}"


def _ends(one: Change) -> tuple[float | None, float | None]:
    """The interval of the change's size."""
    if one.low is None or one.high is None:
        return None, None
    return (one.low, one.high) if one.change > 0 else (-one.high, -one.low)
