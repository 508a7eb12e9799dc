"""A comparison's first sections say what is not the same, and how distributed each change is."""

from typing import Any

from mechdiff.comparison import charts
from mechdiff.comparison.compared import Compared, differences, forest, own, said
from mechdiff.report.parts import Drawn, Section, note, table
from mechdiff.report.phrasing import listed, nats


def unlike(of: Compared) -> Section:
    """What the runs differ in, and what that does."""
    rows = [(mark.field, mark.meaning, *mark.values) for mark in of.marks]
    parts = (
        [table(("", "what it does", *of.names), rows, stacked=True)]
        if rows
        else [note("Nothing that was looked at: base, prompts, settings.")]
    )
    return Section(id="unlike", title="What is not the same", parts=parts)


def local(of: Compared) -> Section:
    """The localisation index, over each kind of parts."""
    keys = [one.key for one in of.main]
    title = "Local or distributed, low rank or high?"
    if not keys:
        return Section(
            id="local",
            title=title,
            parts=[note(f"No run has shares that add of its parts ({', '.join(of.locating)}), which this is made of.")],
        )
    told = "; ".join(f"{key[1]}: {said(of, key)}" for key in keys[:2])
    caption = f"Over how many parts each change is spread, by shares that add, where the base runs; {told}. "
    if any(one.null for name in of.names for key in keys if (one := of.one(name, key))):
        caption += "Grey: what would be found if all parts had alike, on as many prompts and with as much scatter; beside it in the table, if there "
        caption += "were nothing there but scatter (that something is there is tested by the sum of the parts, not by this range). "
    caption += "Dashed: the parts there are." if not of.across_bases else "As shares of the parts there are."
    drawn_keys = [one.key for one in of.main if not (of.across_bases and one.of == "directions")]
    axis = "share of the parts there are" if of.across_bases else "effective number of parts"
    chart = {"table": forest(of, drawn_keys), "names": of.names, "log": not of.across_bases, "title": axis}
    drawn = Drawn(name="compare_local", chart=charts.numbers, options=chart, caption=caption, reading="compare_local")
    return Section(id="local", title=title, parts=[drawn, *own(of, keys), *differences(of, keys, folded=""), *_index(of)])


def _index(of: Compared) -> list[dict]:
    """The localisation index 1 / N, by the number that says how distributed a change is: 1 for one part, 1/n for evenly everywhere."""
    leading = next((one for one in of.main if one.leads and one.of == "parts"), None)
    if leading is None:
        return []
    rows = []
    for name in of.names:
        one = of.one(name, leading.key)
        if one is not None and one.unit == "parts" and one.parts:
            e = one.estimate
            if one.silent or e.value <= 0:
                continue
            most = nats(1 / e.low) if e.low > 0 else "no end"
            rows.append(
                (name, f"{nats(1 / e.value)} [{nats(1 / e.high)}, {most}]" if e.low == e.low else nats(1 / e.value), nats(1 / one.parts))
            )
    columns = ("", "1 / N", "evenly everywhere")
    return (
        [table(columns, rows, folded=f"The same as localisation index, N being {leading.name}: 1 where it is all in one")] if rows else []
    )


def lacking(of: Compared, axis: str, what: str) -> list[Any]:
    """A note that names the runs that have no number of an axis."""
    absent = [name for name in of.names if not any(one.axis == axis for one in of.found[name])]
    return [note(f"No {what} in {listed(absent)}: not measured, or no effect was found.")] if absent else []
