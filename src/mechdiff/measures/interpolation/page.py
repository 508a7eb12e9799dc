"""The section on interpolation walks from the base to the tuned model and beyond: by weights, logits and activations, matched by neutral KL."""

import math
from typing import Any

from mechdiff.measures.interpolation import findings
from mechdiff.measures.interpolation.charts import SHOWN, along_the_way, by_modules
from mechdiff.measures.interpolation.findings import GONE, LEFT, Matched, Number
from mechdiff.measures.interpolation.plan import OF_TUNED, WEIGHTS
from mechdiff.measures.interpolation.words import NAMES, named
from mechdiff.report.parts import Drawn, Run, Section, note, table
from mechdiff.report.phrasing import nats, plain, prompts, share, shown, visible

TITLE = "What lies between the two models, and beyond?"


def interpolation(run: Run) -> Section:
    """The section; a note where nothing was interpolated."""
    found = findings.forms(run.rows)
    if not found:
        return Section(id="interpolation", title=TITLE, parts=[note("Nothing was interpolated between the two models.")])
    figure = Drawn(name="along_the_way", chart=along_the_way, caption=_caption(run), reading="along_the_way")
    return Section(
        id="interpolation", title=TITLE, parts=[figure, *_matched(run), *_modules(run), _first_choices(run, found), *_answers(run)]
    )


def _caption(run: Run) -> str:
    sizes = {split: findings.curve(run.rows, findings.forms(run.rows)[0], GONE, split) for split in ("report", "neutral")}
    said = " and ".join(prompts(len(one.values), split) for split, one in sizes.items() if one is not None)
    caption = f"By strength, {said}; the forms are the same at 0, weights and logits also at 1"
    off = findings.ends(run.rows)
    if off is None:
        return f"{caption}."
    return f"{caption}. At 1 the network with all weights moved is {nats(off)} nats from the tuned model on the worst prompt."


def _matched(run: Run) -> list[dict]:
    """Each form at the neutral KL of the weights."""
    found = findings.matched(run.rows)
    others = [form for form in findings.forms(run.rows) if form != WEIGHTS and any(one.form == form for one in found)]
    if not found:
        return [note("Forms are not matched: no unrelated prompts were run with weights in between.")]
    cells = {(one.form, one.weights): one for one in found}
    columns = ["weights at", "KL on unrelated prompts, nats", "D left, nats"]
    for form in others:
        columns += [f"{NAMES[form]} at", "D left, nats"]
    lines = []
    for strength in sorted({one.weights for one in found}):
        own = cells[WEIGHTS, strength]
        line = [plain(strength), nats(own.neutral), _shown(own.left)]
        for form in others:
            line += _of(cells.get((form, strength)))
        lines.append(line)
    return [table(columns, lines, title="Each form at the strength at which it moves unrelated prompts as far as the weights do")]


def _of(one: Matched | None) -> list[str]:
    if one is None or not math.isfinite(one.strength.value):
        return ["not reached", "–"]
    return [_shown(one.strength, 2), _shown(one.left)]


def _shown(one: Number, decimals: int | None = None) -> str:
    return shown(one.value, one.low, one.high, decimals=decimals)


def _modules(run: Run) -> list[dict | Drawn]:
    """The weights of some modules alone, at every strength."""
    groups = findings.modules(run.rows)
    if not groups:
        return []
    many = f"; {SHOWN} of {len(groups)}" if len(groups) > SHOWN else ""
    caption = f"D left by strength with the weights of some modules alone, all others the base's{many}."
    curves = {group: findings.curve(run.rows, WEIGHTS, LEFT, unit=group) for group in groups}
    strengths = sorted({strength for one in curves.values() if one is not None for strength in one.strengths})
    lines = []
    for group, one in curves.items():
        assert one
        cost = findings.curve(run.rows, WEIGHTS, GONE, "neutral", group)
        at = dict(zip(one.strengths, one.means, strict=True))
        price = None if cost is None or cost.at(1.0) is None else float(cost.means[cost.strengths == 1][0])
        half = findings.half(run.rows, WEIGHTS, group)
        reached = _shown(half, 2) if half and math.isfinite(half.value) else "not reached"
        lines.append([named(run, group), *(nats(at.get(strength)) for strength in strengths), reached, nats(price)])
    columns = [
        "modules",
        *(f"D left at {plain(strength)}" for strength in strengths),
        "half of D gone at",
        "KL on unrelated prompts at 1, nats",
    ]
    return [
        Drawn(name="by_modules", chart=by_modules, caption=caption, reading="along_the_way"),
        table(columns, lines, title="Weights of some modules alone between the base's and the tuned model's: what is left of D, nats"),
    ]


def _first_choices(run: Run, forms: list[str]) -> dict:
    """Every strength: what is left of D, and whose first choice the run makes."""
    columns = ["form", "strength", "D left, nats", "KL(base ‖ run), nats", "the base's top-1 token", "the tuned model's"]
    lines = []
    for form in forms:
        curves = [findings.curve(run.rows, form, metric) for metric in (LEFT, GONE, "top1_same", OF_TUNED)]
        left = curves[0]
        assert left
        for place, strength in enumerate(left.strengths):
            numbers: list[Any] = [None if one is None else one.means[place] for one in curves]
            lines.append([NAMES[form], plain(strength), nats(numbers[0]), nats(numbers[1]), share(numbers[2]), share(numbers[3])])
    return table(columns, lines, folded="Every strength, on the test prompts")


def _answers(run: Run) -> list[dict]:
    said = (run.manifest.get("interpolation") or {}).get("answers") or []
    if not said:
        return []
    lines = [[plain(one["strength"]), f"{visible(one['prompt'])}: {visible(one['text'])}"] for one in said]
    return [table(["strength", "answer with weights there"], lines, folded="What is said on the way", stacked=True)]
