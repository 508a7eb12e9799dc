"""The section on routing shows at every layer which share of tokens goes to other experts, and what moves them."""

from typing import Any

from mechdiff.measures.routing import findings
from mechdiff.measures.routing.charts import experts_by_layer
from mechdiff.measures.routing.findings import DECISION, EVERYWHERE, SOURCES
from mechdiff.measures.routing.plan import JS, REPLACED, SET, TOP
from mechdiff.report.parts import Drawn, Run, Section, note, table
from mechdiff.report.phrasing import listed, nats, prompts, shown

TITLE = "Do tokens go to other experts?"
COLUMNS = {TOP: "other top-1 expert", SET: "other set", REPLACED: "experts replaced", JS: "JS, nats"}
GATES = {
    "softmax": "the softmax of the router's scores over all experts",
    "sigmoid": "the sigmoids of the router's scores, divided by their sum over all experts (a correction bias moves the choice alone, not the gate)",
}


def routing(run: Run) -> Section:
    """The section; a note where it was not measured, with the reason where there is one."""
    if findings.by_layer(run.rows, run.summary).is_empty():
        return Section(id="routing", title=TITLE, parts=[note(f"Routing was not measured{run.why_not('routing')}.")])
    figure = Drawn(name="experts_by_layer", chart=experts_by_layer, caption=_caption(run), reading="experts_by_layer")
    parts: list[Any] = [figure, *_layers(run)]
    return Section(id="routing", title=TITLE, parts=parts)


def _caption(run: Run) -> str:
    found = findings.by_layer(run.rows, run.summary)
    sent = listed(f"{chosen} of {of}" for chosen, of in findings.experts(run.manifest)) or "some"
    said = [
        f"Tokens of {prompts(int(found['n'][0]))}, each sent to {sent} experts: the share whose top-1 expert in the tuned model is another than in "
        "the base, as the mean over prompts of each prompt's share"
    ]
    if gates := findings.gates(run.manifest):
        said.append(f"The gate is {listed(GATES[gate] for gate in gates)}")
    if (noise := findings.noise(run.rows)) is not None:
        said.append(
            f"Numerical noise: routers of the base, asked again outside the pass, lie {nats(noise)} nats at most from what they gave in it"
        )
    return f"{'. '.join(said)}."


def _layers(run: Run) -> list[dict]:
    """Every layer: all tokens and what moves them, then the last prompt token alone."""
    every = [(source, metric, EVERYWHERE) for source in SOURCES.values() for metric in (COLUMNS if source == "both" else (TOP, JS))]
    last = [("both", metric, DECISION) for metric in COLUMNS]
    return [_table(run, every, "Every layer, all tokens"), _table(run, last, "Every layer, the last prompt token alone")]


def _table(run: Run, columns: list[tuple[str, str, str]], folded: str) -> dict:
    cells: dict[tuple[int, str, str, str], str] = {}
    for metric, unit in dict.fromkeys((metric, unit) for _, metric, unit in columns):
        for r in findings.by_layer(run.rows, run.summary, metric, unit).iter_rows(named=True):
            digits = None if metric == JS else 2
            cells[r["layer"], r["source"], metric, unit] = shown(r["mean"], r["low"], r["high"], r["n"], digits=digits)
    known = [one for one in columns if any(key[1:] == one for key in cells)]
    names = [f"{COLUMNS[metric]}{'' if source == 'both' else f', {source}'}" for source, metric, _ in known]
    rows = [[f"{layer}", *(cells.get((layer, *one), "–") for one in known)] for layer in sorted({key[0] for key in cells})]
    return table(["layer", *names], rows, folded=folded)
