"""The section on behaviour has a table of both models with intervals, what edits change about it by layer, and answers side by side."""

from typing import Any

import altair as alt
import polars as pl

from mechdiff import labels
from mechdiff.measures.behaviour import findings, refusals
from mechdiff.measures.behaviour.findings import Compared, Group
from mechdiff.measures.behaviour.words import LANGUAGES, METRICS, group_name, metric_name, never
from mechdiff.report import curves, drawing
from mechdiff.report.curves import Axes, Behind, Look
from mechdiff.report.difference import BREAKAGE, RECOVERY
from mechdiff.report.drawing import PURPLE, SKY, WIDE, Chart
from mechdiff.report.parts import Drawn, Run, Section, note, table
from mechdiff.report.phrasing import listed, nats, prompts, share, shown, visible, with_interval
from mechdiff.statistics import intervals
from mechdiff.statistics.intervals import FEWEST

TITLE = "What do they do?"
MARGIN = "mc_margin_per_byte_nats"
POINTS = ("refusal", "mc_correct")
MODELS = {
    BREAKAGE: "base patched into tuned",
    RECOVERY: "tuned patched into base",
    "base<-base": "base, edited",
    "tuned<-tuned": "tuned, edited",
}
ARMS = {
    "identity": "activation of the other model",
    "alone": "tuned weights in the base",
    "add": "mean difference added",
    "ablate": "first direction taken out",
}
LOOKS = {MODELS[BREAKAGE]: PURPLE, MODELS[RECOVERY]: SKY}
OPEN, TEXTS, EDITS = 3, 12, 4
"""Prompts whose answers are shown at once, in all, and the edited answers of one."""


def answers(run: Run) -> Section:
    """Q0, last part: behaviour."""
    groups = findings.groups(run.rows, run.manifest)
    if not groups:
        return Section(id="behaviour", title=TITLE, parts=[note("Behaviour was not measured in this run.")])
    parts = [
        *_both(run, groups),
        *_by_layer(run),
        *refusals.effects_by_layer(run),
        *_edits(run),
        *_agreement(run),
        *_texts(run),
        *_masked(run),
    ]
    return Section(id="behaviour", title=TITLE, parts=parts)


# ---- both models -------------------------------------------------------------------------------------------------------------------


def _both(run: Run, groups: list[Group]) -> list[Any]:
    told, soft = run.manifest["behaviour"], findings.soft_metric(run.manifest)
    main, more = list[tuple[str, ...]](), list[tuple[str, ...]]()
    for group in (group for group in groups if _size(group) >= FEWEST):
        every = findings.compared(group.rows)
        spoken = findings.to_the_point(group, every, soft)
        whole, told_of = group.language is None, {(one.metric, one.style) for one in spoken}
        classes = (
            [one for one in every if one.metric == "style_per_100_words" and one.style and one.happened] if group.name == "report" else []
        )
        told_of |= {(one.metric, one.style) for one in classes}
        main += [_line(group, one) for one in (*spoken, *classes) if whole]
        beside = [one for one in every if (one.metric, one.style) not in told_of and one.happened] if whole else spoken
        more += [_line(group, one) for one in beside]
    columns = ("prompts", "", "n", "base", "tuned", "tuned − base", "p", "p, Holm")
    languages = listed(f"{LANGUAGES.get(name, name)} ({n})" for name, n in told["languages"].items())
    guess = f", guessed from letters for {told['guessed']} (meta.language says it)" if told.get("guessed") else ""
    under = f" (under edits {told['edited_tokens']})" if told.get("edited_tokens") else ""
    said = f"Greedy answers of at most {told['max_tokens']} tokens{under} to prompts in {languages}{guess}. "
    said += (
        "p: McNemar's exact test of rates, else of a mean difference of 0, each by itself; Holm: among the spoken scores of its prompts."
    )
    folded = "By language, and other scores (classes of markers that neither model used are left out)"
    return [
        *([table(columns, _once(main), title=said, stacked=True, main=True)] if main else []),
        *_too_few(groups),
        *_nothing_seen(groups, soft),
        *([table(columns, _once(more), folded=folded, stacked=True)] if more else []),
    ]


def _size(group: Group) -> int:
    return group.rows["prompt"].n_unique()


def _too_few(groups: list[Group]) -> list[dict]:
    """One line for all groups that are too small for a rate."""
    small = [group for group in groups if _size(group) < FEWEST]
    whole = [group for group in small if group.language is None]
    said = listed(f"{group_name(group.name, group.language)} ({_size(group)})" for group in (whole or small))
    return [note(f"Asked too few for a rate (under {FEWEST} prompts): {said}. Their answers stand below.")] if small else []


def _once(lines: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Lines whose first cell is empty where it is the one above."""
    return [("", *line[1:]) if place and lines[place - 1][0] == line[0] else line for place, line in enumerate(lines)]


def _line(group: Group, one: Compared) -> tuple[str, ...]:
    digits = 2 if one.binary else None
    values = (with_ends(value, one.n, digits) for value in (one.base, one.tuned, one.difference))
    tested = one.n >= FEWEST and one.base != one.tuned and one.p < 1
    together = f"{one.holm:.2g}" if tested and one.holm is not None else ""
    return (group_name(group.name, group.language), metric_name(one), str(one.n), *values, f"{one.p:.2g}" if tested else "", together)


def with_ends(value: findings.Estimate, n: int, digits: int | None) -> str:
    """ "64 %", and below it "[39, 84]"; without ends where there are none, or where every prompt has the same."""
    return shown(*value, n, digits=digits, line="\n").replace(" ", "\u00a0")


def _nothing_seen(groups: list[Group], soft: str) -> list[dict]:
    """The rule of three, of what neither model did."""
    said = [
        f"{METRICS[one.metric]} on {one.n} {group_name(group.name, None)}: up to {intervals.rule_of_three(one.n):.0%}"
        for group in groups
        if group.language is None and _size(group) >= FEWEST
        for one in findings.to_the_point(group, findings.compared(group.rows), soft)
        if never(one)
    ]
    if not said:
        return []
    return [note(f"What neither model did once may still happen; the rate that would not have shown (rule of three): {'; '.join(said)}.")]


# ---- under edits -------------------------------------------------------------------------------------------------------------------


def _by_layer(run: Run) -> list[Any]:
    parts: list[Any] = []
    for metric, name in ((findings.soft_metric(run.manifest), "refusal_by_layer"), (MARGIN, "choice_by_layer")):
        found = findings.profile(run.rows, metric)
        said = [_direction(part) for _, part in found.group_by("direction", maintain_order=True)]
        if said:
            caption = f"What one patch changes in {METRICS[metric]}, by the layer that is patched. {'. '.join(said)}."
            reading = "" if parts else "behaviour_by_layer"
            parts.append(Drawn(name=name, chart=behaviour_by_layer, options={"metric": metric}, caption=caption, reading=reading))
    return parts


def _direction(part: pl.DataFrame) -> str:
    """The largest change of one direction, and from which layer on there is one."""
    ordered = part.sort(pl.col("mean").abs(), descending=True, maintain_order=True).to_dicts()
    top = ordered[0]
    sure = part.filter((pl.col("low") > 0) | (pl.col("high") < 0))
    largest = f"the largest change is {with_interval(top['mean'], top['low'], top['high'])} at L{top['layer']}"
    layers = f"the bands of {len(sure)} of {len(part)} layers leave out 0, the first L{sure['layer'][0] if len(sure) else ''}"
    start = MODELS[top["direction"]]
    return f"{start[0].upper()}{start[1:]} ({prompts(top['n'])}): {layers if len(sure) else 'no band leaves out 0'}; {largest}"


def _edits(run: Run) -> list[dict]:
    """Every edit at the layers of a closer look: its change of each metric."""
    closer = (run.manifest.get("behaviour") or {}).get("closer_layers") or []
    spoken = (findings.soft_metric(run.manifest), MARGIN, *POINTS, "style_per_100_words")
    found = findings.changes(run.rows, spoken)
    found = found.filter(pl.col("layer").is_in(closer) | (pl.col("arm") != "identity"))
    if found.is_empty():
        return []
    n = dict(found.group_by("metric").agg(pl.col("n").max()).iter_rows())
    metrics = [metric for metric in spoken if n.get(metric, 0) >= FEWEST]
    few = [f"{METRICS[metric]} ({n[metric]})" for metric in spoken if 0 < n.get(metric, 0) < FEWEST]
    said = [note(f"Under edits too few prompts were asked for a change to be told: {listed(few)}.")] if few else []
    if not metrics:
        return said
    lines = []
    for key, part in found.group_by(*findings.EDIT, maintain_order=True):
        edit = dict(zip(findings.EDIT, key, strict=True))
        values = {row["metric"]: row for row in part.iter_rows(named=True)}
        lines.append((_edit_name(edit), labels.runner(edit["direction"]), *(_change(values.get(metric)) for metric in metrics)))
    columns = (
        "edit",
        "edited model",
        *(f"{METRICS[metric]} ({prompts(n[metric])})" for metric in metrics),
    )
    title = "What each edit changes, from the unedited run of the same model (intervals are each by itself)"
    return [table(columns, lines, title=title, stacked=True), *said]


def _edit_name(edit: dict) -> str:
    whose = "own activation" if edit["direction"] in labels.WITHIN else "activation of the other model"
    name = f"L{edit['layer']}.{edit['site']}: {ARMS.get(edit['arm'], whose + ', mapped by ' + edit['arm'])}"
    return name + (", all positions" if edit["unit"] == labels.ALL_POSITIONS else "")


def _change(row: dict | None) -> str:
    if row is None:
        return "–"
    if row["metric"] in POINTS:
        return _signed(with_ends((row["mean"], row["low"], row["high"]), row["n"], 2))
    return _signed(with_ends((row["mean"], row["low"], row["high"]), row["n"], None))


def _signed(text: str) -> str:
    return text if text.startswith("−") or text.split()[0] == "0" else f"+{text}"


def _agreement(run: Run) -> list[dict]:
    """Per prompt: does the effect inside say what the behaviour does?"""
    found = findings.agreement(run.rows, run.manifest)
    if found.is_empty():
        return []
    sure = found.filter((pl.col("low") > 0) | (pl.col("high") < 0))
    n = max(found["n"].to_list())
    said = f"Does a patch's effect on the next token say, prompt by prompt, how far the refusal margin moves? Rank correlation over {prompts(n)}: "
    said += f"{len(sure)} of {len(found)} intervals leave out 0." if len(sure) else f"not one of {len(found)} intervals leaves out 0."
    lines = [
        (f"L{r['layer']}.{r['site']}", MODELS[r["direction"]], shown(r["rho"], r["low"], r["high"], r["n"], decimals=2), str(r["n"]))
        for r in found.iter_rows(named=True)
    ]
    return [
        note(said),
        table(("patch", "direction", "rank correlation", "prompts"), lines, folded="Effect on the next token against behaviour"),
    ]


def behaviour_by_layer(
    rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE, metric: str = "refusal_soft_nats"
) -> Chart | None:
    """Change of one metric by the layer that is written, one line a direction, with simultaneous bands."""
    found = findings.profile(rows, metric)
    if found.is_empty():
        return None
    says = [
        f"L{r['layer']}, {MODELS[r['direction']]}: {with_interval(r['mean'], r['low'], r['high'])} in {METRICS[metric]}"
        for r in found.iter_rows(named=True)
    ]
    line = pl.col("direction").replace_strict(MODELS)
    drawn = found.select("layer", "low", "high", value="mean", line=line, panel=pl.lit(metric)).with_columns(says=pl.Series(says))
    low, high = drawing.ends(pl.concat([found["low"], found["high"].rename("low"), pl.Series("low", [0.0])]))
    scale, axis = alt.Scale(domain=[low, high], nice=True), drawing.left_axis(tickCount=5, format="~g")
    x = drawing.layer_axis(drawing.layer_range(found), width)
    zero, title = curves.zero(scale, axis), f"change of {METRICS[metric]}"
    axes = Axes(x=lambda _: x, scale=scale, ticks=axis, height=140)
    look = Look(names=list(LOOKS), colours=LOOKS, dashes={MODELS[RECOVERY]: [7, 3]})
    return curves.panels(drawn, {metric: title}, axes, look, width, Behind(marks=lambda _: [zero]))


# ---- texts -------------------------------------------------------------------------------------------------------------------------


def _texts(run: Run) -> list[dict]:
    shown = findings.texts(run.manifest)[:TEXTS]
    if not shown:
        return []
    said = "Answers side by side. Marked: the words of the base's answer that the tuned model's lacks, and the reverse; under an edit, what is new."
    first, *others = [_side_by_side(one, folded=place >= OPEN) for place, one in enumerate(shown)]
    return [note(said, main=True), {**first, "main": True}, *others]


def _side_by_side(one: dict, *, folded: bool) -> dict:
    said = [("base", one["base"], one["tuned"]), ("tuned", one["tuned"], one["base"])]
    edits = {(edited["direction"], edited["arm"]): edited for edited in reversed(one["patched"])}  # each kind at its first layer
    for edited in list(edits.values())[::-1][:EDITS]:
        runs = labels.runner(edited["direction"])
        said.append((f"{MODELS[edited['direction']]}, {_edit_name({'unit': None} | edited)}", edited["text"], one[runs]))
    told = [{"who": who, "spans": _spans(text, other)} for who, text, other in said]
    return {"kind": "answers", "title": visible(one["prompt"]), "asked": visible(one["text"]), "said": told, "folded": folded}


def _spans(text: str, other: str) -> list[dict]:
    return [{"text": visible(span.text), "differs": span.differs} for span in findings.spans(text, other)]


# ---- diagnostics -------------------------------------------------------------------------------------------------------------------


def _masked(run: Run) -> list[dict]:
    found = findings.masked(run.rows)
    if found.is_empty():
        return []
    lines = [
        (r["model"], METRICS.get(r["metric"], r["metric"]), str(r["n"]), nats(r["plain"]), nats(r["masked"]), share(r["coverage"], 4))
        for r in found.iter_rows(named=True)
    ]
    columns = ("model", "", "n", "all tokens", "shared tokens alone", "mass kept")
    return [table(columns, lines, folded="Diagnostic: the same with each distribution cut to the tokens that both models have")]
