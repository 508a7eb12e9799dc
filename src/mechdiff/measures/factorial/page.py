"""The section on the factorial sets the lower blocks of one model under the upper blocks of the other, at every split point."""

from typing import Any

from mechdiff.measures.divergence.words import whose
from mechdiff.measures.factorial import findings, words
from mechdiff.measures.factorial.charts import COLOURS, WORDS, effects_by_layer
from mechdiff.measures.factorial.findings import over_answer, where_exchanged
from mechdiff.report import spoken
from mechdiff.report.parts import Drawn, Run, Section, note, table
from mechdiff.report.phrasing import nats, shown, with_interval

TITLE = "Is it made below or above a block, or only by both?"

OPENS = "Lower half, upper half and interaction, by split point. "


def factorial(run: Run) -> Section:
    """Two factors: what the blocks up to L and those above them contribute, and what only both together do."""
    units = findings.units(run.rows, run.summary)
    if not units:
        return Section(id="factorial", title=TITLE, parts=[note("The factorial of lower and upper blocks was not run.")])
    parts: list[Any] = [
        Drawn(name="factorial_by_layer", chart=effects_by_layer, caption=_caption(run, units), reading="factorial_by_layer")
    ]
    parts += [_effects(run, unit) for unit in units]
    for one in run.by_answers[1:]:
        over = [unit for unit in findings.units(one.rows, one.summary) if over_answer(unit)]
        parts += [note(f"Over {whose(one)}: {_of_unit(one, unit)}.") for unit in over]
        parts += [_effects(one, unit, f", over {whose(one)}") for unit in over]
    return Section(id="factorial", title=TITLE, parts=parts)


def _caption(run: Run, units: list[str | None]) -> str:
    if findings.shown_score(run.rows, units[0]) == "linear_nats":
        said = [
            OPENS
            + "How far the lower half (layers 0 to L), the upper half, and both beyond their sum move the logits from the base's to the "
            "tuned model's"
        ]
        said[0] += (
            ", in nats of a linear score: the two halves sum to KL(tuned ‖ base) + KL(base ‖ tuned), and changes that merely add do not interact"
        )
    else:
        said = [
            OPENS + "Nats of KL(tuned ‖ run) taken off by the lower half (layers 0 to L), by the upper half, and by both beyond their sum"
        ]
        said[0] += "; changes that merely add have an interaction under 0 in this unit"
    return ". ".join([*said, *(_of_unit(run, unit) for unit in units)]) + "."


def _of_unit(run: Run, unit: str | None) -> str:
    one = findings.interaction(run.rows, unit)
    said = [words.which_half(findings.halves(run.rows, unit))]
    if one is not None:
        size = f"{with_interval(one.mean, one.low, one.high)} of {nats(one.whole)} {'nats' if one.score == 'linear_nats' else 'logits'}"
        size += " per token" * over_answer(unit)
        said.append(f"interaction at L = {one.layer} ({words.how_chosen(one)}): {size}, {spoken.in_words(one.p)}")
    else:
        said.append("no interaction is given: too few prompts have a linear score")
    return f"Exchanged at {where_exchanged(unit)}: {'; '.join(said)}"


def _effects(run: Run, unit: str | None, of: str = "") -> dict:
    """The three effects at every split point, each with its interval and p, beside the other score."""
    scores = ["linear_nats", "nats"] if findings.shown_score(run.rows, unit) == "linear_nats" else ["nats", "logits"]
    found, beside = (findings.effects(run.rows, run.summary, unit, score) for score in scores)
    cells = {(r["layer"], r["effect"]): r for r in found.iter_rows(named=True)}
    extra = {(r["layer"], r["effect"]): r for r in beside.iter_rows(named=True)}
    columns = ["L"]
    for effect in COLOURS:
        columns += [f"{effect}, {WORDS[scores[0]]}", "p"] + ([f"{effect}, {WORDS.get(scores[1], scores[1])}"] if extra else [])
    rows = []
    for layer in found["layer"].unique().sort().to_list():
        row = [f"{layer}"]
        for effect in COLOURS:
            one, other = cells.get((layer, effect)), extra.get((layer, effect))
            row += [shown(one["mean"], one["low"], one["high"]), "–" if one["p"] is None else nats(one["p"])] if one else ["–"] * 2
            row += ([nats(other["mean"]) if other else "–"]) if extra else []
        rows.append(row)
    return table(columns, rows, folded=f"Every split point, each by itself, exchanged at {where_exchanged(unit)}{of}")
