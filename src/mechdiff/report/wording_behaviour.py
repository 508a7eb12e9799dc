"""Behaviour in words."""

import polars as pl

from mechdiff.report import findings_behaviour, intervals
from mechdiff.report.findings_behaviour import Compared, Group
from mechdiff.report.phrasing import between, listed, nats

METRICS = {
    "refusal": "refusals",
    "exact_match": "right final answers",
    "mc_correct": "right choices",
    "cut_off": "answers cut off",
    "refusal_soft_nats": "soft refusal, nats a token",
    "refusal_soft_per_byte_nats": "soft refusal, nats a byte",
    "mc_margin_per_byte_nats": "choice margin, nats a byte",
    "style_per_100_words": "style markers per 100 words",
    "style_per_100_tokens": "style markers per 100 tokens",
    "mc_correct_sum": "right choices by the sum",
    "mc_correct_per_token": "right choices per token",
    "mc_logp_sum_nats": "log p of the right option, nats",
    "mc_logp_per_token_nats": "log p of the right option, nats a token",
    "mc_logp_per_byte_nats": "log p of the right option, nats a byte",
}
GROUPS = {
    "report": "report prompts",
    "refusal_unsafe": "harmful requests",
    "refusal_safe": "harmless requests",
    "choice": "multiple choice",
    "maths": "sums",
    "probes": "probes",
}
LANGUAGES = {"en": "English", "kk": "Kazakh", "ru": "Russian", "other": "languages without lists"}


def metric_name(one: Compared) -> str:
    """ "style markers per 100 words: courtesy" """
    return METRICS.get(one.metric, one.metric) + (f": {one.style.replace('_', ' ')}" if one.style else "")


def group_name(name: str, language: str | None) -> str:
    words = GROUPS.get(name, name.replace("_", " "))
    return words if language is None else f"{words}, {LANGUAGES.get(language, language)}"


def on_report(rows: pl.DataFrame, manifest: dict) -> tuple[Group | None, list[Compared]]:
    """What both models do on the report prompts (or the first group there is), in all languages: the group, and its metrics."""
    groups = [group for group in findings_behaviour.groups(rows, manifest) if group.language is None]
    group = next((group for group in groups if group.name == "report"), groups[0] if groups else None)
    if group is None:
        return None, []
    found = findings_behaviour.to_the_point(group, findings_behaviour.compared(group.rows), findings_behaviour.soft_metric(manifest))
    return group, [one for one in found if one.metric != "cut_off"]


def what_they_do(rows: pl.DataFrame, manifest: dict) -> list[str]:
    """What both models do on the report prompts: the differences that are seen, and what was looked at and not seen. Nothing is picked by size."""
    group, found = on_report(rows, manifest)
    if group is None or not found:
        return []
    seen, unseen = ([one for one in found if one.counts == counts] for counts in (True, False))
    start = f"In their answers to {max(one.n for one in found)} {group_name(group.name, None)} "
    sentence = f"the tuned model has {listed(map(difference, seen))}" if seen else "no difference is seen"
    if unseen:
        sentence += f"; no difference is seen in {listed(map(_unseen, unseen))}" if seen else f": {listed(map(_unseen, unseen))}"
    return [start + sentence + "."]


def difference(one: Compared) -> str:
    """ "4.39 (95 %: 2.22 to 5.83) more style markers per 100 words" """
    mean, low, high = one.difference
    if one.p is not None:
        return (
            f"{round(one.tuned[0] * one.n)} {METRICS[one.metric]} where the base has {round(one.base[0] * one.n)} (McNemar p = {one.p:.2g})"
        )
    ends = between(low, high) if mean > 0 else between(-high, -low)
    return f"{nats(abs(mean))} (95 %: {ends}) {'more' if mean > 0 else 'less'} {METRICS[one.metric]}"


def _unseen(one: Compared) -> str:

    name = METRICS[one.metric]
    if one.p is None and one.difference[1] != one.difference[1]:
        return f"{name} (too few prompts for an interval)"
    if one.p is None and not one.happened:
        return f"{name} (none in either)"
    if one.p is None:
        return f"{name} (95 %: {between(*one.difference[1:])}; {nats(one.detectable)} would have been seen in 4 of 5 such studies)"
    if never(one):
        return f"{name} (none in either; up to {intervals.rule_of_three(one.n):.2f} of prompts would not have shown)"
    return f"{name} ({round(one.tuned[0] * one.n)} against {round(one.base[0] * one.n)}, McNemar p = {one.p:.2g})"


def never(one: Compared) -> bool:
    """Whether what is counted happened in neither model."""
    return one.p is not None and one.base[0] == one.tuned[0] == 0
