"""The page's sentences say how the two models' answers differ."""

import polars as pl

from mechdiff import terms
from mechdiff.measures.behaviour import findings, tiles
from mechdiff.measures.behaviour.findings import SOFT, Compared, Group
from mechdiff.report.headlines import Candidate, admit
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import listed, nats, prompts, share, with_interval
from mechdiff.statistics import intervals
from mechdiff.statistics.clusters import n_prompts
from mechdiff.statistics.intervals import FEWEST

METRICS = terms.labels_of(
    terms.METRICS,
    "refusal",
    "exact_match",
    "mc_correct",
    "cut_off",
    "refusal_soft_nats",
    "refusal_soft_per_byte_nats",
    "mc_margin_per_byte_nats",
    "style_per_100_words",
    "style_per_100_tokens",
    "mc_correct_sum",
    "mc_correct_per_token",
    "mc_logp_sum_nats",
    "mc_logp_per_token_nats",
    "mc_logp_per_byte_nats",
)
GROUPS = {
    "report": "test prompts",
    "refusal_unsafe": "harmful requests",
    "refusal_safe": "harmless requests",
    "choice": "multiple choice",
    "maths": "sums",
    "probes": "probes",
}
MOST = 3
"""Features of answers that are named in words."""
LANGUAGES = {"en": "English", "kk": "Kazakh", "ru": "Russian", "other": "languages without lists"}


def metric_name(one: Compared) -> str:
    """ "style markers per 100 words: courtesy" """
    return METRICS.get(one.metric, one.metric) + (f": {one.style.replace('_', ' ')}" if one.style else "")


def group_name(name: str, language: str | None) -> str:
    words = GROUPS.get(name, name.replace("_", " "))
    return words if language is None else f"{words}, {LANGUAGES.get(language, language)}"


def on_report(rows: pl.DataFrame, manifest: dict) -> tuple[Group | None, list[Compared]]:
    """What both models do on the report prompts (or the first group there is), in all languages: the group, and its metrics."""
    groups = [group for group in findings.groups(rows, manifest) if group.language is None]
    group = next((group for group in groups if group.name == "report"), groups[0] if groups else None)
    if group is None:
        return None, []
    found = findings.to_the_point(group, findings.compared(group.rows), findings.soft_metric(manifest))
    return group, [one for one in found if one.metric != "cut_off"]


def lead(run: Run) -> list[str]:
    """What the answers of the one do that the other's do not, and what both models do, beside one another."""
    return [*(f"{one.text[0].upper()}{one.text[1:]}" for one in _named(run)[:MOST]), *what_they_do(run.rows, run.manifest)]


def _named(run: Run) -> list[Candidate]:
    """Features of the answers that pass the gates of headlines."""
    return [one for one in tiles.what(run) if admit(one) is None]


def shows(run: Run) -> bool:
    """Whether the answers differ in anything."""
    return bool(_named(run)) or any(one.counts for one in on_report(run.rows, run.manifest)[1])


def clause(run: Run) -> list[Candidate]:
    """Every difference between the answers that is seen; what was looked for and not seen stands in its section."""
    return headlines(run.rows, run.manifest)


def headlines(rows: pl.DataFrame, manifest: dict) -> list[Candidate]:
    """What the verdict may say of the answers: each difference that is seen, or that none could be shown and which one would have been."""
    group, found = on_report(rows, manifest)
    if group is None or not found:
        return []
    every, happens = findings.compared(group.rows), findings.refused(group.rows)
    said = []
    for one in sorted(found, key=lambda one: one.metric in SOFT):  # what is said comes before what is only likely to be
        if one.counts:
            soft = one.metric in SOFT
            text = f"the tuned model's {_margin(one)}" if soft else f"in its answers the tuned model has {difference(one)}"
            agree = not soft or findings.both_lengths(every)
            said.append(Candidate(text=text, n=one.n, happens=happens or not soft, lengths_agree=agree))
    answers = [one for one in found if one.metric not in SOFT]
    if answers and not any(one.counts for one in answers):
        n = max(one.n for one in answers)
        looked = listed(METRICS[one].partition(" per ")[0] for one in dict.fromkeys(one.metric for one in answers)).replace(" and ", " or ")
        text = f"in their answers{_cut(every)} no difference in {looked} could be shown{_would_have(answers)}"
        said.append(Candidate(text=text, n=n))
    return said


def _asked(group: Group, n: int, manifest: dict) -> str:
    """ "10 test prompts (6 clusters)": how many were asked, and how many of them count where some are alike."""
    asked = n_prompts(manifest, "report", n) if group.name == "report" else n
    return f"{asked} {group_name(group.name, None)}" + (f" ({n} cluster{'s' * (n != 1)})" if n < asked else "")


def _cut(every: list[Compared]) -> str:
    """ ", all cut off,": what a cut answer would have said, a final answer among it, was not seen."""
    cut = [one for one in every if one.metric == "cut_off"]
    return ", all cut off," if cut and all(one.base[0] == 1 == one.tuned[0] for one in cut) else ""


def _would_have(found: list[Compared]) -> str:
    """ " (6 of 10 prompts would have to differ)": of the rates that were asked for."""
    rates = [one for one in found if one.binary]
    if not rates:
        return ""
    widest = max(rates, key=lambda one: one.n)
    if widest.smallest is None:
        return f" ({prompts(widest.n)} are too few to show any)"
    return f" ({widest.smallest} of {prompts(widest.n)} would have to differ)"


def what_they_do(rows: pl.DataFrame, manifest: dict) -> list[str]:
    """What both models do on the report prompts: the differences that are seen, and what was looked at and not seen. Nothing is picked by size."""
    group, found = on_report(rows, manifest)
    if group is None or not found:
        return []
    n = max(one.n for one in found)
    if n < FEWEST:
        return [f"Of {group_name(group.name, None)} {n} {'was' if n == 1 else 'were'} asked: too few to compare the two models' answers."]
    answers, every = [one for one in found if one.metric not in SOFT], findings.compared(group.rows)
    start = f"In their answers to {_asked(group, n, manifest)}{_cut(every)} "
    said = [f"{start}{_seen_and_unseen(answers)}."] if answers else []
    for one in found:
        if one.metric in SOFT:
            moved = (
                f"is {_margin(one).partition(' is ')[2]}"
                if one.counts
                else f"is not shown to differ: {_unseen(one).partition(' (')[2].removesuffix(')')}"
            )
            agree = "" if findings.both_lengths(every) else "; per token and per byte it does not have the same sign"
            name = METRICS[one.metric].partition(", ")[0]
            said.append(f"The {name}, of refusals that are put to both models rather than said by them, {moved}{agree}.")
    return said


def _seen_and_unseen(found: list[Compared]) -> str:
    seen, unseen = ([one for one in found if one.counts == counts] for counts in (True, False))
    text = f"the tuned model has {listed(map(difference, seen))}" if seen else "no difference could be shown"
    if not unseen:
        return text
    return text + (f"; no difference could be shown in {listed(map(_unseen, unseen))}" if seen else f": {listed(map(_unseen, unseen))}")


def difference(one: Compared) -> str:
    """ "4.39 [95 % CI: 2.22, 5.83] more style markers per 100 words" """
    mean = one.difference[0]
    if one.binary:
        return f"{round(one.tuned[0] * one.n)} {METRICS[one.metric]} where the base has {round(one.base[0] * one.n)} ({_test(one)})"
    return f"{_size(one)} {'more' if mean > 0 else 'less'} {METRICS[one.metric]}"


def _size(one: Compared) -> str:
    """The difference without its sign, and its interval turned with it."""
    mean, low, high = one.difference
    return with_interval(abs(mean), *((low, high) if mean > 0 else (-high, -low)), coverage=1.0, n=one.n)


def _margin(one: Compared) -> str:
    """ "refusal log-probability margin is 0.4 [95 % CI: 0.3, 0.5] nats per token higher" """
    name, _, unit = METRICS[one.metric].partition(", ")
    return f"{name} is {_size(one)} {unit} {'higher' if one.difference[0] > 0 else 'lower'}"


def _test(one: Compared) -> str:
    """ "McNemar p = 0.002, 0.008 of 4 scores together" """
    together = f", {one.holm:.2g} of {one.family} scores" if one.holm is not None and one.family > 1 else ""
    return f"McNemar p = {one.p:.2g}{together}"


def _unseen(one: Compared) -> str:
    """A score in which no difference was shown, with the smallest that would have been."""
    name = METRICS[one.metric]
    if one.n < findings.FEW and not one.binary:
        return f"{name} ({prompts(one.n)}: too few for an interval)"
    if never(one):
        return f"{name} (none in either; a rate up to {share(intervals.rule_of_three(one.n))} cannot be ruled out)"
    if not one.binary and not one.happened:
        return f"{name} (none in either)"
    if not one.binary:
        together = "" if one.family < 2 or one.holm is None else f", {nats(one.holm)} of {one.family} scores"
        ends = with_interval(*one.difference, coverage=1.0, n=one.n)
        return f"{name}: {ends} (p = {nats(one.p)}{together}; this study could detect {nats(one.detectable)})"
    least = "no difference at all" if one.smallest is None else f"only {one.smallest} or more of {one.n} prompts, all one way,"
    counts = f"{round(one.tuned[0] * one.n)} against {round(one.base[0] * one.n)}"
    return f"{name} ({counts}, {_test(one)}; {least} could have been detected)"


def never(one: Compared) -> bool:
    """Whether what is counted happened in neither model."""
    return one.binary and not one.happened
