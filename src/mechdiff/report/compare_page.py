"""From a comparison to compare.html: what is not the same, then axis by axis a figure, the numbers of each run, and their differences."""

from pathlib import Path
from typing import Any

from mechdiff.report import charts_compare
from mechdiff.report.compare import Comparison, said, write_table
from mechdiff.report.findings import BREAKAGE, RECOVERY
from mechdiff.report.page import write_page
from mechdiff.report.parts import Drawn, Section, note, table
from mechdiff.report.phrasing import between, listed, nats

TITLES = {
    "difference": "How differently do they speak from their base?",
    "where": "Where does each change matter: in few places or in many?",
    "weights": "Which weights changed?",
    "transport": "Can a map carry it, or does a constant?",
    "rank": "How many dimensions does it have?",
    "heads": "How many heads carry it?",
    "behaviour": "What do they do?",
}
"""By axis."""
CHARTS: dict[str, list[tuple[str, Any, dict[str, Any]]]] = {
    "where": [
        ("compare_effective", charts_compare.effective, {}),
        ("compare_breakage", charts_compare.profiles, {"direction": BREAKAGE}),
        ("compare_recovery", charts_compare.profiles, {"direction": RECOVERY}),
        ("compare_difference", charts_compare.differences, {"direction": RECOVERY}),
    ],
    "weights": [("compare_weights", charts_compare.weights, {})],
    "transport": [("compare_maps", charts_compare.maps, {})],
    "rank": [("compare_rank", charts_compare.ranks, {})],
    "heads": [("compare_heads", charts_compare.heads, {})],
}
CAPTIONS = {
    "compare_effective": "How many places carry each change: dots are estimates, lines 95 % intervals over prompts.",
    "compare_breakage": "Breakage by block: share of each run's own D that writing the base's state into its tuned model breaks. "
    "Bands hold the whole line with 95 %.",
    "compare_recovery": "Recovery by block: share of each run's own D that writing its tuned state into the base recovers. "
    "Bands hold the whole line with 95 %.",
    "compare_difference": "Difference of recovery by block; bands hold the whole line with 95 %.",
    "compare_weights": "Mean relative change of a block's matrices.",
    "compare_maps": "What the base recovers of each D when its own state is mapped, and when it is shifted by the mean difference.",
    "compare_rank": "Rank of the change by block, chosen by cross-validation on the fit prompts.",
    "compare_heads": "How much of all single heads' effects the strongest have; order chosen on the select prompts, values of the reported ones.",
}


def build_page(comparison: Comparison, folder: Path) -> Path:
    """Writes compare.html, compare.parquet and figures/ into a folder; returns the page's path. The same runs give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_table(comparison, folder)
    shown = [_unlike(comparison), *(_axis(comparison, axis) for axis in TITLES)]
    return write_page(
        folder / "compare.html", comparison.runs[0], [one for one in shown if one.parts], joint="against", kicker="how fine-tunes contrast",
        names=list(comparison.names), quick=any(run.manifest.get("quick") for run in comparison.runs), warned=0, verdict=comparison.verdict(),
        record=[], study="", files=["compare.parquet"],
    )  # fmt: skip


def _unlike(comparison: Comparison) -> Section:
    """What differs beside the fine-tunes."""
    title = "What is not the same"
    if not comparison.unlike:
        alike = "Nothing but the fine-tunes and their prompts: base, policy, position, measures and their options are the same in all runs."
        return Section(id="unlike", title=title, parts=[note(alike)])
    lines = [(one.what, *one.said) for one in comparison.unlike]
    text = "These may make a difference that the fine-tunes do not make; read the contrasts with them in mind."
    return Section(id="unlike", title=title, lead=[text], parts=[table(("", *comparison.names), lines)])


def _axis(comparison: Comparison, axis: str) -> Section:
    keys = [key for key, by_run in comparison.quantities.items() if next(iter(by_run.values())).axis == axis]
    parts: list[Any] = []
    for name, chart, options in CHARTS.get(axis, []):
        told = {"comparison": comparison, **options}
        parts.append(Drawn(name=name, chart=chart, options=told, caption=_caption(comparison, name), reading=name))
    if not keys:
        return Section(id=axis, title=TITLES[axis], parts=[])
    return Section(id=axis, title=TITLES[axis], parts=[*parts, *_numbers(comparison, keys)])


def _caption(comparison: Comparison, name: str) -> str:
    text = CAPTIONS[name]
    if name != "compare_difference":
        return text
    found = charts_compare.difference(comparison, RECOVERY)
    if found.is_empty():
        return text
    apart = [f"L{r['layer']}.{r['panel']} ({r['line']})" for r in found.iter_rows(named=True) if r["low"] > 0 or r["high"] < 0]
    where = f": {listed(apart[:6])}{' and others' * (len(apart) > 6)}" if apart else ""
    return f"{text} The band leaves out 0 at {len(apart)} of {len(found)} places{where}."


def _numbers(comparison: Comparison, keys: list[str]) -> list[dict]:
    """Each number of each run; then each difference with its interval, p, and what would have been seen."""
    own = []
    for key in keys:
        by_run = comparison.quantities[key]
        of = {one.of for one in by_run.values()} - {""}
        name = next(iter(by_run.values())).name + (f" (of {listed(sorted(of))})" if of else "")
        own.append((name, *(said(by_run[run]) if run in by_run else "–" for run in comparison.names)))
    found = [table(("", *comparison.names), own, title="In numbers, with 95 % intervals", stacked=False)]
    apart = [
        (
            _short(comparison, key), f"{one.run} − {one.against}", nats(one.value), between(one.low, one.high), "yes" if one.told_apart else "no",
            f"{one.p:.2g}", nats(one.detectable), f"{one.n}{', paired' if one.paired else ''}",
        )
        for key in keys
        for one in comparison.contrasts.get(key, [])
    ]  # fmt: skip
    if apart:
        columns = ("", "runs", "difference", "95 %", "told apart", "p (Holm)", "would have been seen", "prompts")
        found.append(table(columns, apart, title="Differences"))
    return found


def _short(comparison: Comparison, key: str) -> str:
    return next(iter(comparison.quantities[key].values())).name
