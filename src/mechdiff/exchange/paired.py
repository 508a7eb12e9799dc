"""Do two models score differently on the same items of an evaluation, and on which? Paired tests over two harness logs.

Of each task, over the items of both logs (which must be the same, else an error names them):

    difference     mean score of B less that of A, with a 95 % interval: Newcombe's score interval for paired shares where every score is 0 or 1
                   (Newcombe 1998, method 10), else the bootstrap-t over items
    p              McNemar's exact test of the items on which the two differ (scores 0 or 1), else the bootstrap-t's p of a mean difference of 0
    p, Holm        corrected over the tasks that were compared
    flips          items that A has right and B wrong (lost), and the other way (gained), by name

An unpaired comparison of the two means, which harnesses print, throws away that both answered the same items: it can miss what these find.

Where the divergence of each item's prompt is known (`divergences.py`), items that flipped are compared with those that did not: `auc` is the
probability that a flipped item diverges more than one that did not flip (0.5: no relation), p one-sided (Mann and Whitney's test).

When it misleads: items that share a passage or a subject are not independent, so that p is too small; a task scored twice by two filters counts as
two tests; a flip near a tie says little. "No difference found" is not "equal": the interval says how large a difference could be missed.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu

from mechdiff.errors import RunError
from mechdiff.exchange.logs import Logged, refuse_unequal
from mechdiff.statistics import intervals
from mechdiff.statistics.intervals import FEWEST


@dataclass(frozen=True, kw_only=True)
class Flip:
    """An item that one model has right and the other wrong."""

    item: str
    a: float
    b: float
    prompt: str
    kl_nats: float | None = None
    """Divergence of the two models' next token after the prompt; None where it is not known."""


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Do items that flipped diverge more?"""

    flipped: int
    same: int
    median_flipped_nats: float
    median_same_nats: float
    auc: float
    """Probability that a flipped item diverges more than one that did not flip; ties count half."""
    p: float
    """One-sided, Mann and Whitney's test."""


@dataclass(frozen=True, kw_only=True)
class TaskCompared:
    """One task of two logs."""

    task: str
    metric: str
    n: int
    a: float
    b: float
    difference: float
    """b - a."""
    low: float | None
    high: float | None
    """None under FEWEST items."""
    p: float | None
    holm: float | None = None
    binary: bool
    lost: tuple[Flip, ...] = ()
    gained: tuple[Flip, ...] = ()
    other_prompts: int = 0
    """Items that the two models read in other words (another template)."""
    divergence: Divergence | None = None
    measured: int = 0
    """Items of which the divergence is known."""

    @property
    def flips(self) -> tuple[Flip, ...]:
        return (*self.lost, *self.gained)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Two logs."""

    a: str
    b: str
    tasks: tuple[TaskCompared, ...]
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def data(self) -> dict[str, Any]:
        """Everything as JSON has it."""
        return asdict(self)


def compare(
    a: dict[str, Logged], b: dict[str, Logged], *, names: tuple[str, str] = ("A", "B"), metric: str | None = None,
    kl: dict[tuple[str, str], float] | None = None, seed: int = 0,
) -> Compared:  # fmt: skip
    """Every task of both; `kl`: divergence in nats by task and item. RunError where no task is in both, or items or scores differ."""
    both = [name for name in a if name in b]
    if not both and len(a) == len(b) == 1:  # two files of one task under two names
        both, b = list(a), dict(zip(a, b.values(), strict=True))
    if not both:
        raise RunError(f"no task is in both: {', '.join(a)} against {', '.join(b)}. Give two logs of the same tasks.")
    tasks = [_task(a[name], b[name], metric, kl or {}, seed) for name in both]
    p = intervals.holm(np.array([np.nan if one.p is None else one.p for one in tasks]))
    corrected = (replace(one, holm=None if np.isnan(value) else float(value)) for one, value in zip(tasks, p, strict=True))
    only = [tuple(name for name in one if name not in both) for one in (a, b)]
    return Compared(a=names[0], b=names[1], tasks=tuple(corrected), only_a=only[0], only_b=only[1])


def _task(a: Logged, b: Logged, metric: str | None, kl: dict[tuple[str, str], float], seed: int) -> TaskCompared:
    refuse_unequal(a, b)
    chosen = _metric(a, b, metric)
    names = list(a.items)
    values = np.array([[one.items[name].scores[chosen] for one in (a, b)] for name in names], dtype=float)
    binary = bool(np.isin(values, (0, 1)).all())
    low, high, p = _tested(values, binary, seed)
    known = {name: kl[a.task, name] for name in names if (a.task, name) in kl}
    flips = [
        Flip(item=name, a=float(x), b=float(y), prompt=a.items[name].prompt, kl_nats=known.get(name))
        for name, (x, y) in zip(names, values, strict=True) if binary and x != y
    ]  # fmt: skip
    return TaskCompared(
        task=a.task, metric=chosen, n=len(names), a=float(values[:, 0].mean()), b=float(values[:, 1].mean()),
        difference=float((values[:, 1] - values[:, 0]).mean()), low=low, high=high, p=p, binary=binary,
        lost=tuple(one for one in flips if one.a > one.b), gained=tuple(one for one in flips if one.b > one.a),
        other_prompts=sum(a.items[name].prompt != b.items[name].prompt for name in names),
        divergence=_divergence({one.item for one in flips}, known), measured=len(known),
    )  # fmt: skip


def _metric(a: Logged, b: Logged, asked: str | None) -> str:
    """The score to read of both; RunError names items without it."""
    have = [one.metrics() for one in (a, b)]
    shared = [name for name in have[0] if name in have[1]]
    if asked is None and shared:
        return shared[0]
    if asked in shared:
        return asked
    for one in (a, b):
        unscored = [name for name, item in one.items.items() if not item.scores or (asked and asked not in item.scores)]
        if unscored and len(unscored) < len(one.items):
            raise RunError(
                f"task {one.task}: {len(unscored)} items of {one.file} have no score{f' {asked}' if asked else ''} (the first: {unscored[0]}). "
                "Did the model fail on them? Run them again, so that both logs score every item."
            )
    raise RunError(
        f"task {a.task}: no score {f'{asked!r} ' if asked else ''}is in both; {a.file} has {', '.join(have[0]) or 'none'}, {b.file} "
        f"{', '.join(have[1]) or 'none'}. Give one of both with --metric."
    )


def _tested(values: np.ndarray, binary: bool, seed: int) -> tuple[float | None, float | None, float | None]:
    """Ends of the interval of the mean difference, and its p."""
    difference = values[:, 1] - values[:, 0]
    if binary:
        counts = [int(((values[:, 0] == x) & (values[:, 1] == y)).sum()) for x, y in ((1, 1), (1, 0), (0, 1), (0, 0))]
        p = intervals.mcnemar(counts[1], counts[2])
        if len(values) < FEWEST:
            return None, None, p
        low, high = intervals.paired_shares(*counts)
        return low, high, p
    if len(values) < FEWEST:
        return None, None, None
    ends = [float(end[0]) for end in intervals.mean_intervals(difference[:, None], seed=seed)]
    return ends[0], ends[1], float(intervals.mean_p(difference[:, None], seed=seed)[0])


def _divergence(flipped: set[str], kl: dict[str, float]) -> Divergence | None:
    """None where either group has no item of known divergence."""
    moved, still = ([value for name, value in kl.items() if (name in flipped) is here] for here in (True, False))
    if not moved or not still:
        return None
    test = mannwhitneyu(moved, still, alternative="greater")
    return Divergence(
        flipped=len(moved), same=len(still), median_flipped_nats=float(np.median(moved)), median_same_nats=float(np.median(still)),
        auc=float(test.statistic) / (len(moved) * len(still)), p=float(test.pvalue),
    )  # fmt: skip
